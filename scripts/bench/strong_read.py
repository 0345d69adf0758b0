"""A linearizable read of an agent's version: by the barrier, and by the database's own read concern."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from pymongo.read_concern import ReadConcern

from app.mongo import Collection
from scripts.bench.lab import Lab
from scripts.bench.material import make_agent
from scripts.bench.report import Bound, Finding, Row, compared
from scripts.bench.rounds import Turn, Variant, milliseconds_each, take_turns
from scripts.bench.scale import Scale

NAME = "strong_read"
_BARRIER = "barrier"
_LINEARIZABLE = "driver, linearizable"
_READERS = 32
_EXPECTED = {_LINEARIZABLE: Bound("≥", 1.0)}
_ABOUT = (
    f"p50 of one read of an agent's version, one reader or {_READERS} at once, in process. 'barrier' is how Holdfast "
    "reads linearizably: a write of its own, then a read not older than it. 'driver' asks with the read concern "
    "linearizable, or majority, which may show what is older. The server flushes its journal as by default, every "
    "100 ms, or when a journaled write waits for it; only heartbeats, three or four in a second, are written beside."
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure one agent, read by one reader and by many at once."""
    rows: list[Row] = []
    async with lab.runtime() as runtime, lab.driver() as collection:
        agent = (await make_agent(runtime.agents, 10)).id
        reads: dict[str, Callable[[], Awaitable[object]]] = {
            _BARRIER: partial(runtime.store.version, agent),
            _LINEARIZABLE: partial(_find, collection, "linearizable", agent),
            "driver, majority": partial(_find, collection, "majority", agent),
        }
        for readers in (1, _READERS):
            variants = [Variant(name, _turn(read, readers, scale.calls_each)) for name, read in reads.items()]
            figures = await take_turns(variants, scale.rounds)
            rows += compared(f"{readers} at once", "ms", figures, against=_BARRIER, expected=_EXPECTED)
    return Finding(NAME, _ABOUT, rows)


async def _find(collection: Collection, level: str, agent: str) -> object:
    source = collection.with_options(read_concern=ReadConcern(level))
    return await source.find_one({"_id": agent}, {"version": 1})


def _turn(read: Callable[[], Awaitable[object]], readers: int, calls: int) -> Turn:
    async def turn() -> list[float]:
        each = await asyncio.gather(*(milliseconds_each(read, calls) for _ in range(readers)))
        return [one for taken in each for one in taken]

    return turn
