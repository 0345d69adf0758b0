"""Vectors: exact, filtered, and never found once struck out."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.vectors import BLOCK, Facts, Row, Space, Wanted, unit

DIMENSION = 8


def facts(ident: str, **more: object) -> Facts:
    known = {"agent": None, "session": None, "step": None, "owner": None, "reward": None, "at": 0.0, **more}
    return Facts(ident, **known)  # type: ignore[arg-type]


def some(count: int, seed: int = 1) -> Row:
    rows = np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)
    found: Row = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


@pytest.fixture
def space(tmp_path: Path) -> Space:
    return Space(DIMENSION, has_room=lambda _: True, folder=tmp_path)


def found(space: Space, vector: Row, wanted: Wanted | None = None, k: int = 10) -> list[str]:
    return [one.facts.id for one in islice(space.search(vector, wanted or Wanted()), k)]


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 700), gone=st.sets(st.integers(0, 699)), k=st.integers(1, 400), seed=st.integers(0, 2**16))
def test_search_is_that_of_sorting_everything(count: int, gone: set[int], k: int, seed: int) -> None:
    """In the order of the cosines, over as many as are wanted, without those struck out."""
    space = Space(DIMENSION, has_room=lambda _: True, folder=Path())
    rows = some(count, seed)
    for number, row in enumerate(rows):
        space.add(facts(str(number), agent=f"a{number % 3}", reward=number / 700), row)
    for number in gone:
        space.strike_out(str(number))
    question = some(1, seed + 1)[0]
    wanted = Wanted(agent="a1", min_reward=0.2)
    there = [n for n in range(count) if n not in gone and n % 3 == 1 and n / 700 >= 0.2]
    scores = {str(n): float(rows[n] @ question) for n in there}
    asked = list(islice(space.search(question, wanted), k))
    assert [one.score for one in asked] == pytest.approx(sorted(scores.values(), reverse=True)[:k], abs=1e-5)
    assert all(scores[one.facts.id] == pytest.approx(one.score, abs=1e-5) for one in asked)
    assert len({one.facts.id for one in asked}) == len(asked)


def test_what_is_added_twice_is_there_once(space: Space) -> None:
    """And what was struck out may come again."""
    (row,) = some(1)
    for _ in range(2):
        space.add(facts("a"), row)
    assert (len(space), found(space, row)) == (1, ["a"])
    space.strike_out("a")
    assert (len(space), found(space, row), "a" in space) == (0, [], False)
    space.strike_out("a")
    space.add(facts("a"), row)
    assert found(space, row) == ["a"]


def test_a_name_that_nobody_has_finds_nothing(space: Space) -> None:
    """Not even rows without a name."""
    (row,) = some(1)
    space.add(facts("a"), row)
    assert found(space, row, Wanted(agent="x")) == found(space, row, Wanted(owner="x")) == []


def test_rows_without_a_reward_are_under_every_reward(space: Space) -> None:
    """Those at the bound are not."""
    (row,) = some(1)
    space.add(facts("none"), row)
    space.add(facts("exact", reward=0.7), row)
    assert found(space, row, Wanted(min_reward=0.7)) == ["exact"]
    assert found(space, row, Wanted(min_reward=0.0)) == ["exact"]


def test_more_than_may_be_in_memory_is_found_all_the_same(tmp_path: Path) -> None:
    """It lies in files of the folder, which leave nothing behind."""
    space = Space(DIMENSION, has_room=lambda _: False, folder=tmp_path)
    rows = some(2 * BLOCK + 10)
    for number, row in enumerate(rows):
        space.add(facts(str(number)), row)
    for number in (0, BLOCK, 2 * BLOCK + 9):
        assert found(space, rows[number], k=1) == [str(number)]
    assert space.bytes == 3 * BLOCK * DIMENSION * 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 0.0]])
def test_vector_that_points_nowhere_is_none(values: list[float]) -> None:
    """So that it is refused instead of compared."""
    assert unit(values) is None


def test_length_does_not_matter() -> None:
    """The direction does."""
    for factor in (1.0, 0.1, 1e300, 1e-300):
        vector = unit([3.0 * factor, 4.0 * factor])
        assert vector is not None
        assert vector.tolist() == pytest.approx([0.6, 0.8])
