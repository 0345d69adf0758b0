"""History: what of an agent's sealed steps is at hand. Rules ask it, and say what they lack; others go and read it.

So rules stay pure: one that needs more raises `NotAtHand`, is given a record with that, and asked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.segment import Descriptor, Segment, Tree


@dataclass(frozen=True, slots=True)
class Wanted:
    """Segments by id, whole or as trees; steps and turns of which it is to be found out which segments hold them."""

    segments: frozenset[str] = frozenset()
    trees: frozenset[str] = frozenset()
    steps: frozenset[str] = frozenset()
    turns: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.segments or self.trees or self.steps or self.turns)

    def __or__(self, other: Wanted) -> Wanted:
        return Wanted(
            self.segments | other.segments,
            self.trees | other.trees,
            self.steps | other.steps,
            self.turns | other.turns,
        )


class NotAtHand(Exception):
    """A rule needs of an agent's history what was not read yet."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted)
        self.wanted = wanted


@dataclass(frozen=True, slots=True)
class History:
    """What was read so far."""

    segments: Mapping[str, Segment] = field(default_factory=dict)
    trees: Mapping[str, Tree] = field(default_factory=dict)
    steps: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The segments that hold a step, by its id; those of other agents of the family may be among them."""
    turns: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def __or__(self, other: History) -> History:
        return History(
            {**self.segments, **other.segments},
            {**self.trees, **other.trees},
            {**self.steps, **other.steps},
            {**self.turns, **other.turns},
        )

    def segment(self, segment: str) -> Segment:
        """A segment. Raises NotAtHand."""
        found = self.segments.get(segment)
        if found is None:
            raise NotAtHand(Wanted(segments=frozenset({segment})))
        return found

    def tree(self, segment: str) -> Tree:
        """A segment's tree. Raises NotAtHand."""
        whole = self.segments.get(segment)
        found = self.trees.get(segment) if whole is None else whole.tree
        if found is None:
            raise NotAtHand(Wanted(trees=frozenset({segment})))
        return found


NOTHING = History()


class Directory:
    """An agent's segments, the oldest first, and which steps are known to be in which of them."""

    def __init__(self, sealed: Mapping[str, Mapping[str, Any]], history: History) -> None:
        self._sealed = sealed
        self._history = history
        self.descriptors = sorted((Descriptor.read(kept) for kept in sealed.values()), key=lambda kept: kept.from_seq)
        self.by_id = {kept.id: kept for kept in self.descriptors}
        self.homes = {kept.last: kept for kept in self.descriptors}
        for kept in self.descriptors:
            if kept.id in history.segments or kept.id in history.trees:
                self.homes |= dict.fromkeys(kept.seen(history.tree(kept.id)), kept)

    def is_of(self, sealed: Mapping[str, Mapping[str, Any]], history: History) -> bool:
        """Whether it was made from these very objects, which are never changed in place."""
        return self._sealed is sealed and self._history is history
