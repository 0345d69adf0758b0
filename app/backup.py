"""Backups: a database, a tenant or an agent as it was at one moment, written into a file while others go on writing.

Guarantee: everything in a backup was so at one cluster time, and the change log in it is complete up to that. It reads
one batch at a time, and writes nothing but its file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

from bson.raw_bson import RawBSONDocument
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import OperationFailure

from app.archive import Writer, written
from app.changelog import placed_up_to, up_to
from app.clock import Clock
from app.mongo import Mongo, decoded
from app.scribe import Scribe
from app.segments import opened
from app.unfinished import unfinished
from app.vault import SEALED_SUBTYPE, key_of_secret
from models.agent import AgentRecord
from models.archive import KEPT, LATE, End, Extent, Header, split
from models.blob import key_of
from models.event import Time
from models.packing import references

_SNAPSHOT_TOO_OLD = 239
_SNAPSHOT_UNAVAILABLE = 246
_TRIES = 50
_PAUSE_SECONDS = 0.2
_LOG_SECONDS = 60.0
_KEYS_AT_ONCE = 1_000
_DELEGATE = b"\x03delegate\0"

Told = Callable[[str, int, int], None]
"""Hears of which collection how many documents are written, of about how many."""


class BackupProblem(Exception):
    """There is no backup; the message says why."""


class Backup:
    """Makes backups of a database. The scribe has to be at work: it brings the log to where the backup is."""

    def __init__(
        self,
        mongo: Mongo,
        scribe: Scribe,
        clock: Clock,
        told: Told = lambda *_: None,
        announce: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`announce` is awaited before there is a file."""
        self._mongo = mongo
        self._announce = announce
        self._scribe = scribe
        self._clock = clock
        self._told = told
        self._secret_keys: set[str] = set()

    async def write(self, path: Path, extent: Extent) -> tuple[Header, End]:
        """Write a backup where no file is yet: whole, or none. Raises BackupProblem, ArchiveProblem, PyMongoError."""
        with _told_when_too_slow():
            async with self._snapshot() as (session, time):
                record = await self._agent(extent, session)
                referred = {} if record is None else await self._referred(record, session)
                header = await self._header(extent, time, record, session)
                with written(path) as archive:
                    archive.begin(header)
                    for name in KEPT:
                        await self._collection(archive, extent, name, referred, session, time)
                    end = archive.end(tuple(sorted(self._secret_keys)))
                    if extent.tenant is not None and not end.collections.keys() - {"service"}:
                        raise BackupProblem(f"There is nothing of {extent}, so there is no backup of it.")
                    if self._announce is not None:
                        await self._announce()
        return header, end

    async def require_something(self, extent: Extent) -> None:
        """Raise BackupProblem for a database that was never used, or does not hold all that it should."""
        if self._mongo.agents.name not in await self._mongo.database.list_collection_names():
            raise BackupProblem(
                f"There is nothing to back up: the database '{self._mongo.database.name}' was never used."
            )
        half = await unfinished(self._mongo)
        if half is not None:
            raise BackupProblem(f"{half}: let it come to its end first, then back up {extent}.")

    @asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[tuple[AsyncClientSession, Time]]:
        """A session that sees all collections as they were at one cluster time, and that time."""
        for last in range(_TRIES, -1, -1):
            async with self._mongo.client.start_session(snapshot=True) as session:
                try:
                    time = await self._opened(session)
                except OperationFailure as error:
                    if error.code != _SNAPSHOT_UNAVAILABLE or not last:  # collections that were made just now
                        raise
                else:
                    yield session, time
                    return
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _opened(self, session: AsyncClientSession) -> Time:
        """Take the snapshot, and see that every collection can be read in it."""
        find: dict[str, Any] = {"limit": 1, "singleBatch": True, "projection": {"_id": 1}}
        reply = await self._mongo.database.command("find", self._mongo.agents.name, **find, session=session)
        for name in KEPT:
            await self._mongo.database.command("find", name, **find, session=session)
        told = reply["cursor"]["atClusterTime"]
        return told.time, told.inc

    async def _header(
        self, extent: Extent, time: Time, record: AgentRecord | None, session: AsyncClientSession
    ) -> Header:
        # unscoped: of the whole database
        applied = self._mongo.service.find({"finished_at": {"$type": "date"}}, {"_id": 1}, session=session)
        migrations = tuple(sorted([one["_id"] async for one in applied]))
        where = (self._mongo.database.name, self._clock.now(), time)
        return Header(extent, *where, migrations, None if record is None else record.version)

    async def _agent(self, extent: Extent, session: AsyncClientSession) -> AgentRecord | None:
        """The extent's agent, where it is of one. Raises BackupProblem when there is none."""
        if extent.agent is None:
            return None
        # unscoped: the key begins with the tenant
        raw = await self._mongo.agents_raw.find_one({"_id": extent.key}, session=session)
        record = None if raw is None else AgentRecord.of(decoded(raw.raw))
        if record is None or not record.exists:
            raise BackupProblem(f"There is no agent '{extent.agent}' in the tenant '{extent.tenant}'.")
        return record

    async def _referred(self, record: AgentRecord, session: AsyncClientSession) -> Mapping[str, Sequence[str]]:
        """The segments and values that an agent refers to. Raises BackupProblem when a segment is not there."""
        segments = sorted({kept.id for kept in record.descriptors})
        values = {key_of(record.tenant, found) for found in references(record.steps, record.results)}
        for key in segments:
            # unscoped: the key begins with the tenant
            segment = await self._mongo.segments.find_one({"_id": key}, session=session)
            if segment is None:
                raise BackupProblem(f"The agent's segment {key} is not there: 'holdfast doctor --fsck' says more.")
            content = opened(segment)
            values |= {key_of(record.tenant, found) for found in references(content.steps, content.results)}
        return {"segments": segments, "blobs": sorted(values)}

    async def _collection(
        self,
        archive: Writer,
        extent: Extent,
        name: str,
        referred: Mapping[str, Sequence[str]],
        session: AsyncClientSession,
        time: Time,
    ) -> None:
        """Write what the extent takes of a collection, in an order that is always the same."""
        queries = list(_queries(extent, name, referred))
        if not queries:
            return
        if name not in LATE:
            await self._read(archive, name, queries, session)
            return
        async with asyncio.timeout(_LOG_SECONDS):
            await self._scribe.mark(time)
        limit = up_to(time) if name == self._mongo.changes.name else placed_up_to(time)
        async with self._snapshot() as (later, _):
            await self._read(archive, name, [{**query, **limit} for query in queries], later)

    async def _read(
        self, archive: Writer, name: str, queries: Sequence[Mapping[str, Any]], session: AsyncClientSession
    ) -> None:
        collection = self._mongo.database[name]
        done, of = 0, await self._count(name, queries)
        for query in queries:
            # unscoped: the extent says whose
            found = collection.find_raw_batches(query, session=session).sort("_id", 1).allow_disk_use(True)
            if "_id" in query or not query:
                found = found.hint([("_id", 1)])
            async for batch in cast("AsyncIterator[bytes]", found):
                done += await asyncio.to_thread(archive.add, name, batch)
                self._told(name, done, max(of, done))
                if name == self._mongo.agents.name:
                    self._secret_keys.update(_keys_of(batch))

    async def _count(self, name: str, queries: Sequence[Mapping[str, Any]]) -> int:
        """About how many documents there are: for people who wait."""
        collection = self._mongo.database[name]
        if not queries[0]:
            return await collection.estimated_document_count()
        # unscoped: the extent says whose
        return sum([await collection.count_documents(query) for query in queries])


