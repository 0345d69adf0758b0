"""The proof that a database is consistent: agents, their segments, values stored apart, and the change log beside them.

It reads a page at a time, while others may write, and writes nothing but what `mend` is asked for: fields of an agent
that only repeat what the rest of it says, each by a commit like any other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
from backports import zstd

from app.mongo import Mongo, decoded
from app.replay import Walk
from app.segments import opened
from app.store import Store
from models.agent import AgentRecord
from models.blob import Damaged, canonical, key_of, length_of, reference_to
from models.change import AGENT, Change, Stamp
from models.consistency import Flaw, Past, flaws, flaws_of_segment
from models.errors import NotFound
from models.packing import references
from models.segment import Descriptor
from models.tenant import Right, Scope

_BY = "fsck"
_UNREADABLE = (AttributeError, TypeError, KeyError, ValueError, Damaged)


@dataclass(frozen=True, slots=True)
class Found:
    """A flaw of something: an agent's, a segment's or a value's key."""

    key: str
    flaw: Flaw

    def __str__(self) -> str:
        return f"{self.key}: {self.flaw.text}"


@dataclass(slots=True)
class Counts:
    """What was looked at so far, of how much."""

    agents: int = 0
    of_agents: int = 0
    segments: int = 0
    of_segments: int = 0
    values: int = 0
    of_values: int = 0


class Fsck:
    """Goes through a database once."""

    def __init__(self, mongo: Mongo, told: Callable[[Counts], None] = lambda _: None) -> None:
        self._mongo = mongo
        self._walk = Walk(mongo)
        self._told = told
        self.counts = Counts()

    async def findings(self) -> AsyncIterator[Found]:
        """Every flaw, as it is found. Raises PyMongoError."""
        keys = await self._walk.agents(None)
        self.counts.of_agents = len(keys)
        self.counts.of_segments = await self._mongo.segments.estimated_document_count()
        self.counts.of_values = await self._mongo.blobs.estimated_document_count()
        async for found in self._of_agents(keys):
            yield found
        async for found in self._of_segments():
            yield found
        async for found in self._of_values():
            yield found

    async def _of_agents(self, keys: Iterable[str]) -> AsyncIterator[Found]:
        for key in keys:
            with suppress(NotFound):  # removed meanwhile
                for flaw in await self._of_agent(key):
                    yield Found(key, flaw)
            self.counts.agents += 1
            self._told(self.counts)

    async def _of_agent(self, key: str) -> list[Flaw]:
        # unscoped: the key begins with the tenant
        raw = await self._mongo.agents_raw.find_one({"_id": key})
        found: list[Flaw] = []
        if raw is not None:
            document = decoded(raw.raw)
            found = flaws(document, await self._past(document)) + await self._missing_values(key, document)
        verdict = await self._walk.judge(key)
        if verdict.difference:
            found.append(Flaw(f"the change log differs: {verdict.difference}"))
        return found

    async def _past(self, document: dict[str, Any]) -> Past:
        """What the agent's segments are remembered by, read one after another; of those that can't be read, nothing."""
        past = Past()
        with suppress(*_UNREADABLE):
            kept = [Descriptor.read(one).id for one in document.get("sealed", {}).values()]
            # unscoped: the keys begin with the tenant
            async for segment in self._mongo.segments.find({"_id": {"$in": kept}}).sort("_id", 1):
                with suppress(*_UNREADABLE):
                    past.add(opened(segment))
        return past

    async def _missing_values(self, key: str, document: dict[str, Any]) -> list[Flaw]:
        """References of an agent or a segment that lead nowhere, or to a value of another length."""
        tenant = key.partition(":")[0]
        try:
            referring = list(references(document.get("steps", {}), document.get("results", {})))
        except _UNREADABLE:  # a flaw of its own
            return []
        referred = {key_of(tenant, reference): reference for reference in referring}
        lengths: dict[str, int] = {}
        if referred:
            # unscoped: the keys begin with the tenant
            async for found in self._mongo.blobs.find({"_id": {"$in": list(referred)}}, {"length": 1}):
                lengths[found["_id"]] = found["length"]
        missing = [
            Flaw(f"it refers to the value {key}, which is not there") for key in referred.keys() - lengths.keys()
        ]
        other = [
            Flaw(f"it refers to the value {key} as {length_of(referred[key])} bytes, and it has {length}")
            for key, length in lengths.items()
            if length_of(referred[key]) != length
        ]
        return missing + other

    async def _of_segments(self) -> AsyncIterator[Found]:
        # unscoped: for whoever runs the service
        async for document in self._mongo.segments.find({}).sort("_id", 1):
            for flaw in await self._of_segment(document):
                yield Found(str(document["_id"]), flaw)
            self.counts.segments += 1
            self._told(self.counts)

    async def _of_segment(self, document: dict[str, Any]) -> list[Flaw]:
        try:
            segment = opened(document)
        except Damaged as error:
            return [Flaw(str(error))]
        held = {"steps": segment.steps, "results": segment.results}
        return flaws_of_segment(segment, document) + await self._missing_values(segment.id, held)

    async def _of_values(self) -> AsyncIterator[Found]:
        # unscoped: for whoever runs the service
        async for value in self._mongo.blobs.find({}).sort("_id", 1):
            text = _flaw_of_value(value)
            if text is not None:
                yield Found(str(value["_id"]), Flaw(text))
            self.counts.values += 1
            self._told(self.counts)


def _flaw_of_value(value: dict[str, Any]) -> str | None:
    """What is wrong with a stored value; None when its content is what its key says."""
    tenant = str(value["_id"]).partition(":")[0]
    try:
        text = zstd.decompress(value["data"])
        reference = reference_to(canonical(orjson.loads(text)), len(text))
    except (zstd.ZstdError, ValueError, KeyError, TypeError) as error:
        return f"the value can't be read ({type(error).__name__})"
    if value.get("tenant") != tenant:
        return f"the value says that it is of the tenant '{value.get('tenant')}'"
    if value.get("length") != len(text):
        return f"the value says that it has {value.get('length')} bytes, and it has {len(text)}"
    if key_of(tenant, reference) != value["_id"]:
        return "the value is not the one that its key names"
    return None


async def mend(store: Store, found: Found) -> bool:
    """Mend what follows from the rest of the agent; False when it does not, or not any more. Raises HoldfastError."""
    tenant, _, agent = found.key.partition(":")

    def move(record: AgentRecord, stamp: Stamp) -> Change:
        now = next(
            (flaw for flaw in flaws(record.document(), Past(record.trees())) if flaw.text == found.flaw.text), None
        )
        if now is None or not now.mend:
            return record.unchanged()
        return record.changed(stamp, (AGENT,), now.mend)

    if not found.flaw.mend:
        return False
    scope = Scope(tenant, frozenset(Right), by=_BY)
    return (await store.commit(scope, agent, move)).changed
