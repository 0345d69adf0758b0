"""Faults of a replica's change stream, put into its process before it serves, and orders that say which.

`Faults` is used on both sides: a test orders and counts; the replica's process calls it (`prepare`) and obeys.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from pymongo.errors import AutoReconnect, OperationFailure

from app.cache import Cache, Entry
from app.mongo import Mongo
from app.store import Store
from models.event import Event

CALM, WILD, DEAD, MUTE, LATE = "calm", "wild", "dead", "mute", "late"
"""Orders: no faults; faults at random; no stream at all; the stream that is open brings nothing any more; all comes
`LATE_SECONDS` late."""

LOST, GONE, SEVERED = "lost", "gone", "severed"
"""Orders: 286 once, and what was missed is still to be had from the log's mark on; once, and it is not; 286, and then
no stream at all."""

BROKEN, ENDED, HUNG, HELD, REFUSED = "broken", "ended", "hung", "held back", "refused"
SLOW, FORGOTTEN = "read slowly", "forgotten"
DEALT = (BROKEN, ENDED, LOST, HUNG, HELD, LATE)
"""Faults that WILD deals at random, each once before any comes again. Beside them come REFUSED openings, and for the
cache SLOW reads of the database and copies that are FORGOTTEN (as when memory is short)."""

LATE_SECONDS = 2.8
_HANG_SECONDS = 4.0
_AWAIT_SECONDS = 0.1
_LATENESS = {HELD: (0.1, 2.0), LATE: (2.3, 3.3)}
"""By how many seconds the events are held back that come within the next few: less, and more, than a read may be."""
_LATE_FOR_SECONDS = 2.5
_HISTORY_LOST = 286


@dataclass(frozen=True)
class Faults:
    """The faults of one replica: `order` them, ask what has `happened`; given as `prepare`, it brings them about."""

    folder: Path
    name: str
    seed: int = 0

    def order(self, order: str) -> Self:
        """Say what goes wrong from now on, also after a restart."""
        fresh = self._orders.with_suffix(".new")
        fresh.write_text(f"{time.monotonic_ns()} {order}")
        fresh.replace(self._orders)
        return self

    def happened(self) -> Counter[str]:
        """How often each kind of fault has happened so far."""
        return Counter(self._diary.read_text().splitlines() if self._diary.exists() else [])

    def told(self) -> tuple[str, str]:
        """The order in force: a mark of its own, and what it says."""
        if not self._orders.exists():
            return "", CALM
        mark, _, order = self._orders.read_text().partition(" ")
        return mark, order

    def note(self, kind: str) -> None:
        """Write down that a fault happens now."""
        with self._diary.open("a") as diary:
            diary.write(f"{kind}\n")

    def __call__(self) -> None:
        """Put the faults into this process."""
        script = _Script(self)
        watch, read, look = Mongo.watch, Store.read, Cache.look

        async def watch_faulty(mongo: Mongo, beats_of: str, **begin: Any) -> _FaultyStream:
            script.refuse()
            return _FaultyStream(await watch(mongo, beats_of, **begin), script)

        async def read_slowly(store: Store, key: str, **terms: Any) -> Any:
            record = await read(store, key, **terms)
            await script.dawdle()
            return record

        def look_forgetfully(cache: Cache, key: str) -> Entry | None:
            if script.forgets():
                cache._drop(key)
            return look(cache, key)

        Mongo.watch = watch_faulty
        Store.read = read_slowly
        Cache.look = look_forgetfully

    @property
    def _orders(self) -> Path:
        return self.folder / f"{self.name}.orders"

    @property
    def _diary(self) -> Path:
        return self.folder / f"{self.name}.faults"


class _Script:
    """What goes wrong when, in the replica's process."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        begun = faults.happened().total()  # another course after each restart
        self._random = random.Random(f"{faults.name} {faults.seed} {begun}")  # noqa: S311
        self._deck: list[str] = []
        self._next_at = 0.0
        self._late_until = 0.0
        self._lateness = 0.0
        self._refusals: list[Exception] = []
        self._obeyed = ""

    @property
    def lateness(self) -> float:
        """By how many seconds an event that comes in now is held back."""
        if self._faults.told()[1] == LATE:
            return LATE_SECONDS
        return self._lateness if time.monotonic() < self._late_until else 0.0

    def refuse(self) -> None:
        """Raise what the opening of a stream is to fail with."""
        if self._faults.told()[1] in (DEAD, SEVERED):
            raise _unreachable()
        if self._refusals:
            self._faults.note(REFUSED)
            raise self._refusals.pop(0)

    async def dawdle(self) -> None:
        """Hold back what was read from the database, sometimes, while the world goes on."""
        if self._faults.told()[1] == WILD and self._random.random() < 0.3:
            self._faults.note(SLOW)
            await asyncio.sleep(self._random.uniform(0.01, 0.6))

    def forgets(self) -> bool:
        """Whether a copy is to be let go now."""
        now = self._random.random() < 0.05 and self._faults.told()[1] == WILD
        if now:
            self._faults.note(FORGOTTEN)
        return now

    async def strike(self, stream: _FaultyStream) -> None:
        """Let what is due happen to the stream."""
        mark, order = self._faults.told()
        once, self._obeyed = self._obeyed != mark, mark
        if order == DEAD:
            self._faults.note(DEAD)
            raise _unreachable()
        if order == MUTE and once:
            self._faults.note(MUTE)
            stream.mute = True
        if order == SEVERED or (order == LOST and once):
            self._lose()
        if order == GONE and once:
            self._faults.note(GONE)
            self._refusals = [_history_lost(), _history_lost()]
            raise _unreachable()
        if order == WILD and time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + self._random.uniform(0.2, 0.8)
            await self._deal(stream)

    async def _deal(self, stream: _FaultyStream) -> None:
        self._deck = self._deck or self._random.sample(DEALT, len(DEALT))
        kind = self._deck.pop()
        self._refusals = [_unreachable() for _ in range(self._random.choice((0, 0, 1, 3)))]
        if kind == LOST:
            self._lose()
        self._faults.note(kind)
        if kind == BROKEN:
            raise _unreachable()
        if kind == ENDED:
            stream.end()
        elif kind == HUNG:
            await asyncio.sleep(_HANG_SECONDS)
        else:
            self._lateness = self._random.uniform(*_LATENESS[kind])
            self._late_until = self._next_at = time.monotonic() + _LATE_FOR_SECONDS

    def _lose(self) -> NoReturn:
        self._faults.note(LOST)
        raise _history_lost()


