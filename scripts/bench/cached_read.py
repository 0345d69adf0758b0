"""Reading an agent that the replica holds in memory, beside the least that a web service can be."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from statistics import median

from app.api.shown import show
from app.cache import Entry
from app.runtime import Runtime
from models.tenant import DEFAULT_TENANT, Right
from scripts.bench.http_client import get
from scripts.bench.http_load import load
from scripts.bench.lab import Lab
from scripts.bench.material import LONG_STEPS, SHORT_STEPS, hold, make_agent
from scripts.bench.processes import Server, cpu_seconds
from scripts.bench.report import Bound, Finding, Row, compared
from scripts.bench.rounds import Variant, take_turns
from scripts.bench.scale import Scale

NAME = "cached_read"
_CONNECTIONS = 8
_PIECE = 100_000
"""Bytes of an answer that take about as long as the rest of a request: longer ones are asked for less often."""
_BARE = "bare ASGI"
_OPEN = "holdfast"
_KEYED = "holdfast, with a key"
_EXPECTED = {_OPEN: Bound("≥", 0.9)}
_ABOUT = (
    f"An agent in memory, read over HTTP by {_CONNECTIONS} kept-alive connections that ask again as soon as they are "
    "answered. 'bare ASGI' is a constant answer of as many bytes and headers from an application that does nothing "
    "else, under the same server (uvicorn, uvloop, httptools, no access log), in a process of its own. '/s' is "
    "requests per second, '/cpu s' requests per second of the server's processor time; the replica's heartbeats and "
    "change stream are in it. Client and server share the processors, so the second is the one to go by. "
    "Longer answers are for information, and so are keys."
)


@dataclass(frozen=True)
class _Target:
    """One way to get an answer of one case."""

    server: Server
    request: bytes
    expect: int


@dataclass
class _Costs:
    """What the turns of one variant took."""

    per_cpu_second: list[float] = field(default_factory=list)
    client: list[float] = field(default_factory=list)

    def told(self) -> str:
        served = 1e6 / median(self.per_cpu_second)
        return f"{served:.0f} µs server, {median(self.client) * 1e6:.0f} µs client"


@dataclass(frozen=True)
class _Place:
    """A replica, the versions of two agents on it, and how it is asked."""

    server: Server
    agents: tuple[_Known, _Known]
    headers: dict[str, str]

    def target(self, agent: _Known, *, known: bool) -> _Target:
        path = f"/v1/agents/{agent.name}"
        return _Target(self.server, get(path, **self.headers, **agent.condition(known=known)), 304 if known else 200)


@dataclass(frozen=True)
class _Known:
    """An agent, and its answer."""

    name: str
    etag: str
    size: int

    def condition(self, *, known: bool) -> dict[str, str]:
        """The headers of one who has this version already."""
        return {"If-None-Match": self.etag} if known else {}


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure a short and a long agent, whole and unchanged."""
    async with AsyncExitStack() as stack:
        free = await stack.enter_async_context(_place(lab, keyed=False))
        keyed = await stack.enter_async_context(_place(await stack.enter_async_context(lab.elsewhere()), keyed=True))
        bare = await stack.enter_async_context(lab.bare([agent.size for agent in free.agents]))
        rows: list[Row] = []
        for number, expected in ((0, _EXPECTED), (1, None)):
            agent, twin = free.agents[number], keyed.agents[number]
            for known in (False, True):
                path = "/unchanged" if known else f"/{agent.size}"
                targets = {
                    _BARE: _Target(bare, get(path, **agent.condition(known=known)), 304 if known else 200),
                    _OPEN: free.target(agent, known=known),
                    _KEYED: keyed.target(twin, known=known),
                }
                case = f"{agent.size // 1000} KB{', 304' if known else ''}"
                times = scale.reads // (1 if known else 1 + agent.size // _PIECE)
                rows += await _compare(case, targets, times, scale, _EXPECTED if known else expected)
    return Finding(NAME, _ABOUT, rows)


@asynccontextmanager
async def _place(lab: Lab, *, keyed: bool) -> AsyncIterator[_Place]:
    """A replica with two agents; with a key, on a database where that is needed."""
    async with lab.runtime() as runtime:
        agents = await _known(runtime, SHORT_STEPS), await _known(runtime, LONG_STEPS)
        token = (await runtime.keys.create(DEFAULT_TENANT, [Right.READ]))[1] if keyed else ""
    async with lab.replica() as server:
        yield _Place(server, agents, {"Authorization": f"Bearer {token}"} if keyed else {})


async def _known(runtime: Runtime, steps: int) -> _Known:
    record = await make_agent(runtime.agents, steps)
    await hold(runtime, record)
    shown = show(Entry(record, 0.0, 0), None, runtime.filling)
    return _Known(record.name_in_tenant, shown.etag.decode(), len(shown.body))


async def _compare(
    case: str, targets: dict[str, _Target], times: int, scale: Scale, expected: dict[str, Bound] | None
) -> list[Row]:
    """By the clock, and by the server's processor time."""
    costs = {name: _Costs() for name in targets}
    variants = [_variant(name, target, times, costs[name]) for name, target in targets.items()]
    figures = await take_turns(variants, scale.rounds)
    by_cpu = {name: cost.per_cpu_second for name, cost in costs.items()}
    notes = {name: cost.told() for name, cost in costs.items()}
    return [
        *compared(case, "/s", figures, against=_BARE, expected=expected),
        *compared(case, "/cpu s", by_cpu, against=_BARE, expected=expected, notes=notes),
    ]


def _variant(name: str, target: _Target, times: int, costs: _Costs) -> Variant:
    each = times // _CONNECTIONS or 1

    async def turn() -> list[float]:
        async with load(target.server.port, target.request, expect=target.expect, connections=_CONNECTIONS) as asking:
            await asking.ask(1 + each // 20)
            started, own, served = time.perf_counter(), time.process_time(), cpu_seconds(target.server.pid)
            await asking.ask(each)
            seconds = time.perf_counter() - started
            requests = each * _CONNECTIONS
            costs.per_cpu_second.append(requests / (cpu_seconds(target.server.pid) - served))
            costs.client.append((time.process_time() - own) / requests)
            return [requests / seconds]

    return Variant(name, turn)
