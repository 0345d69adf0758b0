"""Restores: puts a backup into a database that holds nothing of it; all of it, or what was written is taken away again.

Before the first write a note is left in the collection `service`. It goes with the last one, so a restore that was
killed is told from one that came to its end (`app.unfinished`), and the same backup can be gone on with: what is there
already is left as it is. Agents are written by the store, here as everywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pymongo
from bson.raw_bson import RawBSONDocument
from pymongo.errors import BulkWriteError, ConnectionFailure, PyMongoError

from app.archive import ArchiveProblem, Batch, Contents, reading
from app.backoff import Backoff
from app.changelog import ChangeLog
from app.clock import Clock
from app.lanes import is_unversioned
from app.migrations import Lock, MigrationProblem
from app.mongo import Collection, Mongo, decoded
from app.store import Store
from app.tenancy import OPEN_SECONDS
from models.agent import AgentRecord, restored
from models.archive import KEPT, LATCH, WHOLE_NOTE, Extent, is_note_of_restore
from models.change import Change, Stamp
from models.entry import position, time_of
from models.erased import NOTE, note_of
from models.tenant import SERVICE, Scope

_BY = "restore"
_CALL_SECONDS = 60.0
_TRIES = 12
_LONGEST_PAUSE = 5.0
_DUPLICATE = 11000
_AGENTS, _SERVICE, _CHANGES, _KEYS = "agents", "service", "changes", "keys"
_OF_A_NOTE = ("id", "backup", "file", "since", "log_from")
_ACTS = "acts"
_APART = frozenset({"blobs", "segments"})
_SHARED = frozenset({*_APART, _ACTS})
"""What may be there before: acts of a service that nobody used yet, and what nothing refers to any more."""

_LEFT_WHERE_IT_IS = frozenset({*_APART, _SERVICE})
"""What others may refer to by now: a collector removes it, if nobody does."""

Told = Callable[[int], None]
"""Hears how many documents are done."""

T = TypeVar("T")
Documents = Sequence[RawBSONDocument]


class RestoreProblem(Exception):
    """The backup is not restored; the message says why, and what to do."""


async def verified(path: Path, told: Callable[[int, int], None] = lambda *_: None) -> Contents:
    """Read a whole backup and check every byte of it. `told` hears how many bytes of how many.

    Raises ArchiveProblem, RestoreProblem.
    """
    with reading(path) as archive:
        for batch in archive.batches():
            if batch.collection not in KEPT:
                raise RestoreProblem(f"{path} holds '{batch.collection}', which this program knows nothing of.")
            told(archive.position, archive.size)
            await asyncio.sleep(0)  # so that it can be interrupted
        return Contents(path, archive.id, archive.size, archive.header, archive.end)


@dataclass(slots=True)
class _Note:
    """What is remembered of a restore in the database while it is under way."""

    key: str
    id: str
    backup: str
    file: str
    since: datetime
    log_from: str | None = None
    """Where the log was begun, if that was done for the restore."""
    resumed: bool = False
    """Whether an earlier run left it."""

    def document(self) -> dict[str, Any]:
        told = {"id": self.id, "backup": self.backup, "file": self.file, "since": self.since}
        return {"_id": self.key, **told}


class Restore:
    """One backup on its way into one database."""

    def __init__(
        self,
        contents: Contents,
        mongo: Mongo,
        store: Store,
        changes: ChangeLog,
        clock: Clock,
        *,
        seconds: float,
        told: Told = lambda _: None,
        announce: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`announce` is awaited once everything is there, while the note still is."""
        self._contents = contents
        self._extent: Extent = contents.header.extent
        self._mongo = mongo
        self._store = store
        self._changes = changes
        self._clock = clock
        self._told = told
        self._announce = announce
        self._lock = Lock(mongo, clock, seconds=seconds, doing="restoring")
        self._collections: Mapping[str, Collection] = {name: getattr(mongo, name) for name in KEPT}
        self._batches = 0
        """How many this run came to."""
        self._ours: dict[str, set[Any]] = {}
        """Where documents of others lie among those of the backup: the ids that this run inserted."""
        self._others: set[tuple[str, Any]] = set()
        """What somebody else wrote under an id of the backup, where that broke this run off."""
        self._tombstone: AgentRecord | None = None
        self.undone = False
        """Whether it was broken off, and what it wrote was taken away again."""

    async def in_the_way(self) -> str | None:
        """What the database holds where the backup would go; None when there is room. Raises PyMongoError."""
        if self._extent.agent is not None:
            return await self._agent_in_the_way()
        found = [count for name in KEPT if (count := await self._found(name))]
        if not found:
            return None
        of = "" if self._extent.tenant is None else f" of {self._extent}"
        return f"The database '{self._mongo.database.name}' holds data{of} already: {', '.join(found)}"

    async def _agent_in_the_way(self) -> str | None:
        """A tombstone is not, unless it is of another agent of the name, or of this one in an earlier life."""
        # unscoped: the key begins with the tenant
        raw = await self._mongo.agents_raw.find_one({"_id": self._extent.key})
        record = AgentRecord(id=self._extent.key, tenant=self._extent.tenant or "")
        if raw is not None:
            record = AgentRecord.of(decoded(raw.raw), size_bytes=len(raw.raw))
        if record.exists or is_unversioned(record):
            return f"There is an agent '{self._extent.agent}' in the tenant already"
        version = self._contents.header.version or 0
        if not 0 < record.version < version:
            return None
        deleted = f"The agent '{self._extent.agent}' was deleted here at version {record.version}"
        return f"{deleted}, and the backup is of version {version}, which it never had"

    async def begun(self) -> bool:
        """Whether a restore of this very backup was broken off here. Raises RestoreProblem where another's was."""
        return await self._left() is not None

    async def require_room(self) -> None:
        """Raise RestoreProblem where something is in the way. `run` does so too, after it has made sure to be alone."""
        taken = None if await self.begun() else await self.in_the_way()
        if taken is not None:
            raise RestoreProblem(f"{taken}. Nothing was restored; --into restores into another database.")

    async def run(self) -> None:
        """Restore everything, or leave nothing of it. Raises RestoreProblem, PyMongoError; HoldfastError."""
        try:
            async with self._lock.held():
                await self._run()
        except MigrationProblem as problem:
            raise RestoreProblem(str(problem)) from problem

    async def _run(self) -> None:
        note = await self._begun()
        try:
            await self._fill(note)
        except BaseException as error:
            await self._undo(note, error)
            raise
        await self._finish(note)

    async def _found(self, name: str) -> str | None:
        """How many documents of the backup's extent a collection holds, in words; None for those of a fresh one."""
        if name in (_SERVICE, *_SHARED):
            return None
        own = {"_id": {"$ne": "mark"}, "act": None} if name == _CHANGES else {}
        count = 0
        for query in self._extent.queries(name):
            # unscoped: the extent says whose
            count += await self._collections[name].count_documents({"$and": [query, own]})
        return f"{count} in '{name}'" if count else None

    async def _left(self) -> _Note | None:
        """The note that an earlier run of this restore left. Raises RestoreProblem for another restore's."""
        # unscoped: of the whole database
        async for found in self._mongo.service.find(is_note_of_restore()):
            if found["_id"] == self._extent.note and found["backup"] == self._contents.id:
                kept: dict[str, Any] = {name: found.get(name) for name in _OF_A_NOTE}
                return _Note(self._extent.note, **kept, resumed=True)
            raise RestoreProblem(
                f"A restore from {found['file']}, begun {found['since']:%Y-%m-%d %H:%M:%S} UTC, was broken off here: "
                "run that one again first, with the same file."
            )
        return None

    async def _begun(self) -> _Note:
        """Leave the note, or take over the one that is there. Raises RestoreProblem where there is no room."""
        await self.require_room()
        note = await self._left()
        await self._mongo.prepare()
        now = await self._mongo.now()
        if now < self._contents.header.time:
            raise RestoreProblem(
                f"The database's time ({now[0]}) is before that of the backup ({self._contents.header.time[0]}), so "
                "the change log would go back: set the clock of its machine right."
            )
        if self._extent.agent is not None:
            await self._find_tombstone()
        return note or await self._noted()

    async def _noted(self) -> _Note:
        own = (self._clock.new_id(), self._contents.id, self._contents.path.name, self._clock.now())
        note = _Note(self._extent.note, *own)
        await self._mongo.service.insert_one(note.document())
        return note

    async def _begin_log(self, note: _Note) -> None:
        """Let the log begin, where it has not, before there is anything that it could miss."""
        now = await self._mongo.now()
        if await self._changes.begin_at(now):
            note.log_from = position(now)
            # unscoped: of the whole database
            await self._mongo.service.update_one({"_id": note.key}, {"$set": {"log_from": note.log_from}})

    async def _find_tombstone(self) -> None:
        """Where the agent was deleted, it is to go on from its tombstone, and the log has its past."""
        record = await self._store.read(self._extent.key)
        self._tombstone = record if record.version > 0 else None

    async def _fill(self, note: _Note) -> None:
        done = 0
        await self._begin_log(note)
        with reading(self._contents.path) as archive:
            if archive.id != self._contents.id:
                raise RestoreProblem(f"{self._contents.path} was changed since it was checked.")
            for batch in archive.batches():
                self._lock.require()
                self._batches += 1
                await self._put(note, batch)
                done += len(batch.documents)
                self._told(done)

    async def _put(self, note: _Note, batch: Batch) -> None:
        documents = [RawBSONDocument(raw) for raw in batch.documents]
        if batch.collection == _SERVICE:
            await self._close_latch(note, documents)
        elif batch.collection == _AGENTS and self._tombstone is not None:
            await self._go_on(documents[0])
        else:
            await self._add(note, batch.collection, documents)

    async def _close_latch(self, note: _Note, documents: Documents) -> None:
        """What the service noted is added where it is missing; once the latch is closed, every replica knows."""
        for document in documents:
            told = {name: value for name, value in decoded(document.raw).items() if name != "_id"}
            added = {"$setOnInsert": {**told, "restoring": note.id}}
            # unscoped: of the whole database
            done = await _to_its_end(self._mongo.service.update_one({"_id": document["_id"]}, added, upsert=True))
            if done.upserted_id == LATCH:
                await asyncio.sleep(OPEN_SECONDS * 1.1)

    async def _go_on(self, document: RawBSONDocument) -> None:
        """Put the agent in the place of its tombstone, by a commit like any other."""
        kept = AgentRecord.of(decoded(document.raw))

        def move(previous: AgentRecord, stamp: Stamp) -> Change:
            return restored(previous, kept, stamp)

        scope = Scope(kept.tenant, frozenset(), by=_BY)
        try:
            await self._store.commit(scope, kept.name_in_tenant, move, creates=True)
        except BaseException:  # its outcome may be unknown, and what it refers to must not be taken away from it
            await self._store.stop()
            now = await self._store.read(kept.id)
            if not (now.exists and now.created_at == kept.created_at and now.last.get("by") == _BY):
                raise

    async def _add(self, note: _Note, collection: str, documents: Documents) -> None:
        """Insert documents; where some may be there already, those are left. Raises RestoreProblem, PyMongoError."""
        merging = note.resumed or self._extent.agent is not None or collection in _SHARED
        new = await self._missing(collection, documents) if merging else documents
        if self._extent.agent is not None:
            self._ours.setdefault(collection, set()).update(document["_id"] for document in new)
        backoff = Backoff(_LONGEST_PAUSE)
        while new:
            try:
                with pymongo.timeout(_CALL_SECONDS):
                    await _to_its_end(self._insert(collection, new))
                break
            except PyMongoError as error:
                if _only_doubles(error) and not (merging or backoff.pauses):
                    self._others.update((collection, key) for key in _doubles(error))
                    raise RestoreProblem(f"Somebody else writes to '{collection}' where the backup goes.") from error
                if backoff.pauses == _TRIES or not (_may_pass(error) or _only_doubles(error)):
                    raise
            await backoff.pause()
            new = await self._missing(collection, new)

    async def _insert(self, collection: str, documents: Documents) -> None:
        if collection == _AGENTS:
            await self._store.put_back(documents)
        else:
            await self._collections[collection].insert_many(documents, ordered=False)

    async def _missing(self, collection: str, documents: Documents) -> Documents:
        """Those that are not in the database; what is there and lies apart is kept from a collector."""
        ids = [document["_id"] for document in documents]
        # unscoped: the extent says whose
        found = self._collections[collection].find({"_id": {"$in": ids}}, {"_id": 1})
        there = {document["_id"] async for document in found}
        if there and collection in _APART:
            # unscoped: as above
            await self._collections[collection].update_many({"_id": {"$in": [*there]}}, {"$unset": {"mark": ""}})
        return [document for document in documents if document["_id"] not in there]

    async def _undo(self, note: _Note, error: BaseException) -> None:
        """Take away what was written, agents first, and then the note; where that fails, the note stays.

        What an earlier run wrote is left, with the note: others may have gone on with it since.
        """
        if note.resumed:
            raise RestoreProblem(
                f"The restore was broken off again ({_told(error)}). Run it once more: it goes on to its end."
            ) from error
        try:
            self._lock.require()
            await self._take_away(first=True)
            await self._take_away(first=False)
            # unscoped: of the whole database
            await self._mongo.service.delete_many({"restoring": note.id})
            await self._take_away_what_was_told()
            await self._pass_over(note)
            # unscoped: of the whole database
            await self._mongo.service.delete_one({"_id": note.key})
            self.undone = True
        except (PyMongoError, ArchiveProblem, MigrationProblem) as failure:
            raise RestoreProblem(
                f"The restore was broken off ({_told(error)}), and what it wrote could not be taken away "
                f"({_told(failure)}). Run the same restore again: it goes on to its end."
            ) from error

    async def _take_away(self, *, first: bool) -> None:
        """Go through the file once more, for the agents and keys in it or for the rest."""
        with reading(self._contents.path) as archive:
            for number, batch in enumerate(archive.batches(), start=1):
                if number > self._batches:
                    return
                if (batch.collection in (_AGENTS, _KEYS)) is first and batch.collection not in _LEFT_WHERE_IT_IS:
                    await self._take_away_batch(batch)

    async def _take_away_what_was_told(self) -> None:
        """What the service told by itself of what was restored: that nobody drives an agent, that a life is over."""
        if self._extent.agent is not None:
            return
        for name in (_ACTS, _CHANGES):
            for query in self._extent.queries(name):
                # unscoped: the extent says whose
                await self._collections[name].delete_many({**query, "by": SERVICE})

    async def _take_away_batch(self, batch: Batch) -> None:
        documents = [RawBSONDocument(raw) for raw in batch.documents]
        if self._extent.agent is not None:
            ours = self._ours.get(batch.collection, set())
            documents = [document for document in documents if document["_id"] in ours]
        documents = [one for one in documents if (batch.collection, one["_id"]) not in self._others]
        if not documents:
            return
        if batch.collection == _AGENTS:
            await self._store.take_away(documents)
        else:
            ids = [document["_id"] for document in documents]
            # unscoped: the extent says whose
            await self._collections[batch.collection].delete_many({"_id": {"$in": ids}})

    async def _finish(self, note: _Note) -> None:
        """Everything is there: let go of what was only noted for the restore, the note last."""
        # unscoped: of the whole database
        await self._mongo.service.update_many({"restoring": note.id}, {"$unset": {"restoring": ""}})
        await self._pass_over(note)
        if self._announce is not None:
            await self._announce()
        await self._sweep_no_more()
        # unscoped: of the whole database
        await self._mongo.service.delete_one({"_id": note.key})

    async def _pass_over(self, note: _Note) -> None:
        """Let no replica that is started later tell what was put here, or taken away again."""
        if note.key == WHOLE_NOTE and note.log_from is not None:
            await self._changes.pass_over(time_of(note.log_from))

    async def _sweep_no_more(self) -> None:
        """What was erased here is back: it is not to be swept any more."""
        tenant, agent = self._extent.tenant, self._extent.agent
        erased: dict[str, Any] = {"_id": {"$regex": f"^{NOTE}"}}
        if tenant is not None:
            named = {"tenant": tenant} if agent is None else {"_id": note_of(tenant, agent)}
            erased = {"$or": [{"_id": note_of(tenant)}, {**erased, **named}]}
        # unscoped: the service's own notes
        await self._mongo.service.delete_many(erased)


