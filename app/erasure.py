"""Erasure: removes every trace of a tenant, or all of an agent but the tombstone that keeps its version going on.

Whoever could write goes first: the tenant's keys. What was on its way all the same (a commit that was let in before, an
entry that a slow replica writes into the log late) is swept by every replica for as long as it may come; the note that
tells them what to sweep names no tenant, only a digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from pymongo.errors import PyMongoError

from app.acts import Acts
from app.clock import Clock
from app.collector import Collector
from app.mongo import Collection, Mongo, unavailable_when_failing
from app.store import Store
from app.telemetry import get_logger
from app.tenancy import CACHED_SECONDS
from app.unfinished import unfinished
from models.act import ERASED
from models.agent import AgentRecord, delete
from models.entry import EPISODE, position
from models.erased import NOTE, note_of
from models.errors import HoldfastError, NotFound, Unavailable
from models.ids import keys_within
from models.tenant import Scope, own_scope

_BATCH = 500
_TRIES = 3
_SWEEP_SECONDS = 10.0
_EVER = "~"
"""Sorts after every place in the log, and after everything of one time."""
_SWEPT_FOR = timedelta(days=7)
"""How long a replica may have been away and still bring entries of what was erased."""

_log = get_logger(__name__)


@dataclass(slots=True)
class Erased:
    """What is erased, or would be: documents by collection; of an agent also its forks, which stay whole."""

    tenant: str
    agent: str | None = None
    removed: dict[str, int] = field(default_factory=dict)
    forks: list[str] = field(default_factory=list)

    def add(self, name: str, count: int) -> None:
        """Count so many more."""
        if count:
            self.removed[name] = self.removed.get(name, 0) + count


@dataclass(frozen=True, slots=True)
class _Late:
    """What is to be gone of an erased agent, whenever it comes: versions before its tombstone's, places up to one."""

    tenant: str
    agent: str
    version: int
    upto: str
    episodes: bool


Told = Callable[[Erased], None]


