"""Sightings: for how long something has certainly not moved, as far as this process itself has seen.

What is added up is only the time between two looks of one's own that are close to each other: while the database is
away, this process is stopped or its machine sleeps, nobody grows older. Only monotonic time counts, so a clock that is
set ages nobody either. Nothing here reads or writes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

LOOK_SECONDS = 0.5
"""How often to look."""

FAR_APART_SECONDS = 1.0
"""Two looks with more time between them say nothing of it."""

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Seen:
    mark: Hashable
    still: float = 0.0


class Sightings(Generic[K]):
    """Looks at things by key, each with a mark that differs whenever the thing has moved."""

    def __init__(self) -> None:
        self._seen: dict[K, _Seen] = {}
        self._looked: float | None = None

    def look(self, things: Iterable[tuple[K, Hashable]], *, asked: float, answered: float) -> dict[K, float]:
        """Everything that is there now, asked for and answered at these monotonic times: for how long each was still.

        What is not among them is forgotten. Between two looks only the time is counted that surely lies between them.
        """
        gap = 0.0 if self._looked is None else asked - self._looked
        passed = gap if 0.0 <= gap <= FAR_APART_SECONDS else 0.0
        self._looked = answered
        seen: dict[K, _Seen] = {}
        for key, mark in things:
            before = self._seen.get(key)
            seen[key] = _Seen(mark, before.still + passed) if before and before.mark == mark else _Seen(mark)
        self._seen = seen
        return {key: one.still for key, one in seen.items()}
