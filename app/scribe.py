"""The scribe: writes what this replica's change stream brings into the change log, in batches, until it is there."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

from pymongo.errors import PyMongoError

from app.backoff import Backoff
from app.changelog import ChangeLog
from app.clock import Clock
from app.tasks import end
from app.telemetry import get_logger
from models.entry import Entry, time_of
from models.event import Time

_BATCH = 500
_BACKLOG = 10_000
_REMEMBERED = 20_000
_IDLE_SECONDS = 5.0
_SWEEP_SECONDS = 3_600.0
_CAUGHT_UP_SECONDS = 2.0
_HURRY_SECONDS = 0.05
_log = get_logger(__name__)


class _Told(NamedTuple):
    """What one event of the stream told."""

    entries: Sequence[Entry]
    time: Time
    shared: bool


def _just_before(time: Time) -> Time:
    seconds, number = time
    return (seconds, number - 1) if number else (seconds - 1, 2**32 - 1)


class Scribe:
    """Takes entries in the order of the stream; the log's mark follows what has been written."""

    def __init__(self, changes: ChangeLog, clock: Clock) -> None:
        self._changes = changes
        self._clock = clock
        self._waiting: deque[_Told] = deque()
        self._unmarked: list[Entry] = []
        self._entries = 0
        self._reached: Time = (0, 0)
        self._marked: Time = (0, 0)
        self._own: set[tuple[str, int]] = set()
        self._written: OrderedDict[str, int] = OrderedDict()
        self._wake = asyncio.Event()
        self._moved = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._sweep_at = clock.monotonic() + _SWEEP_SECONDS
        self.written = 0

    @property
    def backlog(self) -> int:
        """Entries that wait to be written."""
        return self._entries

    @property
    def full(self) -> bool:
        """Whether the stream should wait for us."""
        return self._entries >= _BACKLOG

    @property
    def healthy(self) -> bool:
        """Whether it is at work."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Write what waits, if the database lets us, and end."""
        if self._task is None:
            return
        await end(self._task)
        try:
            while self._waiting:
                await self._write()
        except PyMongoError as error:
            _log.warning("entries left for other replicas", entries=self._entries, error=type(error).__name__)

    def add(self, entries: Sequence[Entry], time: Time, *, shared: bool = False) -> None:
        """Entries of the next event of the stream. `shared`: events of the same cluster time may follow."""
        self._waiting.append(_Told(entries, time, shared))
        self._entries += len(entries)
        self._wake.set()

    def reached(self, time: Time) -> None:
        """The stream has brought everything up to a cluster time."""
        self._reached = time
        if self._unmarked:
            self._wake.set()

    def wrote(self, key: str, version: int = 0) -> None:
        """This replica's own write was acknowledged: its readers are to find its entry in the log."""
        if self._written.get(key, -1) < version and len(self._own) < _REMEMBERED:
            self._own.add((key, version))

    def lost(self) -> None:
        """The stream will not bring everything that is waited for."""
        self._own.clear()

    async def room(self) -> None:
        """Wait while too much waits to be written."""
        async with self._moved:
            await self._moved.wait_for(lambda: not self.full)

    async def caught_up(self) -> None:
        """Wait until the log holds every write that this replica has acknowledged by now, 2 s at most."""
        awaited = set(self._own)
        try:
            async with asyncio.timeout(_CAUGHT_UP_SECONDS), self._moved:
                await self._moved.wait_for(lambda: self._own.isdisjoint(awaited))
        except TimeoutError:
            return

    async def mark(self, time: Time) -> None:
        """Wait until the log is marked complete up to a cluster time, as soon as the stream has brought that."""
        while self._marked < time:
            self._wake.set()
            await asyncio.sleep(_HURRY_SECONDS)

    async def _work(self) -> None:
        backoff = Backoff(2.0)
        while True:
            await self._something_to_do()
            try:
                await self._write()
                await self._sweep()
            except PyMongoError as error:
                _log.warning("the change log waits for the database", error=type(error).__name__)
                await backoff.pause()
            except Exception:  # noqa: BLE001 - the top of the loop: what could not be written stays in front
                _log.exception("the change log can't be written")
                await backoff.pause()
            else:
                backoff.reset()

    async def _something_to_do(self) -> None:
        if not self._waiting:
            self._wake.clear()
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                return

    async def _write(self) -> None:
        """Write a batch and raise the mark; what failed stays in front."""
        batch = [self._waiting[number] for number in range(min(len(self._waiting), _BATCH))]
        complete_to = self._complete_to(batch)
        if complete_to <= self._marked and not batch:
            return
        entries = [entry for told in batch for entry in told.entries]
        await self._changes.write(entries, complete_to)
        self._marked = max(self._marked, complete_to)
        for _ in batch:
            self._waiting.popleft()
        self._entries -= len(entries)
        self.written += len(entries)
        self._settle(entries)
        async with self._moved:
            self._moved.notify_all()

    def _complete_to(self, batch: Sequence[_Told]) -> Time:
        """Up to where the log has everything once the batch is written.

        What several events share, such as an insertion of many documents has on some servers, is complete when a later
        one came.
        """
        rest = len(self._waiting) - len(batch)
        if not batch:
            return self._reached
        last = batch[-1]
        goes_on = self._waiting[len(batch)].time == last.time if rest else last.shared and self._reached <= last.time
        end = _just_before(last.time) if goes_on else last.time
        return end if rest else max(end, self._reached)

    def _settle(self, entries: Sequence[Entry]) -> None:
        """Remember what is written and marked, also for an acknowledgement that comes only after it."""
        written = [*self._unmarked, *entries]
        self._unmarked = [entry for entry in written if time_of(entry.position) > self._marked]
        for entry in written:
            if time_of(entry.position) > self._marked:
                continue
            self._own.discard((entry.key, entry.version))
            self._written[entry.key] = entry.version
            self._written.move_to_end(entry.key)
        while len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)

    async def _sweep(self) -> None:
        if self._clock.monotonic() >= self._sweep_at:
            self._sweep_at = self._clock.monotonic() + _SWEEP_SECONDS
            removed = await self._changes.sweep()
            _log.info("change log swept", removed=removed)