class Erasure:
    """Erases. Raises Unavailable when something fails or is left; erasing again goes on where it ended.

    `wait_seconds`: longer than any commit takes that is under way.
    """

    def __init__(
        self,
        mongo: Mongo,
        store: Store,
        acts: Acts,
        collector: Collector,
        clock: Clock,
        *,
        wait_seconds: float,
        seconds: float,
    ) -> None:
        self._mongo = mongo
        self._store = store
        self._acts = acts
        self._collector = collector
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._seconds = seconds

    async def tenant(self, tenant: str, *, key: str | None = None, told: Told = lambda _: None) -> Erased:
        """Erase a tenant, the key that asks for it last, so that it may ask again. Nothing is left when this ends."""
        await self._require_no_restore()
        done = Erased(tenant)
        others = {"tenant": tenant, "_id": {"$ne": key}}
        await self._note(tenant)
        await self._clear(done, self._mongo.keys, others, told)
        if done.removed:
            await asyncio.sleep(CACHED_SECONDS)  # until no replica lets them in any more
        left: list[str] = []
        for _ in range(_TRIES):
            await self._clear_all(done, tenant, told)
            await self._note(tenant)
            left = [name async for name in self._traces(tenant)]
            if key is not None and left == [self._mongo.keys.name]:
                await self._clear(done, self._mongo.keys, {"tenant": tenant}, told)
                await asyncio.sleep(CACHED_SECONDS)
                left, key = [name async for name in self._traces(tenant)], None
            if not left:
                _log.info("tenant erased", **done.removed)
                return done
        raise Unavailable(f"Somebody still writes for this tenant ({', '.join(left)}): erase it again.")

    async def foreseen(self, tenant: str) -> Erased:
        """What erasing the tenant would remove."""
        would = Erased(tenant)
        for collection, query in self._parts(tenant):
            with unavailable_when_failing(self._seconds):
                # unscoped: of the tenant that is to be erased
                would.add(collection.name, await collection.count_documents(query))
        return would

    async def agent(self, scope: Scope, agent: str, *, episodes: bool, told: Told = lambda _: None) -> Erased:
        """Erase an agent: its content, log and commands, with `episodes` also what it learned. Its tombstone stays.

        What forks of it share with it stays theirs. Raises NotFound when there never was one.
        """
        await self._require_no_restore()
        done, record = await self._of_agent(scope, agent)
        with unavailable_when_failing(self._seconds):
            await self._acts.tell(scope, ERASED, agent=agent, episodes=episodes)
        version = record.version
        if record.exists:
            with suppress(NotFound):  # deleted meanwhile
                gone = await self._store.commit(own_scope(scope.tenant), agent, delete)  # its life may be over
                version = gone.record.version
            done.add(self._mongo.agents.name, 1)
        late = await self._note_agent(scope.tenant, agent, version, episodes=episodes)
        for collection, query in self._parts_of_agent(late):
            await self._clear(done, collection, query, told)
        try:
            collected = await self._collector.collect(tenant=scope.tenant, wait_seconds=self._wait_seconds)
        except PyMongoError as error:
            raise Unavailable("What only the agent referred to is not removed yet: erase it again.") from error
        done.add("segments and values", collected.removed)
        return done

    async def agent_foreseen(self, scope: Scope, agent: str, *, episodes: bool) -> Erased:
        """What erasing the agent would remove, but for what is stored apart. Raises NotFound."""
        would, record = await self._of_agent(scope, agent)
        would.add(self._mongo.agents.name, int(record.exists))
        for collection, query in self._parts_of_agent(_Late(scope.tenant, agent, record.version + 1, _EVER, episodes)):
            with unavailable_when_failing(self._seconds):
                # unscoped: of the agent that is to be erased
                would.add(collection.name, await collection.count_documents(query))
        return would

    async def run(self) -> None:
        """Sweep for ever what comes late."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                await self.sweep()
            except HoldfastError as error:
                _log.warning("what was erased waits for the database", code=error.code)
            except Exception:  # noqa: BLE001 - the top of the loop
                _log.exception("what was erased can't be swept")

    async def sweep(self) -> None:
        """Remove what came late of what was erased lately."""
        with unavailable_when_failing(self._seconds):
            # unscoped: the service's own notes
            notes = await self._mongo.service.find({"_id": {"$regex": f"^{NOTE}"}}).to_list()
        if not notes or await self._is_restored():
            return
        tenants = await self._tenants()
        for note in notes:
            if note["at"] < self._clock.now() - _SWEPT_FOR:
                with unavailable_when_failing(self._seconds):
                    # unscoped: as above
                    await self._mongo.service.delete_one({"_id": note["_id"]})
            elif "agent" in note:
                late = _Late(*(note[name] for name in _Late.__slots__))
                for query in self._entries_of(late):
                    await self._clear(Erased(late.tenant), self._mongo.changes, query, lambda _: None)
            else:
                await self._sweep_tenant(note, tenants)

    async def _sweep_tenant(self, note: Mapping[str, Any], tenants: AbstractSet[str]) -> None:
        for tenant in tenants:
            if note_of(tenant) != note["_id"]:
                continue
            swept = Erased(tenant)
            late = {"tenant": tenant, "position": {"$lte": note["upto"]}}
            await self._clear(swept, self._mongo.changes, late, lambda _: None)
            if not (await self._may_write(tenant) or await self._is_restored()):
                await self._clear_all(swept, tenant, lambda _: None)

    async def _is_restored(self) -> bool:
        """Whether something is being restored: what was erased may be about to come back."""
        with unavailable_when_failing(self._seconds):
            return await unfinished(self._mongo) is not None

    async def _require_no_restore(self) -> None:
        if await self._is_restored():
            raise Unavailable("A restore is under way or was broken off ('holdfast doctor' says more): end it first.")

    async def _tenants(self) -> set[str]:
        found: set[str] = set()
        for collection in (self._mongo.changes, self._mongo.agents, self._mongo.episodes, self._mongo.acts):
            with unavailable_when_failing(self._seconds):
                # unscoped: of all tenants, on behalf of the service
                found |= {tenant for tenant in await collection.distinct("tenant") if tenant is not None}
        return found

    async def _may_write(self, tenant: str) -> bool:
        """Whether somebody may have written for the tenant anew: it has a key again, or none is asked for."""
        with unavailable_when_failing(self._seconds):
            # unscoped: by the tenant; the latch is the whole service's
            latched = await self._mongo.service.find_one({"_id": "latch"})
            # unscoped: by the tenant
            return latched is None or await self._mongo.keys.find_one({"tenant": tenant}) is not None

    async def _clear_all(self, done: Erased, tenant: str, told: Told) -> None:
        for collection, query in self._parts(tenant):
            if collection is self._mongo.agents:
                while gone := await self._store.expunge(tenant):
                    done.add(collection.name, gone)
                    told(done)
            elif collection is not self._mongo.keys:
                await self._clear(done, collection, query, told)

    async def _clear(self, done: Erased, collection: Collection, query: Mapping[str, Any], told: Told) -> None:
        async for keys in self._keys(collection, query):
            with unavailable_when_failing(self._seconds):
                # unscoped: keys of what is erased
                gone = await collection.delete_many({"_id": {"$in": keys}})
            done.add(collection.name, gone.deleted_count)
            told(done)

    async def _keys(self, collection: Collection, query: Mapping[str, Any]) -> AsyncIterator[list[Any]]:
        """The keys of what is there, in batches, until nothing is."""
        while True:
            with unavailable_when_failing(self._seconds):
                # unscoped: of what is erased
                found = await collection.find(query, {"_id": 1}).limit(_BATCH).to_list()
            if not found:
                return
            yield [one["_id"] for one in found]

    async def _traces(self, tenant: str) -> AsyncIterator[str]:
        """The names of all collections, the service's or not, that still hold something of the tenant."""
        known = {collection.name: query for collection, query in self._parts(tenant)}
        by_either = {"$or": [{"tenant": tenant}, _span(tenant), {"_id": tenant}]}
        with unavailable_when_failing(self._seconds):
            names = await self._mongo.database.list_collection_names()
        for name in sorted(names):
            with unavailable_when_failing(self._seconds):
                # unscoped: by the tenant
                if await self._mongo.database[name].find_one(known.get(name, by_either), {"_id": 1}) is not None:
                    yield name

    def _parts(self, tenant: str) -> list[tuple[Collection, dict[str, Any]]]:
        """Every collection that holds something of tenants, and by what it is found: by what leads an index."""
        mongo = self._mongo
        named = (mongo.agents, mongo.segments, mongo.blobs, mongo.runners, mongo.pools)
        by_name = (*named, mongo.commands, mongo.episodes, mongo.acts)
        by_tenant = (mongo.tickets, mongo.idempotency, mongo.retention, mongo.changes, mongo.keys)
        return [(each, _span(tenant)) for each in by_name] + [(each, {"tenant": tenant}) for each in by_tenant]

    def _parts_of_agent(self, late: _Late) -> list[tuple[Collection, dict[str, Any]]]:
        """What is found of an agent beside its document, and by what."""
        mongo, of_agent = self._mongo, {"tenant": late.tenant, "agent": late.agent}
        acts = {"tenant": late.tenant, "what.agent": late.agent, "kind": {"$ne": ERASED}}
        placed = {"$or": [{"position": {"$lte": late.upto}}, {"position": None}]}
        parts: list[tuple[Collection, dict[str, Any]]] = [
            (mongo.commands, of_agent),
            (mongo.commands, {"_id": f"{late.tenant}:{late.agent}:number"}),
            (mongo.idempotency, of_agent),
            (mongo.acts, acts),
            *((mongo.changes, query) for query in self._entries_of(late)),
        ]
        if late.episodes:
            parts.append((mongo.episodes, {"tenant": late.tenant, "agent_id": late.agent, **placed}))
        return parts

    def _entries_of(self, late: _Late) -> list[dict[str, Any]]:
        """What the log tells of an agent before its deletion, and of what was done beside it."""
        kept = [ERASED] if late.episodes else [ERASED, EPISODE]
        beside = {"what.agent": late.agent, "kinds": {"$nin": kept}, "position": {"$lte": late.upto}}
        own = {"agent": late.agent, "version": {"$lt": late.version}}
        return [{"tenant": late.tenant, **query} for query in (own, beside)]

    async def _of_agent(self, scope: Scope, agent: str) -> tuple[Erased, AgentRecord]:
        """What is to be erased, with its forks, and what is there of it. Raises NotFound."""
        record = await self._store.read(scope.agent_key(agent))
        if not record.version:
            raise NotFound(f"There is no agent '{agent[:64]}' in the tenant '{scope.tenant}', and there never was.")
        forked = {"tenant": scope.tenant, "forked_from.agent": agent, "deleted_at": None}
        with unavailable_when_failing(self._seconds):
            # unscoped: by the tenant
            forks = await self._mongo.agents.find(forked, {"_id": 1}).sort("_id", 1).to_list()
        return Erased(scope.tenant, agent, forks=[one["_id"].partition(":")[2] for one in forks]), record

    async def _note(self, tenant: str) -> None:
        """Let every replica know that what was written up to now of a tenant is to be swept, and forget its agents'."""
        upto = await self._now()
        told = {"$set": {"upto": upto, "at": self._clock.now()}}
        with unavailable_when_failing(self._seconds):
            # unscoped: the service's own notes
            await self._mongo.service.update_one({"_id": note_of(tenant)}, told, upsert=True)
            # unscoped: as above
            await self._mongo.service.delete_many({"_id": {"$regex": f"^{NOTE}"}, "tenant": tenant})

    async def _note_agent(self, tenant: str, agent: str, version: int, *, episodes: bool) -> _Late:
        """The same of an agent; what is to be swept."""
        late = _Late(tenant, agent, version, await self._now(), episodes)
        told = {"$set": {**asdict(late), "at": self._clock.now()}}
        with unavailable_when_failing(self._seconds):
            # unscoped: the service's own note
            await self._mongo.service.update_one({"_id": note_of(tenant, agent)}, told, upsert=True)
        return late

    async def _now(self) -> str:
        """The place in the log that everything written so far lies before."""
        with unavailable_when_failing(self._seconds):
            return position(await self._mongo.now(), 0, _EVER)


def _span(tenant: str) -> dict[str, Any]:
    return {"_id": keys_within(tenant)}
