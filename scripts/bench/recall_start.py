"""The first search after a replica was started anew: it reads all vectors of the tenant before it answers."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from functools import partial

import orjson

from scripts.bench.http_client import Connection, connected, get
from scripts.bench.lab import Lab
from scripts.bench.lessons import DIMENSION, LARGEST, agent, fill, questions, spaces_of
from scripts.bench.report import Finding, compared
from scripts.bench.rounds import Variant, milliseconds_each, take_turns
from scripts.bench.scale import Scale

NAME = "recall_start"
_BETWEEN_READS = 0.005
_ABOUT = (
    "A replica is started, the database stays warm. 'Ready' is from its start to its first 200 at /health/ready, "
    "which does not wait for any episode to be read: it takes as long whatever there is. 'First search' is from the "
    "first question to its answer; a 503 (noted, where there was one: the reading takes longer than a call may) is "
    "asked again at once. 'Read meanwhile' is the p50 and the slowest of reads of an agent from memory by the same "
    "replica, one each 5 ms, while it reads the vectors. 'Second search' follows the first."
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure a replica that is started anew for each size, in turns."""
    spaces = spaces_of(scale)
    starts = _Starts(orjson.dumps(dict.fromkeys(spaces.keys() - {LARGEST}, DIMENSION)).decode())
    async with lab.elsewhere() as filled:
        await fill(filled, spaces)
        variants = [Variant(f"{count}", partial(starts.one, filled, name, count)) for name, count in spaces.items()]
        figures = await take_turns(variants, math.ceil(scale.rounds / 4))
    against = variants[0].name
    notes = {name: f"{sum(each)} × 503" for name, each in starts.refused.items() if sum(each)}
    return Finding(
        NAME,
        _ABOUT,
        [
            *compared("ready", "s", starts.ready, against=against),
            *compared("first search", "s", figures, against=against, notes=notes),
            *compared("second search", "ms", starts.second, against=against),
            *compared("read meanwhile, p50", "ms", starts.beside, against=against),
            *compared("read meanwhile, slowest", "ms", starts.slowest, against=against),
        ],
    )


class _Starts:
    """What starts of replicas took, by the number of episodes that are searched then."""

    def __init__(self, embedders: str) -> None:
        self._embedders = embedders
        self.ready: dict[str, list[float]] = defaultdict(list)
        self.second: dict[str, list[float]] = defaultdict(list)
        self.beside: dict[str, list[float]] = defaultdict(list)
        self.slowest: dict[str, list[float]] = defaultdict(list)
        self.refused: dict[str, list[int]] = defaultdict(list)

    async def one(self, lab: Lab, embedder: str, count: int) -> list[float]:
        """Seconds of the first search."""
        name = f"{count}"
        started = time.perf_counter()
        async with lab.replica(embedders=self._embedders) as server:
            self.ready[name].append(time.perf_counter() - started)
            async with connected(server.port) as searching, connected(server.port) as reading:
                return [await self._first(searching, reading, embedder, name)]

    async def _first(self, searching: Connection, reading: Connection, embedder: str, name: str) -> float:
        first, second = questions(2, embedder=embedder)
        small = get(f"/v1/agents/{agent(0)}")
        await milliseconds_each(lambda: reading.ask(small), 10)
        began = time.perf_counter()
        search = asyncio.create_task(until_answered(searching, first))
        taken: list[float] = []
        while not search.done():
            taken += await milliseconds_each(lambda: reading.ask(small), 1)
            await asyncio.sleep(_BETWEEN_READS)
        self.refused[name].append(await search)
        seconds = time.perf_counter() - began
        self.beside[name].append(sorted(taken)[len(taken) // 2])
        self.slowest[name].append(max(taken))
        self.second[name] += await milliseconds_each(lambda: searching.ask(second), 1)
        return seconds


async def until_answered(connection: Connection, request: bytes) -> int:
    """Ask until there is an answer; how often there was none yet."""
    refused = 0
    while (await connection.ask(request, expect=(200, 503))).status == 503:
        refused += 1
    return refused
