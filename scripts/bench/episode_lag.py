"""How long after an episode is acknowledged by one replica another replica finds it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from itertools import chain

import orjson

from scripts.bench.http_client import Connection, post
from scripts.bench.lab import Lab
from scripts.bench.latencies import p99
from scripts.bench.lessons import Exact, lesson, shown, vectors
from scripts.bench.report import Finding, Row, compared
from scripts.bench.rounds import Spread, Variant, take_turns
from scripts.bench.scale import Scale

NAME = "episode_lag"
_SAME, _OTHER = "same replica", "other replica"
_PATIENCE = 10.0
_ABOUT = (
    "An episode is stored through one replica, with a vector; from the moment when the acknowledgement came, a "
    "replica is searched for that vector, again as soon as it has answered, until it answers with the episode. What "
    "is shown is when that answer came, so that a search is the least that it can be: what the same replica takes, "
    "which finds it at once. One at a time, one process, one clock. p50 of a turn; p99 and the slowest of all {tries} "
    "tries. Noted: searches that it took, on average."
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure the replica that stores and another one, in turns."""
    tries = math.ceil(scale.events / scale.rounds)
    async with AsyncExitStack() as stack:
        writer, other = [await stack.enter_async_context(lab.connection()) for _ in range(2)]
        numbers = chain.from_iterable(vectors(3 * scale.events, seed=2))
        hunts = {_SAME: _Hunt(writer, writer, numbers), _OTHER: _Hunt(writer, other, numbers)}
        figures = await take_turns(
            [Variant(name, partial(hunt.turn, tries)) for name, hunt in hunts.items()], scale.rounds
        )
    notes = {name: f"{hunt.searches / len(hunt.taken):.2f} searches" for name, hunt in hunts.items()}
    rows = compared("p50", "ms", figures, against=_SAME, notes=notes)
    rows += [Row("p99", name, "ms", Spread.of([p99(hunt.taken)])) for name, hunt in hunts.items()]
    rows += [Row("slowest", name, "ms", Spread.of([max(hunt.taken)])) for name, hunt in hunts.items()]
    return Finding(NAME, _ABOUT.format(tries=tries * scale.rounds), rows)


class _Hunt:
    """Episodes that are stored through one replica and looked for at one."""

    def __init__(self, writer: Connection, finder: Connection, numbers: Iterator[Exact]) -> None:
        self._writer = writer
        self._finder = finder
        self._vectors = numbers
        self.taken: list[float] = []
        self.searches = 0

    async def turn(self, tries: int) -> list[float]:
        """Milliseconds of each."""
        taken = [await self._one() for _ in range(tries)]
        self.taken += taken
        return taken

    async def _one(self) -> float:
        vector = shown(next(self._vectors))
        search = post("/v1/episodes/search", orjson.dumps({"vector": vector, "k": 1}))
        body = orjson.dumps({**lesson(len(self.taken)), "embedding": vector})
        stored = await self._writer.ask(post("/v1/episodes", body))
        name = orjson.loads(stored.body)["id"]
        until = stored.at + _PATIENCE
        while time.perf_counter() < until:
            self.searches += 1
            answer = await self._finder.ask(search)
            if [item["episode"]["id"] for item in orjson.loads(answer.body)["items"]] == [name]:
                return (answer.at - stored.at) * 1000
        raise TimeoutError("An episode was acknowledged and never found.")
