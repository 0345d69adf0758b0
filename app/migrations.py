"""Migrations: brings what earlier programs stored up to date, a document at a time, by commits like any other.

What is to be done stands in `scripts/migrations/NNNN_<what>.py`, applied in the order of the numbers. A document is
decided on as it was read and committed at that very version, so replicas, also of the release before, go on writing.
How far a migration came is kept in the collection `service`. It only says where to go on: what still needs the
migration is asked of the documents themselves, so one that is applied again changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pymongo
from pymongo.errors import DuplicateKeyError, PyMongoError

from app.backoff import Backoff
from app.clock import Clock
from app.mongo import Mongo, unavailable_when_failing
from app.sightings import LOOK_SECONDS, Sightings
from app.store import Store
from app.tasks import end
from models.agent import AgentRecord
from models.change import AGENT, CREATED, Change, Stamp
from models.commit import Guard
from models.entry import GAP, Entry, position
from models.errors import HoldfastError, NotFound, Unavailable, VersionConflict
from models.ids import check_id
from models.news import snapshot_of
from models.tenant import Scope

FOLDER = Path(__file__).parents[1] / "scripts" / "migrations"

STILL_SECONDS = 3.0
"""A lock whose holder was not seen to move for so long may be taken over."""

WAIT_SECONDS = 6.0
"""How long to wait for another run; longer than it takes to see that it is dead."""

NAMED = 3
"""How many documents are named where all of them are counted."""

_LOCK = "migration:lock"
_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.py\Z")
_PAGE = 200
_AT_ONCE = 16
_TRIES = 100
_UNREADABLE = (AttributeError, LookupError, TypeError, ValueError)


class MigrationProblem(Exception):
    """Migrations can't be applied; the message says why."""


class _Unfit(Exception):
    """A document can't be migrated; the message says why."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file: which documents need it, and what to assign to one of them.

    `assigned` is pure, and a document with what it assigns is not among `wanted` any more. `kinds` are those of the
    commits. One that `adopts` makes agents of documents without a version; others are not shown any. `created_at` is
    there, at worst as the time of the migration.
    """

    number: int
    title: str
    wanted: Callable[[], Mapping[str, Any]]
    assigned: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    kinds: tuple[str, ...] = (AGENT,)
    adopts: bool = False

    @property
    def key(self) -> str:
        """The `_id` of its progress in the database."""
        return f"migration:{self.number:04}"

    def query(self, after: str = "") -> dict[str, Any]:
        """Agents, and what is to become one, that still need it, with an `_id` after the given one."""
        return {"_id": {"$gt": after}, "deleted_at": None, "$and": [dict(self.wanted())]}

    def ready(self, after: str = "") -> dict[str, Any]:
        """The same without those that an earlier migration has to make agents of first."""
        return self.query(after) if self.adopts else {**self.query(after), "version": {"$gt": 0}}


@dataclass(slots=True)
class Standing:
    """How far a migration came, all in all. `left`: how many documents need it; `some` of them by name."""

    migration: Migration
    after: str = ""
    changed: int = 0
    wrong: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    left: int = 0
    some: Sequence[str] = ()
    changed_now: int = 0
    """By this run."""
    reasons: list[str] = field(default_factory=list)
    """Of this run, for the first documents that can't be migrated."""


Told = Callable[[Standing], None]


def load(folder: Path = FOLDER) -> list[Migration]:
    """The migrations of a folder, in order. Raises MigrationProblem unless they are numbered 1, 2, 3 and so on."""
    if not folder.is_dir():
        raise MigrationProblem(f"There are no migrations here: the folder {folder} is missing.")
    files = sorted(file for file in folder.iterdir() if file.suffix == ".py")
    for file, number in zip(files, count(1), strict=False):
        match = _NAME.match(file.name)
        if match is None or int(match[1]) != number:
            raise MigrationProblem(f"{file} should be number {number:04}: NNNN_<what>.py, without doubles and holes.")
    return [_loaded(file, number) for file, number in zip(files, count(1), strict=False)]


