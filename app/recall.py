"""Recall: the vectors of episodes in memory, one space for each tenant and embedder, fed by the change stream.

A space is read from the database when it is first searched, and follows the stream from before that on, so that it
misses nothing; a stream that lost something drops them all, and while there is none a search reads a space for itself.
Tenants meet nowhere: a search is given one space.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.mongo import Mongo, unavailable_when_failing
from app.vectors import BLOCK, Facts, Space
from models.errors import Unavailable
from models.ids import keys_within

_COLUMNS = ("agent_id", "session_id", "step_id", "owner", "reward", "created_at", "expires_at", "vector")
_BATCH = 1_000
_SPACES = 1_000
"""Kept at most: each takes a few files or a few MiB, however little is in it."""

Key = tuple[str, str]
"""A tenant and an embedder."""


@dataclass(slots=True)
class _Kept:
    """A space, and how far it is read; what was removed while it is read stays out."""

    space: Space
    reading: asyncio.Task[None] | None = None
    gone: set[str] = field(default_factory=set)


class Recall:
    """The spaces that were searched lately. `heard` and `removed` as the change stream does; `lost` when it broke."""

    def __init__(self, mongo: Mongo, folder: Path, follows: Callable[[], bool], *, limit: int, seconds: float) -> None:
        """`follows`: whether the change stream is alive, so that what is in memory is what there is."""
        self._mongo = mongo
        self._folder = folder
        self._follows = follows
        self._limit = limit
        self._seconds = seconds
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()

    @property
    def bytes(self) -> int:
        """What the vectors of all spaces take in memory."""
        return sum(kept.space.resident_bytes for kept in self._kept.values())

    @property
    def episodes(self) -> int:
        """How many episodes' vectors those are."""
        return sum(len(kept.space) for kept in self._kept.values())

    async def space(self, tenant: str, embedder: str, dimension: int) -> Space:
        """The space, complete. Raises Unavailable while it is still being read when the time is over."""
        key = (tenant, embedder)
        if not self._follows():
            return await self._read_once(key, dimension)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = self._empty(dimension)
            kept.reading = asyncio.create_task(self._read(key, kept))
        self._kept.move_to_end(key)
        if kept.reading is not None:
            await self._awaited(kept.reading, kept)
            if self._kept.get(key) is not kept:
                raise Unavailable("The change stream broke while the memory was read: ask again.")
        return kept.space

    async def _read_once(self, key: Key, dimension: int) -> Space:
        """The same of this moment, for a single search."""
        kept = self._empty(dimension)
        await self._awaited(asyncio.create_task(self._read_all(key, kept)), kept, outlives=False)
        return kept.space

    async def _awaited(self, reading: asyncio.Task[None], kept: _Kept, *, outlives: bool = True) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(reading) if outlives else reading, self._seconds)
        except TimeoutError:
            detail = f"The memory of this tenant is being read ({len(kept.space)} episodes so far): ask again."
            raise Unavailable(detail) from None
        except asyncio.CancelledError:
            if not reading.cancelled():
                raise
            raise Unavailable("The change stream broke while the memory was read: ask again.") from None

    def _empty(self, dimension: int) -> _Kept:
        return _Kept(Space(dimension, has_room=self._has_room, folder=self._folder))

    def _has_room(self, more: int) -> bool:
        """Whether so many bytes more may be in memory; what is beyond lies in files."""
        return self.bytes + more <= self._limit

    def heard(self, document: Mapping[str, Any]) -> None:
        """An episode was written."""
        kept = self._kept.get((document["tenant"], document["embedder"]))
        if kept is not None:
            _add(kept, document)

    def removed(self, key: str) -> None:
        """An episode is gone. A space that holds little else than what is gone is let go of."""
        tenant = key.partition(":")[0]
        for whose, kept in list(self._kept.items()):
            if whose[0] == tenant:
                kept.space.strike_out(key)
                if kept.reading is not None:
                    kept.gone.add(key)
                elif not len(kept.space) or kept.space.struck_out > max(BLOCK, len(kept.space)):
                    del self._kept[whose]

    def lost(self) -> None:
        """What happened meanwhile is not known: everything is read anew."""
        for kept in self._kept.values():
            if kept.reading is not None:
                kept.reading.cancel()
        self._kept.clear()

    async def stop(self) -> None:
        """Read no further."""
        self.lost()

    async def _read(self, key: Key, kept: _Kept) -> None:
        """Read what is stored; what fails is tried again by the next search."""
        try:
            await self._read_all(key, kept)
        except BaseException:
            if self._kept.get(key) is kept:
                del self._kept[key]
            raise
        kept.reading = None
        kept.gone.clear()
        self._make_room()

    async def _read_all(self, key: Key, kept: _Kept) -> None:
        tenant, embedder = key
        after = ""
        while True:
            span = {"_id": keys_within(tenant, after), "tenant": tenant, "embedder": embedder}
            with unavailable_when_failing(self._seconds):
                # unscoped: by the tenant
                found = self._mongo.episodes.find(span, _COLUMNS).sort("_id", 1).limit(_BATCH)
                batch = await found.to_list()
            if not batch:
                return
            for document in batch:
                if document["_id"] not in kept.gone:
                    _add(kept, document)
            after = batch[-1]["_id"].partition(":")[2]

    def _make_room(self) -> None:
        """Let go of the spaces that were not searched for the longest time, when there are many."""
        while len(self._kept) > _SPACES:
            oldest, kept = next(iter(self._kept.items()))
            if kept.reading is not None:
                return
            del self._kept[oldest]


def _add(kept: _Kept, document: Mapping[str, Any]) -> None:
    facts = Facts(
        id=document["_id"],
        agent=document.get("agent_id"),
        session=document.get("session_id"),
        step=document.get("step_id"),
        owner=document.get("owner"),
        reward=document.get("reward"),
        at=document["created_at"].timestamp(),
        until=None if document.get("expires_at") is None else document["expires_at"].timestamp(),
    )
    vector = np.frombuffer(document["vector"], "<f4")
    if vector.size == kept.space.dimension:  # the same name may have stood for another embedder once
        kept.space.add(facts, vector)
