"""The barrier: how a read learns of all that was committed before it began, without a linearizable read's wait.

A tiny write of this replica is acknowledged by a majority; a read that is not older than it shows whatever was
committed before the write was sent. A primary that was cut off acknowledges no such write, so nothing stale is shown.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pymongo
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import AutoReconnect, NetworkTimeout, PyMongoError

from app.clock import Clock
from app.mongo import Mongo
from models.event import Time

_PATIENCE_SECONDS = 0.1
"""How long those who come during a write wait for it to end before the next one is sent."""


class Barrier:
    """One per replica. All who come while a write is under way share the next one, which begins when it has ended."""

    def __init__(self, mongo: Mongo, clock: Clock, *, seconds: float) -> None:
        self._mongo = mongo
        self._clock = clock
        self._seconds = seconds
        self._id = clock.new_id()
        self._count = 0
        self._flying: asyncio.Task[Time] | None = None
        self._next: asyncio.Task[Time] | None = None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncClientSession]:
        """A session whose reads are linearizable: they show all that was committed before this. Raises PyMongoError."""
        async with self._mongo.reading_after(await self.passed()) as session:
            yield session

    async def passed(self) -> Time:
        """A cluster time that nothing lies behind which was committed before this call. Raises PyMongoError in time."""
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._after(self._flying), context=contextvars.Context())
            self._next.add_done_callback(_heard)
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(self._next)
        except TimeoutError:
            raise NetworkTimeout("The database did not acknowledge a write in time.") from None

    async def _after(self, flying: asyncio.Task[Time] | None) -> Time:
        if flying is not None:
            await asyncio.wait([flying], timeout=_PATIENCE_SECONDS)
        self._flying, self._next = self._next, None
        with pymongo.timeout(self._seconds):
            try:
                return await self._write()
            except PyMongoError as error:
                if error.timeout:
                    raise
                return await self._write()  # perhaps the primary has stepped down; the driver finds the new one

    async def _write(self) -> Time:
        self._count += 1
        async with self._mongo.client.start_session() as session:
            await self._mongo.beat(self._id, self._count, self._clock.now(), session)
            time = session.operation_time
        if time is None:
            raise AutoReconnect("The server does not tell its cluster time.")  # one that was just started
        return time.time, time.inc


def _heard(task: asyncio.Task[Time]) -> None:
    """Let a failure be known to those who wait, if anybody still does."""
    if not task.cancelled():
        task.exception()
