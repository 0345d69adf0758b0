"""The scribe: writes what this replica's change stream brings into the change log, in batches, until it is there."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence

from pymongo.errors import PyMongoError

from app.backoff import Backoff
from app.changelog import ChangeLog
from app.clock import Clock
from app.tasks import end
from app.telemetry import get_logger
from models.entry import Entry
from models.event import Event, Time

_BATCH = 500
_BACKLOG = 10_000
_REMEMBERED = 20_000
_IDLE_SECONDS = 5.0
_SWEEP_SECONDS = 3_600.0
_CAUGHT_UP_SECONDS = 2.0
_log = get_logger(__name__)


class Scribe:
    """Takes entries in the order of the stream; the log's mark follows what has been written."""

    def __init__(self, changes: ChangeLog, clock: Clock) -> None:
        self._changes = changes
        self._clock = clock
        self._waiting: deque[tuple[Sequence[Entry], Time]] = deque()
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

    def add(self, entries: Sequence[Entry], time: Time) -> None:
        """Entries of the next event of the stream."""
        self._waiting.append((entries, time))
        self._entries += len(entries)
        self._wake.set()

    def reached(self, time: Time) -> None:
        """The stream has brought everything up to a cluster time."""
        self._reached = time

    def wrote(self, event: Event) -> None:
        """This replica's own write was acknowledged: its readers are to find it in the log."""
        if self._written.get(event.key, 0) < event.version and len(self._own) < _REMEMBERED:
            self._own.add((event.key, event.version))

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
        all_of_it = len(batch) == len(self._waiting)
        complete_to = max(self._reached, batch[-1][1] if batch else (0, 0)) if all_of_it else batch[-1][1]
        if complete_to <= self._marked and not batch:
            return
        entries = [entry for group, _ in batch for entry in group]
        await self._changes.write(entries, complete_to)
        self._marked = complete_to
        for _ in batch:
            self._waiting.popleft()
        self._entries -= len(entries)
        self.written += len(entries)
        self._settle(entries)
        async with self._moved:
            self._moved.notify_all()

    def _settle(self, entries: Sequence[Entry]) -> None:
        """Remember what is written, also for an acknowledgement that comes only after it."""
        for entry in entries:
            key = f"{entry.tenant}:{entry.agent}"
            self._own.discard((key, entry.version))
            self._written[key] = entry.version
            self._written.move_to_end(key)
        while len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)

    async def _sweep(self) -> None:
        if self._clock.monotonic() >= self._sweep_at:
            self._sweep_at = self._clock.monotonic() + _SWEEP_SECONDS
            removed = await self._changes.sweep()
            _log.info("change log swept", removed=removed)
