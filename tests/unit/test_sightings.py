"""Sightings: only time that this process surely saw pass counts, whatever clocks and the database do."""

from __future__ import annotations

from app.sightings import FAR_APART_SECONDS, Sightings


def looked(times: list[tuple[float, float, int]]) -> float:
    """For how long `a` was still after looks at these times (asked, answered) with these marks."""
    sightings: Sightings[str] = Sightings()
    still = 0.0
    for asked, answered, mark in times:
        still = sightings.look([("a", mark)], asked=asked, answered=answered)["a"]
    return still


def test_time_between_close_looks_adds_up() -> None:
    """From each answer to the next question."""
    assert looked([(0.0, 0.1, 1), (0.5, 0.6, 1), (1.0, 1.1, 1)]) == 0.8


def test_whoever_moves_is_young_again() -> None:
    """A new mark begins anew, also after a long time."""
    assert looked([(0.0, 0.0, 1), (0.5, 0.5, 1), (1.0, 1.0, 2), (1.5, 1.5, 2)]) == 0.5


def test_time_nobody_looked_does_not_count() -> None:
    """A pause, a database that was away, a machine that slept: none of it ages anybody."""
    assert looked([(0.0, 0.0, 1), (0.5, 0.5, 1), (3600.0, 3600.0, 1), (3600.5, 3600.5, 1)]) == 1.0


def test_an_answer_that_took_long_does_not_count() -> None:
    """What was seen may have been so at its beginning or its end."""
    assert looked([(0.0, 0.0, 1), (0.5, 30.0, 1), (30.5, 30.5, 1)]) == 1.0


def test_looks_at_the_edge_count_and_beyond_it_do_not() -> None:
    """The edge is a second."""
    assert looked([(0.0, 0.0, 1), (FAR_APART_SECONDS, FAR_APART_SECONDS, 1)]) == FAR_APART_SECONDS
    assert looked([(0.0, 0.0, 1), (FAR_APART_SECONDS + 0.01, 2.0, 1)]) == 0.0


def test_time_that_goes_back_does_not_count() -> None:
    """Monotonic time does not; if it did, nobody would die of it."""
    assert looked([(10.0, 10.0, 1), (5.0, 5.0, 1)]) == 0.0


def test_what_is_gone_is_forgotten() -> None:
    """Whoever comes back under the same mark begins anew."""
    sightings: Sightings[str] = Sightings()
    sightings.look([("a", 1)], asked=0.0, answered=0.0)
    assert sightings.look([], asked=0.5, answered=0.5) == {}
    assert sightings.look([("a", 1)], asked=1.0, answered=1.0) == {"a": 0.0}
