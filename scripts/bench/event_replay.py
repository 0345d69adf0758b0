"""Change events recorded once and played to a watcher again and again, so that what it makes of them can be timed.

The watcher, cache, feed and scribe are the service's own; only the stream is ours. It gives the next event without
waiting, so that nothing else runs in this process from the first event to the last.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any, Self, cast

from bson.raw_bson import RawBSONDocument
from pymongo.asynchronous.change_stream import AsyncChangeStream

from app.bell import Bell
from app.cache import Cache
from app.clock import SystemClock
from app.config import MIB
from app.feed import Caps, Feed
from app.mongo import Mongo, decoded
from app.runtime import Runtime
from app.scribe import Scribe
from app.telemetry import Metrics
from app.watcher import Watcher
from models.agent import AgentRecord
from models.event import Event
from models.tenant import ANONYMOUS
from scripts.bench.ways import Way

Stream = AsyncChangeStream[RawBSONDocument]
_SETTLED_SECONDS = 0.1
"""For the watcher's first heartbeat to be written before it is stopped."""

_CAPS = Caps(items=10_000, bytes=64 * MIB, of_a_tenant=10, in_all=10)


async def recorded(runtime: Runtime, agent: AgentRecord, append: Way, count: int) -> list[RawBSONDocument]:
    """The change events of so many appends to an agent."""
    changes: list[RawBSONDocument] = []
    async with await runtime.mongo.watch("nobody") as stream:
        for _ in range(count):
            await append(0, agent)
            while (change := await stream.try_next()) is None or change["documentKey"]["_id"] != agent.id:
                pass
            changes.append(change)
    return changes


def event_of(change: RawBSONDocument) -> Event:
    """The event of an append."""
    told = decoded(change.raw)
    time = told["clusterTime"].time, told["clusterTime"].inc
    update = told["updateDescription"]
    return Event(told["documentKey"]["_id"], time, update["updatedFields"], update["removedFields"])


def held(cache: Cache, record: AgentRecord) -> None:
    """Put the agent into a cache whose stream is open."""
    cache.land(cache.depart(record.id), record)


async def microseconds_each(
    runtime: Runtime, changes: Sequence[RawBSONDocument], memory: Sequence[AgentRecord], topics: Sequence[str]
) -> float:
    """Processor time of a watcher for each event, with these agents in memory and a subscriber of each topic."""
    clock = SystemClock()
    cache = Cache(clock, limit_bytes=runtime.settings.cache_bytes, idle_seconds=runtime.settings.cache_idle_seconds)
    feed = Feed(_CAPS)

    with ExitStack() as subscribers:

        def begin() -> None:
            for record in memory:
                held(cache, record)
            for topic in topics:
                subscribers.enter_context(feed.listening(topic, ANONYMOUS.tenant))

        reel = _Reel(changes, begin)
        mongo = _Projector(reel=reel, **{field.name: getattr(runtime.mongo, field.name) for field in fields(Mongo)})
        scribe = Scribe(runtime.changes, clock)
        watcher = Watcher(
            mongo, cache, feed, runtime.changes, scribe, runtime.recall, Bell(), clock, Metrics(), runtime.tracing
        )
        starting = asyncio.create_task(watcher.start())
        await reel.over.wait()
        starting.cancel()
        await asyncio.sleep(_SETTLED_SECONDS)
        await watcher.stop()
    return reel.seconds / len(changes) * 1e6


class _Reel:
    """Stands in for the change stream."""

    alive = True
    resume_token: Mapping[str, Any] | None = None

    def __init__(self, changes: Sequence[RawBSONDocument], begin: Callable[[], None]) -> None:
        self._changes = changes
        self._begin = begin
        self._next = 0
        self._started = 0.0
        self.seconds = 0.0
        self.over = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def try_next(self) -> RawBSONDocument:
        """The next event; after the last, nothing any more."""
        if self._next == 0:
            self._begin()
            self._started = time.process_time()
        if self._next == len(self._changes):
            self.seconds = time.process_time() - self._started
            self.over.set()
            await asyncio.Event().wait()
        self._next += 1
        return self._changes[self._next - 1]


@dataclass(frozen=True, kw_only=True)
class _Projector(Mongo):
    """The database, but for its change stream."""

    reel: _Reel

    async def watch(self, *_: Any, **__: Any) -> Stream:
        return cast("Stream", self.reel)
