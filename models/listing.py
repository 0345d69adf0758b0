"""Which steps a reader gets: a window over the path to some step, or over all steps by seq."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from models.agent import AgentRecord
from models.packing import bytes_apart

ANSWER_BYTES = 64 * 1024 * 1024
"""What the steps of one answer may take that is stored apart from them; the rest comes with the next page."""


@dataclass(frozen=True, slots=True)
class Window:
    """Steps with `after < seq < until`; with a leaf those of its path, else all; of one turn when it is named."""

    leaf: str | None
    turn: str | None = None
    after: int = 0
    until: int | None = None


@dataclass(frozen=True, slots=True)
class StepPage:
    """Step ids in order, and the seq after which the next page goes on (None at the end)."""

    steps: Sequence[str]
    next_after: int | None


def page_of(record: AgentRecord, window: Window, limit: int) -> StepPage:
    """The first steps of the window, `limit` or as many as fit. Along a path seq only grows: one order serves both."""
    found = [step for step in _candidates(record, window.leaf) if _inside(record, step, window)]
    page = found[: fitting(record, found[:limit])]
    more = len(found) > len(page)
    return StepPage(page, record.steps[page[-1]]["seq"] if more else None)


def newest_of(record: AgentRecord, leaf: str | None, limit: int) -> tuple[Sequence[str], int | None]:
    """The last steps, `limit` or as many as fit, and the seq of the first of them when older ones were left out."""
    steps = _candidates(record, leaf)
    shown = steps[max(0, len(steps) - limit) :]
    shown = shown[len(shown) - fitting(record, reversed(shown)) :]
    if len(shown) == len(steps):
        return steps, None
    return shown, record.steps[shown[0]]["seq"] if shown else record.seq + 1


def fitting(record: AgentRecord, steps: Iterable[str]) -> int:
    """How many of the steps, in this order, go into one answer: the first in any case."""
    room, count = ANSWER_BYTES, 0
    for step in steps:
        room -= bytes_apart(record.steps[step])
        if count and room < 0:
            break
        count += 1
    return count


def _candidates(record: AgentRecord, leaf: str | None) -> Sequence[str]:
    if leaf is not None:
        return record.path(leaf)
    return sorted(record.steps, key=lambda step: record.steps[step]["seq"])


def _inside(record: AgentRecord, step: str, window: Window) -> bool:
    body = record.steps[step]
    if window.turn is not None and body["turn_id"] != window.turn:
        return False
    return bool(body["seq"] > window.after and (window.until is None or body["seq"] < window.until))
