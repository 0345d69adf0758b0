"""The cache keeps its promises in every order of happenings, and the model would notice if it did not.

Each scenario is explored to its end (`cache_model` says how). The least numbers of states are there so that an
exploration can't shrink unnoticed. `StaysOpen` is no mutant: a cache that is not told of the stream's end would keep
its promises, for a dead stream brings no heartbeats.
"""

from __future__ import annotations

import pytest

from app.cache import Cache
from tests.unit import cache_mutants
from tests.unit.cache_model import (
    APPEND,
    CREATE,
    DELETE,
    FOLD,
    REMOVE,
    SHOWN_BYTES,
    TOUCH,
    WEIGHT,
    Scenario,
    Violation,
    explore,
)

SCENARIOS = {
    "two flights": (20_000, Scenario((2,), beats=1, flights=2)),
    "folded commits": (20_000, Scenario((2,), kinds=frozenset({APPEND, FOLD}), beats=1)),
    "heartbeats": (10_000, Scenario((1,), beats=2, flights=2)),
    "a new opening": (20_000, Scenario((1,), beats=1, flights=2, openings=1, replaying=True)),
    "events lost at an opening": (35_000, Scenario((2,), beats=1, openings=1)),
    "few tombstones": (20_000, Scenario((1, 1), beats=1, read=1, tombstones=1)),
    "deletion": (15_000, Scenario((2,), kinds=frozenset({APPEND, DELETE, CREATE}), beats=1)),
    "removal": (10_000, Scenario((2,), kinds=frozenset({REMOVE, CREATE}), beats=1, flights=2)),
    "removal after a commit": (10_000, Scenario((2,), kinds=frozenset({APPEND, REMOVE, CREATE}), beats=1)),
    "removal over an opening": (
        15_000,
        Scenario((2,), kinds=frozenset({REMOVE, CREATE}), beats=1, openings=1, replaying=True),
    ),
    "an operator's update": (15_000, Scenario((2,), kinds=frozenset({APPEND, TOUCH}), beats=1)),
    "room for one": (15_000, Scenario((1, 1), flights=2, using=True, limit_bytes=WEIGHT * 6 // 5, idle_seconds=2.0)),
    "room for what is shown": (
        5_000,
        Scenario((1, 1), own=False, flights=2, showing=True, limit_bytes=2 * WEIGHT + SHOWN_BYTES),
    ),
    "no room": (5_000, Scenario((2,), beats=1, limit_bytes=0)),
    "seen elsewhere": (8_000, Scenario((1,), beats=1, flights=2, knowing=1, failing=True)),
}

MUTANTS = [
    (cache_mutants.DropsAndForgets, "two flights"),
    (cache_mutants.LandsUnderATombstone, "two flights"),
    (cache_mutants.LandsInAnotherOpening, "a new opening"),
    (cache_mutants.HasNoFloor, "few tombstones"),
    (cache_mutants.FloorsLandingsOnly, "few tombstones"),
    (cache_mutants.PatchesAnything, "two flights"),
    (cache_mutants.TrustsGrowthAlone, "deletion"),
    (cache_mutants.JoinsAnyFlight, "two flights"),
    (cache_mutants.JoinsByTakeOff, "two flights"),
    (cache_mutants.ForgetsItsWrites, "two flights"),
    (cache_mutants.LowersTombstones, "two flights"),
    (cache_mutants.LetsGoOfAwaitedTombstones, "few tombstones"),
    (cache_mutants.ReadsBehindTheEvents, "few tombstones"),
    (cache_mutants.KeepsCopiesOverOpenings, "a new opening"),
    (cache_mutants.CountsOldBeats, "a new opening"),
    (cache_mutants.CountsBeatsAtTheOpening, "a new opening"),
    (cache_mutants.AnswersBeforeTheFirstBeat, "events lost at an opening"),
    (cache_mutants.AnswersInSilence, "two flights"),
    (cache_mutants.ReadsBehindTheRemoval, "removal"),
    (cache_mutants.RemovesTheTombstoneOnly, "removal"),
    (cache_mutants.ForgetsItsWritesAtARemoval, "an operator's update"),
    (cache_mutants.KeepsTheWeight, "room for one"),
]


@pytest.mark.parametrize("name", SCENARIOS)
def test_cache_keeps_its_promises_in_every_order(name: str) -> None:
    """Staleness, our own writes, content, size and memory, in about 250 000 states in all."""
    least, scenario = SCENARIOS[name]
    assert explore(scenario) >= least


@pytest.mark.parametrize(("mutant", "name"), MUTANTS, ids=lambda given: getattr(given, "__name__", ""))
def test_mistake_in_the_cache_is_found(mutant: type[Cache], name: str) -> None:
    """With the way to it, of which the last line is the happening that broke the promise."""
    with pytest.raises(Violation) as found:
        explore(SCENARIOS[name][1], mutant)
    promise, first, *way = str(found.value).splitlines()
    assert promise.endswith(".")
    assert first == "the stream is open and has just brought a heartbeat"
    assert way


def test_every_mutant_is_tried() -> None:
    """None is written down and then forgotten."""
    kinds = [kind for kind in vars(cache_mutants).values() if isinstance(kind, type) and issubclass(kind, Cache)]
    assert {mutant for mutant, _ in MUTANTS} == set(kinds) - {Cache}
