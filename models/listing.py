"""Which steps a reader gets: a window over the path to some step, or over all steps by seq."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice

from models.agent import AgentRecord
from models.history import NotAtHand, Wanted
from models.packing import bytes_apart
from models.path import Stretch, stretches, whole
from models.segment import Descriptor

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
    found = list(islice(_inside(record, window), limit + 1))
    page = found[: fitting(record, found[:limit])]
    return StepPage(page, record.node(page[-1]).seq if len(found) > len(page) else None)


def newest_of(record: AgentRecord, leaf: str | None, limit: int) -> tuple[Sequence[str], int | None]:
    """The last steps, `limit` or as many as fit, and the seq of the first of them when older ones were left out."""
    found = list(
        islice((step for stretch in _backwards(record, leaf) for step in reversed(stretch.ids(record))), limit + 1)
    )
    shown = found[: fitting(record, found[:limit])][::-1]
    if len(shown) == len(found):
        return shown, None
    return shown, record.node(shown[0]).seq if shown else record.seq + 1


def fitting(record: AgentRecord, steps: Sequence[str]) -> int:
    """How many of the steps, in this order, go into one answer: the first in any case.

    Raises NotAtHand, for all of them at once, while their segments are not at hand.
    """
    count = _within(steps, lambda step: _sealed_bytes(record, step))
    _require_at_hand(record, steps[:count])
    return _within(steps[:count], lambda step: _sealed_bytes(record, step) + bytes_apart(record.body(step)))


def _within(steps: Sequence[str], size_of: Callable[[str], int]) -> int:
    room, count = ANSWER_BYTES, 0
    for step in steps:
        room -= size_of(step)
        if count and room < 0:
            break
        count += 1
    return count


def _sealed_bytes(record: AgentRecord, step: str) -> int:
    """What a step takes in its segment, on the average."""
    home = record.home(step)
    return 0 if home is None else home.bytes // home.count


def _require_at_hand(record: AgentRecord, steps: Iterable[str]) -> None:
    homes = {home.id for home in map(record.home, steps) if home is not None}
    missing = homes - record.history.segments.keys()
    if missing:
        raise NotAtHand(Wanted(segments=frozenset(missing)))


def _backwards(record: AgentRecord, leaf: str | None) -> Iterator[Stretch]:
    """The stretches of the path to a leaf, or of everything, the last first."""
    return iter(list(whole(record))[::-1]) if leaf is None else stretches(record, leaf)


def _inside(record: AgentRecord, window: Window) -> Iterator[str]:
    """The steps of the window, in order."""
    holding = None if window.turn is None else _holding(record, window.turn)
    for stretch in reversed(list(_backwards(record, window.leaf))):
        if window.until is not None and stretch.from_seq >= window.until:
            return
        if stretch.to_seq > window.after and _may_hold(stretch.home, window, holding):
            yield from (step for step in stretch.ids(record) if _is_inside(record, step, window))


def _may_hold(home: Descriptor | None, window: Window, holding: AbstractSet[str] | None) -> bool:
    """Whether steps of the window may be in a place, as far as can be told without looking into it."""
    if home is None:
        return True
    return home.to_version > window.since and (holding is None or home.id in holding)


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
