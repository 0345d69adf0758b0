"""A primary that is cut off from the others, of three servers: linearizable reads see nothing stale through it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from app.barrier import Barrier
from app.clock import SystemClock
from app.mongo import Mongo, open_client
from app.mongod import runnable_binary
from tests.harness import free_port, wait_until

pytestmark = pytest.mark.asyncio

MEMBERS = 3
ELECTION_MS = 2_000
ANSWER_SECONDS = 3.0
BACK_SECONDS = 60.0


class Member:
    """A server of the set, without any keys."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.port = free_port()
        self._log = folder / "log"
        command = [runnable_binary(), "--dbpath", folder, "--port", self.port, "--replSet", "rs", "--quiet"]
        command += [
            "--bind_ip",
            "127.0.0.1",
            "--nounixsocket",
            "--wiredTigerCacheSizeGB",
            "0.25",
            "--logpath",
            self._log,
        ]
        self._process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)

    @property
    def uri(self) -> str:
        """This one alone, whatever it is in the set."""
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true"

    def answers(self) -> bool:
        return bool(self._hello())

    def is_primary(self) -> bool:
        return bool(self._hello().get("isWritablePrimary"))

    def _hello(self) -> dict[str, Any]:
        with (
            MongoClient[dict[str, Any]](self.uri, serverSelectionTimeoutMS=500) as client,
            contextlib.suppress(PyMongoError),
        ):
            return client.admin.command("hello")
        return {}

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def members(tmp_path: Path) -> Iterator[list[Member]]:
    """Three of a set; the first is its primary, and every one can be."""
    started: list[Member] = []
    try:
        started.extend(Member(tmp_path / str(number)) for number in range(MEMBERS))
        for member in started:
            wait_until(member.answers, 60, "a server")
        hosts = [
            {"_id": number, "host": f"127.0.0.1:{member.port}", "priority": 2 if number == 0 else 1}
            for number, member in enumerate(started)
        ]
        timing = {"electionTimeoutMillis": ELECTION_MS, "heartbeatTimeoutSecs": 2}
        with MongoClient[dict[str, Any]](started[0].uri) as client:
            client.admin.command("replSetInitiate", {"_id": "rs", "members": hosts, "settings": timing})
        wait_until(started[0].is_primary, 60, "a primary")
        yield started
    finally:
        for member in started:
            member.end()


@asynccontextmanager
async def asking(member: Member) -> AsyncIterator[tuple[Mongo, Barrier]]:
    """A replica's way to the database, which leads to this member alone."""
    client = open_client(member.uri)
    mongo = Mongo.of(client, "cut_off")
    try:
        yield mongo, Barrier(mongo, SystemClock(), seconds=ANSWER_SECONDS)
    finally:
        await client.close()


async def seen(mongo: Mongo, barrier: Barrier) -> int | None:
    """What a linearizable read shows; None when it is refused."""
    try:
        with pymongo.timeout(ANSWER_SECONDS):
            async with barrier.reading() as session:
                found = await mongo.service.find_one({"_id": "one"}, session=session)
    except PyMongoError:
        return None
    assert found is not None
    return int(found["n"])


async def set_to(mongo: Mongo, number: int) -> None:
    await mongo.service.update_one({"_id": "one"}, {"$set": {"n": number}}, upsert=True)


async def test_primary_without_the_others_shows_nothing(members: list[Member]) -> None:
    """Though it takes itself for the primary, and answers plain reads."""
    async with asking(members[0]) as (mongo, barrier):
        await set_to(mongo, 1)
        assert await seen(mongo, barrier) == 1
        for other in members[1:]:
            other.signal(signal.SIGSTOP)
        assert await mongo.service.find_one({"_id": "one"}) == {"_id": "one", "n": 1}
        assert await seen(mongo, barrier) is None
        for other in members[1:]:
            other.signal(signal.SIGCONT)


async def test_old_primary_that_wakes_shows_nothing_old(members: list[Member]) -> None:
    """Stopped, followed by another who takes a write, and woken: never again what was before that write."""
    old, *others = members
    async with asking(old) as (mongo, barrier):
        await set_to(mongo, 1)
        assert await seen(mongo, barrier) == 1
        old.signal(signal.SIGSTOP)
        wait_until(lambda: any(other.is_primary() for other in others), 30, "another primary")
        async with asking(next(other for other in others if other.is_primary())) as (elsewhere, _):
            await set_to(elsewhere, 2)
        asked = asyncio.create_task(seen(mongo, barrier))  # it finds the question when it wakes
        await asyncio.sleep(0.1)
        old.signal(signal.SIGCONT)
        assert await asked in {None, 2}
        until = time.monotonic() + BACK_SECONDS
        while (shown := await seen(mongo, barrier)) != 2:
            assert shown is None
            assert time.monotonic() < until, "it never showed the new one"
