"""A change: what a move decided, as a value. `app.store` makes it durable; nothing in here writes.

An update is built from a chain of changes, so that requests which wait for the same agent become one write:
`fold` lays their field assignments over each other exactly as applying them one by one would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """The assignments of all changes, applied in order, as one update's worth.

    A field of the agent that becomes None is dropped, so that a document always reads like its record.
    """
    fields: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {}
    for change in changes:
        for path in change.drops:
            _assign(fields, inside, path, _DROPPED)
        for path, value in change.sets.items():
            _assign(fields, inside, path, _DROPPED if value is None and "." not in path else value)
    assigned = {**fields, **{path: value for paths in inside.values() for path, value in paths.items()}}
    sets = {path: value for path, value in assigned.items() if value is not _DROPPED}
    return Assignments(sets, frozenset(assigned.keys() - sets.keys()))


def envelope(before: int, changes: Sequence[Change], stamp: Stamp) -> dict[str, Any]:
    """The subdocument `last` of a commit: all that caches, feeds and the change log need to know of it.

    `{from, v, kinds, at, by, pool?}`: what has no value is left out.
    """
    record = changes[-1].record
    kinds = list(dict.fromkeys(kind for change in changes for kind in change.kinds))
    told = {"from": before, "v": record.version, "kinds": kinds, "at": stamp.now, "by": stamp.by, "pool": record.pool}
    return {name: value for name, value in told.items() if value is not None}


_DROPPED: Any = object()


def _assign(fields: dict[str, Any], inside: dict[str, dict[str, Any]], path: str, value: Any) -> None:
    """Assign a field, which overrides all inside it, or a path inside one, which goes into a field assigned before.

    Paths inside one field are equally deep, so no two of them touch.
    """
    name, dot, rest = path.partition(".")
    if not dot:
        inside.pop(name, None)
        fields[name] = value
    elif name in fields:
        fields[name] = _placed(fields[name], rest.split("."), value)
    else:
        inside.setdefault(name, {})[path] = value


def _placed(holder: Mapping[str, Any], parts: Sequence[str], value: Any) -> dict[str, Any]:
    """The map with the value put in its place, or taken out."""
    key, *deeper = parts
    placed = {**holder, key: _placed(holder.get(key, {}), deeper, value) if deeper else value}
    return {key: value for key, value in placed.items() if value is not _DROPPED}
