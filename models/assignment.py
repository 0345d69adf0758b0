"""Assignment: which runner drives an agent. Each move here raises the fence, so that whoever drove it before is out.

A runner is named by its id and its *incarnation*, which counts its registrations: one that was restarted is another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from models.agent import AgentRecord, widened
from models.change import AGENT, HANDED, RUNNER, Change, Stamp
from models.execution import IN_TURN, State, Trigger
from models.transition import Move, move_along
from models.turn import broken_off, unassigned

CLAIMED_AS_IS = (State.IDLE, State.STARTING, State.BUSY)
SPAWNED = (State.PENDING, State.FAILED)
"""Which states a claim leaves as they are, and from which it starts the agent. A busy one waits with its prompt."""


@dataclass(frozen=True, slots=True)
class Driver:
    """A runner as far as agents are concerned: what it may drive, and by which name it does."""

    runner: str
    incarnation: int
    pool: str
    platform: str
    region: str | None
    owner: str | None = None
    """Whose agents alone it drives; None: everybody's."""

    def fits(self, record: AgentRecord) -> bool:
        """Whether the agent is of its pool, its place and its owner."""
        return (
            record.pool == self.pool
            and record.platform in (None, self.platform)
            and record.region in (None, self.region)
            and self.owner in (None, record.owner)
        )


@dataclass(frozen=True, slots=True)
class Restarts:
    """How often in a row a failed agent is started again: `attempts` times, or never."""

    attempts: int

    def allow(self, failures: int) -> bool:
        """Whether an agent that failed so often may be claimed."""
        return failures <= self.attempts


@dataclass(frozen=True, slots=True)
class ClaimTerms:
    """On which terms a runner claims; an offer to the runner `past_offer` keeps nobody away any more."""

    driver: Driver
    restarts: Restarts
    past_offer: str | None = None


def may_claim(record: AgentRecord, terms: ClaimTerms) -> bool:
    """Whether the agent waits for a runner, and this one fits."""
    free = record.runner is None and not record.dormant and not record.archived
    offered = record.offered_to in (None, terms.driver.runner, terms.past_offer)
    startable = record.state == State.PENDING or (
        record.state == State.FAILED and terms.restarts.allow(record.failures)
    )
    return free and offered and terms.driver.fits(record) and (startable or record.state in CLAIMED_AS_IS)


def claim(record: AgentRecord, terms: ClaimTerms, stamp: Stamp) -> Change:
    """Let the runner drive the agent. Nothing changes, and the answer is None, when it is not to be had (any more)."""
    if not may_claim(record, terms):
        return record.unchanged()
    fields = {
        "runner": terms.driver.runner,
        "incarnation": terms.driver.incarnation,
        "fence": record.fence + 1,
        "offered_to": None,
    }
    token = bool(record.delegate and record.delegate.get("token"))
    change = record.changed(stamp, (RUNNER, HANDED) if token else (RUNNER,), fields)
    change = replace(change, told={"runner": terms.driver.runner, "fence": record.fence + 1})
    if record.state in SPAWNED:
        change = move_along(change, [Move(State.STARTING, Trigger.SPAWN)], stamp)
    return replace(change, answer=claimed(change.record))


def orphan(record: AgentRecord, reason: str, stamp: Stamp, step: str, *, offered_to: str | None = None) -> Change:
    """Take the runner off, so that others may claim the agent; or only one, to whom it is offered.

    One in the middle of a turn, or of its start, fails; an idle one only waits for the next. The answer is the state
    before and after.
    """
    before = record.state
    if before in IN_TURN or before == State.STARTING:
        moves = [Move(State.FAILED, Trigger.RECONCILIATION, reason)]
        change = broken_off(record, moves, stamp, step, offered_to=offered_to)
    elif record.runner is None:
        change = record.unchanged()
    else:
        change = record.changed(stamp, (RUNNER,), {**unassigned(record), "offered_to": offered_to})
        change = replace(change, told={"fence": change.record.fence})
    return replace(change, answer=(before, change.record.state))


def set_resource(record: AgentRecord, resource: str | None, stamp: Stamp) -> Change:
    """Say what the platform calls the agent's process; None takes that away."""
    if record.resource_id == resource:
        return record.unchanged()
    return record.changed(stamp, (AGENT,), {"resource_id": resource})


def rest(record: AgentRecord, *, dormant: bool, stamp: Stamp) -> Change:
    """Let the agent be dormant, left alone by claims and reconciliation; or not any more."""
    if record.dormant == dormant:
        return record.unchanged()
    return record.changed(stamp, (AGENT,), {"dormant": dormant})


def archive(record: AgentRecord, stamp: Stamp, step: str) -> Change:
    """End the run of an agent whose life is over, and put it away; nothing changes while it lives."""
    if record.archived or not record.is_over(stamp.judged_at):
        return record.unchanged()
    if record.state == State.STOPPED:
        return record.changed(stamp, (AGENT,), {"archived": True})
    over = [Move(State.STOPPED, Trigger.USER_TERMINATED, "its life is over")]
    return widened(broken_off(record, over, stamp, step, archived=True), (AGENT,), {})


def claimed(record: AgentRecord) -> dict[str, Any]:
    """What a claim tells the runner, but for the delegate."""
    return {
        "agent": record.name_in_tenant,
        "fence": record.fence,
        "version": record.version,
        "attempt": record.failures + 1,
        "previous_runner": record.previous_runner,
        "resource_id": record.resource_id,
        "state": record.state,
    }