def _queries(extent: Extent, name: str, referred: Mapping[str, Sequence[str]]) -> Iterator[Mapping[str, Any]]:
    """What to ask a collection for, one after another."""
    yield from extent.queries(name)
    keys = referred.get(name, ())
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        yield {"_id": {"$in": keys[start : start + _KEYS_AT_ONCE]}}


def _keys_of(batch: bytes) -> Iterator[str]:
    """The ids of the keys that agents' tokens are sealed with."""
    if _DELEGATE not in batch:
        return
    for raw in split(batch):
        delegate = RawBSONDocument(raw).get("delegate") if _DELEGATE in raw else None
        token = delegate.get("token") if isinstance(delegate, RawBSONDocument) else None
        if getattr(token, "subtype", None) == SEALED_SUBTYPE:
            yield key_of_secret(bytes(token))  # type: ignore[arg-type]  # a Binary, by its subtype


@contextmanager
def _told_when_too_slow() -> Iterator[None]:
    """Say what to do when the database let go of the moment before everything was read."""
    try:
        yield
    except TimeoutError:
        raise BackupProblem(
            "The change log did not come to where the backup is: the database's change stream is slow. Try again."
        ) from None
    except OperationFailure as error:
        if error.code != _SNAPSHOT_TOO_OLD:
            raise
        raise BackupProblem(
            "The backup took longer than the database remembers a moment. Let it remember longer, on each member "
            "(db.adminCommand({setParameter: 1, minSnapshotHistoryWindowInSeconds: 3600})), and try again."
        ) from error