class _FaultyStream:
    """A change stream to which faults happen. What it holds back comes in order, each with its own resume token."""

    def __init__(self, stream: Any, script: _Script) -> None:
        self._stream = stream
        self._script = script
        self._held: deque[tuple[float, Any, Any]] = deque()
        self._ended = False
        self.mute = False
        """Whether it says that there is nothing new, whatever happens."""
        self.resume_token = stream.resume_token

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stream.__aexit__(*failure)

    @property
    def alive(self) -> bool:
        return self._stream.alive and not self._ended

    def end(self) -> None:
        """From now on it is over, as if the database had ended it."""
        self._ended = True

    async def try_next(self) -> Any:
        """The next change that is not held back any more; None when there is none."""
        await self._script.strike(self)
        if self._ended or self.mute:
            await asyncio.sleep(_AWAIT_SECONDS)
            return None
        if not self._is_due():
            change = await self._stream.try_next()
            if change is not None:
                due = time.monotonic() + self._script.lateness
                self._held.append((due, change, self._stream.resume_token))
        return self._give() if self._is_due() else None

    def _is_due(self) -> bool:
        return bool(self._held) and self._held[0][0] <= time.monotonic()

    def _give(self) -> Any:
        _, change, self.resume_token = self._held.popleft()
        return change


def _unreachable() -> AutoReconnect:
    return AutoReconnect("a fault of the test")


def _history_lost() -> OperationFailure:
    return OperationFailure("a fault of the test", _HISTORY_LOST)


@dataclass(frozen=True)
class NaiveCache:
    """A cache as one would first write it: filled by reads, dropped by events. No bound, no tokens, no tombstones.

    To be prepared after the faults, to see that the checks catch what it serves.
    """

    faults: Faults

    def __call__(self) -> None:
        """Put it in the place of the real one in this process."""
        self.faults()
        Cache.glance = _glance_at_any
        Cache.age = lambda _: 0.0
        Cache.newest = lambda *_: 0
        Cache.wrote = Cache.heard = _drop_older
        Cache._may_land = lambda *_: True
        Cache.joinable = lambda cache, key: cache._flights.get(key)


def _glance_at_any(cache: Cache, key: str, _: float) -> tuple[Entry, float] | None:
    entry = cache._entries.get(key)
    return None if entry is None else (entry, 0.0)


def _drop_older(cache: Cache, event: Event) -> None:
    entry = cache._entries.get(event.key)
    if entry is not None and entry.record.version < event.version:
        cache._drop(event.key)
