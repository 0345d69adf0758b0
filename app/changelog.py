"""The change log: one entry for each version of each agent, in commit order, complete up to its mark.

Every replica writes what its own change stream brings. An entry's id is the agent's version, so that writing it again
does no harm, and no replica leads. The *mark* is the cluster time up to which some replica has written everything:
readers read that far. A replica raises it only for a stretch that begins at or below the mark, so no hole can hide
below it; where the database no longer has the events to fill one, entries of the kind `gap` say so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
from pymongo import UpdateOne
from pymongo.errors import OperationFailure

from app.clock import Clock
from app.mongo import Collection, Mongo, unavailable_when_failing
from models.agent import AgentRecord
from models.entry import GAP, Entry, entry_of_act, entry_of_episode, position, time_of
from models.errors import FeedGap, InvalidRequest
from models.event import Time
from models.news import snapshot_of
from models.tenant import Scope

_MARK = "mark"
_KEPT = "kept"
_AFTER_ALL = "~"
"""Sorts after every digit and letter of a position."""
_LOOKED_AT = 20_000
_STOCK_BATCH = 200
_STOCK_SECONDS = 30.0
_STOCK_OF_ACTS = ("tenant", "owner", "by", "at", "kind", "what")
_STOCK_OF_EPISODES = ("tenant", "owner", "by", "agent_id", "stored_at")
_SNAPSHOT_TOO_OLD = 239
_STOCK_FIELDS = ("tenant", "version", "owner", "pool", "state", "branch", "branches", "detached", "deleted_at", "last")
_SWEPT_AT_ONCE = 1_000
_CLOCKS_APART = timedelta(minutes=10)
"""By how much the clocks of replicas and database may differ where old agents are told from lately changed ones."""


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which entries a reader wants; None lets everything pass. Gaps pass whatever the kinds."""

    agent: str | None = None
    kinds: tuple[str, ...] | None = None
    pool: str | None = None

    def document(self) -> dict[str, Any]:
        """As a database query."""
        kinds = None if self.kinds is None else {"$in": [*self.kinds, GAP]}
        wanted = {"agent": self.agent, "kinds": kinds, "pool": self.pool}
        return {name: value for name, value in wanted.items() if value is not None}

    def matches(self, scope: Scope, entry: Entry) -> bool:
        """Whether an entry is for this reader: the same answer as the query's."""
        return (
            scope.sees(entry.tenant, entry.owner)
            and self.agent in (None, entry.agent)
            and self.pool in (None, entry.pool)
            and (self.kinds is None or not {*self.kinds, GAP}.isdisjoint(entry.kinds))
        )


@dataclass(frozen=True, slots=True)
class LogPage:
    """Entries in commit order; the position to go on after (None at the end); how far the log was complete."""

    entries: Sequence[Entry]
    onward: str | None
    complete_to: Time


