"""Paths through an agent's tree, from some step up to the root, over its document and its segments.

A path is a row of *stretches*, each in one place. A segment that is one line is passed by its descriptor alone, so a
path of 100 000 steps is followed without reading them. What needs more than is at hand raises NotAtHand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from models.agent import AgentRecord
from models.history import NotAtHand, Wanted
from models.ids import ROOT
from models.segment import Descriptor, line


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps that lie in one place, in the order of their seq."""

    home: Descriptor | None
    """The segment that they are sealed in."""
    steps: Sequence[str] | None
    """None: all that the agent sees of the segment."""
    from_seq: int
    to_seq: int

    @property
    def count(self) -> int:
        """How many steps."""
        if self.steps is not None:
            return len(self.steps)
        return 0 if self.home is None else self.home.count

    def ids(self, record: AgentRecord) -> Sequence[str]:
        """Its steps."""
        if self.steps is not None:
            return self.steps
        return [] if self.home is None else self.home.seen(record.tree(self.home))


def stretches(record: AgentRecord, leaf: str) -> Iterator[Stretch]:
    """The path to a step, from that step up to the root (which is left out). Raises KeyError for an unknown step."""
    while leaf != ROOT:
        home = record.home(leaf)
        if home is None:
            steps = _inline(record, leaf)
        elif home.chain and leaf == home.last:
            yield Stretch(home, None, home.from_seq, home.to_seq)
            leaf = home.parent
            continue
        else:
            _require_at_hand(record, home)
            steps = line(record.tree(home), leaf)
        first = record.node(steps[0])
        yield Stretch(home, steps, first.seq, record.node(steps[-1]).seq)
        leaf = first.parent_id


def whole(record: AgentRecord) -> Iterator[Stretch]:
    """Every step of the agent, by seq."""
    for home in record.descriptors:
        yield Stretch(home, None, home.from_seq, home.to_seq)
    if record.steps:
        steps = sorted(record.steps, key=lambda step: int(record.steps[step]["seq"]))
        yield Stretch(None, steps, record.steps[steps[0]]["seq"], record.steps[steps[-1]]["seq"])


def upwards(record: AgentRecord, leaf: str) -> Iterator[str]:
    """The steps of the path, the last first."""
    for stretch in stretches(record, leaf):
        if stretch.home is not None:
            _require_at_hand(record, stretch.home)
        yield from reversed(stretch.ids(record))


def path(record: AgentRecord, leaf: str | None = None) -> list[str]:
    """The steps of the path to `leaf` (HEAD when None), in order."""
    return list(upwards(record, record.head if leaf is None else leaf))[::-1]


def late(record: AgentRecord, field: str | None = None) -> dict[str, set[str]]:
    """Sealed steps to which something (of this field name, if one is given) was bound afterwards, by segment.

    The trees of these segments are at hand then. Raises NotAtHand, at once for all that it takes.
    """
    steps = [
        step
        for step, bound in record.results.items()
        if step != ROOT and step not in record.steps and (field is None or field in bound)
    ]
    record.require_known(steps)
    found: dict[str, set[str]] = {}
    for step in steps:
        home = record.home(step)
        if home is not None:
            found.setdefault(home.id, set()).add(step)
    record.require_trees(found.keys())
    return found


def _inline(record: AgentRecord, leaf: str) -> list[str]:
    """The part of the path that lies in the document."""
    found: list[str] = []
    while leaf in record.steps:
        found.append(leaf)
        leaf = record.steps[leaf]["parent_id"]
    if not found:
        raise KeyError(leaf)
    found.reverse()
    return found


def _require_at_hand(record: AgentRecord, home: Descriptor) -> None:
    """Raise NotAtHand for the segment's tree, and for as many older ones as were asked for already.

    So a way through many segments is begun anew a few times, and a short way reads little.
    """
    held = record.history.segments.keys() | record.history.trees.keys()
    if home.id in held:
        return
    older = (kept.id for kept in reversed(record.descriptors) if kept.from_seq <= home.from_seq)
    ahead = islice((kept for kept in older if kept not in held), max(1, len(held)))
    raise NotAtHand(Wanted(trees=frozenset({home.id, *ahead})))
