"""The cache: agents in memory, each at a version, safe by construction. It knows no database and awaits nothing.

A copy may answer only while the change stream is open and has lately brought back a heartbeat of this replica: all
that was committed before that heartbeat was sent has then been seen. Copies are brought up to date by change events,
and filled by reads of the database (*flights*). What makes that safe, each rule for a failure that it prevents:

- A flight carries a token, taken before the read: it may land only in the same opening of the stream. It reads
  what is not older than the newest event heard (`since`), also from a node that lags behind.
- Every event leaves a *tombstone*, the newest version heard of: nothing older may land after it. Where a tombstone
  was let go, the *floor* stands for it: what took off before may not land, nor be joined.
- An event is laid on a copy only if it was made on the copy's version; else an older copy is dropped.
- A write of this replica counts as an event at once, so that its callers read what they wrote. Its tombstone stays
  until the stream has brought it.
- A heartbeat counts only if it was sent after the stream was opened, and so after all that was written before.
- Nobody joins a flight that may bring what is staler than a read may be.

`tests/unit/test_cache_model.py` explores every order of these happenings, on this class.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from app.clock import Clock
from models.agent import AgentRecord
from models.event import Event, Time, patched

STALE_SECONDS = 2.0
"""No read without `no-cache` shows less than what was committed this long before it began."""

_TOMBSTONES = 20_000
_BYTES_EACH = 4
"""What a byte of an agent's document takes in memory, decoded (`make bench ARGS="--only memory"`)."""
_OVERHEAD = 3_000


@dataclass(eq=False, slots=True)
class Entry:
    """A copy of an agent. `shown` is what the edge keeps with it: the encoded answer and what it was made from."""

    record: AgentRecord
    used: float
    bytes: int
    shown: Any = None


