"""Whether memory stays where it is: ten minutes of a mixed load over two replicas, with feeds that come and go."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from statistics import median

from scripts.bench.http_client import get
from scripts.bench.lab import Lab
from scripts.bench.mixed import Fleet, started, work
from scripts.bench.processes import Server, cpu_seconds, resident_bytes
from scripts.bench.report import Bound, Finding, Row
from scripts.bench.rounds import Spread
from scripts.bench.scale import Scale
from scripts.bench.sse_client import leave, reading

NAME = "soak"
_CLIENTS = 8
_AGENTS = 48
_STEPS = 50
_READERS = 20
_SAMPLES_EACH_SECOND = 1
_SMALL = 16 * 1024 * 1024
_MB = 1024 * 1024
_ABOUT = (
    f"{_CLIENTS} clients without a pause and {_READERS} readers of feeds that are opened anew every few seconds, over "
    "two replicas. Resident memory, once a second: the median of the third tenth of the run (when the caches, made "
    "small for this, are full) beside that of the last. Flat means a ratio of about 1. The mix: "
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure once; it takes as long as it takes."""
    async with AsyncExitStack() as stack:
        small = dict.fromkeys(("cache_bytes", "segment_bytes", "blob_bytes", "basis_bytes"), _SMALL)
        servers = [await stack.enter_async_context(lab.replica(**small)) for _ in range(2)]
        fleet = await started(servers[0], _AGENTS, _STEPS)
        until = time.monotonic() + scale.soak_seconds
        used = [cpu_seconds(server.pid) for server in servers]
        sampling = asyncio.create_task(_sampled(servers, until))
        feeds = asyncio.create_task(_follow(servers, fleet, until))
        await work(servers, fleet, _CLIENTS, lambda: time.monotonic() >= until)
        await feeds
        samples = await sampling
        spent = sum(cpu_seconds(server.pid) - before for server, before in zip(servers, used, strict=True))
    rows = [row for number, own in enumerate(samples) for row in _rows(f"replica {number + 1}", own)]
    note = f"{fleet.done} operations, {1000 * spent / fleet.done:.2f} ms of processor time each"
    rows.append(Row("operations", "both replicas", "/s", Spread.of([fleet.done / scale.soak_seconds]), note=note))
    return Finding(NAME, f"{_ABOUT}{fleet.mix}. {scale.soak_seconds} s.", rows)


def _rows(case: str, samples: list[float]) -> list[Row]:
    tenth = max(1, len(samples) // 10)
    early, late = samples[2 * tenth : 3 * tenth], samples[-tenth:]
    growth = Spread.of([median(late) / median(early)])
    return [
        Row(case, "third tenth", "MB", Spread.of(early)),
        Row(case, "last tenth", "MB", Spread.of(late), growth, "third tenth", Bound("≤", 1.1)),
    ]


async def _sampled(servers: list[Server], until: float) -> list[list[float]]:
    found: list[list[float]] = [[] for _ in servers]
    while time.monotonic() < until:
        for own, server in zip(found, servers, strict=True):
            own.append(resident_bytes(server.pid) / _MB)
        await asyncio.sleep(1 / _SAMPLES_EACH_SECOND)
    return found


async def _follow(servers: list[Server], fleet: Fleet, until: float) -> None:
    """Open feeds of some agents, from their first step on, and leave them again."""
    chance = random.Random(1)
    while time.monotonic() < until:
        feeds = [
            reading(
                chance.choice(servers).port,
                get(f"/v1/agents/{chance.choice(fleet.agents)}/events", Last_Event_ID="1"),
                lambda _: None,
            )
            for _ in range(_READERS)
        ]
        opened = await asyncio.gather(*feeds, return_exceptions=True)
        await asyncio.sleep(5)
        leave(reader for reader in opened if not isinstance(reader, BaseException))
