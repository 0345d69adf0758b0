"""A model of the world around the cache, explored in every order of happenings. The cache in it is the real class.

The world: agents with their whole history in the database, written by this replica and by others; one change stream
that brings what was committed in its order but as late as it likes, ends, and begins again; heartbeats; a clock that
ticks when it likes; readers, any number of them, and their flights. A *scenario* bounds how much of each happens and
says what the cache is made with. `explore` visits every state that can be reached, breadth first, and raises a
Violation with the happenings that led to it. What must hold in every state:

1. A read shows nothing that was older than STALE_SECONDS when it began.
2. It shows every write of this replica that was acknowledged before it began.
3. What it shows is the agent's true content at that version, and the size in bytes is that of the document.
4. The same holds of what `look` would give, at any moment.
5. `cache.bytes` is the sum of its entries and within the limit.

What keeps the number of states small, without leaving out an order that could matter: a flight's read of the database
takes place at its landing, where it brings any state that it could have read since it took off; any commit may turn
out to be this replica's, when it is acknowledged to it; of readers who wait for the same flight those are forgotten
whom others outdo; and states that differ only in absolute times, in numbers of the cache's own count without meaning
for their order, or in what is too old to matter, are one.

What is taken for granted: an operator who removes a document by hand leaves time around it, until the writes under way
are acknowledged before, and until the stream has brought the removal before the agent is made anew. Versions begin
again then, and nothing in an event tells the old agent from the new one.
"""

from __future__ import annotations

import gc
import json
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import bson

from app.cache import STALE_SECONDS, Cache, Entry, Flight, _weight
from models import tree
from models.agent import AgentRecord, create, delete
from models.change import OP_SLOTS, Change, Stamp, envelope, fold
from models.event import Event, Time

KEYS = ("t:a", "t:b")
APPEND, FOLD, DELETE, CREATE, REMOVE, TOUCH = "append", "fold", "delete", "create", "remove", "touch"
"""Kinds of commits: one step; two steps in one update; to a tombstone; anew; and what only an operator does: to remove
the document itself, and an update without an envelope (here of what no record holds), which events can't tell."""

TICK = int(STALE_SECONDS)
"""Seconds that a tick takes: after one, what was fresh is as old as it may be; after two, too old."""
SHOWN_BYTES = 100
_STAMP = Stamp(datetime(2026, 1, 1, tzinfo=UTC), "key")
_LONG_AGO = -100
_OLD = 2 * TICK
"""The age from which on it does not matter how old something is."""
_NO_TIME = (0, 0)
_ATTRIBUTES = {
    *("_clock", "_limit", "_idle", "_tombstone_limit", "_epoch", "_open", "_seq", "_floor", "_entries", "_tombstones"),
    *("_flights", "_opened_at", "_complete_to", "_newest", "tally", "bytes"),
}
"""What makes up a cache. One more, and `World.shape` and `_cloned` have to know of it."""


class Violation(AssertionError):
    """The cache broke a promise; the message says which, and what happened until then."""


@dataclass(frozen=True)
class Scenario:
    """How much may happen, for each agent or in all, and what the cache is made with."""

    commits: tuple[int, ...]
    kinds: frozenset[str] = frozenset({APPEND})
    own: bool = True
    """Whether a commit may be this replica's. It is when it is acknowledged to it."""
    beats: int = 0
    openings: int = 0
    losing: bool = True
    """Whether a stream that is opened again may have lost the first of what it had not brought."""
    replaying: bool = False
    """Whether it may bring everything anew, as where the change log lags behind."""
    flights: int = 1
    read: int = 2
    """How many of the agents are read."""
    failing: bool = False
    knowing: int = 0
    """How often the cache is told of a version that was seen elsewhere in the replica."""
    using: bool = False
    """Whether reads answered from memory count: they only change what is evicted next."""
    showing: bool = False
    limit_bytes: int = 1_000_000
    idle_seconds: float = 1_000.0
    tombstones: int = 1_000


@dataclass(eq=False, slots=True)
class Stage:
    """An agent's document after a commit: the `index`th of its history, and what the stream tells of the commit."""

    key: str
    index: int
    kind: str
    record: AgentRecord
    document: dict[str, Any] | None
    event: Event | None
    next: dict[str, Stage] = field(default_factory=dict)

    @property
    def version(self) -> int:
        return self.record.version

    def after(self, kind: str) -> Stage:
        """The stage that a commit leads to; the same one each time, with steps that no other stage has."""
        if kind not in self.next:
            self.next[kind] = _untold(self, kind) if kind in (REMOVE, TOUCH) else _committed(self, kind)
        return self.next[kind]

    def kinds(self) -> tuple[str, ...]:
        """The kinds of commits that may come next."""
        if self.record.exists:
            return (APPEND, FOLD, DELETE, REMOVE, TOUCH)
        return (CREATE,) if self.document is None else (CREATE, REMOVE, TOUCH)