class ChangeLog:
    """The stored log. `start` before anything is written; what fails raises PyMongoError, for readers Unavailable."""

    def __init__(self, mongo: Mongo, clock: Clock, *, seconds: float, kept: timedelta) -> None:
        self._mongo = mongo
        self._clock = clock
        self._seconds = seconds
        self._kept = kept

    async def start(self) -> Time:
        """The cluster time from which on this replica has to write what happens, for the log to have no hole."""
        mark = await self._mark()
        if mark is None:
            await self.record_gap()
            mark = await self._mark()
        return (0, 1) if mark is None else time_of(mark["complete_to"])

    async def write(self, entries: Sequence[Entry], complete_to: Time) -> None:
        """Write entries that are not there, then raise the mark; in this order, in one call."""
        await self._place(entries)
        mark = UpdateOne({"_id": _MARK}, {"$max": {"complete_to": position(complete_to)}}, upsert=True)
        with pymongo.timeout(self._seconds):
            await self._mongo.changes.bulk_write([*map(_upsert, entries), mark], ordered=True)

    async def record_gap(self) -> Time:
        """Say of each agent that changed since the mark where it stands now, for its events are lost.

        Answers the cluster time from which on events have to be written again. A log that begins has no mark yet.
        """
        now = await self._mongo.now()
        mark = await self._mark()
        since = None if mark is None else datetime.fromtimestamp(time_of(mark["complete_to"])[0], UTC) - _CLOCKS_APART
        async for batch in self._changed_since(since, now):
            with pymongo.timeout(self._seconds):
                await self._mongo.changes.bulk_write([_upsert(self._gap(record, now)) for record in batch])
        await self._tell_beside(since, now)
        raised = {"$setOnInsert" if mark is None else "$max": {"complete_to": position(now)}}
        with pymongo.timeout(self._seconds):
            # unscoped: the log's own mark
            await self._mongo.changes.update_one({"_id": _MARK}, raised, upsert=True)
        return now

    async def begin_at(self, time: Time) -> bool:
        """Let a log that has not begun yet begin at a cluster time; whether it did."""
        begun = {"$setOnInsert": {"complete_to": position(time)}}
        with pymongo.timeout(self._seconds):
            # unscoped: the log's own mark
            done = await self._mongo.changes.update_one({"_id": _MARK}, begun, upsert=True)
        return done.upserted_id is not None

    async def pass_over(self, since: Time) -> None:
        """Raise the mark to now over a stretch in which nothing happened that is not in the log.

        It begins where the mark was set by `begin_at`; a mark that was moved since is left to whoever moved it.
        """
        until = position(await self._mongo.now())
        with pymongo.timeout(self._seconds):
            # unscoped: the log's own mark
            await self._mongo.changes.update_one(
                {"_id": _MARK, "complete_to": position(since)}, {"$set": {"complete_to": until}}
            )

    async def page(self, scope: Scope, query: LogQuery, *, after: str | None, limit: int) -> LogPage:
        """Up to `limit` entries after a position; when None, from the oldest kept on, leaving what is being removed.

        A page of some kinds only may be short, or empty, and still go on: it looks at so many entries and no more.
        Raises FeedGap when entries after the position were removed by age, InvalidRequest when it lies in the future;
        Unavailable.
        """
        with unavailable_when_failing(self._seconds):
            complete_to = await self._complete_to(after)
            begin = await self._kept_from(scope.tenant) if after is None else after
            end = _end_of(complete_to)
            looked_to = None if query.kinds is None else await self._some_way_on(scope, begin, end)
            span = {"$gt": begin, "$lte": looked_to or end}
            wanted = scope.filter({**query.document(), "position": span})
            found = await self._mongo.changes.find(wanted).sort("position", 1).limit(limit + 1).to_list()
            if after is not None and after < await self._kept_from(scope.tenant):
                raise FeedGap("Entries after this cursor were removed by age: begin without one, at the oldest kept.")
        entries = [Entry.of(document) for document in found[:limit]]
        return LogPage(entries, entries[-1].position if len(found) > limit else looked_to, complete_to)

    async def end_for(self, after: str) -> str:
        """The place up to which a reader that was at another may read. Raises InvalidRequest for one in the future."""
        with unavailable_when_failing(self._seconds):
            return _end_of(await self._complete_to(after))

    async def sweep(self) -> int:
        """Remove the entries that are older than the log is kept; how many. Safe on all replicas at once.

        What is going to be removed is said first, so that no reader passes over it unawares.
        """
        oldest = self._clock.now() - self._kept
        removed = 0
        while batch := await self._oldest_before(position((int(oldest.timestamp()), 0))):
            newest = {entry["tenant"]: entry["position"] for entry in batch}
            with pymongo.timeout(self._seconds):
                await self._mongo.changes.bulk_write([_kept_after(*removal) for removal in newest.items()])
                # unscoped: age is the same in every tenant
                gone = await self._mongo.changes.delete_many({"_id": {"$in": [entry["_id"] for entry in batch]}})
            removed += gone.deleted_count
        return removed

    async def _complete_to(self, after: str | None) -> Time:
        """How far the log is complete, for a reader that goes on after a place. Raises InvalidRequest."""
        mark = await self._mark()
        complete_to = (0, 0) if mark is None else time_of(mark["complete_to"])
        if after is not None and time_of(after)[0] > complete_to[0] + _CLOCKS_APART.total_seconds():
            raise InvalidRequest("The cursor lies in the future of this log: it is another log's.")
        return complete_to

    async def _oldest_before(self, place: str) -> list[dict[str, Any]]:
        with pymongo.timeout(self._seconds):
            # unscoped: age is the same in every tenant
            found = self._mongo.changes.find({"position": {"$lt": place}}, ("tenant", "position")).sort("position", 1)
            return await found.limit(_SWEPT_AT_ONCE).to_list()

    async def _some_way_on(self, scope: Scope, begin: str, end: str) -> str | None:
        """The position so many entries further on; None when there are not so many."""
        span = {"tenant": scope.tenant, "position": {"$gt": begin, "$lte": end}}
        found = self._mongo.changes.find(span, {"position": 1, "_id": 0}).sort("position", 1)
        further = await found.skip(_LOOKED_AT).limit(1).to_list()
        return str(further[0]["position"]) if further else None

    async def _kept_from(self, tenant: str) -> str:
        """The position of the newest entry of the tenant that was removed by age."""
        # unscoped: the log's own, by the tenant
        found = await self._mongo.changes.find_one({"_id": f"{_KEPT}:{tenant}"})
        return "" if found is None else str(found["kept_from"])

    async def _mark(self) -> Mapping[str, Any] | None:
        with pymongo.timeout(self._seconds):
            # unscoped: the log's own mark
            return await self._mongo.changes.find_one({"_id": _MARK})

    async def _place(self, entries: Sequence[Entry]) -> None:
        """Write their places into the episodes that entries tell of."""
        episodes = [_placed(entry) for entry in entries if entry.episode is not None]
        if episodes:
            with pymongo.timeout(self._seconds):
                await self._mongo.episodes.bulk_write(episodes, ordered=False)

    async def _tell_beside(self, since: datetime | None, now: Time) -> None:
        """Tell of the episodes and acts that the log did not know at a cluster time, as if they were of then."""
        lately = {} if since is None else {"at": {"$gte": since}}
        untold = (self._mongo.episodes, {"position": {"$exists": False}}, _STOCK_OF_EPISODES, entry_of_episode)
        acts = (self._mongo.acts, lately, _STOCK_OF_ACTS, entry_of_act)
        for collection, query, fields, entry_of in (untold, acts):
            after = ""
            while batch := await self._stock(collection, {**query, "_id": {"$gt": after}}, fields, now):
                entries = [entry_of(document, now) for document in batch]
                await self._place(entries)
                with pymongo.timeout(self._seconds):
                    await self._mongo.changes.bulk_write([*map(_upsert, entries)], ordered=False)
                after = batch[-1]["_id"]

    async def _changed_since(self, instant: datetime | None, at: Time) -> AsyncIterator[list[AgentRecord]]:
        """Every agent that was changed since then (all of them when None), as it was at a cluster time, in batches."""
        after = ""
        while batch := await self._stock(self._mongo.agents, {"_id": {"$gt": after}}, _STOCK_FIELDS, at):
            records = [AgentRecord.of(document) for document in batch]
            lately = [record for record in records if instant is None or (record.updated_at or instant) >= instant]
            if lately:
                yield lately
            after = batch[-1]["_id"]

    async def _stock(
        self, collection: Collection, query: Mapping[str, Any], fields: Sequence[str], at: Time
    ) -> list[dict[str, Any]]:
        """The next documents as they were then; where that is too long ago for the database to tell, as they are."""
        with pymongo.timeout(_STOCK_SECONDS):
            try:
                return await self._mongo.as_of(at, collection, query, fields, limit=_STOCK_BATCH)
            except OperationFailure as error:
                if error.code != _SNAPSHOT_TOO_OLD:
                    raise
                return await self._mongo.as_of(None, collection, query, fields, limit=_STOCK_BATCH)

    def _gap(self, record: AgentRecord, now: Time) -> Entry:
        return Entry(
            tenant=record.tenant,
            agent=record.name_in_tenant,
            version=record.version,
            position=position(now, record.version, record.name_in_tenant),
            at=self._clock.now(),
            kinds=(GAP,),
            by="holdfast",
            owner=record.last.get("owner", record.owner),
            pool=record.last.get("pool", record.pool),
            snapshot={**snapshot_of(record)[1], **({} if record.exists else {"deleted": True})},
        )


def up_to(time: Time) -> dict[str, Any]:
    """A query of the log's entries up to a cluster time, and of what was removed by age; not of the mark."""
    return {"$or": [{"position": {"$lte": _end_of(time)}}, {"kept_from": {"$exists": True}}]}


def placed_up_to(time: Time) -> dict[str, Any]:
    """A query of the episodes whose place in the log is not after a cluster time."""
    return {"position": {"$lte": _end_of(time)}}


def _end_of(complete_to: Time) -> str:
    return position(complete_to)[:16] + _AFTER_ALL


def _upsert(entry: Entry) -> UpdateOne:
    return UpdateOne({"_id": entry.id}, {"$setOnInsert": entry.document()}, upsert=True)


def _placed(entry: Entry) -> UpdateOne:
    """The episode's place in the log, written into the episode."""
    unplaced = {"_id": f"{entry.tenant}:{entry.episode}", "position": {"$exists": False}}
    return UpdateOne(unplaced, {"$set": {"position": entry.position}})


def _kept_after(tenant: str, place: str) -> UpdateOne:
    owned = {"$max": {"kept_from": place}, "$setOnInsert": {"tenant": tenant}}
    return UpdateOne({"_id": f"{_KEPT}:{tenant}"}, owned, upsert=True)