@dataclass(eq=False, slots=True)
class Flight:
    """A read of the database under way, with the token that tells whether what it brings may be kept."""

    key: str
    epoch: int
    seq: int
    started: float
    since: Time | None
    """The cluster time that it must not read behind; None: it must be linearizable."""
    complete_to: float
    """Monotonic time: what was committed before is in what it brings."""
    landing: asyncio.Task[AgentRecord] | None = None


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The newest version of an agent that was heard of, and when (a number of the cache's own count)."""

    version: int
    seq: int
    awaited: bool
    """Whether it is a write of our own that the stream has not brought yet."""


@dataclass(slots=True)
class Tally:
    """What the cache has done so far."""

    hits: int = 0
    misses: int = 0
    patches: int = 0
    drops: int = 0
    refused: int = 0
    evictions: int = 0


class Cache:
    """Copies of agents by key, at most `limit_bytes` of them, the least used let go first.

    Call `opened`, `heard`, `beat`, `closed` as the change stream does; `wrote` and `knows` as this replica's store
    does; `look`, `joinable`, `depart` and `land` serve reads.
    """

    def __init__(self, clock: Clock, *, limit_bytes: int, idle_seconds: float, tombstones: int = _TOMBSTONES) -> None:
        self._clock = clock
        self._limit = limit_bytes
        self._idle = idle_seconds
        self._tombstone_limit = tombstones
        self._epoch = 0
        self._open = False
        self._seq = 0
        self._floor = 0
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._tombstones: OrderedDict[str, Tombstone] = OrderedDict()
        self._flights: dict[str, Flight] = {}
        self._opened_at = 0.0
        self._complete_to: float | None = None
        self._newest: Time | None = None
        self.tally = Tally()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def opened(self) -> None:
        """The stream begins: nothing that was known before counts."""
        self._epoch += 1
        self._clear()
        self._floor = self._seq
        self._opened_at = self._clock.monotonic()
        self._open = True

    def closed(self) -> None:
        """The stream ended, failed or fell silent: from now on nothing is answered from memory."""
        self._open = False
        self._clear()

    def beat(self, sent: float, time: Time) -> None:
        """A heartbeat sent at `sent` (monotonic) came back: all that was committed before has been heard."""
        if self._open and sent > self._opened_at:
            self._complete_to = sent
            self._newest = time

    def heard(self, event: Event) -> None:
        """The stream brought an event."""
        self._newest = event.time
        self._learn(event.key, event.version, heard=True)
        self._update(event)

    def wrote(self, event: Event) -> None:
        """This replica's own write was acknowledged; the stream will bring it again."""
        if event.version > self.newest(event.key):
            self._learn(event.key, event.version, heard=False)
        self._update(event)

    def knows(self, key: str, version: int) -> None:
        """The agent was seen at this version elsewhere in the replica: show nothing older from now on."""
        if version > self.newest(key):
            self._learn(key, version, heard=True)
        entry = self._entries.get(key)
        if entry is not None and entry.record.version < version:
            self._drop(key)

    def vanished(self, key: str) -> None:
        """The document itself is gone: what comes next may begin at any version, but not from a read before now.

        When that was is not told, so flights are linearizable until the stream brings what has a time.
        """
        self._seq += 1
        tombstone = self._tombstones.get(key)
        if tombstone is not None and not tombstone.awaited:
            del self._tombstones[key]
        self._floor = self._seq
        self._newest = None
        self._drop(key)

    def age(self) -> float | None:
        """Seconds by which what `look` gives may be behind; None while it gives nothing."""
        if self._complete_to is None:
            return None
        age = self._clock.monotonic() - self._complete_to
        return age if age <= STALE_SECONDS else None

    def look(self, key: str) -> Entry | None:
        """The copy, when it may answer now."""
        found = self.glance(key, self._clock.monotonic())
        return None if found is None else found[0]

    def glance(self, key: str, now: float) -> tuple[Entry, float] | None:
        """The copy when it may answer at this monotonic time, the present, and by how many seconds it may be behind."""
        entry = self._entries.get(key)
        if entry is None or self._complete_to is None:
            return None
        age = now - self._complete_to
        if age > STALE_SECONDS:
            return None
        entry.used = now
        self._entries.move_to_end(key)
        return entry, age

    def newest(self, key: str) -> int:
        """The newest version that this replica has heard of and not forgotten; 0 for none."""
        tombstone = self._tombstones.get(key)
        return 0 if tombstone is None else tombstone.version

    def joinable(self, key: str) -> Flight | None:
        """A flight that brings what is new enough for a read that begins now."""
        flight = self._flights.get(key)
        if flight is None or not self._counts(flight):
            return None
        return flight if self._clock.monotonic() - flight.complete_to <= STALE_SECONDS else None

    def depart(self, key: str) -> Flight:
        """Take the token of a read that begins now; later readers join this flight."""
        now = self._clock.monotonic()
        since, complete_to = self._newest, self._complete_to
        if since is None or complete_to is None or now - complete_to > STALE_SECONDS:
            since, complete_to = None, now
        flight = self._flights[key] = Flight(key, self._epoch, self._seq, now, since, complete_to)
        return flight

    def land(self, flight: Flight, record: AgentRecord | None) -> None:
        """The read is over (None: it failed). What it brought is kept if nothing newer can have been missed."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        if record is None or record.version == 0:
            return
        entry = self._entries.get(flight.key)
        if entry is not None and entry.record.version >= record.version:
            return
        if not self._may_land(flight, record.version):
            self.tally.refused += 1
            return
        self._put(flight.key, entry or Entry(record, self._clock.monotonic(), 0), record)

    def show(self, entry: Entry, shown: Any, size: int) -> None:
        """Keep with a copy what the edge made of it, `size` bytes more."""
        entry.shown = shown
        if self._entries.get(entry.record.id) is entry:
            self._weigh(entry.record.id, entry, _weight(entry.record) + size)

    def _may_land(self, flight: Flight, version: int) -> bool:
        return self._open and self._counts(flight) and version >= self.newest(flight.key)

    def _counts(self, flight: Flight) -> bool:
        """Whether all that it may have missed is still remembered."""
        return flight.epoch == self._epoch and flight.seq >= self._floor

    def _learn(self, key: str, version: int, *, heard: bool) -> None:
        """Leave a tombstone; the oldest goes when there are too many, but none that an open stream is to bring yet."""
        self._seq += 1
        known = self._tombstones.pop(key, None)
        awaited = not heard
        if known is not None and known.version > version:
            version, awaited = known.version, known.awaited
        self._tombstones[key] = Tombstone(version, self._seq, awaited)
        if len(self._tombstones) > self._tombstone_limit:
            oldest, tombstone = self._tombstones.popitem(last=False)
            if tombstone.awaited and self._open:
                self._tombstones[oldest] = tombstone
            else:
                self._floor = max(self._floor, tombstone.seq)

    def _update(self, event: Event) -> None:
        """Lay the event on the copy that it was made on; drop a copy that it was not."""
        entry = self._entries.get(event.key)
        if entry is None or entry.record.version >= event.version:
            return
        if entry.record.version == event.before:
            self.tally.patches += 1
            self._put(event.key, entry, patched(entry.record, event))
        else:
            self._drop(event.key)

    def _put(self, key: str, entry: Entry, record: AgentRecord) -> None:
        """Let the entry hold the record; what was shown stays, as what the next answer can be made from."""
        extra = entry.bytes - _weight(entry.record) if key in self._entries else 0
        if record.size_bytes is None:
            record = record.model_copy(update={"size_bytes": record.stored_bytes()})
        entry.record = record
        self._weigh(key, entry, _weight(record) + extra)

    def _weigh(self, key: str, entry: Entry, size: int) -> None:
        """Count the entry's bytes anew, and let go of what is too much or idle."""
        self.bytes += size - (entry.bytes if key in self._entries else 0)
        entry.bytes = size
        self._entries[key] = entry
        self._evict()

    def _evict(self) -> None:
        now = self._clock.monotonic()
        while self._entries:
            key, oldest = next(iter(self._entries.items()))
            if self.bytes <= self._limit and now - oldest.used <= self._idle:
                return
            self.tally.evictions += 1
            self._forget(key)

    def _drop(self, key: str) -> None:
        if key in self._entries:
            self.tally.drops += 1
            self._forget(key)

    def _forget(self, key: str) -> None:
        self.bytes -= self._entries.pop(key).bytes

    def _clear(self) -> None:
        self._entries.clear()
        self._tombstones.clear()
        self._flights.clear()
        self._complete_to = None
        self._newest = None
        self.bytes = 0


def _weight(record: AgentRecord) -> int:
    return _OVERHEAD + _BYTES_EACH * (record.size_bytes or 0)
