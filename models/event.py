"""A change event: one durable update of an agent, as the database's change stream tells it.

It holds the assignments of the update and the envelope, never the whole agent (but for a new one), and is enough to
bring a copy of the agent from the version before up to date. Nothing here reads or writes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import bson

from models.agent import AgentRecord
from models.change import DROPPED, placed

Time = tuple[int, int]
"""A cluster time: seconds, and a number within the second. The order of commits is the order of their times."""


@dataclass(frozen=True, slots=True)
class Event:
    """What one update assigned: `sets` by field path (of a new document: its fields), `drops` the paths removed."""

    key: str
    """The agent's `_id`, `<tenant>:<agent>`."""
    time: Time
    sets: Mapping[str, Any]
    drops: Collection[str] = ()
    whole: bool = False
    """Whether `sets` is a whole document."""

    @property
    def envelope(self) -> Mapping[str, Any]:
        """The commit's own words, see `models.change.envelope`."""
        last: Mapping[str, Any] = self.sets["last"]
        return last

    @property
    def before(self) -> int:
        """The version that the update was made on."""
        return int(self.envelope["from"])

    @property
    def version(self) -> int:
        """The version that it led to; greater than `before` by the number of requests that shared it."""
        return int(self.envelope["v"])


def patched(record: AgentRecord, event: Event) -> AgentRecord:
    """The agent at the event's version. `record` must be at the version before; only a whole event takes any.

    Guarantee: equal to the document read anew at that version, its size in bytes included (where it was known).
    """
    if event.whole:
        return AgentRecord.of(event.sets)
    fields: dict[str, Any] = {}
    growth = 0
    for path in event.drops:
        growth += _assign(record, fields, path, DROPPED)
    for path, value in event.sets.items():
        growth += _assign(record, fields, path, value)
    known = record.size_bytes is not None and record.exists  # what a tombstone stores is not seen from its record
    size = (record.size_bytes or 0) + growth if known else None
    return record.model_copy(update={**fields, "size_bytes": size})


def _assign(record: AgentRecord, fields: dict[str, Any], path: str, value: Any) -> int:
    """Put a value in its place among the fields that differ from the record; by how many bytes that grows it."""
    name, *inner = path.split(".", 2)
    held: Any = fields.get(name, getattr(record, name, None))
    if not inner:
        fields[name] = _default(name) if value is DROPPED else value
        return _bytes_of(name, value) - (0 if held is None else _bytes_of(name, held))
    if name not in fields:
        held = fields[name] = dict(held or {})  # nothing: a map of a later release, which runs beside this one
    key = inner[0]
    before = held.get(key, DROPPED)
    after = value if len(inner) == 1 else placed({} if before is DROPPED else before, inner[1:], value)
    if after is DROPPED:
        held.pop(key, None)
    else:
        held[key] = after
    return _bytes_of(key, after) - _bytes_of(key, before)


def _default(name: str) -> Any:
    """What a record says of a field that is not stored; a field of a later release says nothing."""
    known = AgentRecord.model_fields.get(name)
    return None if known is None else known.get_default(call_default_factory=True)


def _bytes_of(name: str, value: Any) -> int:
    """The bytes that a field takes in its document."""
    return 0 if value is DROPPED else len(bson.encode({name: value})) - _EMPTY_BYTES


_EMPTY_BYTES = 5
