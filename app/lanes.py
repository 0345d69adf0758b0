"""What waits to be committed: requests, the lane of each agent that they queue in, and the trial of a batch.

A trial applies the moves of a batch one on another, in memory, and says what would be written and what each caller
would hear. Nothing here awaits, reads or writes the database; `app.store` decides when a trial counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import bson
from bson.binary import Binary
from bson.errors import BSONError
from pymongo import InsertOne, UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession

from app.mongo import CODEC, Write
from models.agent import AgentRecord
from models.change import OP_SLOTS, RESULTS, RUNNER, STATE, STEP, WORKSPACE, Change, Stamp, envelope, fold, may_share
from models.commit import Guard, Reply
from models.errors import Conflict, HoldfastError, InvalidRequest, TooLarge
from models.event import Event
from models.execution import OVER
from models.history import NotAtHand, Wanted
from models.sealing import Sealing, may_be_due, seal
from models.segment import Segment
from models.tenant import Scope

Move = Callable[[AgentRecord, Stamp], Change]

Encode = Callable[[Any], Awaitable[Reply]]
"""Makes the answer, of what came of the request, that is given again when it comes again. Raises Unavailable."""

Beside = Callable[[AsyncClientSession], Awaitable[None]]
"""Writes something else in the transaction of a commit. Where it raises a HoldfastError nothing is written."""

_NOT_KNOWN_YET = (0, 0)
_FOLD_BYTES = 4 * 1024 * 1024
_COMMIT_BYTES = 4 * 1024
"""Kept free for what commits themselves store (`last`, `ops`), so that a full agent can still be changed."""

_EXECUTION_BYTES = 256 * 1024
"""What goes over the limit for transitions and claims, their whole history included, and for the step that closes a
broken turn: so that a full agent can still be driven to an end. Steps that callers send get none of it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """BSON bytes: of an agent's document at most, and of the steps in it before older ones are sealed."""

    agent_bytes: int
    seal_bytes: int


@dataclass(frozen=True, slots=True)
class Once:
    """Asks that a request has its effect at most once: the record's id, the request's digest, the answer's form."""

    id: str
    digest: str
    encode: Encode


@dataclass(frozen=True, slots=True)
class Terms:
    """What a write is to respect (guard) and to be remembered by (once)."""

    guard: Guard = field(default_factory=Guard)
    once: Once | None = None

    def guard_of(self, scope: Scope) -> Guard:
        """The guard of a write by this caller, who may have to send the fence."""
        return replace(self.guard, fence_required=scope.fence_required)


@dataclass(frozen=True, slots=True)
class Committed:
    """How an accepted request ended: the agent right after it, the move's answer, or the reply given before."""

    record: AgentRecord
    answer: Any
    changed: bool
    replay: Reply | None = None


@dataclass(eq=False, slots=True)
class Request:
    """A caller that waits. `sent`: its outcome may be unknown; `given_up`: it was answered without one."""

    scope: Scope
    move: Move
    guard: Guard
    once: Once | None
    creates: bool
    done: asyncio.Future[Committed]
    trace: str | None = None
    """The W3C traceparent of the request, for the envelope."""
    beside: Beside | None = None
    adopts: bool = False
    """Whether its move is also for a document that an earlier program left without a version."""
    sent: bool = False
    given_up: bool = False

    @property
    def alone(self) -> bool:
        """Whether it takes a transaction of its own."""
        return self.once is not None or self.beside is not None

    def resolve(self, result: Committed | Exception) -> None:
        if self.done.done():
            return
        if isinstance(result, Exception):
            self.done.set_exception(result)
            self.done.exception()  # callers that left early must not cause a warning
        else:
            self.done.set_result(result)


