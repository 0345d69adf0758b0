"""Walks the change log and holds it against the agents' documents. It writes nothing.

Writers may go on meanwhile. A document is read first and its log after it, so what the log has beyond is left alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from app.mongo import Mongo
from models.act import ERASED
from models.agreement import Written, differences, remark
from models.entry import Entry, position, time_of
from models.errors import NotFound
from models.ids import agent_key
from models.segment import INHERITED_VERSION, TREE_FIELDS, Descriptor, tree_of

PATIENCE_SECONDS = 8.0
"""What a walk waits, all in all, for entries that are not in the log yet; an idle replica marks it every 5 s."""

_PAUSE_SECONDS = 0.05
_LOOKED_AT = {
    "version": 1,
    "last": 1,
    "created_at": 1,
    "deleted_at": 1,
    "sealed": 1,
    "steps": {
        "$map": {
            "input": {"$cond": [{"$eq": [{"$type": "$steps"}, "object"]}, {"$objectToArray": "$steps"}, []]},
            "in": {"id": "$$this.k", "version": "$$this.v.version"},
        }
    },
}


@dataclass(frozen=True)
class Verdict:
    """What a walk found of one agent: how many entries, of which versions, and the first difference, if any."""

    key: str
    entries: list[Entry]
    remark: str = ""
    difference: str | None = None

    def __str__(self) -> str:
        versions = f"versions {self.entries[0].version} to {self.entries[-1].version}" if self.entries else "no version"
        told = f"{'differ' if self.difference else 'agree '} {self.key} {len(self.entries)} entries, {versions}"
        return ": ".join(part for part in (told, self.difference or self.remark) if part)


class Walk:
    """The database as a walk reads it: it writes nothing."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._patience = PATIENCE_SECONDS

    async def agents(self, tenant: str | None) -> list[str]:
        """Every agent of a tenant, or of all, that has a document or an entry, in the order of their keys."""
        keys: set[str] = set()
        for one in await self._tenants() if tenant is None else [tenant]:
            # unscoped: of one tenant, for whoever runs the service
            keys |= {document["_id"] async for document in self._mongo.agents.find({"tenant": one}, {"_id": 1})}
            # unscoped: as above
            named = await self._mongo.changes.distinct("agent", {"tenant": one})
            keys |= {agent_key(one, agent) for agent in named if agent}
        return sorted(keys)

    async def judge(self, key: str) -> Verdict:
        """Hold an agent's document against its entries. Raises NotFound when there is neither; PyMongoError."""
        try:
            written = await self._document(key)
            behind = "" if written is None else await self._behind(key, written.version)
            entries = [Entry.of(document) for document in await self._entries(key)]
            if written is None:
                return await self._without_document(key, entries)
            if await self._moved_on(written, entries):
                entries = [entry for entry in entries if entry.version <= written.version]
            difference = next(differences(written, entries, await self._kept_from(key)), None)
        except (TypeError, KeyError, ValueError) as error:
            return Verdict(key, [], difference=f"what is stored can't be read ({type(error).__name__}: {error})")
        return Verdict(key, entries, remark(entries), difference and f"{difference}{behind}")

    async def _without_document(self, key: str, entries: list[Entry]) -> Verdict:
        if not entries:
            tenant, _, agent = key.partition(":")
            raise NotFound(f"There is no agent '{agent}' in the tenant '{tenant}', and there never was.")
        if await self._document(key) is not None:
            return await self.judge(key)
        return Verdict(key, entries, difference="there is no document, not even a tombstone")

    async def _behind(self, key: str, version: int) -> str:
        """Wait until the log holds a version, or everything up to now; says so when that does not come."""
        now = position(await self._mongo.now())
        # unscoped: the key begins with the tenant
        while await self._mongo.changes.find_one({"_id": f"{key}:{version}"}, {"_id": 1}) is None:
            if (await self._mark()).get("complete_to", "") >= now:
                return ""
            if self._patience <= 0:
                return " (the log is behind: is a replica running? It writes what is missing)"
            began = time.monotonic()
            await asyncio.sleep(_PAUSE_SECONDS)
            self._patience -= time.monotonic() - began
        return ""

    async def _moved_on(self, written: Written, entries: list[Entry]) -> bool:
        """Whether the document has meanwhile come to where the log is."""
        newest = max((entry.version for entry in entries), default=0)
        if newest <= written.version:
            return False
        lately = await self._document(written.key)
        return lately is not None and lately.version >= newest

    async def _document(self, key: str) -> Written | None:
        # unscoped: the key begins with the tenant
        found = await self._mongo.agents.find_one({"_id": key}, _LOOKED_AT)
        if found is None:
            return None
        steps = {step["id"]: step.get("version", 0) for step in found["steps"]}
        steps |= await self._sealed_steps(found.get("sealed", {}))
        deleted = found.get("deleted_at") is not None
        erased = await self._was_erased(key)
        return Written(key, found["version"], found.get("last", {}), steps, found.get("created_at"), deleted, erased)

    async def _was_erased(self, key: str) -> bool:
        tenant, _, agent = key.partition(":")
        # unscoped: of one tenant's agent
        told = await self._mongo.changes.find_one({"tenant": tenant, "kinds": ERASED, "what.agent": agent}, {"_id": 1})
        return told is not None

    async def _sealed_steps(self, sealed: Mapping[str, Any]) -> dict[str, int]:
        """The versions of the steps that an agent sees in its segments."""
        keeps = {kept["id"]: Descriptor.read(kept) for kept in sealed.values()}
        found: dict[str, int] = {}
        # unscoped: the keys begin with the tenant
        async for document in self._mongo.segments.find({"_id": {"$in": list(keeps)}}, TREE_FIELDS):
            kept, tree = keeps[document["_id"]], tree_of(document)
            found |= {step: INHERITED_VERSION if kept.inherited else tree[step].version for step in kept.seen(tree)}
        return found

    async def _entries(self, key: str) -> list[dict[str, Any]]:
        tenant, _, agent = key.partition(":")
        # unscoped: of one tenant's agent
        found = self._mongo.changes.find({"tenant": tenant, "agent": agent, "episode": None})
        return await found.sort("position", 1).to_list()

    async def _tenants(self) -> set[str]:
        # unscoped: of all tenants, for whoever runs the service
        of_agents = await self._mongo.agents.distinct("tenant")
        # unscoped: as above
        return {*of_agents, *await self._mongo.changes.distinct("tenant")}

    async def _kept_from(self, key: str) -> datetime | None:
        # unscoped: the key names the tenant
        found = await self._mongo.changes.find_one({"_id": f"kept:{key.partition(':')[0]}"})
        return None if found is None else datetime.fromtimestamp(time_of(found["kept_from"])[0], UTC)

    async def _mark(self) -> Mapping[str, Any]:
        # unscoped: the log's own mark
        return await self._mongo.changes.find_one({"_id": "mark"}) or {}
