"""The barrier: linearizable reads share writes, but never one that was sent before they began."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import pymongo
import pytest
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import AutoReconnect, PyMongoError

from app.barrier import Barrier
from app.clock import SystemClock
from app.mongo import Mongo, open_client
from tests.harness import wait_until_async

pytestmark = pytest.mark.asyncio

READERS = 50
SECONDS, FEW_SECONDS = 10.0, 0.5


class Writes:
    """The collection of heartbeats, its writes counted, held up and failed as a test wants."""

    def __init__(self, collection: Any) -> None:
        self._collection = collection
        self.sent = 0
        self.under_way = 0
        self.faults: list[Exception] = []
        self.open = asyncio.Event()
        self.open.set()
        self.time: Any = None
        """The cluster time of the newest one."""

    async def update_one(self, *args: Any, **kwargs: Any) -> Any:
        self.sent += 1
        if self.faults:
            raise self.faults.pop(0)
        self.under_way += 1
        try:
            await self.open.wait()
            done = await self._collection.update_one(*args, **kwargs)
        finally:
            self.under_way -= 1
        self.time = kwargs["session"].operation_time
        return done


@dataclass(frozen=True)
class Place:
    barrier: Barrier
    writes: Writes
    mongo: Mongo

    async def seen(self) -> int:
        """What a linearizable read of the one document says."""
        async with self.barrier.reading() as session:
            found = await self.mongo.service.find_one({"_id": "one"}, session=session)
        return 0 if found is None else int(found["n"])

    async def write(self, number: int) -> None:
        await self.mongo.service.update_one({"_id": "one"}, {"$set": {"n": number}}, upsert=True)


@pytest.fixture
async def place(mongo_uri: str) -> AsyncIterator[Place]:
    client = open_client(mongo_uri)
    mongo = Mongo.of(client, f"barrier_{uuid4().hex[:12]}")
    writes: Any = Writes(mongo.beats)
    yield Place(Barrier(replace(mongo, beats=writes), SystemClock(), seconds=SECONDS), writes, mongo)
    await client.drop_database(mongo.database.name)
    await client.close()


async def test_read_shows_what_was_committed_before_it(place: Place) -> None:
    for number in range(20):
        await place.write(number)
        assert await place.seen() == number


async def test_read_is_not_older_than_the_write_before_it(place: Place) -> None:
    """Wherever it is sent: it carries the write's time."""
    async with place.barrier.reading() as session:
        assert session.operation_time == place.writes.time is not None


async def test_readers_at_once_share_writes(place: Place) -> None:
    await place.write(7)
    assert await asyncio.gather(*(place.seen() for _ in range(READERS))) == [7] * READERS
    assert place.writes.sent <= 2


async def test_who_comes_while_a_write_is_under_way_takes_the_next(place: Place) -> None:
    """What is under way may have been sent before something that the newcomer must see."""
    place.writes.open.clear()
    first = asyncio.create_task(place.seen())
    await wait_until_async(lambda: place.writes.sent == 1, 5, "the first write")
    later = [asyncio.create_task(place.seen()) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert place.writes.sent == 1
    place.writes.open.set()
    await asyncio.gather(first, *later)
    assert place.writes.sent == 2


async def test_reader_who_leaves_takes_nothing_from_the_others(place: Place) -> None:
    await place.write(3)
    place.writes.open.clear()
    leaving, staying = (asyncio.create_task(place.seen()) for _ in range(2))
    await asyncio.sleep(0.01)
    leaving.cancel()
    place.writes.open.set()
    assert await staying == 3


async def test_new_primary_is_asked_once_more(place: Place) -> None:
    await place.write(1)
    place.writes.faults = [AutoReconnect("stepped down")]
    assert await place.seen() == 1


async def test_write_that_fails_shows_nothing(place: Place) -> None:
    """And the next read begins anew."""
    await place.write(1)
    place.writes.faults = [AutoReconnect("away"), AutoReconnect("still away")]
    with pytest.raises(PyMongoError):
        await place.seen()
    assert await place.seen() == 1


async def test_write_that_hangs_holds_nobody_up_for_long(place: Place) -> None:
    """Who waits for it is told in time; those who come later have a write of their own."""
    await place.write(1)
    writes: Any = place.writes
    hasty = replace(place, barrier=Barrier(replace(place.mongo, beats=writes), SystemClock(), seconds=FEW_SECONDS))
    place.writes.open.clear()
    stuck = asyncio.create_task(hasty.seen())
    await wait_until_async(lambda: place.writes.sent == 1, 5, "the first write")
    later = asyncio.create_task(hasty.seen())
    await wait_until_async(lambda: place.writes.sent == 2, 5, "the write of those who came later")
    for reader in (stuck, later):
        with pytest.raises(PyMongoError):
            await asyncio.wait_for(reader, SECONDS)
    place.writes.open.set()
    await wait_until_async(lambda: place.writes.under_way == 0, 5, "the end of what was sent")


async def test_time_limit_of_one_reader_is_not_the_others(place: Place) -> None:
    await place.write(1)
    place.writes.open.clear()
    with pymongo.timeout(0.01):
        hasty = asyncio.create_task(place.seen())
    patient = asyncio.create_task(place.seen())
    await asyncio.sleep(0.05)
    place.writes.open.set()
    assert await patient == 1
    with pytest.raises(PyMongoError):
        await hasty


async def test_server_that_tells_no_time_is_asked_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was just started may not know it yet."""
    await place.write(1)
    known: Any = AsyncClientSession.operation_time.fget
    unknown = property(lambda session: known(session) if place.writes.sent > 1 else None)
    monkeypatch.setattr(AsyncClientSession, "operation_time", unknown)
    assert await place.seen() == 1
    assert place.writes.sent == 2
