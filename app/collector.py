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
from itertools import groupby

from pymongo.errors import PyMongoError

from app.clock import Clock
from app.mongo import Mongo
from app.telemetry import get_logger
from models.blob import Damaged, key_of
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
        mark = self._clock.new_id()
        marked: dict[str, set[str]] = {}
        async for tenant, keys in self._pages():
            done.looked_at += len(keys)
            unused = await self._marked(tenant, keys, mark)
            if unused:
                marked.setdefault(tenant, set()).update(unused)
            done.marked += len(unused)
            told(done)
        if marked:
            await asyncio.sleep(self._wait_seconds)
        for tenant, unused in marked.items():
            await self._remove(tenant, unused, mark, done)
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
            except Exception:  # noqa: BLE001 - the top of the loop: logged, and tried again
                _log.exception("collection failed")

    async def _marked(self, tenant: str, keys: set[str], mark: str) -> set[str]:
        """Mark those of the keys that nothing refers to; none where an agent can't be read."""
        referred = await self._referred(tenant, keys)
        if referred is None:
            return set()
        unused = keys - referred
        if unused:
            # unscoped: the keys begin with the tenant
            await self._mongo.blobs.update_many({"_id": {"$in": list(unused)}}, {"$set": {"mark": mark}})
        return unused

    async def _remove(self, tenant: str, unused: set[str], mark: str, done: Collected) -> None:
        """Remove those that nothing came to refer to and that still bear the mark; take it off the others."""
        referred = await self._referred(tenant, unused)
        if referred is None:
            return
        # unscoped: the keys begin with the tenant
        await self._mongo.blobs.update_many({"_id": {"$in": list(referred)}, "mark": mark}, {"$unset": {"mark": ""}})
        for key in unused - referred:
            # unscoped: the key begins with the tenant
            found = await self._mongo.blobs.find_one_and_delete(
                {"_id": key, "mark": mark}, projection={"stored": {"$bsonSize": "$$ROOT"}}
            )
            if found is not None:
                done.removed += 1
                done.bytes += found["stored"]

    async def _pages(self) -> AsyncIterator[tuple[str, set[str]]]:
        """The keys of all values, a page of one tenant at a time; each page is a query of its own."""
        after = ""
        while True:
            # unscoped: of all tenants, one after another
            found = self._mongo.blobs.find({"_id": {"$gt": after}}, {"_id": 1}).sort("_id", 1).limit(_PAGE)
            keys = [document["_id"] async for document in found]
            if not keys:
                return
            after = keys[-1]
            for tenant, own in groupby(keys, key=lambda key: str(key).partition(":")[0]):
                yield tenant, set(own)

    async def _referred(self, tenant: str, keys: set[str]) -> set[str] | None:
        """Those of the keys that an agent refers to; None when an agent can't be read, for it may refer to any.

        Agents are gone through in the order of their keys, which never change: by another index a write could move one
        from before the cursor's place to behind it, and it would not be seen.
        """
        found: set[str] = set()
        fields = {"steps": 1, "results": 1}
        within = {"_id": {"$gt": f"{tenant}:", "$lt": f"{tenant};"}}
        # unscoped: on behalf of nobody, but of one tenant
        agents = self._mongo.agents.find(within, fields, batch_size=_AGENTS_AT_ONCE).hint([("_id", 1)])
        async for agent in agents:
            try:
                referred = references(agent.get("steps", {}), agent.get("results", {}))
                found.update(keys.intersection(key_of(tenant, reference) for reference in referred))
            except (AttributeError, TypeError, Damaged):
                _log.error("nothing of the tenant is collected: an agent can't be read", agent=agent["_id"])
                return None
        return found
