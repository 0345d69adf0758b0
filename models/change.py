"""A change: what a move decided, as a value. `app.store` makes it durable; nothing in here writes.

An update is built from a chain of changes, so that requests which wait for the same agent become one write:
`fold` lays their field assignments over each other exactly as applying them one by one would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.agent import AgentRecord

OP_SLOTS = 64
"""How many of the newest commits of an agent can be recognised by their op id."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """When a commit is made, and by whom (key id)."""

    now: datetime
    by: str


@dataclass(frozen=True, slots=True)
class Change:
    """The agent after a move, the field assignments that lead there, and the caller's answer.

    Guarantee: a change without kinds assigns nothing and its record is the one that the move was given.
    Otherwise `record.version` is one more than before. `sets` and `drops` hold field paths whose segments
    are fixed names, checked ids or `ids.field_name` output, never a caller's raw text.
    """

    record: AgentRecord
    kinds: tuple[str, ...] = ()
    sets: Mapping[str, Any] = field(default_factory=dict)
    drops: frozenset[str] = frozenset()
    answer: Any = None


@dataclass(frozen=True, slots=True)
class Assignments:
    """Field assignments of one update: `$set` and `$unset` without two paths that touch each other."""

    sets: Mapping[str, Any]
    drops: frozenset[str]


def fold(changes: Sequence[Change]) -> Assignments:
    """The assignments of all changes, applied in order, as one update's worth."""
    sets: dict[str, Any] = {}
    drops: set[str] = set()
    for change in changes:
        for path in change.drops:
            _forget(sets, path)
            drops.add(path)
        for path, value in change.sets.items():
            _assign(sets, drops, path, value)
    return Assignments(sets, frozenset(drops))


def envelope(before: int, changes: Sequence[Change], stamp: Stamp) -> dict[str, Any]:
    """The subdocument `last` of a commit: all that caches, feeds and the change log need to know of it."""
    record = changes[-1].record
    return {
        "from": before,
        "v": record.version,
        "kinds": unique(kind for change in changes for kind in change.kinds),
        "at": stamp.now,
        "by": stamp.by,
        "pool": record.pool,
        "trigger": None,
    }


def unique(items: Iterable[str]) -> list[str]:
    """The items without repeats, in order of first appearance."""
    return list(dict.fromkeys(items))


def _assign(sets: dict[str, Any], drops: set[str], path: str, value: Any) -> None:
    """Assign one path; a path below one that is assigned as a whole already goes into that value.

    A field of the agent that becomes None is not stored at all, so that a document always reads like its record.
    """
    parts = path.split(".")
    for cut in range(1, len(parts)):
        whole = ".".join(parts[:cut])
        if whole in sets:
            sets[whole] = _placed(sets[whole], parts[cut:], value)
            return
    _forget(sets, path)
    drops.discard(path)
    if value is None and len(parts) == 1:
        drops.add(path)
    else:
        sets[path] = value


def _placed(holder: Mapping[str, Any], parts: Sequence[str], value: Any) -> dict[str, Any]:
    inner = value if len(parts) == 1 else _placed(holder.get(parts[0], {}), parts[1:], value)
    return {**holder, parts[0]: inner}


def _forget(sets: dict[str, Any], path: str) -> None:
    for known in [known for known in sets if known == path or known.startswith(f"{path}.")]:
        del sets[known]