async def _to_its_end(call: Coroutine[Any, Any, T]) -> T:
    """Wait for a write also when we are interrupted: what is under way could come after it was taken away."""
    write = asyncio.create_task(call)
    try:
        return await asyncio.shield(write)
    except asyncio.CancelledError:
        await asyncio.wait([write])
        raise


def _told(error: BaseException) -> str:
    """What went wrong, in a few words."""
    return str(error) if isinstance(error, RestoreProblem | ArchiveProblem | MigrationProblem) else type(error).__name__


def _may_pass(error: PyMongoError) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, BulkWriteError):
        refused = {one["code"] for one in (error.details or {}).get("writeErrors", [])}
        return not refused
    return isinstance(error, ConnectionFailure) or error.timeout


def _doubles(error: PyMongoError) -> list[Any]:
    """The ids that were there already."""
    refused = (error.details or {}).get("writeErrors", []) if isinstance(error, BulkWriteError) else []
    return [one["keyValue"]["_id"] for one in refused if one["code"] == _DUPLICATE]


def _only_doubles(error: PyMongoError) -> bool:
    """Whether all that was refused is there already."""
    refused = (error.details or {}).get("writeErrors", []) if isinstance(error, BulkWriteError) else []
    return bool(refused) and all(one["code"] == _DUPLICATE for one in refused)