@dataclass(frozen=True, slots=True)
class Commit:
    """A stage that was reached, when by the clock, and at which cluster time."""

    stage: Stage
    tick: int
    time: int


@dataclass(frozen=True, slots=True)
class Reader:
    """A read under way: the index that it must not fall behind, and the newest version heard of as it began."""

    need: int
    newest: int


@dataclass(frozen=True, slots=True)
class Travel:
    """A flight with its passengers. What it brings is at index `low` or later."""

    flight: Flight
    place: int
    low: int
    readers: tuple[Reader, ...]


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat on its way: when it was sent and, once committed, its cluster time."""

    sent: int
    time: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """A commit on its way through the stream."""

    place: int
    index: int


class ModelClock:
    """The world's clock, set to its time before each call of the cache."""

    def __init__(self) -> None:
        self.tick = 0

    def now(self) -> datetime:
        return _STAMP.now

    latest = earliest = now

    def monotonic(self) -> float:
        return float(self.tick)

    def new_id(self) -> str:
        raise NotImplementedError


Happening = tuple[str, Callable[..., None], tuple[Any, ...]]


class World:
    """One state of everything. A happening changes a copy; the cache is cloned before it is called."""

    def __init__(self, scenario: Scenario, kind: type[Cache]) -> None:
        """Every agent is at version 1, the stream is open and has just brought a heartbeat."""
        self.scenario = scenario
        self.now = -TICK  # so that the first heartbeat is sent at nought, as good a time as any
        self.time = 1
        self.histories = tuple((Commit(_FIRST[key], _LONG_AGO, 0),) for key in KEYS[: len(scenario.commits)])
        self.queue: tuple[Told | Beat, ...] = ()
        self.acked: tuple[int, ...] = (0,) * len(self.histories)
        self.beat: Beat | None = None
        self.travels: tuple[Travel, ...] = ()
        self.open = True
        self.beats = scenario.beats
        self.openings = scenario.openings
        self.flights = scenario.flights
        self.knowing = scenario.knowing
        self.cache = kind(
            ModelClock(),
            limit_bytes=scenario.limit_bytes,
            idle_seconds=scenario.idle_seconds,
            tombstones=scenario.tombstones,
        )
        assert vars(self.cache).keys() == _ATTRIBUTES
        self._call().opened()
        self.tick()
        self._call().beat(float(self.now), (1, self.time))
        self.settle()

    def copy(self) -> World:
        """The same state, to be changed."""
        other = object.__new__(World)
        vars(other).update(vars(self))
        return other

    # What may happen.

    def happenings(self) -> Iterator[Happening]:
        """Everything that may happen next: what it is called, and the method that carries it out."""
        if not (self.flights or self.travels or self.cache):
            return  # nothing will ever be read again
        yield f"the clock ticks: {self.now + TICK}", World.tick, ()
        for place in range(len(self.histories)):
            yield from self._of_an_agent(place)
        yield from self._of_the_stream()
        for number, travel in enumerate(self.travels):
            yield from self._of_a_flight(number, travel)

    def _of_an_agent(self, place: int) -> Iterator[Happening]:
        key, stage = KEYS[place], self.histories[place][-1].stage
        if len(self.histories[place]) <= self.scenario.commits[place]:
            for kind in stage.kinds():
                if kind in self.scenario.kinds and self._may_commit(place, kind):
                    yield f"{key} is committed: {stage.after(kind).version} ({kind})", World.commit, (place, kind)
        if self.scenario.own:
            for index in self._to_acknowledge(place):
                version = self.histories[place][index].stage.version
                yield f"{key}: {version} is acknowledged to this replica", World.acknowledge, (place, index)
        if self._may_read(place):
            yield f"a reader asks for {key}", World.read, (place,)
        if self.knowing:
            for index, commit in enumerate(self.histories[place]):
                yield f"{key} is known to be at {commit.stage.version}", World.know, (place, index)
        if self.scenario.showing and key in self.cache._entries:
            yield f"an answer with {key} is kept", World.show, (place,)

    def _may_read(self, place: int) -> bool:
        """Whether a reader changes anything: it takes off, joins, or is answered where that counts."""
        key = KEYS[place]
        if place >= self.scenario.read:
            return False
        if key in self.cache._entries and self._peek(key) is not None:
            return self.scenario.using
        self._set_clock()
        return self.flights > 0 or self.cache.joinable(key) is not None

    def _to_acknowledge(self, place: int) -> Iterator[int]:
        """What may be this replica's: it hears of its writes in their order, and before a removal."""
        for index in range(len(self.histories[place]) - 1, self.acked[place], -1):
            stage = self.histories[place][index].stage
            if stage.kind == REMOVE:
                return
            if stage.event is not None:
                yield index

    def _may_commit(self, place: int, kind: str) -> bool:
        """Nobody makes a document anew before its removal was heard, or lost."""
        removed = self.histories[place][-1].stage.kind == REMOVE
        return not (kind == CREATE and removed and any(getattr(item, "place", None) == place for item in self.queue))

    def _of_the_stream(self) -> Iterator[Happening]:
        if self.beats and self.beat is None:
            yield "a heartbeat is sent", World.send, ()
        if self.beat is not None:
            yield f"the heartbeat sent at {self.beat.sent} is committed", World.commit_beat, ()
        if self.open and self.queue:
            yield f"the stream brings {self._name(self.queue[0])}", World.deliver, ()
        if self.open and self.openings:
            yield "the stream ends", World.close, ()
        if not self.open:
            lost = len(self.queue) if self.scenario.losing else 0
            for count in range(lost + 1):
                yield f"the stream is opened, without the first {count} that it had not brought", World.reopen, (count,)
            if self.scenario.replaying:
                yield "the stream is opened from the beginning", World.replay, ()

    def _of_a_flight(self, number: int, travel: Travel) -> Iterator[Happening]:
        history = self.histories[travel.place]
        for index in range(travel.low, len(history)):
            what = f"{KEYS[travel.place]} at {history[index].stage.version}"
            yield f"flight {number} lands with {what}", World.land, (number, index)
        if self.scenario.failing:
            yield f"flight {number} fails", World.fail, (number,)

    def _name(self, item: Told | Beat) -> str:
        if isinstance(item, Beat):
            return f"the heartbeat sent at {item.sent}"
        stage = self.histories[item.place][item.index].stage
        return f"a {stage.kind} of {stage.key}" if stage.event is None else f"{stage.key}: {stage.version}"

    # The happenings.

    def tick(self) -> None:
        self.now += TICK

    def commit(self, place: int, kind: str) -> None:
        self.time += 1
        history = self.histories[place]
        commit = Commit(history[-1].stage.after(kind), self.now, self.time)
        self.histories = _with(self.histories, place, (*history, commit))
        self.queue = (*self.queue, Told(place, len(history)))

    def acknowledge(self, place: int, index: int) -> None:
        self._call().wrote(self.histories[place][index].stage.event)
        self.acked = _with(self.acked, place, index)

    def read(self, place: int) -> None:
        key, cache = KEYS[place], self._call()
        need = self.needs[place]
        entry = cache.look(key)
        if entry is not None:
            self._require(place, entry.record, need)
            return
        reader = Reader(need, cache.newest(key))
        flight = cache.joinable(key)
        if flight is None:
            self._depart(place, reader)
        else:
            self._join(flight, reader)

    def _depart(self, place: int, reader: Reader) -> None:
        self.flights -= 1
        flight = self.cache.depart(KEYS[place])
        low = len(self.histories[place]) - 1 if flight.since is None else self._index_at(place, flight.since)
        self.travels = (*self.travels, Travel(flight, place, low, _hard_to_please(low, [reader])))

    def _join(self, flight: Flight, reader: Reader) -> None:
        number = next(number for number, travel in enumerate(self.travels) if travel.flight is flight)
        travel = self.travels[number]
        readers = _hard_to_please(travel.low, (*travel.readers, reader))
        self.travels = _with(self.travels, number, Travel(flight, travel.place, travel.low, readers))

    def land(self, number: int, index: int) -> None:
        travel = self._landed(number)
        record = self.histories[travel.place][index].stage.record
        self._call().land(travel.flight, record)
        for reader in travel.readers:
            if record.version >= reader.newest:  # else it reads again, linearizably
                self._require(travel.place, record, reader.need)

    def fail(self, number: int) -> None:
        self._call().land(self._landed(number).flight, None)

    def _landed(self, number: int) -> Travel:
        travel = self.travels[number]
        self.travels = self.travels[:number] + self.travels[number + 1 :]
        return travel

    def know(self, place: int, index: int) -> None:
        self.knowing -= 1
        self._call().knows(KEYS[place], self.histories[place][index].stage.version)

    def show(self, place: int) -> None:
        cache = self._call()
        cache.show(cache._entries[KEYS[place]], "shown", SHOWN_BYTES)

    def send(self) -> None:
        self.beats -= 1
        self.beat = Beat(self.now)

    def commit_beat(self) -> None:
        assert self.beat is not None
        self.time += 1
        self.queue = (*self.queue, Beat(self.beat.sent, self.time))
        self.beat = None

    def deliver(self) -> None:
        item, *rest = self.queue
        self.queue = tuple(rest)
        cache = self._call()
        if isinstance(item, Beat):
            cache.beat(float(item.sent), (1, item.time))
            return
        commit = self.histories[item.place][item.index]
        told = commit.stage.event
        if told is None:
            cache.vanished(commit.stage.key)
        else:
            cache.heard(Event(told.key, (1, commit.time), told.sets, told.drops, told.whole))

    def close(self) -> None:
        self.openings -= 1
        self.open = False
        self._call().closed()

    def reopen(self, lost: int) -> None:
        self.queue = self.queue[lost:]
        self.open = True
        self._call().opened()

    def replay(self) -> None:
        beats = [item for item in self.queue if isinstance(item, Beat)]
        told = [Told(place, index) for place, history in enumerate(self.histories) for index in range(1, len(history))]
        self.queue = tuple(sorted((*beats, *told), key=self._time_of))
        self.open = True
        self._call().opened()

    def _time_of(self, item: Told | Beat) -> int:
        return item.time if isinstance(item, Beat) else self.histories[item.place][item.index].time

    def _call(self) -> Cache:
        """The cache, a clone of its own, to be called now."""
        self.cache = _cloned(self.cache)
        self._set_clock()
        return self.cache

    def _set_clock(self) -> None:
        self.cache._clock.tick = self.now

    # What must hold.

    def check(self) -> None:
        """Raise Violation unless all copies are what they may be."""
        cache, total = self.cache, 0
        for key, entry in cache._entries.items():
            total += entry.bytes
            if entry.record.size_bytes is None:
                raise Violation("The size of a copy is not known.")
            shown = self._peek(key)
            if shown is not None:
                place = KEYS.index(key)
                self._require(place, shown.record, self.needs[place])
        if cache.bytes != total or total > cache._limit:
            raise Violation(f"{cache.bytes} bytes are counted, {total} are held, {cache._limit} are allowed.")

    def settle(self) -> None:
        """After a happening: find out what reads need from now on, and which stages the copies show."""
        self.needs = tuple([self._need(place) for place in range(len(self.histories))])
        for entry in self.cache._entries.values():
            entry.record = _told_apart(entry.record)

    def _peek(self, key: str) -> Entry | None:
        """What `look` gives, without its traces."""
        cache = self.cache
        entries, used = cache._entries, cache._entries[key].used
        cache._entries = OrderedDict({key: entries[key]})
        self._set_clock()
        entry = cache.look(key)
        cache._entries = entries
        entries[key].used = used
        return entry

    def _need(self, place: int) -> int:
        """The index that a read which begins now must not fall behind."""
        history, stale = self.histories[place], self.now - STALE_SECONDS
        late = len(history) - 1
        while history[late].tick >= stale:
            late -= 1
        return max(late, self.acked[place])

    def _require(self, place: int, record: AgentRecord, need: int) -> None:
        history = self.histories[place]
        stage = _STAGES.get(id(record))
        if stage is None or stage.index >= len(history) or history[stage.index].stage is not stage:
            raise Violation(f"{KEYS[place]} was never like what is shown at {record.version}: {record!r}.")
        index = stage.index
        while index + 1 < len(history) and history[index + 1].stage.record is record:
            index += 1
        if index < need:
            why = "that this replica acknowledged" if need == self.acked[place] else "long committed"
            raise Violation(f"{KEYS[place]} is shown at {stage.version}, not at {history[need].stage.version} {why}.")

    def _index_at(self, place: int, time: Time) -> int:
        """The newest index at a cluster time."""
        history = self.histories[place]
        index = len(history) - 1
        while history[index].time > time[1]:
            index -= 1
        return index

    def _indexes_at(self, time: Time) -> tuple[int, ...]:
        return tuple([self._index_at(place, time) for place in range(len(self.histories))])

    # When two states are the same.

    def shape(self) -> tuple[Any, ...]:
        """Equal for states that differ in nothing that can ever matter."""
        cache = self.cache
        entries = [(_number(entry.record), self._idle(entry), entry.bytes) for entry in cache._entries.values()]
        seqs, tombstones = self._shape_of_tombstones()
        return (
            *map(self._shape_of, range(len(self.needs)), self.needs),
            (*map(self._shape_in_stream, self.queue),),
            self.beat and self._shape_in_stream(self.beat),
            (*sorted(self._shape_in_air(travel, seqs) for travel in self.travels),) if self.travels else (),
            (self.open, self.beats, self.openings, self.flights, self.knowing, cache._open),
            (cache._opened_at == self.now, bisect_right(seqs, cache._floor)),
            None if cache._complete_to is None else self._age(cache._complete_to),
            None if cache._newest is None else self._indexes_at(cache._newest),
            (*entries, cache.bytes),
            tombstones,
        )

    def _shape_of_tombstones(self) -> tuple[list[int], tuple[Any, ...]]:
        """The tombstones, and the counts that others are compared with: of these only the order matters."""
        held, floor = self.cache._tombstones, self.cache._floor
        if self.scenario.tombstones >= len(self.histories):  # none is ever let go
            return [floor], (*sorted((key, one.version, one.awaited) for key, one in held.items()),)
        seqs = sorted({floor, *(one.seq for one in held.values())})
        return seqs, (*((key, one.version, one.awaited, seqs.index(one.seq)) for key, one in held.items()),)

    def _shape_of(self, place: int, need: int) -> tuple[Any, ...]:
        history = self.histories[place]
        ages = [self._age(commit.tick) for commit in history[need + 1 :]] if need + 1 < len(history) else ()
        return id(history[-1].stage), need, self.acked[place], *ages

    def _shape_in_stream(self, item: Told | Beat) -> tuple[Any, ...]:
        if isinstance(item, Told):
            return item.place, item.index
        return "beat", self._age(item.sent), item.sent > self.cache._opened_at, item.sent == self.cache._opened_at

    def _shape_in_air(self, travel: Travel, seqs: list[int]) -> tuple[Any, ...]:
        flight, cache = travel.flight, self.cache
        joinable = self._age(flight.complete_to) if cache._flights.get(flight.key) is flight else -3
        alive = flight.epoch == cache._epoch
        readers = [(reader.need, reader.newest) for reader in travel.readers] if travel.readers else ()
        return travel.place, travel.low, joinable, alive, bisect_right(seqs, flight.seq), *readers

    def _age(self, tick: float) -> int:
        age = int(self.now - tick)
        return min(_OLD, age)

    def _idle(self, entry: Entry) -> int:
        return min(int(self.now - entry.used), int(self.scenario.idle_seconds) + 1) if self.scenario.using else 0


