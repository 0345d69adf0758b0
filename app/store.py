"""The one door to the agents collection: read, list, commit. No other file writes it.

A caller hands `commit` a *move*, a pure function from the agent to a Change. The commit makes the change durable
(majority and journal) under one rule: **the filter always carries the version that the move saw**, so a move is
applied to exactly the agent it was decided on, once. How a request can end:

- *applied*: acknowledged by the database.
- *unchanged*: the move assigns nothing; nothing is written, the version stays.
- *refused*: the move or a guard raised, on a state that was certainly the agent's. Memory may propose, only the
  database refuses: a refusal stands after a write of the same batch was applied, or after a linearizable read.
- *replayed*: the request's idempotency record holds its answer already.
- *rebased*: another writer was first. The agent is read again and the move applied anew, until the deadline;
  a guard on the version can't hold then, so it turns into its refusal.
- *unknown*: no acknowledgement came. The same guarded write is sent again until one comes; it can match only
  once. When it does not match, the op id in the commit's slot tells whose write moved the version.
- *too late*: the caller is answered `Unavailable` at the deadline, told whether the write was ever sent. What
  was sent is settled all the same: callers come and go, a write is never dropped half-way.

Requests for the same agent wait in its *lane* and are folded into one update, each with its own version; the
updates of different agents share bulk writes (`app.bulk`). A request with an Idempotency-Key goes alone, in one
transaction with its record, and so does one that writes something else beside the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pymongo
from bson.raw_bson import RawBSONDocument
from pymongo import DeleteOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import PyMongoError

from app.backoff import Backoff
from app.barrier import Barrier
from app.blobs import Blobs
from app.bulk import BulkWriter, Outcome
from app.clock import Clock
from app.config import Settings
from app.idempotency import Idempotency, still_running
from app.lanes import Beside, Committed, Lane, Limits, Move, Once, Request, Trial
from app.mongo import Mongo, Write, decoded, unavailable_when_failing
from app.segments import Gone, Segments
from app.telemetry import Metrics, get_logger
from app.tracing import Tracing, current_traceparent
from models.agent import AgentRecord
from models.blob import Damaged
from models.change import OP_SLOTS, Stamp
from models.commit import Guard
from models.errors import (
    HoldfastError,
    IdempotencyMismatch,
    Unavailable,
)
from models.event import Event, Time
from models.history import Wanted
from models.ids import keys_within
from models.tenant import Scope

_LANES = 10_000
_EXPUNGED_AT_ONCE = 200
_NO_GUARD = Guard()
_log = get_logger(__name__)


class Observer(Protocol):
    """Who wants to hear at once what this replica learns of agents: the cache."""

    def wrote(self, event: Event) -> None:
        """A write was acknowledged; its event has no time yet."""

    def knows(self, key: str, version: int) -> None:
        """An agent was read at a version."""


class Store:
    """Agents, durable. One per replica; `stop` waits until everything that was sent is settled."""

    def __init__(
        self,
        mongo: Mongo,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        tracing: Tracing,
        observer: Observer,
        blobs: Blobs,
        segments: Segments,
    ) -> None:
        self._mongo = mongo
        self._blobs = blobs
        self._segments = segments
        self._limits = Limits(settings.agent_limit_bytes, settings.seal_over_bytes)
        self._tracing = tracing
        self._observer = observer
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._idempotency = Idempotency(mongo, clock)
        self._barrier = Barrier(mongo, clock, seconds=settings.call_seconds)
        self._bulk = BulkWriter(
            mongo.agents,
            metrics,
            limit=settings.bulk_limit,
            flights=settings.flights,
            seconds=settings.call_seconds,
        )
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        self._basis_bytes = 0
        self._running_once: set[str] = set()
        metrics.show("lanes", "Agents with a write queue in memory.", lambda: len(self._lanes))
        metrics.show("basis_bytes", "BSON bytes of agents remembered to write from.", lambda: self._basis_bytes)

    async def read(self, key: str, *, since: Time | None = None) -> AgentRecord:
        """The agent of an `_id`, at version 0 when there is none: not older than the cluster time, or linearizable.

        Raises Unavailable.
        """
        with self._metrics.load_seconds.time(), unavailable_when_failing(self._settings.call_seconds):
            if since is None:
                return await self._linearizable(key)
            async with self._mongo.reading_after(since) as session:
                return await self._read(key, session)

    async def version(self, key: str) -> tuple[int, Time]:
        """The version of the agent of an `_id` (0 when there is none), and when: what is not older is linearizable.

        Raises Unavailable.
        """
        with unavailable_when_failing(self._settings.call_seconds):
            time = await self._barrier.passed()
            async with self._mongo.reading_after(time) as session:
                # unscoped: the key begins with the tenant
                found = await self._mongo.agents_raw.find_one({"_id": key}, {"version": 1}, session=session)
        return 0 if found is None else int(found.get("version") or 0), time

    async def page(
        self, scope: Scope, query: Mapping[str, Any], *, after: str | None, limit: int, fields: Iterable[str]
    ) -> list[dict[str, Any]]:
        """Up to `limit` agents of the scope in the order of their ids, as documents of the named fields and size."""
        wanted = scope.filter({**query, "deleted_at": None})
        wanted["_id"] = keys_within(scope.tenant, after or "")
        projection = {**dict.fromkeys(fields, 1), "size_bytes": {"$bsonSize": "$$ROOT"}}
        with unavailable_when_failing(self._settings.call_seconds):
            found = await self._mongo.agents_raw.find(wanted, projection).sort("_id", 1).limit(limit).to_list()
        return [decoded(document.raw) for document in found]

    async def commit(
        self,
        scope: Scope,
        agent: str,
        move: Move,
        *,
        guard: Guard = _NO_GUARD,
        once: Once | None = None,
        creates: bool = False,
        spent: float = 0.0,
        beside: Beside | None = None,
        adopts: bool = False,
    ) -> Committed:
        """Apply the move and make it durable. Answers within the deadline (less the seconds spent on it before).

        The move may run several times, each time on another state of the agent; with `creates` also on none, with
        `adopts` also on a document without a version. What `beside` writes is written if and only if the agent is.
        Raises what the move or guard raises; NotFound; TooLarge; Conflict while the same `once` runs here;
        IdempotencyMismatch; Unavailable. The lane carries the write out: cancelling the caller does not stop it.
        """
        done: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        with self._alone(once), self._metrics.commit_seconds.time(), self._tracing.commit(agent):
            request = Request(scope, move, guard, once, creates, done, current_traceparent(), beside, adopts)
            lane = self._enqueue(scope.agent_key(agent), request)
            try:
                async with asyncio.timeout(self._settings.commit_seconds - spent):
                    return await request.done
            except TimeoutError:
                raise self._too_late(lane, request) from None
            except HoldfastError as error:
                self._metrics.refusals.labels(error.code).inc()
                raise

    async def put_back(self, documents: Sequence[RawBSONDocument]) -> None:
        """Insert agents and tombstones of a backup, as they were. Raises BulkWriteError for those that are there."""
        await self._mongo.agents_raw.insert_many(documents, ordered=False)

    async def take_away(self, documents: Sequence[RawBSONDocument]) -> None:
        """Remove what `put_back` inserted; one that was made or deleted under the same id since then stays."""
        same = ({name: one.get(name) for name in ("_id", "created_at", "deleted_at")} for one in documents)
        await self._mongo.agents_raw.bulk_write([DeleteOne(one) for one in same], ordered=False)

    async def expunge(self, tenant: str) -> int:
        """Remove documents of a tenant's agents outright, tombstones too, some at a time; how many. Raises Unavailable.

        Versions begin anew afterwards: this is for a tenant that is no more.
        """
        span = {"_id": keys_within(tenant)}
        with unavailable_when_failing(self._settings.call_seconds):
            # unscoped: of the tenant that is erased
            found = await self._mongo.agents.find(span, {"_id": 1}).limit(_EXPUNGED_AT_ONCE).to_list()
            # unscoped: as above
            gone = await self._mongo.agents.delete_many({"_id": {"$in": [one["_id"] for one in found]}})
        for one in found:
            if (lane := self._lanes.get(one["_id"])) is not None:
                self._remember(lane, None)
        return gone.deleted_count

    async def stop(self) -> None:
        """Wait until every lane is empty, for as long as a shutdown may take."""
        workers = [lane.worker for lane in self._lanes.values() if lane.worker is not None]
        if workers:
            await asyncio.wait(workers, timeout=self._settings.shutdown_seconds)

    @contextlib.contextmanager
    def _alone(self, once: Once | None) -> Iterator[None]:
        if once is None:
            yield
            return
        if once.id in self._running_once:
            raise still_running()
        self._running_once.add(once.id)
        try:
            yield
        finally:
            self._running_once.discard(once.id)

    def _enqueue(self, key: str, request: Request) -> Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        self._lanes.move_to_end(key)
        lane.waiting.append(request)
        if lane.worker is None:
            lane.worker = asyncio.create_task(self._work(lane), context=contextvars.Context())
        return lane

    def _too_late(self, lane: Lane, request: Request) -> Unavailable:
        if not request.sent:
            lane.give_up(request)
            return Unavailable("The database did not answer in time; nothing was written. Try again.", written=False)
        request.given_up = True
        self._metrics.unanswered.inc()
        return Unavailable(
            "The database did not acknowledge the write in time; it may have been applied or may still be. "
            "Read the agent, or repeat with the same Idempotency-Key or step id.",
            written=None,
        )

    async def _work(self, lane: Lane) -> None:
        """Serve a lane until it is empty."""
        try:
            while batch := lane.take(self._settings.fold_limit):
                try:
                    await self._serve(lane, batch)
                except Exception as error:  # noqa: BLE001 - the top of the lane: its callers are told
                    self._fail(lane, batch, error)
        finally:
            lane.worker = None
            self._forget_oldest()

    def _fail(self, lane: Lane, batch: Sequence[Request], error: Exception) -> None:
        self._remember(lane, None)
        if isinstance(error, HoldfastError):
            failures = [error] * len(batch)
        else:
            _log.error("lane failed", agent=lane.key, exc_info=error)
            failures = [_failure(sent=request.sent) for request in batch]
        for request, failure in zip(batch, failures, strict=True):
            request.resolve(failure)

    async def _serve(self, lane: Lane, batch: list[Request]) -> None:
        """Bring every request of the batch to its end."""
        try:
            await self._bring_to_its_end(lane, batch)
        finally:
            if lane.basis is not None:  # what was read of its segments is not remembered
                lane.basis = lane.basis.bare()

    async def _bring_to_its_end(self, lane: Lane, batch: list[Request]) -> None:
        certain = False
        if batch[0].once:  # whether the agent is there is judged before the record is looked up
            self._remember(lane, None)
        backoff = Backoff()
        while batch := _awaited(batch):
            if lane.basis is None:
                await self._refresh(lane, strong=certain)
            replayed = None if lane.basis is None else await self._replayed(lane.basis, batch[0])
            if lane.basis is None or replayed is None:
                await backoff.pause()
                continue
            if replayed or not (batch := _awaited(batch)):  # answered, or told meanwhile that nothing was written
                return
            trial = Trial(lane.basis, lane.bound, batch, self._stamp(batch[0]), self._limits)
            if trial.lacking:
                if not await self._supplied(lane, lane.basis, trial.lacking):
                    await backoff.pause()
            elif trial.writes(certain=certain):
                if not await self._apart_stored(trial):
                    await backoff.pause()
                    continue
                if any(request.given_up for request in trial.requests):  # told meanwhile that nothing was written
                    continue
                certain = False
                if await self._applied(lane, trial):
                    return
                self._metrics.rebases.inc()
                await backoff.pause()
            elif certain:
                self._end(lane, trial)
                return
            else:
                certain = True
                self._remember(lane, None)

    async def _applied(self, lane: Lane, trial: Trial) -> bool:
        """Write the trial; when it is durable, tell its callers. False: it has to be tried again.

        Afterwards the lane's basis is the agent as it is now, or unknown.
        """
        doubtless = [request for request in trial.requests if not request.sent]
        for request in doubtless:
            request.sent = True
        alone = trial.requests[0].alone
        outcome = await (self._write_together(lane, trial) if alone else self._write(lane, trial))
        if outcome is not Outcome.APPLIED:
            for request in doubtless:  # what an earlier transaction left unknown stays so
                request.sent = outcome is Outcome.UNKNOWN
            return False
        self._remember(lane, trial.record, trial.size)
        if trial.event is not None:
            self._observer.wrote(trial.event)
        self._count(trial)
        self._end(lane, trial)
        return True

    def _end(self, lane: Lane, trial: Trial) -> None:
        trial.deliver()
        lane.put_back(trial.rest)

    async def _write(self, lane: Lane, trial: Trial) -> Outcome:
        """Send the trial until it is acknowledged, and find out what became of it: APPLIED or MISSED."""
        write = trial.write()
        backoff = Backoff()
        while (outcome := await self._bulk.send(write, trial.bytes)) is Outcome.UNKNOWN:
            if not backoff.pauses:
                self._metrics.unknown.inc()
            await backoff.pause()
            while not await self._apart_stored(trial):
                await backoff.pause()
        self._remember(lane, None)
        if outcome is Outcome.REFUSED:
            if backoff.pauses:
                raise Unavailable("The database refuses to say what became of the write: read the agent.", written=None)
            raise Unavailable("The database refuses the write; nothing was written.", written=False)
        if outcome is not Outcome.APPLIED and (backoff.pauses or outcome is Outcome.UNSURE):
            outcome = await self._settled(lane, trial)
        if backoff.pauses:
            self._metrics.settled.labels(outcome.value).inc()
        return outcome

    async def _apart_stored(self, trial: Trial) -> bool:
        """Store what the trial refers to, anew whenever it is sent, so that nobody removes it meanwhile."""
        try:
            await self._blobs.store(trial.basis.tenant, trial.blobs)
            await self._segments.store(trial.segments)
        except PyMongoError:
            return False
        return True

    async def _supplied(self, lane: Lane, basis: AgentRecord, wanted: Wanted) -> bool:
        """Let the lane's basis have what is wanted of its history; False when the database does not answer.

        Raises Damaged when it is not there, though the agent is.
        """
        try:
            self._remember(lane, await self._segments.supplied(basis, wanted), lane.bound)
        except Unavailable:
            return False
        except Gone as error:
            await self._refresh(lane, strong=True)
            if lane.basis is not None and lane.basis.version == basis.version:
                raise Damaged(str(error)) from error
        return True

    async def _settled(self, lane: Lane, trial: Trial) -> Outcome:
        """What became of a write that is surely over: the version has moved, the op slot tells by whom."""
        backoff = Backoff()
        while lane.basis is None:
            await self._refresh(lane, strong=True)
            if lane.basis is None:
                await backoff.pause()
        if trial.bears(lane.basis):
            return Outcome.APPLIED
        if lane.basis.version >= trial.record.version + OP_SLOTS:
            raise Unavailable("So much was written since that the outcome can't be told: read the agent.", written=None)
        return Outcome.MISSED

    async def _write_together(self, lane: Lane, trial: Trial) -> Outcome:
        """Write the trial, its idempotency record and what goes beside it in one transaction.

        With a record, MISSED and UNKNOWN need no other care than to look again: then it is found, or the transaction
        runs anew, and of two transactions with the same record at most one can commit. Without one the agent tells.
        """
        self._remember(lane, None)
        request = trial.requests[0]
        write = trial.write() if trial.changes else None
        record = None if request.once is None else await self._record(trial, request.once)
        async with self._mongo.client.start_session() as session:
            try:
                with pymongo.timeout(self._settings.call_seconds):
                    async with await session.start_transaction():
                        if record is not None:
                            await self._idempotency.remember(record, session)
                        if request.beside is not None:
                            await request.beside(session)
                        if write is not None and not await self._matches_in(session, write):
                            await session.abort_transaction()
                            return Outcome.MISSED
            except PyMongoError as error:
                await self._close(session)
                if not error.has_error_label("UnknownTransactionCommitResult"):
                    return Outcome.MISSED
                self._metrics.unknown.inc()
                return Outcome.UNKNOWN if record is not None else await self._settled(lane, trial)
        return Outcome.APPLIED

    async def _record(self, trial: Trial, once: Once) -> dict[str, Any]:
        reply = await once.encode(trial.committed())
        return await self._idempotency.record(once, trial.basis.tenant, reply, trial.basis.name_in_tenant)

    async def _close(self, session: AsyncClientSession) -> None:
        """See to it that the session's transaction is over on the server, where it may hold its locks for a minute.

        An abort may overtake what it is to end; a newer transaction of the same session ends all before it for good.
        """
        backoff = Backoff()
        while True:
            try:
                with pymongo.timeout(self._settings.call_seconds):
                    async with await session.start_transaction():
                        # unscoped: looks for nothing
                        await self._mongo.idempotency.find_one({"_id": ""}, session=session)
            except PyMongoError:
                await backoff.pause()
            else:
                return

    async def _matches_in(self, session: AsyncClientSession, write: Write) -> bool:
        result = await self._mongo.agents.bulk_write([write], session=session)
        return result.matched_count + result.inserted_count == 1

    async def _replayed(self, basis: AgentRecord, request: Request) -> bool | None:
        """Answer from the request's idempotency record, when there is one and the agent is still to be seen.

        None: the database does not say whether there is one.
        """
        once = request.once
        if once is None or not (request.creates or (basis.is_visible(request.scope) and not self._is_over(basis))):
            return False
        try:
            with pymongo.timeout(self._settings.call_seconds):
                reply = await self._idempotency.replay(once, request.scope.tenant)
        except PyMongoError:
            return None
        except IdempotencyMismatch as mismatch:
            request.resolve(mismatch)
            return True
        if reply is None:
            return False
        self._metrics.replays.inc()
        request.resolve(Committed(basis, None, changed=False, replay=reply))
        return True

    async def _refresh(self, lane: Lane, *, strong: bool) -> None:
        """Read the lane's basis; it stays unknown when the database does not answer."""
        with contextlib.suppress(PyMongoError):
            record = await (self._linearizable(lane.key) if strong else self._read(lane.key))
            self._remember(lane, record, record.size_bytes or 0)
            self._observer.knows(lane.key, record.version)

    async def _linearizable(self, key: str) -> AgentRecord:
        async with self._barrier.reading() as session:
            return await self._read(key, session)

    async def _read(self, key: str, session: AsyncClientSession | None = None) -> AgentRecord:
        """The agent's document as a record; version 0 when there is none."""
        with pymongo.timeout(self._settings.call_seconds):
            # unscoped: the key begins with the tenant
            raw: RawBSONDocument | None = await self._mongo.agents_raw.find_one({"_id": key}, session=session)
        if raw is None:
            return AgentRecord(id=key, tenant=key.partition(":")[0])
        return AgentRecord.of(decoded(raw.raw), size_bytes=len(raw.raw))

    def _stamp(self, request: Request) -> Stamp:
        return Stamp(self._clock.now(), request.scope.by, self._clock.latest(), self._clock.earliest())

    def _is_over(self, record: AgentRecord) -> bool:
        return record.is_over(self._clock.earliest())

    def _remember(self, lane: Lane, basis: AgentRecord | None, bound: int = 0) -> None:
        self._basis_bytes += bound - lane.bound
        lane.basis, lane.bound = basis, bound

    def _forget_oldest(self) -> None:
        """Let go of idle lanes, the least used first, until what is remembered fits its bytes."""
        for _ in range(len(self._lanes)):
            if self._basis_bytes <= self._settings.basis_bytes and len(self._lanes) <= _LANES:
                break
            key, lane = next(iter(self._lanes.items()))
            if lane.worker is None and not lane.waiting:
                self._remember(lane, None)
                del self._lanes[key]
            else:
                self._lanes.move_to_end(key)

    def _count(self, trial: Trial) -> None:
        if not trial.changes:
            return
        self._metrics.updates.inc()
        self._metrics.update_bytes.observe(trial.bytes)
        self._metrics.folded.inc(len(trial.changes) - 1)
        for change in trial.changes:
            self._metrics.commits.labels("+".join(change.kinds)).inc()


def _failure(*, sent: bool) -> Unavailable:
    if sent:
        return Unavailable("The service failed to carry this out; the outcome is not known.", written=None)
    return Unavailable("The service failed to carry this out; nothing was written.", written=False)


def _awaited(batch: Sequence[Request]) -> list[Request]:
    """The requests that have not been answered `Unavailable` yet."""
    return [request for request in batch if not request.given_up]