@dataclass(eq=False, slots=True)
class Lane:
    """The queue of one agent on this replica, and the agent as this replica last knew it (`basis`)."""

    key: str
    waiting: deque[Request] = field(default_factory=deque)
    basis: AgentRecord | None = None
    bound: int = 0
    """Bytes that `basis` takes in the database at most."""
    worker: asyncio.Task[None] | None = None

    def take(self, limit: int) -> list[Request]:
        """The next requests that may share an update: of the same caller, none that takes a transaction."""
        batch: list[Request] = []
        while self.waiting and len(batch) < limit:
            request = self.waiting[0]
            if not request.given_up:
                if batch and (request.alone or batch[0].alone or request.scope.by != batch[0].scope.by):
                    break
                batch.append(request)
            self.waiting.popleft()
        return batch

    def give_up(self, request: Request) -> None:
        """Let go of a request that was answered without having been sent."""
        request.given_up = True
        with contextlib.suppress(ValueError):
            self.waiting.remove(request)

    def put_back(self, requests: Sequence[Request]) -> None:
        self.waiting.extendleft(reversed(requests))


class Trial:
    """A batch of moves applied one on another to a basis: what would be written and what each caller would hear."""

    def __init__(self, basis: AgentRecord, bound: int, batch: Sequence[Request], now: Stamp, limits: Limits) -> None:
        self.basis = basis
        self.stamp = now
        self.op = secrets.randbits(63)
        self._adopts = is_unversioned(basis)
        self.event: Event | None = None
        """What the change stream is going to say of it, once it has been written."""
        self._limits = limits
        self._apply(batch, None, basis, bound)
        due = bool(self.changes) and basis.exists and may_be_due(basis, bound, limits.seal_bytes)
        sealing = seal(basis, limits.seal_bytes) if due else None
        if sealing is not None:
            self._apply(batch, sealing, sealing.record, sealing.record.stored_bytes())

    def _apply(self, batch: Sequence[Request], sealing: Sealing | None, record: AgentRecord, size: int) -> None:
        """Apply the moves, one on another, to the basis as it is or with its older steps sealed."""
        self._sealing = sealing
        self.record, self.size = record, size
        self.changes: list[Change] = []
        self._traces: list[str | None] = []
        self.results: list[tuple[Request, Committed | Exception]] = []
        self.bytes = 0
        self.blobs: dict[Binary, bytes | None] = {}
        self.segments: dict[str, Segment | None] = {} if sealing is None else dict(sealing.segments)
        """What has to be stored, like the blobs, before the trial is written."""
        self.lacking = Wanted()
        """What the moves need of the agent's history and is not at hand: then the trial does not count."""
        self.rest: Sequence[Request] = ()
        for number, request in enumerate(batch):
            if self.bytes > _FOLD_BYTES or not self._try(request):
                self.rest = batch[number:]
                break

    @property
    def requests(self) -> list[Request]:
        return [request for request, _ in self.results]

    def write(self) -> Write:
        """The whole trial as one guarded write, recognisable by its op id."""
        slot = str(self.record.version % OP_SLOTS)
        last = envelope(self.basis.version, self.changes, self.stamp, self._traces)
        self._seal({"last": last, "ops": {**self.basis.ops, slot: self.op}})
        if self.basis.version == 0 and not self._adopts:
            document = self.record.document()
            self.event = Event(self.basis.id, _NOT_KNOWN_YET, document, whole=True)
            return InsertOne(document)
        assigned = fold([*([self._sealing.assigned] if self._sealing else []), *self.changes])
        update: dict[str, Any] = {"$set": {**assigned.sets, "last": last, f"ops.{slot}": self.op}}
        if assigned.drops:
            update["$unset"] = dict.fromkeys(sorted(assigned.drops), "")
        self.event = Event(self.basis.id, _NOT_KNOWN_YET, update["$set"], assigned.drops)
        guard = {"_id": self.basis.id, "tenant": self.basis.tenant, "version": self.basis.version}
        return UpdateOne({"_id": self.basis.id, "version": {"$in": [None, 0]}} if self._adopts else guard, update)

    def bears(self, record: AgentRecord) -> bool:
        """Whether the agent, as read, shows that this trial's write was applied."""
        return record.ops.get(str(self.record.version % OP_SLOTS)) == self.op

    def writes(self, *, certain: bool) -> bool:
        """Whether there is anything to make durable; for a keyed request that is its answer, once that is certain."""
        if self.changes:
            return True
        request, result = self.results[0]
        return certain and request.once is not None and isinstance(result, Committed)

    def committed(self) -> Committed:
        """The first request's result, which is not a refusal."""
        result = self.results[0][1]
        if isinstance(result, Committed):
            return result
        raise result

    def deliver(self) -> None:
        for request, result in self.results:
            request.resolve(result)

    def _seal(self, commit: dict[str, Any]) -> None:
        """Put the commit's own fields on the record that the last change left, also where it is a caller's result."""
        unsealed, self.record = self.record, self.record.model_copy(update=commit)
        for number, (request, result) in enumerate(self.results):
            if isinstance(result, Committed) and result.record is unsealed:
                self.results[number] = (request, Committed(self.record, result.answer, result.changed))

    def _try(self, request: Request) -> bool:
        """Apply a request's move; False when its change has to wait for an update of its own."""
        try:
            _require_there(self.record, request, self.stamp.judged_at)
            request.guard.check(self.record)
            change = request.move(self.record, self.stamp)
            if change.kinds and not may_share([earlier.kinds for earlier in self.changes], change.kinds):
                return False
            if change.kinds:
                self._grow(change)
        except HoldfastError as error:
            self.results.append((request, error))
            return True
        except NotAtHand as needs:  # the others may lack something, too: it is read for all of them at once
            self.lacking |= needs.wanted
            return True
        if change.kinds:
            self.changes.append(change)
            self.blobs |= change.blobs
            self.segments |= change.segments
            self._traces.append(request.trace)
            self.record = change.record
        self.results.append((request, Committed(change.record, change.answer, changed=bool(change.kinds))))
        return True

    def _grow(self, change: Change) -> None:
        """Count what the change may add at most; raises TooLarge before anything is written.

        What is bound to steps leaves room for steps, which can be sealed when there are more of them.
        """
        bound = not {RESULTS, WORKSPACE}.isdisjoint(change.kinds)
        limit = self._limits.agent_bytes - (2 * self._limits.seal_bytes if bound else 0)
        if {STATE, RUNNER} & set(change.kinds) and (STEP not in change.kinds or change.record.state in OVER):
            limit += _EXECUTION_BYTES
        try:
            growth = len(bson.encode({"": change.sets}, codec_options=CODEC))
        except (BSONError, OverflowError) as error:
            raise InvalidRequest("A value can't be stored as BSON.") from error
        size = growth if self.record.version == 0 and not self._adopts else self.size + growth
        if size > limit - _COMMIT_BYTES:  # what is replaced was counted as well: count anew
            size = change.record.stored_bytes()
        if size > limit - _COMMIT_BYTES and size > self.record.stored_bytes():
            raise TooLarge("The agent", limit, size + _COMMIT_BYTES)
        self.size = size
        self.bytes += growth + sum(len(text or b"") for text in change.blobs.values())


def is_unversioned(record: AgentRecord) -> bool:
    """Whether it is what an earlier program stored, of which nothing can be guarded: no agent until it is migrated."""
    return record.version == 0 and record.size_bytes is not None


def _require_there(record: AgentRecord, request: Request, now: datetime) -> None:
    """Raise NotFound where the request needs an agent, AgentExpired where its life is over.

    Raise Conflict where it needs none and something is in its place.
    """
    unversioned = is_unversioned(record)
    if unversioned and request.creates:
        raise Conflict("The id is taken by a document of an earlier program: 'holdfast migrate' makes an agent of it.")
    if not request.creates and not (unversioned and request.adopts):
        record.require_visible(request.scope)
        if not request.scope.is_service:
            record.require_alive(now)
