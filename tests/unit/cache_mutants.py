"""Caches with one mistake each, to see that the model of `cache_model` would notice it in the real one."""

from __future__ import annotations

from app.cache import Cache, Entry, Flight
from models.agent import AgentRecord
from models.event import Event, Time, patched


class DropsAndForgets(Cache):
    """What comes to mind first: an event drops the copy, a read of the database brings it back."""

    def heard(self, event: Event) -> None:
        self._newest = event.time
        self._drop(event.key)

    def wrote(self, event: Event) -> None:
        self._drop(event.key)

    def _may_land(self, flight: Flight, version: int) -> bool:
        return self._open


class LandsInAnotherOpening(Cache):
    """A flight needs no token of the opening that it took off in."""

    def _counts(self, flight: Flight) -> bool:
        return flight.seq >= self._floor or flight.epoch != self._epoch


class HasNoFloor(Cache):
    """What took off before a tombstone was let go lands all the same."""

    def _counts(self, flight: Flight) -> bool:
        return flight.epoch == self._epoch


class FloorsLandingsOnly(Cache):
    """Nothing from below the floor is kept, but readers still join it."""

    def joinable(self, key: str) -> Flight | None:
        floor, self._floor = self._floor, 0
        flight = super().joinable(key)
        self._floor = floor
        return flight


class PatchesAnything(Cache):
    """An event is laid on any older copy, not only on what it was made on."""

    def _update(self, event: Event) -> None:
        entry = self._entries.get(event.key)
        if entry is not None and entry.record.version < event.version:
            self._put(event.key, entry, patched(entry.record, event))


class JoinsAnyFlight(Cache):
    """A flight may be joined as long as it is under way."""

    def joinable(self, key: str) -> Flight | None:
        flight = self._flights.get(key)
        return flight if flight is not None and self._counts(flight) else None


class JoinsByTakeOff(Cache):
    """A flight is as new as its take-off, though it may bring what is as old as the last heartbeat."""

    def depart(self, key: str) -> Flight:
        flight = super().depart(key)
        flight.complete_to = flight.started
        return flight


class ForgetsItsWrites(Cache):
    """A write of our own updates the copy, but leaves no tombstone."""

    def wrote(self, event: Event) -> None:
        self._update(event)


class KeepsCopiesOverOpenings(Cache):
    """The copies of one opening are there in the next."""

    def _clear(self) -> None:
        entries, size = self._entries.copy(), self.bytes
        super()._clear()
        self._entries, self.bytes = entries, size


class CountsOldBeats(Cache):
    """A heartbeat counts whenever it was sent."""

    def beat(self, sent: float, time: Time) -> None:
        opened_at, self._opened_at = self._opened_at, sent - 1
        super().beat(sent, time)
        self._opened_at = opened_at


class CountsBeatsAtTheOpening(Cache):
    """A heartbeat counts that was sent at what the clock showed at the opening too: it may have been before."""

    def beat(self, sent: float, time: Time) -> None:
        opened_at = self._opened_at
        self._opened_at -= sent == opened_at
        super().beat(sent, time)
        self._opened_at = opened_at


class LowersTombstones(Cache):
    """A tombstone shows the last event, not the newest version."""

    def _learn(self, key: str, version: int, *, heard: bool) -> None:
        self._tombstones.pop(key, None)
        super()._learn(key, version, heard=heard)


class LetsGoOfAwaitedTombstones(Cache):
    """The tombstone of a write that the stream has not brought yet goes like any other."""

    def _learn(self, key: str, version: int, *, heard: bool) -> None:
        super()._learn(key, version, heard=heard)
        while len(self._tombstones) > self._tombstone_limit:
            self._floor = max(self._floor, self._tombstones.popitem(last=False)[1].seq)


class ReadsBehindTheEvents(Cache):
    """A flight reads what is not older than the last heartbeat, though newer events were heard."""

    def heard(self, event: Event) -> None:
        newest = self._newest
        super().heard(event)
        self._newest = newest


class ReadsBehindTheRemoval(Cache):
    """A removal, whose time is not told, leaves what flights have to read after."""

    def vanished(self, key: str) -> None:
        newest = self._newest
        super().vanished(key)
        self._newest = newest


class ForgetsItsWritesAtARemoval(Cache):
    """With what has vanished goes the tombstone of a write that the stream has not brought yet, made afterwards."""

    def vanished(self, key: str) -> None:
        super().vanished(key)
        self._tombstones.pop(key, None)


class AnswersInSilence(Cache):
    """The stream may be dead, but what is there is shown."""

    def look(self, key: str) -> Entry | None:
        return None if self._complete_to is None else self._entries.get(key)


class AnswersBeforeTheFirstBeat(Cache):
    """What was read in this opening is shown at once, for as long as heartbeats may be late."""

    def opened(self) -> None:
        super().opened()
        self._complete_to = self._opened_at


class RemovesTheTombstoneOnly(Cache):
    """A removal sets no floor for what took off before."""

    def vanished(self, key: str) -> None:
        floor = self._floor
        super().vanished(key)
        self._floor = floor


class LandsUnderATombstone(Cache):
    """What a flight brings is kept whatever was heard meanwhile."""

    def _may_land(self, flight: Flight, version: int) -> bool:
        return self._open and self._counts(flight)


class KeepsTheWeight(Cache):
    """A copy that is brought up to date counts with the bytes that it had."""

    def _put(self, key: str, entry: Entry, record: AgentRecord) -> None:
        known, size = key in self._entries, entry.bytes
        super()._put(key, entry, record)
        if known:
            entry.bytes = size


class TrustsGrowthAlone(Cache):
    """The size of what has none is what the event added to it."""

    def _update(self, event: Event) -> None:
        entry = self._entries.get(event.key)
        if entry is not None and not entry.record.exists and entry.record.version == event.before:
            size = (entry.record.size_bytes or 0) + 1
            self._put(event.key, entry, patched(entry.record, event).model_copy(update={"size_bytes": size}))
        else:
            super()._update(event)