def explore(scenario: Scenario, kind: type[Cache] = Cache) -> int:
    """Visit every state; how many there are. Raises Violation with the shortest way to what must not be."""
    gc.disable()  # so many small objects, and none of them in a circle
    try:
        return _explore(World(scenario, kind))
    finally:
        gc.enable()


def _explore(first: World) -> int:
    seen = {hash(first.shape())}
    trail: list[tuple[int, str]] = [(0, "the stream is open and has just brought a heartbeat")]
    waiting = deque([(0, first)])
    while waiting:
        number, world = waiting.popleft()
        for what, carry_out, how in world.happenings():
            following = world.copy()
            try:
                carry_out(following, *how)
                following.settle()
                shape = hash(following.shape())
                if shape in seen:
                    continue
                following.check()
            except Violation as violation:
                way = "\n".join([*_way(trail, number), what])
                raise Violation(f"{violation}\n{way}") from None
            seen.add(shape)
            waiting.append((len(trail), following))
            trail.append((number, what))
    return len(seen)


def _way(trail: list[tuple[int, str]], number: int) -> list[str]:
    way: list[str] = []
    while number:
        number, what = trail[number][0], trail[number][1]
        way.append(what)
    return [trail[0][1], *reversed(way)]


def _with(values: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    return (*values[:place], value, *values[place + 1 :])


def _hard_to_please(low: int, readers: Iterable[Reader]) -> tuple[Reader, ...]:
    """The readers without those that are content with whatever comes, or whenever another one is."""
    hard: list[Reader] = []
    for reader in sorted(readers, key=lambda one: (-one.need, one.newest)):
        if reader.need > low and (not hard or reader.newest < hard[-1].newest):
            hard.append(reader)
    return tuple(hard)


def _cloned(cache: Cache) -> Cache:
    other: Cache = object.__new__(type(cache))
    vars(other).update(vars(cache))
    other._entries = OrderedDict()
    for key, entry in cache._entries.items():
        other._entries[key] = Entry(entry.record, entry.used, entry.bytes, entry.shown)
    other._tombstones = cache._tombstones.copy()
    other._flights = cache._flights.copy()
    return other


# Contents.

_STAGES: dict[int, Stage] = {}
"""By the identity of the record."""
_RECORDS: dict[tuple[str, int | None], AgentRecord] = {}
"""By what they say: the true ones, and the wrong ones that have turned up."""
_NUMBERS: dict[int, int] = {}


def _told_apart(record: AgentRecord) -> AgentRecord:
    """The one record that says the same, size included."""
    if id(record) in _NUMBERS:
        return record
    says = json.dumps(record.document(), sort_keys=True, default=str), record.size_bytes
    known = _RECORDS.setdefault(says, record)
    _NUMBERS.setdefault(id(known), len(_NUMBERS))
    return known


def _number(record: AgentRecord) -> int:
    return _NUMBERS[id(record)]


def _staged(stage: Stage) -> Stage:
    assert _told_apart(stage.record) is stage.record
    _STAGES[id(stage.record)] = stage
    return stage


def _untold(stage: Stage, kind: str) -> Stage:
    """A commit without an event. After one that changes nothing in it, the record is the same."""
    if kind == TOUCH:
        return Stage(stage.key, stage.index + 1, kind, stage.record, stage.document, None)
    nothing = AgentRecord(id=stage.key, tenant="t")
    after = Stage(stage.key, stage.index + 1, kind, nothing, None, None)
    _STAGES[id(nothing)] = after
    return after


def _committed(stage: Stage, kind: str) -> Stage:
    """A commit as the store makes it: the moves' assignments and the envelope, and what they make of the document."""
    changes = _moved(stage, kind)
    op = len(_STAGES)
    record = changes[-1].record
    slot = str(record.version % OP_SLOTS)
    last = envelope(stage.version, changes, _STAMP, [None] * len(changes))
    if stage.document is None:
        document = record.model_copy(update={"last": last, "ops": {slot: op}}).document()
        event = Event(stage.key, _NO_TIME, document, whole=True)
    else:
        assigned = fold(changes)
        event = Event(stage.key, _NO_TIME, {**assigned.sets, "last": last, f"ops.{slot}": op}, assigned.drops)
        document = _updated(stage.document, event)
    stored = AgentRecord.of(document, size_bytes=len(bson.encode(document)))
    return _staged(Stage(stage.key, stage.index + 1, kind, stored, document, event))


def _moved(stage: Stage, kind: str) -> list[Change]:
    if kind == DELETE:
        return [delete(stage.record, _STAMP)]
    if kind == CREATE:
        draft = AgentRecord(id=stage.key, tenant="t", name=f"agent {len(_STAGES)}")
        return [create(stage.record, draft, _STAMP)]
    changes: list[Change] = []
    for number in range(2 if kind == FOLD else 1):
        record = changes[-1].record if changes else stage.record
        changes.append(tree.append(record, [tree.Draft(f"s{len(_STAGES)}-{number}", {"role": "user"})], _STAMP))
    return changes


def _updated(document: dict[str, Any], event: Event) -> dict[str, Any]:
    """The document after `$set` and `$unset`, as the database carries them out."""
    after = {name: dict(value) if isinstance(value, dict) else value for name, value in document.items()}
    for path in event.drops:
        assert "." not in path
        after.pop(path, None)
    for path, value in event.sets.items():
        name, _, inner = path.partition(".")
        if inner:
            after.setdefault(name, {})[inner] = value
        else:
            after[name] = value
    return after


_FIRST = {key: _committed(Stage(key, -1, REMOVE, AgentRecord(id=key, tenant="t"), None, None), CREATE) for key in KEYS}

WEIGHT = _weight(_FIRST[KEYS[0]].record)
"""Bytes that each agent takes in the cache at first; one commit adds less than a fifth of it."""
