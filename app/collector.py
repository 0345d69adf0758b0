"""The collector: removes blobs that nothing refers to any more, from any replica, at any time, without a lock.

A value that no agent refers to is *marked*. After a wait longer than any commit can take, agents are looked through
again; what is still not referred to and still bears this collector's mark is removed. Every commit that refers to a
value takes the mark off before it is sent (`Blobs.store`), so nothing is removed that a commit is about to need. The
wait is counted on this process's monotonic clock alone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from pymongo.errors import PyMongoError

from app.clock import Clock
from app.mongo import Mongo
from app.telemetry import get_logger
from models.blob import key_of
from models.packing import references

_PAGE = 50_000
"""Values judged together: so many keys are in memory."""

_AGENTS_AT_ONCE = 16
_log = get_logger(__name__)


@dataclass(slots=True)
class Collected:
    """What a collection did so far."""

    looked_at: int = 0
    marked: int = 0
    removed: int = 0
    bytes: int = 0
    """Of what was removed, as stored."""


class Collector:
    """Collects the blobs of all tenants. Any number may run at once; each removes only what bears its own mark."""

    def __init__(self, mongo: Mongo, clock: Clock, *, wait_seconds: float) -> None:
        self._mongo = mongo
        self._clock = clock
        self._wait_seconds = wait_seconds

    async def collect(self, told: Callable[[Collected], None] = lambda _: None) -> Collected:
        """Go once through all values. `told` hears of the progress. Raises PyMongoError; what was marked stays so."""
        done = Collected()
        async for tenant, keys in self._pages():
            done.looked_at += len(keys)
            told(done)
            await self._collect_of(tenant, keys, done)
            told(done)
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

    async def _collect_of(self, tenant: str, keys: set[str], done: Collected) -> None:
        unused = keys - await self._referred(tenant, keys)
        if not unused:
            return
        mark = self._clock.new_id()
        # unscoped: the keys begin with the tenant
        await self._mongo.blobs.update_many({"_id": {"$in": list(unused)}}, {"$set": {"mark": mark}})
        done.marked += len(unused)
        await asyncio.sleep(self._wait_seconds)
        unused -= await self._referred(tenant, unused)
        await self._remove(unused, mark, done)

    async def _remove(self, unused: set[str], mark: str, done: Collected) -> None:
        """Remove those that still bear the mark."""
        for key in unused:
            # unscoped: the key begins with the tenant
            found = await self._mongo.blobs.find_one_and_delete(
                {"_id": key, "mark": mark}, projection={"stored": {"$bsonSize": "$$ROOT"}}
            )
            if found is not None:
                done.removed += 1
                done.bytes += found["stored"]

    async def _pages(self) -> AsyncIterator[tuple[str, set[str]]]:
        """The keys of all values, a page of one tenant at a time."""
        tenant, keys = "", set[str]()
        # unscoped: of all tenants, one after another
        async for document in self._mongo.blobs.find({}, {"_id": 1}).sort("_id", 1):
            of = document["_id"].partition(":")[0]
            if keys and (of != tenant or len(keys) == _PAGE):
                yield tenant, keys
                keys = set()
            tenant = of
            keys.add(document["_id"])
        if keys:
            yield tenant, keys

    async def _referred(self, tenant: str, keys: set[str]) -> set[str]:
        """Those of the keys that an agent refers to."""
        found: set[str] = set()
        fields = {"steps": 1, "results": 1}
        # unscoped: on behalf of nobody, but of one tenant
        async for agent in self._mongo.agents.find({"tenant": tenant}, fields, batch_size=_AGENTS_AT_ONCE):
            referred = references(agent.get("steps", {}), agent.get("results", {}))
            found.update(keys.intersection(key_of(tenant, reference) for reference in referred))
        return found
