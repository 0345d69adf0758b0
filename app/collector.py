"""The collector: removes segments and blobs that nothing refers to any more, from any replica, without a lock.

What no agent keeps is *marked*. After a wait longer than any commit can take, agents are looked through again; what is
still not referred to and still bears this collector's mark is removed. Every commit that refers to a segment or a value
takes the mark off before it is sent (`Segments.store`, `Blobs.store`), so nothing is removed that a commit is about to
need. The wait is counted on this process's monotonic clock alone.

A commit that seals moves references from an agent into a segment that it stored before; so agents are looked through
first and segments after them, and no reference is missed on its way.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from pymongo.errors import PyMongoError

from app.clock import Clock
from app.mongo import Collection, Mongo
from app.segments import opened
from app.telemetry import get_logger
from app.unfinished import unfinished
from models.blob import Damaged, key_of
from models.ids import keys_within
from models.packing import references

_PAGE = 50_000
"""Keys judged together: so many are in memory."""

_AT_ONCE = 16
_log = get_logger(__name__)

_Look = Callable[[str, set[str]], Awaitable[set[str] | None]]
"""Those of a tenant's keys that are referred to; None when that can't be told."""

_Map = Mapping[str, Any]
_UNREADABLE = (AttributeError, TypeError, KeyError, Damaged)


@dataclass(slots=True)
class Collected:
    """What a collection did so far."""

    looked_at: int = 0
    marked: int = 0
    removed: int = 0
    bytes: int = 0
    """Of what was removed, as stored."""


class Collector:
    """Collects for all tenants. Any number may run at once; each removes only what bears its own mark."""

    def __init__(self, mongo: Mongo, clock: Clock, *, wait_seconds: float) -> None:
        self._mongo = mongo
        self._clock = clock
        self._wait_seconds = wait_seconds

    async def collect(
        self,
        told: Callable[[Collected], None] = lambda _: None,
        *,
        tenant: str | None = None,
        wait_seconds: float | None = None,
    ) -> Collected:
        """Go once through all segments and values, or those of one tenant. `told` hears of the progress.

        A restore puts them there before the agents that refer to them; so nothing is removed while one is not over.
        Raises PyMongoError; what was marked stays so.
        """
        done = Collected()
        mark = self._clock.new_id()
        segments = _Sort(self._mongo.segments, self._kept, mark, tenant, done, told)
        values = _Sort(self._mongo.blobs, self._referred, mark, tenant, done, told)
        unused_segments = await segments.marked()
        unused_values = await replace(values, look=self._referred_but_by(mark)).marked()
        if unused_segments or unused_values:
            await asyncio.sleep(self._wait_seconds if wait_seconds is None else wait_seconds)
        if await unfinished(self._mongo) is not None:
            return done
        await segments.remove(unused_segments)
        await values.remove(unused_values)
        return done

    async def run(self, every_seconds: float) -> None:
        """Collect for ever, at times that replicas which were started together do not share."""
        while True:
            await asyncio.sleep(every_seconds * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, hides nothing
            try:
                done = await self.collect()
                _log.info("collected", looked_at=done.looked_at, removed=done.removed, bytes=done.bytes)
            except PyMongoError as error:
                _log.warning("collection failed", error=type(error).__name__)
            except Exception:  # noqa: BLE001 - the top of the loop: logged, and tried again
                _log.exception("collection failed")

    async def _kept(self, tenant: str, keys: set[str]) -> set[str] | None:
        """The segments that an agent keeps."""
        found: set[str] = set()
        try:
            async for agent in self._of_tenant(self._mongo.agents, tenant, {"sealed": 1}):
                found.update(keys.intersection(kept["id"] for kept in agent.get("sealed", {}).values()))
        except _UNREADABLE as error:
            _tell_of_nothing(tenant, error)
            return None
        return found

    async def _referred(self, tenant: str, keys: set[str], without_mark: str | None = None) -> set[str] | None:
        """The values that an agent or a segment refers to, but for segments that bear the mark."""
        found: set[str] = set()
        try:
            async for steps, results in self._contents(tenant, without_mark):
                found.update(keys.intersection(key_of(tenant, reference) for reference in references(steps, results)))
        except _UNREADABLE as error:
            _tell_of_nothing(tenant, error)
            return None
        return found

    async def _contents(self, tenant: str, without_mark: str | None) -> AsyncIterator[tuple[_Map, _Map]]:
        """Steps and results of the tenant's agents, and after them of its segments. Raises Damaged."""
        async for agent in self._of_tenant(self._mongo.agents, tenant, {"steps": 1, "results": 1}):
            yield agent.get("steps", {}), agent.get("results", {})
        async for document in self._of_tenant(self._mongo.segments, tenant, {"data": 1, "mark": 1}):
            if without_mark is None or document.get("mark") != without_mark:
                await asyncio.sleep(0)  # the replica that this runs in has others to serve
                segment = opened(document)
                yield segment.steps, segment.results

    def _referred_but_by(self, mark: str) -> _Look:
        """The same, as if the segments that are about to be removed were gone."""
        return lambda tenant, keys: self._referred(tenant, keys, mark)

    async def _of_tenant(self, collection: Collection, tenant: str, fields: dict[str, int]) -> AsyncIterator[Any]:
        """A tenant's documents in the order of their keys, which never change.

        By another index a write could move one from before the cursor's place to behind it, and it would not be seen.
        """
        within = {"_id": keys_within(tenant)}
        # unscoped: on behalf of nobody, but of one tenant
        async for document in collection.find(within, fields, batch_size=_AT_ONCE).hint([("_id", 1)]):
            yield document


