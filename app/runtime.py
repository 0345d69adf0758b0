"""The composition root: builds every part of a replica, starts them in order, stops them in reverse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from ipaddress import ip_address

import pymongo
from litestar.types import ASGIApp
from pymongo.errors import PyMongoError
from threadpoolctl import threadpool_limits

from app.acts import Acts
from app.agents import Agents
from app.api import create_app
from app.api.parts import Parts
from app.api.shown import Showcase
from app.bell import Bell
from app.blobs import Blobs
from app.cache import Cache
from app.census import Census
from app.changelog import ChangeLog
from app.clock import SystemClock
from app.collector import Collector
from app.commands import Commands
from app.config import Settings
from app.drafts import Drafts
from app.embedding import Embedding
from app.episodes import Episodes
from app.erasure import Erasure
from app.execution import Execution
from app.feed import Caps, Feed
from app.filling import Filling
from app.idempotency import Idempotency
from app.keyed import KeyedAnswers
from app.lexical import Lexical
from app.lives import Lives
from app.minilm import MiniLM
from app.mongo import Mongo, open_client
from app.orphans import Orphans
from app.reads import Reads
from app.recall import Recall
from app.reconciler import Reconciler
from app.retention import Retention
from app.roster import Roster
from app.runners import Runners
from app.scribe import Scribe
from app.segments import Segments
from app.settling import Settling
from app.store import Store
from app.streams import Streams
from app.sync import Sync
from app.tasks import end
from app.telemetry import Metrics, get_logger
from app.tenancy import Keys
from app.tracing import Tracing
from app.unfinished import Unfinished, unfinished
from app.vault import open_vault
from app.watcher import Watcher
from models.event import Event

READY_SECONDS = 2.0
_RETENTION_SECONDS = 60.0
_log = get_logger(__name__)


class _Heard:
    """What the store tells of its own reads and writes, to those who answer from memory."""

    def __init__(self, cache: Cache, scribe: Scribe) -> None:
        self._cache = cache
        self._scribe = scribe

    def wrote(self, event: Event) -> None:
        self._cache.wrote(event)
        self._scribe.wrote(event.key, event.version)

    def knows(self, key: str, version: int) -> None:
        self._cache.knows(key, version)


class Runtime:
    """One replica's parts. Build it inside the event loop that it is to live in; use it between `start` and `stop`."""

    def __init__(self, settings: Settings, uri: str) -> None:
        self._clock = clock = SystemClock()
        seconds = settings.call_seconds
        self.settings = settings
        self.metrics = Metrics()
        self.tracing = Tracing.from_environment()
        self.mongo = Mongo.of(open_client(uri), settings.mongodb_database)
        self.cache = Cache(clock, limit_bytes=settings.cache_bytes, idle_seconds=settings.cache_idle_seconds)
        self.feed = Feed(_caps(settings))
        self.changes = ChangeLog(self.mongo, clock, seconds=seconds, kept=timedelta(days=settings.log_days))
        self.scribe = Scribe(self.changes, clock)
        observer = _Heard(self.cache, self.scribe)
        self.blobs = Blobs(self.mongo, limit_bytes=settings.blob_bytes, seconds=seconds)
        self.segments = Segments(self.mongo, limit_bytes=settings.segment_bytes, seconds=seconds)
        self.filling = Filling(self.blobs, self.segments)
        self.store = Store(self.mongo, settings, clock, self.metrics, self.tracing, observer, self.blobs, self.segments)
        self.reads = Reads(self.store, self.cache, clock, self.metrics)
        self.streams = Streams(self.feed, self.reads, self.changes, self.scribe, self.filling)
        self.acts = acts = Acts(self.mongo, clock, self.scribe.wrote)
        self.keys = Keys(self.mongo, acts, clock, seconds=seconds)
        vault = open_vault(settings.secret_keys, settings.data)
        self.drafts = Drafts(settings, clock)
        self.agents = Agents(self.store, self.reads, self.segments, vault, self.drafts, settings, clock)
        self.execution = Execution(self.store, self.drafts, settings, clock)
        self.bell = bell = Bell()
        self.roster = Roster(self.mongo, acts, clock, seconds=seconds)
        self.orphans = Orphans(self.mongo, self.store, self.roster, bell, clock, seconds=seconds)
        self.commands = Commands(
            *(self.mongo, acts, self.store, self.reads, self.roster, bell, clock),
            seconds=seconds,
            kept=timedelta(seconds=settings.command_seconds),
        )
        self.keyed = KeyedAnswers(Idempotency(self.mongo, clock), vault, seconds=seconds)
        settling = Settling(self.roster, self.orphans, self.commands, self.keys)
        self.runners = Runners(
            *(self.mongo, self.store, self.roster, settling, self.commands, self.keys, vault, bell),
            *(self.metrics, clock),
            seconds=seconds,
        )
        self.reconciler = Reconciler(
            *(self.mongo, acts, self.roster, self.orphans, self.commands, settling, settings, self.metrics, clock)
        )
        follows = partial(_follows, self.cache)
        self.recall = Recall(self.mongo, settings.data, follows, limit=settings.recall_bytes, seconds=seconds)
        self.embedding = _embedding(settings)
        self.episodes = Episodes(
            *(self.mongo, acts, self.reads, self.filling, self.embedding, self.recall, clock, self.scribe.wrote),
            spaces=settings.embedders,
            embedding_seconds=settings.commit_seconds,
            seconds=seconds,
        )
        self.sync = Sync(self.episodes, self.changes, self.scribe)
        self.watcher = Watcher(
            *(self.mongo, self.cache, self.feed, self.changes, self.scribe, self.recall, bell),
            *(clock, self.metrics, self.tracing),
        )
        self.census = Census(self.mongo, seconds=seconds)
        self.retention = Retention(self.mongo, acts, clock, seconds=seconds)
        self.lives = Lives(self.mongo, self.store, clock, kept_seconds=settings.expired_kept_seconds, seconds=seconds)
        self.collector = Collector(self.mongo, clock, wait_seconds=settings.collect_wait_seconds)
        self.erasure = Erasure(
            *(self.mongo, self.store, acts, self.collector, clock),
            wait_seconds=2 * settings.deadline_seconds,
            seconds=seconds,
        )
        self._tidying: list[asyncio.Task[None]] = []
        self._show()

    async def start(self) -> None:
        """Make the database fit to use, and follow it."""
        threadpool_limits(
            1, user_api="blas"
        )  # more of its threads take the processor from each other, and from the rest
        await self.mongo.prepare()
        self._clock.told(await self.mongo.clock())
        await self.watcher.start()
        self.reconciler.start()
        self._tidying = [
            asyncio.create_task(self.retention.run(_RETENTION_SECONDS)),
            asyncio.create_task(self.lives.run()),
            asyncio.create_task(self.erasure.run()),
        ]
        if self.settings.collect_hours:
            self._tidying.append(asyncio.create_task(self.collector.run(self.settings.collect_hours * 3600)))
        _log.info("replica started", database=self.settings.mongodb_database)

    async def stop(self) -> None:
        """End the feeds, settle what was sent, write it into the log, then let go of the database."""
        self.hang_up()
        await end(*self._tidying)
        await self.reconciler.stop()
        await self.store.stop()
        await self.watcher.stop()
        await self.recall.stop()
        self.embedding.stop()
        await self.mongo.client.close()
        await asyncio.to_thread(self.tracing.stop)
        _log.info("replica stopped")

    def hang_up(self) -> None:
        """End what would go on by itself: feeds, and calls that wait for something to do."""
        self.feed.stop()
        self.bell.stop()

    async def healthy(self) -> bool:
        """Whether the change stream lives, reconciliation is at work, and a writable primary answers now.

        A database that is being restored as a whole, or was when that was broken off, is not fit to be served.
        """
        alive = self.watcher.healthy and self.reconciler.healthy and await self.mongo.ping(READY_SECONDS)
        return alive and not await self._is_half()

    async def _is_half(self) -> bool:
        try:
            with pymongo.timeout(READY_SECONDS):
                half = await unfinished(self.mongo)
        except PyMongoError:
            return True
        return half is not None and half.whole

    def _show(self) -> None:
        """Let the metrics ask the parts that count for themselves."""
        tally, feed, scribe, metrics = self.cache.tally, self.feed, self.scribe, self.metrics
        for name in ("hits", "misses", "patches", "drops", "refused", "evictions"):
            metrics.tell(f"cache_{name}", f"Cache: {name}.", partial(getattr, tally, name))
        metrics.show("cache_agents", "Agents in memory to answer from.", lambda: len(self.cache))
        metrics.show("cache_bytes", "Bytes that they are counted as.", lambda: self.cache.bytes)
        metrics.show(
            "blob_bytes", "JSON bytes of values stored apart that are in memory.", lambda: self.blobs.bytes_held
        )
        metrics.show("segment_bytes", "Bytes of sealed steps in memory.", lambda: self.segments.bytes_held)
        metrics.show("recall_bytes", "Bytes of episodes' vectors in memory.", lambda: self.recall.bytes)
        metrics.show("recall_episodes", "Episodes whose vectors those are.", lambda: self.recall.episodes)
        metrics.show("feed_subscribers", "Feeds open on this replica.", lambda: feed.count)
        metrics.tell("feed_gaps", "Feeds closed with a gap.", lambda: feed.gaps)
        metrics.tell("log_entries", "Entries written to the change log.", lambda: scribe.written)
        metrics.show("log_backlog", "Entries that wait to be written.", lambda: scribe.backlog)