def _loaded(file: Path, number: int) -> Migration:
    spec = spec_from_file_location(f"migration_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise MigrationProblem(f"{file} can't be loaded.")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return _of(module, number)
    except (AttributeError, ImportError, IndexError, NameError, SyntaxError) as error:
        raise MigrationProblem(f"{file} is no migration: {error}.") from error


def _of(module: ModuleType, number: int) -> Migration:
    title = (module.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return Migration(
        number,
        title,
        module.wanted,
        module.assigned,
        getattr(module, "KINDS", (AGENT,)),
        getattr(module, "ADOPTS", False),
    )


class Lock:
    """One run at a time, of migrations or of a restore. Who holds it renews it.

    One that was not seen to move for a while has no holder any more. Time is only that of the observer's own monotonic
    clock. A holder that was taken for dead does no harm: all that it can do is to migrate a document, which is done
    once, whoever does it; a restore undoes nothing once it has lost the lock.
    """

    def __init__(self, mongo: Mongo, clock: Clock, *, seconds: float, doing: str = "migrating") -> None:
        self._mongo = mongo
        self._clock = clock
        self._seconds = seconds
        self._doing = doing
        self._owner = clock.new_id()
        self._lost = False

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the lock inside. Raises MigrationProblem when another run goes on holding it; Unavailable."""
        await self._take()
        renewing = asyncio.create_task(self._renew())
        try:
            yield
        finally:
            await end(renewing)
            await self._leave()

    def require(self) -> None:
        """Raise MigrationProblem when another run has taken over."""
        if self._lost:
            raise MigrationProblem("Another run took over, as this one was not seen for a while; it goes on with it.")

    async def holder(self) -> str | None:
        """Who holds it, alive or dead; None when nobody does. Raises Unavailable."""
        there = await self._there()
        return None if there is None else str(there["holder"])

    async def _take(self) -> None:
        until = self._clock.monotonic() + WAIT_SECONDS
        seen: Sightings[str] = Sightings()
        while True:
            asked = self._clock.monotonic()
            there = await self._there()
            if there is None and await self._inserted():
                return
            if there is None:
                continue
            mark = (there["owner"], there["beat"])
            still = seen.look([(_LOCK, mark)], asked=asked, answered=self._clock.monotonic())[_LOCK]
            if still >= STILL_SECONDS and await self._taken_over(mark):
                return
            if self._clock.monotonic() > until:
                raise MigrationProblem(
                    f"{there['holder']} is {there.get('doing', 'migrating')} since {there['since']:%H:%M:%S} UTC: "
                    "wait for it."
                )
            await asyncio.sleep(LOOK_SECONDS)

    async def _there(self) -> Mapping[str, Any] | None:
        with unavailable_when_failing(self._seconds):
            # unscoped: of the whole database
            return await self._mongo.service.find_one({"_id": _LOCK})

    async def _inserted(self) -> bool:
        """Whether the lock is ours now; someone else may have been first."""
        with unavailable_when_failing(self._seconds):
            try:
                await self._mongo.service.insert_one({"_id": _LOCK, **self._own()})
            except DuplicateKeyError:
                return False
        return True

    async def _taken_over(self, mark: tuple[str, int]) -> bool:
        with unavailable_when_failing(self._seconds):
            seen = {"_id": _LOCK, "owner": mark[0], "beat": mark[1]}
            # unscoped: of the whole database
            return (await self._mongo.service.update_one(seen, {"$set": self._own()})).matched_count == 1

    def _own(self) -> dict[str, Any]:
        holder = f"{socket.gethostname()}, process {os.getpid()},"
        return {"owner": self._owner, "beat": 0, "holder": holder, "doing": self._doing, "since": self._clock.now()}

    async def _renew(self) -> None:
        while not self._lost:
            await asyncio.sleep(LOOK_SECONDS)
            with suppress(PyMongoError), pymongo.timeout(self._seconds):
                own = {"_id": _LOCK, "owner": self._owner}
                # unscoped: of the whole database
                renewed = await self._mongo.service.update_one(own, {"$inc": {"beat": 1}})
                self._lost = renewed.matched_count == 0

    async def _leave(self) -> None:
        with suppress(PyMongoError), pymongo.timeout(self._seconds):
            # unscoped: of the whole database
            await self._mongo.service.delete_one({"_id": _LOCK, "owner": self._owner})


class Migrations:
    """The migrations of a database. What the database fails raises Unavailable; all that was done stays done."""

    def __init__(
        self, migrations: Sequence[Migration], mongo: Mongo, store: Store, clock: Clock, *, seconds: float
    ) -> None:
        self._migrations = migrations
        self._mongo = mongo
        self._store = store
        self._clock = clock
        self._seconds = seconds
        self._lock = Lock(mongo, clock, seconds=seconds)

    async def status(self) -> list[Standing]:
        """How far each came, and what is left. Writes nothing."""
        return [await self._standing(migration) for migration in self._migrations]

    async def holder(self) -> str | None:
        """Whose run is under way, or was killed."""
        return await self._lock.holder()

    async def apply(self, told: Told) -> AsyncIterator[Standing]:
        """Apply each migration to what needs it, and say how it went; ends after one that could not be finished.

        Raises MigrationProblem when another run is under way.
        """
        async with self._lock.held():
            for migration in self._migrations:
                standing = await self._standing(migration)
                await self._apply(standing, told)
                yield standing
                if standing.wrong:
                    return

    async def _standing(self, migration: Migration) -> Standing:
        with unavailable_when_failing(self._seconds):
            # unscoped: of the whole database
            kept = await self._mongo.service.find_one({"_id": migration.key}) or {}
        known = ("after", "changed", "wrong", "started_at", "finished_at")
        standing = Standing(migration, **{name: kept[name] for name in known if name in kept})
        # unscoped: migrations are for all tenants
        standing.left = await self._mongo.agents.count_documents(migration.query())
        standing.some = await self._page(migration.query(), NAMED)
        return standing

    async def _apply(self, standing: Standing, told: Told) -> None:
        """Go on where the last run was, then look once more for what came behind it; or begin anew."""
        if standing.finished_at is not None:
            if not standing.left:
                return
            standing.after = ""
        resumed = standing.after != ""
        standing.started_at = standing.started_at or self._clock.now()
        standing.finished_at = None
        await self._pass(standing, told)
        if resumed:
            standing.after = ""
            await self._pass(standing, told)
        standing.finished_at = None if standing.wrong else self._clock.now()
        standing.after = ""
        await self._keep(standing)

    async def _pass(self, standing: Standing, told: Told) -> None:
        """Migrate what needs it, in the order of the keys, from the standing's cursor to the end."""
        standing.wrong, standing.reasons = 0, []
        await self._keep(standing)
        while keys := await self._page(standing.migration.ready(standing.after), _PAGE):
            await self._each(standing, keys, told)
            standing.after = keys[-1]
            self._lock.require()
            await self._keep(standing)

    async def _each(self, standing: Standing, keys: Sequence[str], told: Told) -> None:
        """Migrate some documents, a few at once, so that memory holds no more of them."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def migrated(key: str) -> None:
            async with limit:
                try:
                    changed = await self._migrated(standing.migration, key)
                except _Unfit as reason:
                    standing.wrong += 1
                    standing.reasons += [f"{key}: {reason}"] if len(standing.reasons) < NAMED else []
                else:
                    standing.changed += changed
                    standing.changed_now += changed
                told(standing)

        for failure in await asyncio.gather(*map(migrated, keys), return_exceptions=True):
            if failure is not None:
                raise failure

    async def _migrated(self, migration: Migration, key: str) -> bool:
        """Whether the document was migrated here; someone else may have been first. Raises _Unfit."""
        backoff = Backoff()
        for _ in range(_TRIES):
            document = await self._needing(migration, key)
            if document is None:
                return False
            try:
                return await self._committed(migration, document)
            except VersionConflict:  # it was written meanwhile: decided anew
                await backoff.pause()
            except NotFound:
                return False
            except Unavailable:
                raise
            except HoldfastError as error:
                raise _Unfit(error.detail) from error
        raise _Unfit("it is being written to all the time")

    async def _committed(self, migration: Migration, document: Mapping[str, Any]) -> bool:
        """Commit what the migration assigns to a document, on just this document."""
        tenant, _, agent = str(document["_id"]).partition(":")
        version = document.get("version") or 0
        if not isinstance(document.get("created_at"), datetime):
            document = {**document, "created_at": self._clock.now()}
        try:
            _require_key(document, tenant, agent)
            fields = migration.assigned(document)
            if version and not document.get("last"):
                await self._begin_log(AgentRecord.of(document))
        except _UNREADABLE as error:
            raise _Unfit(f"it can't be read ({type(error).__name__}: {error})") from error

        def move(record: AgentRecord, stamp: Stamp) -> Change:
            if version:
                return record.changed(stamp, migration.kinds, fields)
            born = {"tenant": tenant, "created_at": document["created_at"]}
            return record.changed(stamp, (CREATED,), {**fields, **born})

        scope = Scope(tenant, frozenset(), by=migration.key)
        done = await self._store.commit(scope, agent, move, guard=Guard(version=version), adopts=migration.adopts)
        return done.changed

    async def _begin_log(self, record: AgentRecord) -> None:
        """Say in the change log that nothing is known of what led to a version that no commit of ours did."""
        with unavailable_when_failing(self._seconds):
            place = position(await self._mongo.now(), record.version, record.name_in_tenant)
            gap = Entry(
                tenant=record.tenant,
                agent=record.name_in_tenant,
                version=record.version,
                position=place,
                at=self._clock.now(),
                kinds=(GAP,),
                by="holdfast",
                snapshot=snapshot_of(record)[1],
            )
            told = {"$setOnInsert": gap.document()}
            # unscoped: the key begins with the tenant
            await self._mongo.changes.update_one({"_id": gap.id}, told, upsert=True)

    async def _needing(self, migration: Migration, key: str) -> Mapping[str, Any] | None:
        """The document, when it still needs the migration."""
        with unavailable_when_failing(self._seconds):
            # unscoped: the key begins with the tenant
            return await self._mongo.agents.find_one({**migration.ready(), "_id": key})

    async def _page(self, query: Mapping[str, Any], limit: int) -> list[str]:
        """The first keys of what matches; finding them may take a while, as there is no index for it."""
        # unscoped: migrations are for all tenants
        found = self._mongo.agents.find(query, {"_id": 1}).sort("_id", 1).limit(limit)
        return [str(one["_id"]) async for one in found]

    async def _keep(self, standing: Standing) -> None:
        """Keep how far it came; all of it is true, whoever wrote last."""
        names = ("after", "changed", "wrong", "started_at", "finished_at")
        told = {"$set": {"title": standing.migration.title, **{name: getattr(standing, name) for name in names}}}
        with unavailable_when_failing(self._seconds):
            # unscoped: of the whole database
            await self._mongo.service.update_one({"_id": standing.migration.key}, told, upsert=True)


def _require_key(document: Mapping[str, Any], tenant: str, agent: str) -> None:
    """Raise InvalidRequest, or ValueError, unless the document lies where an agent's would."""
    check_id(tenant, "the tenant in its _id")
    check_id(agent, "the agent in its _id")
    if document.get("tenant", None if document.get("version") else tenant) != tenant:
        raise ValueError(f"its tenant is {document.get('tenant')!r}, and its _id names another")
