"""What an agent in memory takes, beside what it is counted as, and what readers of feeds cost that hear nothing."""

from __future__ import annotations

import asyncio
import math
import resource
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import cycle

import orjson

from models.agent import AgentRecord
from scripts.bench.append_many import CLIENTS
from scripts.bench.http_client import connected, get
from scripts.bench.lab import Lab
from scripts.bench.material import SHORT_STEPS, make_agent
from scripts.bench.processes import Server, output, resident_bytes
from scripts.bench.report import Bound, Finding, Row, compared
from scripts.bench.rounds import Spread, Variant, take_turns
from scripts.bench.scale import Scale
from scripts.bench.sse_client import Reader, leave, reading
from scripts.bench.ways import Way, by_http

NAME = "memory"
_COUNTED = "counted"
_ALONE = "no reader"
_FILES = 16_384
_TOPICS = 50
_AT_ONCE = 50
_ABOUT = (
    "Agents: what a process that fills a cache from the database grows by for each ('resident', garbage collected), "
    "with the decoded record alone and with the encoded answer beside it, set against what the cache counts for it; "
    "noted are the bytes of its document and of its answer. An agent without steps shows what is taken whatever the "
    "size. Readers: what a replica grows by for each open feed of an agent that nothing happens to, "
    f"and the throughput of {CLIENTS} clients that append over HTTP to agents of their own, through a replica with "
    "that many readers and through one without; each reader gets its heartbeat every 15 s."
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure agents without steps and short ones, then readers."""
    rows: list[Row] = []
    for steps in (0, SHORT_STEPS):
        rows += await _cached(lab, steps, scale)
    return Finding(NAME, _ABOUT, [*rows, *await _read(lab, scale)])


async def _cached(lab: Lab, steps: int, scale: Scale) -> list[Row]:
    keys = await _make_agents(lab, steps, scale.agents)
    found = [
        orjson.loads(await output(("-m", "scripts.bench.filling", lab.uri, lab.database, *keys)))
        for _ in range(math.ceil(scale.rounds / 4))
    ]
    figures = {name: [one[name] for one in found] for name in found[0]}
    case = f"{steps} steps"
    size = f"{figures['stored'][0]:,.0f} BSON, {figures['answer'][0]:,.0f} JSON"
    return [
        *_set_against(f"{case}, record", figures["record"], figures["counted"], size),
        *_set_against(f"{case}, and answer", figures["shown"], figures["counted_shown"], size),
    ]


def _set_against(case: str, own: list[float], counted: list[float], note: str) -> list[Row]:
    return compared(case, "bytes", {_COUNTED: counted, "resident": own}, against=_COUNTED, notes={_COUNTED: note})


async def _make_agents(lab: Lab, steps: int, count: int) -> list[str]:
    """Keys of new agents."""
    async with lab.runtime() as runtime:
        keys: list[str] = []
        while len(keys) < count:
            many = min(CLIENTS, count - len(keys))
            keys += [
                made.id for made in await asyncio.gather(*(make_agent(runtime.agents, steps) for _ in range(many)))
            ]
        return keys


async def _read(lab: Lab, scale: Scale) -> list[Row]:
    """Two replicas, one of them with readers."""
    resource.setrlimit(resource.RLIMIT_NOFILE, _files())
    many = f"{scale.readers} readers"
    async with AsyncExitStack() as stack:
        alone = await stack.enter_async_context(lab.replica())
        crowded = await stack.enter_async_context(lab.replica())
        async with lab.runtime() as runtime:
            idle = [await make_agent(runtime.agents, 1) for _ in range(_TOPICS)]
            busy = {name: [await make_agent(runtime.agents, 1) for _ in range(CLIENTS)] for name in (_ALONE, many)}
        for server in (alone, crowded):
            await _warm_up(server, idle)
        before = resident_bytes(crowded.pid)
        await stack.enter_async_context(_readers(crowded, idle, scale.readers))
        grown = (resident_bytes(crowded.pid) - before) / scale.readers
        ways = {
            _ALONE: by_http([await stack.enter_async_context(connected(alone.port)) for _ in range(CLIENTS)]),
            many: by_http([await stack.enter_async_context(connected(crowded.port)) for _ in range(CLIENTS)]),
        }
        variants = [Variant(name, partial(_appending, way, busy[name], scale.calls_each)) for name, way in ways.items()]
        for name, way in ways.items():
            await _appending(way, busy[name], 1)
        figures = await take_turns(variants, scale.rounds)
    expected = {many: Bound("≥", 0.9)}
    return [
        Row("readers, memory", f"each of {scale.readers}", "bytes", Spread.of([grown])),
        *compared("readers, appends", "/s", figures, against=_ALONE, expected=expected),
    ]


async def _warm_up(server: Server, agents: list[AgentRecord]) -> None:
    """Bring the agents into memory, and open a feed once."""
    async with connected(server.port) as connection:
        for agent in agents:
            await connection.ask(get(f"/v1/agents/{agent.name_in_tenant}"))
    async with _readers(server, agents, 1):
        pass


@asynccontextmanager
async def _readers(server: Server, agents: list[AgentRecord], count: int) -> AsyncIterator[None]:
    """So many open feeds, spread over the agents."""
    topics = cycle(get(f"/v1/agents/{agent.name_in_tenant}/events") for agent in agents)
    readers: list[Reader] = []
    try:
        while len(readers) < count:
            many = min(_AT_ONCE, count - len(readers))
            readers += await asyncio.gather(*(reading(server.port, next(topics), _ignore) for _ in range(many)))
        yield
    finally:
        leave(readers)


def _ignore(_: str) -> None:
    return None


async def _appending(way: Way, agents: list[AgentRecord], calls_each: int) -> list[float]:
    """Appends per second."""

    async def client(number: int) -> None:
        for _ in range(calls_each):
            await way(number, agents[number])

    started = time.perf_counter()
    await asyncio.gather(*map(client, range(CLIENTS)))
    return [CLIENTS * calls_each / (time.perf_counter() - started)]


def _files() -> tuple[int, int]:
    """Limits of open files that leave room for the readers, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    return (soft if soft == resource.RLIM_INFINITY else max(soft, wanted)), hard
