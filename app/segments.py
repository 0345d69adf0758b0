"""Segments: the sealed steps of agents, stored before the commit that seals them, and read for whoever needs them.

They never change, so what was lately read is kept in memory without further care; `app.collector` removes those that
no agent keeps. Guarantee: storing one again takes its mark off, so a collector that is about to remove it does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar

from backports import zstd
from bson.errors import BSONError

from app import apart
from app.apart import Apart
from app.mongo import Mongo, decoded, unavailable_when_failing
from app.shelf import Shelf
from models.agent import AgentRecord
from models.blob import Damaged
from models.history import History, NotAtHand, Wanted
from models.segment import TREE_FIELDS, Segment, Tree, origin_of, tree_of

T = TypeVar("T")

_BYTES_EACH = 4
"""What a byte of a segment takes in memory, decoded."""

_NODE_BYTES = 400
_READ_AT_ONCE = 8
_LEVEL = 3


class Gone(Exception):
    """A segment is not there: its agent was cleared or deleted since it was read, or the database is damaged."""


class Segments:
    """The segments of all tenants; what was lately read is kept in memory, up to `limit_bytes` of it."""

    def __init__(self, mongo: Mongo, *, limit_bytes: int, seconds: float) -> None:
        self._mongo = mongo
        self._seconds = seconds
        self._segments: Shelf[Segment] = Shelf(limit_bytes)
        self._trees: Shelf[Tree] = Shelf(limit_bytes // 4)

    @property
    def bytes_held(self) -> int:
        """What is kept in memory."""
        return self._segments.bytes + self._trees.bytes

    async def store(self, segments: Mapping[str, Segment | None]) -> None:
        """Make segments durable, and take the marks off those that are there (None: one that has to be).

        Raises PyMongoError; Damaged when one is missing.
        """
        documents = (_apart(key, segment) for key, segment in segments.items())
        await apart.store(self._mongo.segments, documents, seconds=self._seconds)
        for key, segment in segments.items():
            if segment is not None:
                self._segments.put(key, segment, _BYTES_EACH * segment.size)

    async def asked(self, record: AgentRecord, question: Callable[[AgentRecord], T]) -> T:
        """What a question about an agent comes to, with as much of its history as that takes.

        Raises what the question raises; Unavailable; Gone.
        """
        return (await self.answered(record, question))[1]

    async def answered(self, record: AgentRecord, question: Callable[[AgentRecord], T]) -> tuple[AgentRecord, T]:
        """The same, and the agent with the history that it took. Raises as `asked` does."""
        while True:
            try:
                return record, question(record)
            except NotAtHand as lacking:
                record = await self.supplied(record, lacking.wanted)
                await asyncio.sleep(0)  # others get their turn, also where all of it is in memory

    async def supplied(self, record: AgentRecord, wanted: Wanted) -> AgentRecord:
        """The agent with what is wanted of its history. Raises Unavailable; Gone."""
        known = self._trees_with(record, wanted.steps)
        unknown = wanted.steps.difference(*known.values())
        found = History(
            await self._whole(wanted.segments),
            {**known, **await self._bare(wanted.trees)},
            await self._holding(record, "ids", unknown),
            await self._holding(record, "turns", wanted.turns),
        )
        return record.model_copy(update={"history": record.history | found})

    def supplied_now(self, record: AgentRecord, wanted: Wanted) -> AgentRecord | None:
        """The same from memory alone; None when that does not do."""
        segments, trees = self._segments.held(wanted.segments), self._trees_held(wanted.trees)
        known = self._trees_with(record, wanted.steps)
        missing = wanted.turns or wanted.steps.difference(*known.values())
        if missing or len(segments) < len(wanted.segments) or len(trees) < len(wanted.trees):
            return None
        return record.model_copy(update={"history": record.history | History(segments, {**known, **trees})})

    def _trees_with(self, record: AgentRecord, steps: AbstractSet[str]) -> dict[str, Tree]:
        """Trees in memory in which the agent sees some of the steps."""
        found: dict[str, Tree] = {}
        for kept in record.descriptors if steps else ():
            tree = self._tree_held(kept.id)
            if tree is not None and any(step in tree for step in steps) and not steps.isdisjoint(kept.seen(tree)):
                found[kept.id] = tree
        return found

    def _trees_held(self, keys: Iterable[str]) -> dict[str, Tree]:
        """Those of the trees that are in memory, by themselves or with their segments."""
        found = ((key, self._tree_held(key)) for key in keys)
        return {key: tree for key, tree in found if tree is not None}

    def _tree_held(self, key: str) -> Tree | None:
        segment = self._segments.get(key)
        return self._trees.get(key) if segment is None else segment.tree

    async def _whole(self, keys: AbstractSet[str]) -> dict[str, Segment]:
        found = self._segments.held(keys)
        async for document in self._read(keys - found.keys(), ("data",)):
            segment = found[document["_id"]] = opened(document)
            self._segments.put(segment.id, segment, _BYTES_EACH * segment.size)
        return _all_of(keys, found)

    async def _bare(self, keys: AbstractSet[str]) -> dict[str, Tree]:
        found = self._trees_held(keys)
        async for document in self._read(keys - found.keys(), TREE_FIELDS):
            tree = found[document["_id"]] = tree_of(document)
            self._trees.put(document["_id"], tree, _NODE_BYTES * len(tree))
        return _all_of(keys, found)

    async def _read(self, keys: AbstractSet[str], fields: Collection[str]) -> AsyncIterator[dict[str, Any]]:
        """Documents; others get their turn between two of them."""
        wanted = sorted(keys)
        for start in range(0, len(wanted), _READ_AT_ONCE):
            part = {"_id": {"$in": wanted[start : start + _READ_AT_ONCE]}}
            with unavailable_when_failing(self._seconds):
                # unscoped: the keys begin with the tenant
                documents = await self._mongo.segments.find(part, fields).to_list()
            for document in documents:
                yield document
                await asyncio.sleep(0)

    async def _holding(self, record: AgentRecord, field: str, values: AbstractSet[str]) -> dict[str, frozenset[str]]:
        """The segments, of the agents that any of these are from, that hold each of the steps or turns."""
        found: dict[str, set[str]] = {value: set() for value in values}
        origins = sorted({origin_of(kept.id) for kept in record.descriptors})
        query = {"agent": {"$in": origins}, field: {"$in": sorted(values)}}
        if values:
            with unavailable_when_failing(self._seconds):
                # unscoped: agents are named by keys that begin with the tenant
                async for document in self._mongo.segments.find(query, {field: 1}):
                    for value in found.keys() & set(document[field]):
                        found[value].add(document["_id"])
        return {value: frozenset(segments) for value, segments in found.items()}


def _all_of(keys: AbstractSet[str], found: dict[str, T]) -> dict[str, T]:
    missing = keys - found.keys()
    if missing:
        raise Gone(f"A segment is not there: {min(missing)}.")
    return found


def opened(document: Mapping[str, Any]) -> Segment:
    """The segment that a document holds. Raises Damaged."""
    try:
        content = zstd.decompress(document["data"])
        found = decoded(content)
        return Segment(document["_id"], found["steps"], found["results"], len(content))
    except (zstd.ZstdError, BSONError, KeyError, TypeError) as error:
        raise Damaged(f"The segment {document['_id']} can't be read.") from error


def _apart(key: str, segment: Segment | None) -> Apart:
    if segment is None:
        return Apart(key, None)
    return Apart(key, {**segment.outside(), "data": zstd.compress(segment.content(), _LEVEL)}, segment.size)
