"""Guarded writes of many agents in shared bulk writes: what waits while a flight is under way goes with the next.

A lone write leaves at once, so sharing costs no latency; under load one round trip and one journal flush serve
many. Nothing here knows what is written or decides what an outcome means.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from enum import Enum

import pymongo
from pymongo import InsertOne
from pymongo.errors import BulkWriteError, PyMongoError
from pymongo.results import BulkWriteResult

from app.mongo import Collection, Write
from app.telemetry import Metrics

_FLIGHT_BYTES = 8 * 1024 * 1024

_LOST_THE_RACE = frozenset({11000, 112})
"""Duplicate key, write conflict: another writer was first."""

_CUT_SHORT = frozenset({6, 7, 50, 64, 89, 91, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436})
"""A fail-over, a shutdown, a time limit: the server's word on the write is not its last."""


class Outcome(Enum):
    """How a guarded write ended."""

    APPLIED = "applied"
    MISSED = "missed"
    """The guard did not match (an insert: the document was there). Nothing was written."""
    UNSURE = "unsure"
    """The flight was acknowledged, but not all of its writes matched: this one did or did not."""
    UNKNOWN = "unknown"
    """No acknowledgement: it may have been applied, or may still be."""
    REFUSED = "refused"
    """The server will not have it, now or later. Nothing was written."""


@dataclass(frozen=True, eq=False, slots=True)
class _Waiting:
    write: Write
    size: int
    outcome: asyncio.Future[Outcome]


class BulkWriter:
    """Sends writes to one collection, each document in at most one flight at a time (its callers see to that)."""

    def __init__(self, collection: Collection, metrics: Metrics, *, limit: int, flights: int, seconds: float) -> None:
        self._collection = collection
        self._metrics = metrics
        self._limit = limit
        self._free = flights
        self._seconds = seconds
        self._flying: set[asyncio.Task[None]] = set()
        self._waiting: deque[_Waiting] = deque()

    async def send(self, write: Write, size: int) -> Outcome:
        """Send the write, of about `size` bytes, with whatever else waits; never raises for what the database says."""
        if not self._free:
            waiting = _Waiting(write, size, asyncio.get_running_loop().create_future())
            self._waiting.append(waiting)
            return await waiting.outcome
        self._free -= 1
        try:
            return (await self._write([write]))[0]
        finally:
            self._land()

    def _land(self) -> None:
        """After a flight: the next one leaves with all that waits, or the place is free."""
        if self._waiting:
            task = asyncio.create_task(self._fly(self._boarded()))
            task.add_done_callback(self._flying.discard)
            self._flying.add(task)
        else:
            self._free += 1

    def _boarded(self) -> list[_Waiting]:
        """The next writes to go, the first in any case, then as many as fit."""
        flight = [self._waiting.popleft()]
        size = flight[0].size
        while self._waiting and len(flight) < self._limit and size + self._waiting[0].size <= _FLIGHT_BYTES:
            if _inserts(self._waiting[0]) and any(map(_inserts, flight)):
                break
            flight.append(self._waiting.popleft())
            size += flight[-1].size
        return flight

    async def _fly(self, flight: list[_Waiting]) -> None:
        try:
            outcomes = await self._write([waiting.write for waiting in flight])
        except BaseException as error:
            for waiting in flight:
                if not waiting.outcome.done():
                    waiting.outcome.set_exception(error)
            raise
        else:
            for waiting, outcome in zip(flight, outcomes, strict=True):
                if not waiting.outcome.done():
                    waiting.outcome.set_result(outcome)
        finally:
            self._land()

    async def _write(self, writes: list[Write]) -> list[Outcome]:
        self._metrics.bulk_size.observe(len(writes))
        try:
            with pymongo.timeout(self._seconds):
                result = await self._collection.bulk_write(writes, ordered=False)
        except BulkWriteError as error:
            return _partial(error, len(writes))
        except PyMongoError:
            return [Outcome.UNKNOWN] * len(writes)
        return [_whole(result, writes)] * len(writes)


def _inserts(waiting: _Waiting) -> bool:
    """Of inserts side by side a server may make one commit, and then their events have one time and no order."""
    return isinstance(waiting.write, InsertOne)


def _whole(result: BulkWriteResult, writes: list[Write]) -> Outcome:
    done = result.matched_count + result.inserted_count
    if done == len(writes):
        return Outcome.APPLIED
    return Outcome.MISSED if done == 0 else Outcome.UNSURE


def _partial(error: BulkWriteError, count: int) -> list[Outcome]:
    details = error.details or {}
    if details.get("writeConcernErrors"):
        return [Outcome.UNKNOWN] * count
    refused = {item["index"]: item["code"] for item in details.get("writeErrors", [])}
    done = details.get("nMatched", 0) + details.get("nInserted", 0)
    rest = Outcome.APPLIED if done == count - len(refused) else Outcome.UNSURE
    return [_refusal(refused[index]) if index in refused else rest for index in range(count)]


def _refusal(code: int) -> Outcome:
    if code in _LOST_THE_RACE:
        return Outcome.MISSED
    return Outcome.UNKNOWN if code in _CUT_SHORT else Outcome.REFUSED
