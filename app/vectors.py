"""Vectors of one tenant, made by one embedder, searched exactly by cosine, beside what searches filter by.

Rows are only added and struck out, so a search in another thread sees what was there when it began, and nothing waits
for it. They lie in blocks; from a number of bytes on, in files of the data directory, which the system pages in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]
Mask = NDArray[np.bool_]

BLOCK = 4096
"""Rows of a block."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a row beside its vector."""

    id: str
    agent: str | None
    session: str | None
    step: str | None
    owner: str | None
    reward: float | None
    at: float
    """Seconds since 1970."""
    until: float | None = None
    """The same: from when on it is found no more."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows a search is about; None lets everything pass."""

    agent: str | None = None
    session: str | None = None
    owner: str | None = None
    min_reward: float | None = None
    since: float | None = None
    now: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A row, and the cosine of its vector and the one that was asked for."""

    facts: Facts
    score: float


class _Block:
    """Up to `BLOCK` rows. The columns hold codes of names, which are compared as numbers."""

    def __init__(self, rows: Row) -> None:
        self.rows = rows
        self.agent, self.session, self.owner = (np.zeros(BLOCK, np.int32) for _ in range(3))
        self.reward = np.full(BLOCK, np.nan, np.float32)
        self.at = np.zeros(BLOCK, np.float64)
        self.until = np.full(BLOCK, np.inf, np.float64)
        self.alive = np.zeros(BLOCK, np.bool_)


class Space:
    """The vectors. Blocks that memory `has_room` for (so many bytes) lie there, others in files that vanish with us."""

    def __init__(self, dimension: int, *, has_room: Callable[[int], bool], folder: Path) -> None:
        self.dimension = dimension
        self.resident_bytes = 0
        self._has_room = has_room
        self._folder = folder
        self._blocks: list[_Block] = []
        self._facts: list[Facts] = []
        self._places: dict[str, int] = {}
        self._codes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, ident: str) -> bool:
        return ident in self._places

    @property
    def bytes(self) -> int:
        """What the vectors take, in memory and in files."""
        return len(self._blocks) * BLOCK * self.dimension * 4

    @property
    def struck_out(self) -> int:
        """Rows that take room and are never found."""
        return len(self._facts) - len(self._places)

    def add(self, facts: Facts, vector: Row) -> None:
        """Add a row; one that is there stays as it is."""
        if facts.id in self._places:
            return
        number = len(self._facts)
        if number == len(self._blocks) * BLOCK:
            self._blocks.append(_Block(self._room()))
        block, row = self._blocks[number // BLOCK], number % BLOCK
        block.rows[row] = vector
        block.agent[row], block.session[row], block.owner[row] = map(
            self._code, (facts.agent, facts.session, facts.owner)
        )
        block.reward[row] = np.nan if facts.reward is None else facts.reward
        block.at[row] = facts.at
        block.until[row] = np.inf if facts.until is None else facts.until
        self._facts.append(facts)
        self._places[facts.id] = number
        block.alive[row] = True

    def strike_out(self, ident: str) -> None:
        """Let a row be found no more."""
        number = self._places.pop(ident, None)
        if number is not None:
            self._blocks[number // BLOCK].alive[number % BLOCK] = False

    def search(self, vector: Row, wanted: Wanted) -> Iterator[Found]:
        """Every row that is wanted, the most similar first; ties in the order in which they came."""
        numbers, scores = self._scored(vector, wanted)
        for place in _descending(scores):
            yield Found(self._facts[numbers[place]], float(scores[place]))

    def _scored(self, vector: Row, wanted: Wanted) -> tuple[NDArray[np.int64], Row]:
        numbers: list[NDArray[np.int64]] = []
        scores: list[Row] = []
        for place, block in enumerate(list(self._blocks)):
            rows = np.flatnonzero(self._mask(block, wanted))
            if not rows.size:
                continue
            every = rows.size > BLOCK // 4
            scores.append((block.rows @ vector)[rows] if every else block.rows[rows] @ vector)
            numbers.append(rows + place * BLOCK)
        if not numbers:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return np.concatenate(numbers), np.concatenate(scores)

    def _mask(self, block: _Block, wanted: Wanted) -> Mask:
        mask = block.alive.copy()
        for column, name in ((block.agent, wanted.agent), (block.session, wanted.session), (block.owner, wanted.owner)):
            if name is not None:
                mask &= column == self._codes.get(name, -1)
        if wanted.min_reward is not None:
            mask &= block.reward >= wanted.min_reward
        if wanted.since is not None:
            mask &= block.at >= wanted.since
        if wanted.now is not None:
            mask &= block.until > wanted.now
        return mask

    def _code(self, name: str | None) -> int:
        return 0 if name is None else self._codes.setdefault(name, len(self._codes) + 1)

    def _room(self) -> Row:
        shape = (BLOCK, self.dimension)
        size = BLOCK * self.dimension * 4
        if self._has_room(size):
            self.resident_bytes += size
            return np.zeros(shape, np.float32)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            return np.memmap(file, np.float32, "w+", shape=shape)


def unit(values: Sequence[float]) -> Row | None:
    """A vector of length 1 in the same direction; None for one that has none, or that is not finite."""
    vector = np.asarray(values, np.float64)
    greatest = float(np.abs(vector).max())
    if not 0.0 < greatest < float("inf"):
        return None
    vector = vector / greatest
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _descending(scores: Row) -> Iterator[int]:
    """The places of the scores from the greatest down; the first few are found without sorting all."""
    few = 64
    if scores.size > 4 * few:
        top = np.argpartition(-scores, few)[:few]
        bound = scores[top].min()
        above = np.flatnonzero(scores > bound)
        yield from above[np.argsort(-scores[above], kind="stable")].tolist()
        rest = np.flatnonzero(scores <= bound)
    else:
        rest = np.arange(scores.size)
    yield from rest[np.argsort(-scores[rest], kind="stable")].tolist()
