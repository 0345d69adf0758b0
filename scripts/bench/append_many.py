"""Thirty-two clients that append at once, to agents of their own or all to one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from statistics import median

from app.runtime import Runtime
from models.agent import AgentRecord
from scripts.bench.http_client import connected
from scripts.bench.lab import Lab
from scripts.bench.material import make_agent
from scripts.bench.processes import Server, cpu_seconds
from scripts.bench.report import Bound, Finding, Row, compared
from scripts.bench.rounds import Variant, take_turns
from scripts.bench.scale import Scale
from scripts.bench.ways import Way, by_driver, by_guarded_driver, by_http, by_service

NAME = "append_many"
CLIENTS = 32
_STEPS = 10
_DRIVER = "driver, $set"
_SHARING = "holdfast"
_ALONE = "holdfast, nothing shared"
_HTTP = "holdfast, HTTP"
_EXPECTED = {_SHARING: Bound("≥", 1.0), _ALONE: Bound("≥", 0.65)}
_ABOUT = (
    f"Throughput of {CLIENTS} clients, each with one append of a 1 KB step under way; agents of {_STEPS} steps, known "
    "to their writer. The driver's clients await an update_one each; the guarded ones have the version in its filter. "
    "'nothing shared': fold_limit=1, bulk_limit=1, flights=64. All but HTTP, which is for "
    "information, run in this process. "
    "Noted: processor time per append, without the database's."
)


@dataclass(frozen=True)
class Crowd:
    """How many agents the clients write to, and how often each client does in a turn."""

    agents: int
    calls_each: int

    @property
    def name(self) -> str:
        return f"{self.agents} agents" if self.agents > 1 else "one agent"

    def share(self, client: int, agents: list[AgentRecord]) -> list[AgentRecord]:
        """The agents that a client writes to in turn: its own, where there are enough."""
        return agents[client::CLIENTS] or agents


class Processors:
    """Processor time per append, of this process and of the replica's."""

    def __init__(self, replica: Server) -> None:
        self._replica = replica
        self._own: list[float] = []
        self._served: list[float] = []

    @contextmanager
    def watched(self, appends: int) -> Iterator[None]:
        """Take note of what the appends inside cost."""
        own, served = time.process_time(), cpu_seconds(self._replica.pid)
        yield
        self._own.append((time.process_time() - own) / appends)
        self._served.append((cpu_seconds(self._replica.pid) - served) / appends)

    def told(self, *, served: bool) -> str:
        own = f"{median(self._own) * 1e6:.0f} µs"
        return f"{own} client, {median(self._served) * 1e6:.0f} µs replica" if served else own


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure an agent for each client, ten for each, and one for all."""
    crowds = (
        Crowd(CLIENTS, scale.calls_each),
        Crowd(10 * CLIENTS, scale.calls_each),
        Crowd(1, scale.calls_each // 4 or 1),
    )
    async with AsyncExitStack() as stack:
        sharing = await stack.enter_async_context(lab.runtime())
        alone = await stack.enter_async_context(lab.runtime(fold_limit=1, bulk_limit=1, flights=64))
        driver = await stack.enter_async_context(lab.driver())
        replica = await stack.enter_async_context(lab.replica())
        connections = [await stack.enter_async_context(connected(replica.port)) for _ in range(CLIENTS)]
        ways = {
            _DRIVER: by_driver(driver),
            "driver, guarded": by_guarded_driver(driver),
            _SHARING: by_service(sharing.agents),
            _ALONE: by_service(alone.agents),
            _HTTP: by_http(connections),
        }
        rows = [row for crowd in crowds for row in await _compare(sharing, replica, ways, crowd, scale)]
    return Finding(NAME, _ABOUT, rows)


async def _compare(runtime: Runtime, replica: Server, ways: Mapping[str, Way], crowd: Crowd, scale: Scale) -> list[Row]:
    processors = {name: Processors(replica) for name in ways}
    variants = [_variant(runtime, name, way, crowd, processors[name]) for name, way in ways.items()]
    figures = await take_turns(variants, scale.rounds)
    notes = {name: each.told(served=name == _HTTP) for name, each in processors.items()}
    return compared(crowd.name, "/s", figures, against=_DRIVER, expected=_EXPECTED, notes=notes)


def _variant(runtime: Runtime, name: str, way: Way, crowd: Crowd, processors: Processors) -> Variant:
    async def turn() -> list[float]:
        agents = list(await asyncio.gather(*(make_agent(runtime.agents, _STEPS) for _ in range(crowd.agents))))
        await _append(way, crowd, agents, len(crowd.share(0, agents)))
        appends = CLIENTS * crowd.calls_each
        with processors.watched(appends):
            started = time.perf_counter()
            await _append(way, crowd, agents, crowd.calls_each)
            return [appends / (time.perf_counter() - started)]

    return Variant(name, turn)


async def _append(way: Way, crowd: Crowd, agents: list[AgentRecord], calls_each: int) -> None:
    """Let every client append so often, going round its agents."""

    async def client(number: int) -> None:
        mine = cycle(crowd.share(number, agents))
        for _ in range(calls_each):
            await way(number, next(mine))

    await asyncio.gather(*map(client, range(CLIENTS)))
