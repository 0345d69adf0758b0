"""A linearizable read of an agent's version: by the barrier, and by the database's own read concern."""

from __future__ import annotations

from pymongo.read_concern import ReadConcern

from app.mongo import Collection
from app.runtime import Runtime
from scripts.bench.lab import Lab
from scripts.bench.material import make_agent
from scripts.bench.report import Bound, Finding, compared
from scripts.bench.rounds import Turn, Variant, milliseconds_each, take_turns
from scripts.bench.scale import Scale

NAME = "strong_read"
_BARRIER = "barrier"
_LINEARIZABLE = "driver, linearizable"
_EXPECTED = {_LINEARIZABLE: Bound("≥", 1.0)}
_ABOUT = (
    "p50 of one read of an agent's version, one reader, in process, nothing else written. 'barrier' is how Holdfast "
    "reads linearizably: a write of its own, then a read not older than it. 'driver' asks with the read concern "
    "linearizable, or majority, which may show what is older. The server flushes its journal as by default, every "
    "100 ms, or when a journaled write waits for it."
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure one agent, read by everybody."""
    async with lab.runtime() as runtime, lab.driver() as collection:
        agent = (await make_agent(runtime.agents, 10)).id
        variants = [
            Variant(_BARRIER, _by_barrier(runtime, agent, scale)),
            Variant(_LINEARIZABLE, _by_driver(collection, "linearizable", agent, scale)),
            Variant("driver, majority", _by_driver(collection, "majority", agent, scale)),
        ]
        figures = await take_turns(variants, scale.rounds)
    return Finding(NAME, _ABOUT, compared("version", "ms", figures, against=_BARRIER, expected=_EXPECTED))


def _by_barrier(runtime: Runtime, agent: str, scale: Scale) -> Turn:
    return lambda: milliseconds_each(lambda: runtime.store.version(agent), scale.calls)


def _by_driver(collection: Collection, level: str, agent: str, scale: Scale) -> Turn:
    source = collection.with_options(read_concern=ReadConcern(level))
    return lambda: milliseconds_each(lambda: source.find_one({"_id": agent}, {"version": 1}), scale.calls)
