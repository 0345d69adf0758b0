"""A change: what a move decided, as a value. `app.store` makes it durable; nothing in here writes.

An update is built from a chain of changes, so that requests which wait for the same agent become one write:
`fold` lays their field assignments over each other exactly as applying them one by one would. `may_share` keeps
those apart that could not be told from each other again in the update's change event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bson.binary import Binary

if TYPE_CHECKING:
    from models.agent import AgentRecord
    from models.segment import Segment

OP_SLOTS = 64
"""How many of the newest commits of an agent can be recognised by their op id."""


STEP, HEAD = "step", "head"
"""Kinds of an append: steps were added; HEAD moved with them."""

BRANCHES, WORKSPACE = "branches", "workspace"
RESULTS, SETTINGS, AGENT = "results", "settings", "agent"
CREATED, CLEARED, DELETED = "created", "cleared", "deleted"
RESTORED = "restored"
"""Beside `created`: the agent came back from a backup, with the steps that it had, at their versions."""

STATE, RUNNER = "state", "runner"
"""Kinds of a transition, and of a change of who drives the agent."""

HANDED = "handed"
"""Kind of a claim that was given the delegate's token: what an audit looks for."""

_ALONE = frozenset({CREATED, CLEARED, DELETED})
_ABOUT_HEAD = frozenset({HEAD, BRANCHES, WORKSPACE})


@dataclass(frozen=True, slots=True)
class Stamp:
    """When a commit is made, and by whom (key id)."""

    now: datetime
    by: str
    latest: datetime | None = None
    earliest: datetime | None = None
    """What the two clocks say that lives are measured by, where it is not `now`."""

    @property
    def lived_from(self) -> datetime:
        """From when on a life is measured that begins, or goes on, with the commit."""
        return self.latest or self.now

    @property
    def judged_at(self) -> datetime:
        """What a life has surely reached by now."""
        return self.earliest or self.now


@dataclass(frozen=True, slots=True)
class Change:
    """The agent after a move, the field assignments that lead there, and the caller's answer.

    Guarantee: a change without kinds assigns nothing and its record is the one that the move was given.
    Otherwise `record.version` is one more than before. `sets` and `drops` hold field paths whose segments
    are fixed names, checked ids or `ids.field_name` output, never a caller's raw text. `told` is what readers of
    the envelope are to know and could not see from the assignments. `blobs` and `segments` are the values and segments
    that the assignments refer to, None for one that is stored already: they have to be there before the change is.
    """

    record: AgentRecord
    kinds: tuple[str, ...] = ()
    sets: Mapping[str, Any] = field(default_factory=dict)
    drops: frozenset[str] = frozenset()
    answer: Any = None
    told: Mapping[str, Any] = field(default_factory=dict)
    blobs: Mapping[Binary, bytes | None] = field(default_factory=dict)
    segments: Mapping[str, Segment | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Assignments:
    """Field assignments of one update: `$set` and `$unset` without two paths that touch each other."""

    sets: Mapping[str, Any]
    drops: frozenset[str]


def fold(changes: Sequence[Change | Assignments]) -> Assignments:
    """The assignments of all changes, applied in order, as one update's worth.

    A field of the agent that becomes None is dropped, so that a document always reads like its record.
    """
    fields: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {}
    for change in changes:
        for path in change.drops:
            _assign(fields, inside, path, DROPPED)
        for path, value in change.sets.items():
            _assign(fields, inside, path, DROPPED if value is None and "." not in path else value)
    assigned = {**fields, **{path: value for paths in inside.values() for path, value in paths.items()}}
    sets = {path: value for path, value in assigned.items() if value is not DROPPED}
    return Assignments(sets, frozenset(assigned.keys() - sets.keys()))


def may_share(kinds: Sequence[tuple[str, ...]], more: tuple[str, ...]) -> bool:
    """Whether a change may go into one update with those before it, and still be told from them in its event.

    Appends may, any number of them: each step carries its version. Of every other kind there is one at most, with
    what tells of HEAD or of branches counted as one kind, and what replaces an agent as a whole goes alone.
    """
    if not kinds:
        return True
    others = {kind for each in kinds if each[0] != STEP for kind in each}
    if _ALONE & (others | set(more)):
        return False
    if more[0] == STEP:
        return _ABOUT_HEAD.isdisjoint(others)
    if _ABOUT_HEAD.isdisjoint(more):
        return others.isdisjoint(more)
    return _ABOUT_HEAD.isdisjoint(others) and all(each[0] != STEP for each in kinds)


def envelope(before: int, changes: Sequence[Change], stamp: Stamp, traces: Sequence[str | None]) -> dict[str, Any]:
    """The subdocument `last` of a commit: all that caches, feeds and the change log need to know beside the update.

    `{from, v, kinds, at, by, pool?, owner?, head?, branch?, trigger?, runner?, fence?, trace?, each?}`: what has no
    value is left out. `trigger` is of the one version of kind `state`, `runner` and `fence` of that of kind `runner`:
    who drives the agent from then on. `each` is `[{kinds, trace?, pool?}, …]`, one for each version, where the versions
    of one update are not all alike; the pool stands there when it is not the same for all.
    """
    record = changes[-1].record
    moves = any(change.record.pool != record.pool for change in changes)
    each = [
        _told({"kinds": list(change.kinds), "trace": trace, "pool": change.record.pool if moves else None})
        for change, trace in zip(changes, traces, strict=True)
    ]
    alike = all(one == each[0] for one in each)
    return _told(
        {
            "from": before,
            "v": record.version,
            "kinds": list(dict.fromkeys(kind for change in changes for kind in change.kinds)),
            "at": stamp.now,
            "by": stamp.by,
            "pool": None if moves else record.pool,
            "owner": record.owner,
            **{name: value for change in changes for name, value in change.told.items()},
            "trace": traces[0],
            "each": None if alike else each,
        }
    )


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


DROPPED: Any = object()
"""Stands for a value that is taken out."""


def _assign(fields: dict[str, Any], inside: dict[str, dict[str, Any]], path: str, value: Any) -> None:
    """Assign a field, which overrides all inside it, or a path inside one, which goes into a field assigned before.

    Paths inside one field are equally deep, so no two of them touch; but for what is bound to a step after all that was
    bound to it has been sealed: that is assigned as a whole.
    """
    name, dot, rest = path.partition(".")
    if not dot:
        inside.pop(name, None)
        fields[name] = value
    elif name in fields:
        fields[name] = placed(fields[name], rest.split("."), value)
    else:
        paths = inside.setdefault(name, {})
        above, _, last = path.rpartition(".")
        if above in paths:
            paths[above] = placed({} if paths[above] is DROPPED else paths[above], [last], value)
        else:
            paths[path] = value


def placed(holder: Mapping[str, Any], parts: Sequence[str], value: Any) -> dict[str, Any]:
    """The map with the value put in its place, or taken out."""
    key, *deeper = parts
    changed = {**holder, key: placed(holder.get(key, {}), deeper, value) if deeper else value}
    return {key: value for key, value in changed.items() if value is not DROPPED}