async def unsafe_bind_reason(settings: Settings, uri: str) -> str | None:
    """Why the service must not listen on the address of the settings, or None when it may."""
    if is_loopback(settings.host):
        return None
    client = open_client(uri)
    try:
        mongo, clock = Mongo.of(client, settings.mongodb_database), SystemClock()
        keys = Keys(mongo, Acts(mongo, clock), clock, seconds=settings.call_seconds)
        required = await keys.required()
    finally:
        await client.close()
    if required:
        return None
    return (
        f"Without keys everybody who reaches {settings.host} could do everything, so only loopback is served. "
        "Create a key first: holdfast keys create --tenant default --right read --right write"
    )


def _follows(cache: Cache) -> bool:
    """Whether the change stream brings what happens."""
    return cache.age() is not None


async def left_half(settings: Settings, uri: str) -> Unfinished | None:
    """The restore that the database of the settings waits for, if there is one. Raises PyMongoError."""
    client = open_client(uri)
    try:
        return await unfinished(Mongo.of(client, settings.mongodb_database))
    finally:
        await client.close()


def _caps(settings: Settings) -> Caps:
    return Caps(settings.feed_items, settings.feed_bytes, settings.feeds_of_a_tenant, settings.feeds)


def _embedding(settings: Settings) -> Embedding:
    kind: type[MiniLM | Lexical] = MiniLM if settings.embedder == MiniLM.name else Lexical
    return Embedding(kind.name, kind.dimension, kind.load)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def create_replica(settings: Settings, uri: str) -> ASGIApp:
    """The ASGI application of one replica; call it inside the event loop that serves it."""
    return application_of(Runtime(settings, uri))


def application_of(runtime: Runtime) -> ASGIApp:
    """The HTTP edge over a replica's parts, which starts and stops them with itself."""
    parts = Parts(
        settings=runtime.settings,
        agents=runtime.agents,
        execution=runtime.execution,
        runners=runtime.runners,
        commands=runtime.commands,
        reconciler=runtime.reconciler,
        keyed=runtime.keyed,
        episodes=runtime.episodes,
        sync=runtime.sync,
        census=runtime.census,
        erasure=runtime.erasure,
        retention=runtime.retention,
        streams=runtime.streams,
        cache=runtime.cache,
        filling=runtime.filling,
        showcase=Showcase(runtime.cache, runtime.filling),
        keyring=runtime.keys,
        metrics=runtime.metrics,
        tracing=runtime.tracing,
        healthy=runtime.healthy,
    )
    return create_app(parts, runtime.start, runtime.stop)


@asynccontextmanager
async def running(settings: Settings, uri: str) -> AsyncIterator[Runtime]:
    """A replica's parts without the HTTP edge, for the command line and scripts."""
    runtime = Runtime(settings, uri)
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.stop()
