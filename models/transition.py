"""Transitions: how an agent's state moves, with what older readers see of it and its history, in one change.

The history in the document is bounded: the newest transitions, each in a slot, so that one more costs the same however
many there were. All of them are in the change log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from models.agent import AgentRecord, widened
from models.change import STATE, Change, Stamp
from models.execution import State, Trigger, activity_of, require_legal, status_of

KEPT = 64
"""Transitions of an agent that its document remembers."""


class Move(NamedTuple):
    """One transition to make, and why."""

    to: State
    trigger: Trigger
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an agent stands after a transition."""

    state: str
    status: str
    activity: str
    version: int
    at: datetime | None
    trigger: str | None


def move(record: AgentRecord, moves: Sequence[Move], stamp: Stamp, **fields: Any) -> Change:
    """Make transitions, one after another, and assign fields in the same version. Raises IllegalTransition.

    The caller's answer is where the agent stands then.
    """
    assigned, put = _assigned(record, moves, stamp, record.version + 1)
    change = record.changed(stamp, (STATE,), {**assigned, **fields}, put=put)
    return replace(change, answer=standing(change.record), told={"trigger": moves[-1].trigger.value})


def move_along(change: Change, moves: Sequence[Move], stamp: Stamp, **fields: Any) -> Change:
    """The same in the version of a change that assigns something else. Raises IllegalTransition."""
    assigned, put = _assigned(change.record, moves, stamp, change.record.version)
    told = {"trigger": moves[-1].trigger.value}
    return widened(change, (STATE,), {**assigned, **fields}, put=put, told=told)


def standing(record: AgentRecord) -> Standing:
    """Where the agent stands, and by what it came there."""
    newest = next(iter(numbered(record)), None)
    at, trigger = (None, None) if newest is None else (newest["at"], newest["trigger"])
    return Standing(record.state, record.status, record.activity, record.version, at, trigger)


def numbered(record: AgentRecord) -> list[dict[str, Any]]:
    """The transitions that the document remembers, newest first.

    Each is `{from, to, trigger, reason?, at, version, by, number}`; `number` counts all that the agent ever made.
    """
    return sorted(record.transitions.values(), key=lambda entry: int(entry["number"]), reverse=True)


def _assigned(
    record: AgentRecord, moves: Sequence[Move], stamp: Stamp, version: int
) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
    state = State(record.state)
    number = max((entry["number"] for entry in record.transitions.values()), default=0)
    entries: dict[str, Mapping[str, Any]] = {}
    for one in moves:
        require_legal(state, one.to, one.trigger)
        number += 1
        reason = {} if one.reason is None else {"reason": one.reason}
        entry = {"from": state.value, "to": one.to.value, "trigger": one.trigger.value, **reason}
        made = {"at": stamp.now, "version": version, "by": stamp.by, "number": number}
        entries[f"transitions.{number % KEPT}"] = {**entry, **made}
        state = one.to
    return {"state": state.value, "status": status_of(state), "activity": activity_of(state)}, entries