@dataclass(frozen=True, slots=True)
class _Sort:
    """One sort of what is collected."""

    collection: Collection
    look: _Look
    mark: str
    tenant: str | None
    done: Collected
    told: Callable[[Collected], None]

    async def marked(self) -> dict[str, set[str]]:
        """Mark what nothing refers to; the keys by tenant. Nothing of a tenant where one document can't be read."""
        found: dict[str, set[str]] = {}
        async for tenant, keys in self._pages():
            self.done.looked_at += len(keys)
            referred = await self.look(tenant, keys)
            unused = set() if referred is None else keys - referred
            if unused:
                # unscoped: the keys begin with the tenant
                await self.collection.update_many({"_id": {"$in": list(unused)}}, {"$set": {"mark": self.mark}})
                found.setdefault(tenant, set()).update(unused)
            self.done.marked += len(unused)
            self.told(self.done)
        return found

    async def remove(self, unused: dict[str, set[str]]) -> None:
        """Remove what nothing came to refer to and still bears the mark; take it off the rest."""
        for tenant, keys in unused.items():
            referred = await self.look(tenant, keys)
            if referred is not None:
                await self._unmark(referred)
                for key in keys - referred:
                    await self._remove_one(key)
            self.told(self.done)

    async def _unmark(self, keys: set[str]) -> None:
        # unscoped: the keys begin with the tenant
        await self.collection.update_many({"_id": {"$in": list(keys)}, "mark": self.mark}, {"$unset": {"mark": ""}})

    async def _remove_one(self, key: str) -> None:
        # unscoped: the key begins with the tenant
        found = await self.collection.find_one_and_delete(
            {"_id": key, "mark": self.mark}, projection={"stored": {"$bsonSize": "$$ROOT"}}
        )
        if found is not None:
            self.done.removed += 1
            self.done.bytes += found["stored"]

    async def _pages(self) -> AsyncIterator[tuple[str, set[str]]]:
        """All keys, a page of one tenant at a time; each page is a query of its own."""
        after, end = ("", {}) if self.tenant is None else (f"{self.tenant}:", {"$lt": f"{self.tenant};"})
        while True:
            # unscoped: of all tenants, one after another
            found = self.collection.find({"_id": {"$gt": after, **end}}, {"_id": 1}).sort("_id", 1).limit(_PAGE)
            keys = [document["_id"] async for document in found]
            if not keys:
                return
            after = keys[-1]
            for tenant, own in groupby(keys, key=lambda key: str(key).partition(":")[0]):
                yield tenant, set(own)


def _tell_of_nothing(tenant: str, error: Exception) -> None:
    """Nobody knows what the document that can't be read refers to, so it may be anything of its tenant."""
    _log.error("nothing of the tenant is collected: a document can't be read", tenant=tenant, error=str(error))
