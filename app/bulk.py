"""Guarded writes of many agents in shared bulk writes: what waits while a flight is under way goes with the next.

A lone write leaves at once, so sharing costs no latency; under load one round trip and one journal flush serve
many. Nothing here knows what is written or decides what an outcome means.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pymongo
from pymongo import InsertOne, UpdateOne
from pymongo.errors import BulkWriteError, PyMongoError
from pymongo.results import BulkWriteResult

from app.mongo import Collection
from app.telemetry import Metrics

Write = UpdateOne | InsertOne[dict[str, Any]]

_LOST_THE_RACE = (11000, 112)
"""Duplicate key, write conflict: another writer was first."""


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


@dataclass(eq=False, slots=True)
class _Waiting:
    write: Write
    outcome: asyncio.Future[Outcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class BulkWriter:
    """Sends writes to one collection, each document in at most one flight at a time (its callers see to that)."""

    def __init__(self, collection: Collection, metrics: Metrics, *, limit: int, flights: int, seconds: float) -> None:
        self._collection = collection
        self._metrics = metrics
        self._limit = limit
        self._free = flights
        self._seconds = seconds
        self._waiting: deque[_Waiting] = deque()
        self._flying: set[asyncio.Task[None]] = set()

    async def send(self, write: Write) -> Outcome:
        """Send the write with whatever else waits; never raises for what the database says or does not say."""
        waiting = _Waiting(write)
        self._waiting.append(waiting)
        self._take_off()
        return await waiting.outcome

    def _take_off(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            count = min(self._limit, len(self._waiting))
            task = asyncio.create_task(self._fly([self._waiting.popleft() for _ in range(count)]))
            self._flying.add(task)
            task.add_done_callback(self._flying.discard)

    async def _fly(self, flight: list[_Waiting]) -> None:
        self._metrics.bulk_size.observe(len(flight))
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
            self._free += 1
            self._take_off()

    async def _write(self, writes: list[Write]) -> list[Outcome]:
        try:
            with pymongo.timeout(self._seconds):
                result = await self._collection.bulk_write(writes, ordered=False)
        except BulkWriteError as error:
            return _partial(error, len(writes))
        except PyMongoError:
            return [Outcome.UNKNOWN] * len(writes)
        return [_whole(result, writes)] * len(writes)


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
    return Outcome.MISSED if code in _LOST_THE_RACE else Outcome.REFUSED
