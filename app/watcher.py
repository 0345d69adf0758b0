"""The watcher: one change stream per replica, told to the cache, the feed and the scribe. It writes heartbeats only.

Guarantees: events are told in commit order; after a break the stream goes on where it was, so nothing is missed; when
the database no longer has what was missed, every feed is told that there is a gap. A stream that ends, fails, or
brings nothing for 3 s is closed and opened anew, and until then nothing is answered from memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pymongo
from bson.raw_bson import RawBSONDocument
from pymongo.asynchronous.change_stream import AsyncChangeStream
from pymongo.errors import OperationFailure, PyMongoError

from app.backoff import Backoff
from app.bell import Bell, pool_topic
from app.cache import Cache
from app.changelog import ChangeLog
from app.clock import Clock
from app.feed import Feed, Item, log_topic
from app.mongo import Mongo, decoded
from app.recall import Recall
from app.scribe import Scribe
from app.tasks import end
from app.telemetry import Metrics, get_logger
from app.tracing import Tracing
from models.change import AGENT, CREATED, RUNNER, STATE
from models.entry import Entry, entries_of, entry_of_act, entry_of_episode, position
from models.event import Event, Time
from models.news import news_of

SILENT_SECONDS = 3.0
"""How long the stream may bring nothing, not even a heartbeat of our own."""

BEAT_SECONDS = 0.3
OPEN_SECONDS = 10.0
_START_SECONDS = 5.0
_ENTRY_BYTES = 300
_BEATS_REMEMBERED = 64
_EVENT_TOO_LARGE = 10334
_HISTORY_LOST = frozenset({136, 260, 280, 286, _EVENT_TOO_LARGE})
"""CappedPositionLost, InvalidResumeToken, ChangeStreamFatalError, ChangeStreamHistoryLost, an event over 16 MiB."""

_FREES = frozenset({CREATED, AGENT, STATE, RUNNER})
"""Kinds of commits after which an agent may wait for a runner."""

_log = get_logger(__name__)


class StreamEnded(Exception):
    """The change stream is over, or as good as that; the message says why."""


class Watcher:
    """Owned by the runtime: `start`, `healthy`, `stop`."""

    def __init__(
        self,
        mongo: Mongo,
        cache: Cache,
        feed: Feed,
        changes: ChangeLog,
        scribe: Scribe,
        recall: Recall,
        bell: Bell,
        clock: Clock,
        metrics: Metrics,
        tracing: Tracing,
    ) -> None:
        self._mongo = mongo
        self._cache = cache
        self._feed = feed
        self._changes = changes
        self._scribe = scribe
        self._recall = recall
        self._bell = bell
        self._clock = clock
        self._metrics = metrics
        self._tracing = tracing
        self._id = clock.new_id()
        self._token: Mapping[str, Any] | None = None
        self._backoff = Backoff(1.0)
        self._past_the_log = False
        self._nonce = 0
        self._sent: dict[int, float] = {}
        self._beaten = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open the stream; wait a little for its first heartbeat, so that a replica that answers is ready."""
        self._scribe.start()
        self._tasks = [asyncio.create_task(self._supervise()), asyncio.create_task(self._beat())]
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._beaten.wait()
        except TimeoutError:
            _log.warning("the change stream is not open yet")

    async def stop(self) -> None:
        """Close the stream, then let the scribe write what it brought."""
        await end(*self._tasks)
        await self._scribe.stop()

    @property
    def healthy(self) -> bool:
        """Whether the stream is open and has lately brought a heartbeat of ours back."""
        alive = self._scribe.healthy and not any(task.done() for task in self._tasks)
        return alive and self._cache.age() is not None

    async def _supervise(self) -> None:
        """Follow the stream for ever; after each end open it anew, sooner at first than later."""
        while True:
            try:
                await self._follow()
            except (PyMongoError, StreamEnded, TimeoutError) as error:
                reason = str(error) if isinstance(error, StreamEnded) else type(error).__name__
                if isinstance(error, OperationFailure) and error.code in _HISTORY_LOST:
                    self._lose(past_the_log=error.code == _EVENT_TOO_LARGE)
                _log.warning("change stream closed", reason=reason)
            except Exception:  # noqa: BLE001 - the top of the loop: logged, counted, and what can't be told is a gap
                _log.exception("change stream closed by an event that can't be told")
                self._lose(past_the_log=True)
            finally:
                self._cache.closed()
            self._metrics.stream_closed.inc()
            await self._backoff.pause()

    async def _follow(self) -> None:
        """Open the stream and tell what it brings, until it ends. Raises StreamEnded, or what ended it."""
        stream = await self._open()
        async with stream:
            self._cache.opened()
            while stream.alive:
                change = await self._next(stream)
                if change is not None:
                    self._tell(decoded(change.raw), len(change.raw))
                self._token = stream.resume_token
                if self._scribe.full:
                    await self._scribe.room()
        raise StreamEnded("the database ended it")

    async def _next(self, stream: AsyncChangeStream[RawBSONDocument]) -> RawBSONDocument | None:
        """What the stream brings next; None at its end. Raises TimeoutError when it brings nothing for too long.

        A server that was cut off from the others answers that there is nothing new for as long as it is asked.
        """
        async with asyncio.timeout(SILENT_SECONDS):
            while stream.alive:
                change = await stream.try_next()
                if change is not None:
                    return change
                self._token = stream.resume_token
        return None

    async def _open(self) -> AsyncChangeStream[RawBSONDocument]:
        """The stream from where we were; else from where the change log is; else from now, with a gap in the log."""
        if self._token is not None:
            return await self._watch(after=self._token)
        since = await self._changes.start()
        stream = None if self._past_the_log else await self._watch_from(since)
        if stream is None:
            _log.error("history lost: the change log gets a gap", since=since)
            since = await self._changes.record_gap()
            stream = await self._watch(since=since)
        self._past_the_log = False
        self._feed.position = max(self._feed.position or "", position(since))
        return stream

    async def _watch_from(self, since: Time) -> AsyncChangeStream[RawBSONDocument] | None:
        """The stream from a cluster time on; None when the database no longer has what happened then."""
        try:
            return await self._watch(since=since)
        except OperationFailure as error:
            if error.code not in _HISTORY_LOST:
                raise
            return None

    async def _watch(self, **begin: Any) -> AsyncChangeStream[RawBSONDocument]:
        with pymongo.timeout(OPEN_SECONDS):
            return await self._mongo.watch(self._id, **begin)

    def _lose(self, *, past_the_log: bool = False) -> None:
        """What happened meanwhile is not to be had any more: readers have to resume once the stream is open again.

        The log goes on at its mark, where other replicas have brought it; or, when not even that is to be had, past it.
        """
        self._token = None
        self._past_the_log = past_the_log
        self._feed.gap()
        self._feed.position = None
        self._scribe.lost()
        self._recall.lost()
        self._metrics.stream_lost.inc()

    def _tell(self, change: Mapping[str, Any], size: int) -> None:
        """One event of the stream, to all who are to know of it."""
        if "documentKey" not in change:
            self._lose(past_the_log=True)
            raise StreamEnded(f"a collection is gone ({change['operationType']})")
        time = (change["clusterTime"].time, change["clusterTime"].inc)
        if change["ns"]["coll"] == self._mongo.beats.name:
            self._hear_beat(change, time)
        elif change["ns"]["coll"] == self._mongo.commands.name:
            self._hear_command(change["fullDocument"])
        elif change["ns"]["coll"] == self._mongo.episodes.name:
            self._hear_episode(change, time)
        elif change["ns"]["coll"] == self._mongo.acts.name:
            self._log(entry_of_act(change["fullDocument"], time), time)
        else:
            self._hear_agent(change, time, size)

    def _hear_beat(self, change: Mapping[str, Any], time: Time) -> None:
        told = change.get("fullDocument") or change.get("updateDescription", {}).get("updatedFields", {})
        sent = self._sent.pop(told.get("nonce"), None)
        if sent is None:
            return
        self._cache.beat(sent, time)
        self._scribe.reached(time)
        self._metrics.stream_lag.observe(self._clock.monotonic() - sent)
        if self._cache.age() is not None:  # a beat that was sent before the stream was opened makes nothing ready
            self._beaten.set()
            self._backoff.reset()

    def _hear_command(self, command: Mapping[str, Any]) -> None:
        if command.get("pool") is not None:
            self._bell.ring(pool_topic(command["tenant"], command["pool"]))

    def _hear_episode(self, change: Mapping[str, Any], time: Time) -> None:
        if change["operationType"] == "delete":
            self._recall.removed(change["documentKey"]["_id"])
            return
        self._recall.heard(change["fullDocument"])
        self._log(entry_of_episode(change["fullDocument"], time), time)

    def _log(self, entry: Entry, time: Time) -> None:
        """Tell the log's readers of something that is no agent's commit, and have it written."""
        self._tell_log([entry])
        self._scribe.add([entry], time, shared=True)

    def _hear_agent(self, change: Mapping[str, Any], time: Time, size: int) -> None:
        event = _event(change, time)
        if event is None:
            self._cache.vanished(change["documentKey"]["_id"])
            return
        self._cache.heard(event)
        entries = entries_of(event)
        for entry in entries:
            with self._tracing.told(entry.trace, entry.agent, entry.version):
                pass
        self._tell_readers(event, entries, size)
        for pool in {entry.pool for entry in entries if not _FREES.isdisjoint(entry.kinds)}:
            if pool is not None:
                self._bell.ring(pool_topic(entries[0].tenant, pool))
        self._scribe.add(entries, time)
        self._metrics.events.inc()

    def _tell_readers(self, event: Event, entries: list[Entry], size: int) -> None:
        self._tell_log(entries)
        if self._feed.has(event.key):
            news = news_of(event)
            for one in news:
                self._feed.tell(event.key, Item(one, size // len(news) + one.bytes_apart))

    def _tell_log(self, entries: Sequence[Entry]) -> None:
        topic = log_topic(entries[0].tenant)
        if self._feed.has(topic):
            for entry in entries:
                self._feed.tell(topic, Item(entry, _ENTRY_BYTES))
        self._feed.position = max(self._feed.position or "", entries[-1].position)

    async def _beat(self) -> None:
        """Write a heartbeat every `BEAT_SECONDS`, and remember when it was sent."""
        while True:
            self._nonce += 1
            self._sent[self._nonce] = self._clock.monotonic()
            self._sent.pop(self._nonce - _BEATS_REMEMBERED, None)
            try:
                await self._write_beat()
            except PyMongoError as error:
                _log.debug("heartbeat failed", error=type(error).__name__)
            except Exception:  # noqa: BLE001 - the top of the loop: without heartbeats the replica is not ready
                _log.exception("heartbeat failed")
            await asyncio.sleep(BEAT_SECONDS)

    async def _write_beat(self) -> None:
        with pymongo.timeout(SILENT_SECONDS):
            await self._mongo.beat(self._id, self._nonce, self._clock.now())


def _event(change: Mapping[str, Any], time: Time) -> Event | None:
    """What happened to the agent; None when its document is gone or can't be told."""
    key = change["documentKey"]["_id"]
    if change["operationType"] == "update":
        told = change["updateDescription"]
        if "last" in told["updatedFields"]:
            return Event(key, time, told["updatedFields"], told["removedFields"])
    elif change["operationType"] == "insert" and "last" in change["fullDocument"]:
        return Event(key, time, change["fullDocument"], whole=True)
    return None
