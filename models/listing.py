"""Which steps a reader gets: a window over the path to some step, or over all steps by seq."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain, islice

from models.agent import AgentRecord
from models.history import NotAtHand, Wanted
from models.packing import bytes_apart
from models.path import Stretch, stretches, whole
from models.segment import Step

ANSWER_BYTES = 64 * 1024 * 1024
"""What the steps of one answer may take that is stored apart from the document; the rest comes with the next page."""


@dataclass(frozen=True, slots=True)
class Window:
    """Steps with `after < seq < until`; with a leaf those of its path, else all; of one turn when it is named.

    `since`: only those that came with a later version.
    """

    leaf: str | None
    turn: str | None = None
    after: int = 0
    until: int | None = None
    since: int = 0


@dataclass(frozen=True, slots=True)
class StepPage:
    """Step ids in order, and the seq after which the next page goes on (None at the end)."""

    steps: Sequence[str]
    next_after: int | None


def page_of(record: AgentRecord, window: Window, limit: int) -> StepPage:
    """The first steps of the window, `limit` or as many as fit. Along a path seq only grows: one order serves both."""
    found = list(islice(_inside(record, window, limit + 1), limit + 1))
    page = found[: _fitting(record.body(step) for step in found[:limit])]
    return StepPage(page, record.node(page[-1]).seq if len(found) > len(page) else None)


def newest_of(record: AgentRecord, leaf: str | None, limit: int) -> tuple[list[Step], int | None]:
    """The last steps, `limit` or as many as fit, and the seq of the first of them when older ones were left out."""
    parts, cut = newest_parts(record, leaf, limit)
    at_hand = _at_hand(record, parts[::-1], limit)
    found = list(chain.from_iterable(reversed(steps_of(record, part)) for part in at_hand))
    shown = found[: _fitting(found)]
    return shown[::-1], cut if len(shown) == len(found) else shown[-1]["seq"]


def newest_parts(record: AgentRecord, leaf: str | None, limit: int) -> tuple[list[Stretch], int | None]:
    """The stretches of the last `limit` steps, in order, and the seq of the first of them when there are older ones."""
    way = _enough(_backwards(record, leaf), limit + 1)
    over = sum(stretch.count for stretch in way) - limit
    if over <= 0:
        return way[::-1], None
    oldest = way.pop()
    if over < oldest.count:
        kept = oldest.ids(record)[over:]
        way.append(Stretch(oldest.home, kept, record.node(kept[0]).seq, oldest.to_seq))
    return way[::-1], way[-1].from_seq if way else oldest.to_seq + 1


def steps_of(record: AgentRecord, stretch: Stretch) -> list[Step]:
    """The steps of a stretch as callers see them."""
    if stretch.home is not None:
        record.segment(stretch.home)  # asked for before its tree, which it holds
    return [record.step(step, stretch.home) for step in stretch.ids(record)]


def _fitting(steps: Iterable[Step]) -> int:
    """How many of the steps, in this order, go into one answer: the first in any case."""
    room, count = ANSWER_BYTES, 0
    for step in steps:
        room -= bytes_apart(step)
        if count and room < 0:
            break
        count += 1
    return count


def _enough(way: Iterable[Stretch], steps: int) -> list[Stretch]:
    """The first stretches, as far as so many steps reach."""
    found: list[Stretch] = []
    for stretch in way:
        if steps <= 0:
            break
        found.append(stretch)
        steps -= stretch.count
    return found


def _at_hand(record: AgentRecord, way: Sequence[Stretch], steps: int) -> Iterator[Stretch]:
    """The stretches one after another, each with its segment at hand.

    Raises NotAtHand for as many segments at once as so many steps, or an answer, are likely to take.
    """
    held = record.history.segments
    for number, stretch in enumerate(way):
        if stretch.home is not None and stretch.home.id not in held:
            raise NotAtHand(Wanted(segments=frozenset(_likely(way[number:], steps) - held.keys())))
        yield stretch


def _likely(way: Sequence[Stretch], steps: int) -> set[str]:
    room = ANSWER_BYTES
    found: set[str] = set()
    for stretch in _enough(way, steps):
        if stretch.home is not None:
            room -= stretch.home.bytes
            if found and room < 0:
                break
            found.add(stretch.home.id)
    return found


def _backwards(record: AgentRecord, leaf: str | None) -> Iterator[Stretch]:
    """The stretches of the path to a leaf, or of everything, the last first."""
    return iter(list(whole(record))[::-1]) if leaf is None else stretches(record, leaf)


def _inside(record: AgentRecord, window: Window, likely: int) -> Iterator[str]:
    """The steps of the window, in order."""
    holding = None if window.turn is None else _holding(record, window.turn)
    way = [stretch for stretch in _backwards(record, window.leaf) if _may_hold(stretch, window, holding)]
    for stretch in _at_hand(record, way[::-1], likely):
        yield from (step for step in stretch.ids(record) if _is_inside(record, step, window))


def _may_hold(stretch: Stretch, window: Window, holding: AbstractSet[str] | None) -> bool:
    """Whether steps of the window may be in a stretch, as far as can be told without looking into it."""
    if stretch.to_seq <= window.after or (window.until is not None and stretch.from_seq >= window.until):
        return False
    home = stretch.home
    return home is None or (home.to_version > window.since and (holding is None or home.id in holding))


def _holding(record: AgentRecord, turn: str) -> frozenset[str]:
    """The segments that hold steps of a turn."""
    if record.sealed and turn not in record.history.turns:
        raise NotAtHand(Wanted(turns=frozenset({turn})))
    return record.history.turns.get(turn, frozenset())


def _is_inside(record: AgentRecord, step: str, window: Window) -> bool:
    node = record.node(step)
    if node.version <= window.since or (window.turn is not None and node.turn_id != window.turn):
        return False
    return node.seq > window.after and (window.until is None or node.seq < window.until)
