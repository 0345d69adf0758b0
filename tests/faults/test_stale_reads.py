"""Reads answered from memory while the change stream fails in every way: none is staler than it may be.

Two replicas, writers on both, readers on both. What is acknowledged is noted with its time, and what each read shows
is held against that; afterwards its content is held against the agent's history. The checks themselves are held
against a cache that is known to be wrong.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest

from app.cache import STALE_SECONDS
from tests.faults import test_replica_killed as killed
from tests.faults.stream_faults import (
    BROKEN,
    CALM,
    DEAD,
    DEALT,
    ENDED,
    HUNG,
    LATE,
    LOST,
    MUTE,
    SLOW,
    WILD,
    Faults,
    NaiveCache,
)
from tests.faults.test_database_paused import paused
from tests.harness import (
    MIXED,
    STRONG,
    Database,
    Recorder,
    Replica,
    assert_truthful,
    clients_of,
    deployment,
    read_marks,
    rounds,
    wait_until_async,
    write,
)

pytestmark = pytest.mark.asyncio

_log = logging.getLogger(__name__)

MEASURING_SECONDS = 0.1
WRITTEN_ON = ((0,), (1,), (0, 1))
"""For each agent, the replicas that it is written on; all are read on all."""

READ_PAUSE, WRITE_PAUSE = 0.025, 0.15
"""On average, in seconds; what keeps two cores from being the fault that is tested."""

QUIET = (STALE_SECONDS + 0.5, STALE_SECONDS + 1.5)
"""Now and then a writer pauses for longer than a read may be behind: what is wrong then stays so, and is seen."""

DEADLINE_SECONDS = 4.0
BACK_SECONDS = 20.0


@dataclass(frozen=True)
class House:
    """A database, and two replicas whose change streams fail as they are told."""

    database: Database
    replicas: list[Replica]
    faults: list[Faults]

    def order(self, order: str) -> None:
        for faults in self.faults:
            faults.order(order)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("stale")
    faults = [Faults(folder, name) for name in ("left", "right")]
    settings = {"deadline_seconds": DEADLINE_SECONDS, "attempt_seconds": 1.5}
    prepare = {fault.name: fault for fault in faults}
    with deployment(folder, "left", "right", prepare=prepare, **settings) as (database, replicas):
        yield House(database, replicas, faults)


@dataclass
class Growth:
    """The greatest version known so far, at each moment that it grew."""

    times: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def add(self, version: int) -> None:
        if not self.versions or version > self.versions[-1]:
            self.times.append(time.monotonic())
            self.versions.append(version)

    def before(self, instant: float) -> int:
        """The greatest version that was known before the instant."""
        at = bisect_left(self.times, instant)
        return self.versions[at - 1] if at else 0


@dataclass(frozen=True)
class Sight:
    """What one read showed."""

    agent: str
    replica: int
    began: float
    version: int
    steps: int
    """A hash of all that was shown of them."""


@dataclass
class Ledger:
    """All that was acknowledged and all that was read."""

    recorders: dict[str, Recorder]
    replicas: int
    sights: list[Sight] = field(default_factory=list)
    refused: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _known: dict[str, Growth] = field(default_factory=dict)
    _own: dict[tuple[str, int], Growth] = field(default_factory=dict)

    def acknowledged(self, agent: str, replica: int, version: int) -> None:
        """A replica has acknowledged a version just now."""
        self.known(agent, version)
        self._own.setdefault((agent, replica), Growth()).add(version)

    def known(self, agent: str, version: int) -> None:
        """A version has been heard of just now, from anywhere."""
        self._known.setdefault(agent, Growth()).add(version)

    def stale(self) -> list[tuple[Sight, int]]:
        """The reads that showed less than they had to, each with the version that was due."""
        return [
            (sight, due)
            for sight in self.sights
            if sight.version < (due := max(self._known_long(sight), self._known_here(sight)))
        ]

    async def moves(self, seconds: float) -> None:
        """Wait until each replica has acknowledged and shown something that was asked for from now on."""
        since = time.monotonic()
        await wait_until_async(lambda: self._moved(since), seconds, "writes and reads to be served")

    def _moved(self, since: float) -> bool:
        written = {replica for (_, replica), growth in self._own.items() if growth.times[-1] > since}
        read = {(sight.agent, sight.replica) for sight in self.sights if sight.began > since}
        return len(written) == self.replicas and len(read) == self.replicas * len(self.recorders)

    def _known_long(self, sight: Sight) -> int:
        """What was committed longer ago than a read may be behind; what any reader saw was committed."""
        return self._known[sight.agent].before(sight.began - STALE_SECONDS - MEASURING_SECONDS)

    def _known_here(self, sight: Sight) -> int:
        """What the replica itself had acknowledged."""
        own = self._own.get((sight.agent, sight.replica))
        return 0 if own is None else own.before(sight.began)


def hashed(steps: list[dict[str, Any]]) -> int:
    """The same number for the same steps in the same order."""
    return hash(tuple(orjson.dumps(step, option=orjson.OPT_SORT_KEYS) for step in steps))


def assert_as_committed(sights: list[Sight], agent: str, steps: list[dict[str, Any]]) -> None:
    """Each read of the agent showed exactly the steps that its version has."""
    wanted: dict[int, int] = {}
    for sight in sights:
        if sight.agent == agent:
            if sight.version not in wanted:
                wanted[sight.version] = hashed([step for step in steps if step["version"] <= sight.version])
            assert sight.steps == wanted[sight.version], f"{sight} shows other steps than its version has"


async def _write_on(ledger: Ledger, agent: str, replica: int, client: httpx.AsyncClient, dice: random.Random) -> None:
    """Writes of all kinds, sometimes a few at once, which are folded."""
    name = uuid4().hex[:8]
    number = 0
    while not ledger.over.is_set():
        marks = [f"{name}-{number + more}" for more in range(dice.choice((1, 1, 3)))]
        number += len(marks)
        await asyncio.gather(*(_write_one(ledger, agent, replica, client, dice.choice(MIXED), mark) for mark in marks))
        await asyncio.sleep(dice.uniform(*QUIET) if dice.random() < 0.05 else dice.uniform(0, 2 * WRITE_PAUSE))


async def _write_one(ledger: Ledger, agent: str, replica: int, client: httpx.AsyncClient, kind: str, mark: str) -> None:
    attempt = await write(ledger.recorders[agent], client, agent, kind, mark)
    assert attempt.accounted_for, str(attempt)
    if attempt.acknowledged:
        assert attempt.answer is not None
        ledger.acknowledged(agent, replica, int(attempt.answer.headers["etag"].strip('"')))


async def _read_on(ledger: Ledger, agent: str, replica: int, url: str, dice: random.Random) -> None:
    """Plain reads over one connection."""
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
        while not ledger.over.is_set():
            began = time.monotonic()
            answer = await client.get(f"/v1/agents/{agent}")
            if answer.status_code == 200:
                seen = orjson.loads(answer.content)
                ledger.sights.append(Sight(agent, replica, began, seen["version"], hashed(seen["steps"])))
                ledger.known(agent, seen["version"])
            else:
                assert answer.status_code == 503, answer.text
                ledger.refused += 1
            await asyncio.sleep(dice.uniform(0, 2 * READ_PAUSE))


@asynccontextmanager
async def traffic(replicas: list[Replica]) -> AsyncIterator[Ledger]:
    """Fresh agents that are written and read on every replica while this is entered."""
    async with clients_of(*replicas) as clients:
        ledger = Ledger({f"agent-{uuid4().hex}": Recorder() for _ in WRITTEN_ON}, len(replicas))
        for agent in ledger.recorders:
            assert (await clients[0].post("/v1/agents", json={"id": agent})).status_code == 201
            ledger.known(agent, 1)
        async with asyncio.TaskGroup() as group:
            for agent, writing in zip(ledger.recorders, WRITTEN_ON, strict=True):
                for number in writing:
                    group.create_task(_write_on(ledger, agent, number, clients[number], random.Random()))  # noqa: S311
                for number, replica in enumerate(replicas):
                    group.create_task(_read_on(ledger, agent, number, replica.url, random.Random()))  # noqa: S311
            yield ledger
            ledger.over.set()


async def assert_read_truly(ledger: Ledger, replica: Replica, *, all_acknowledged: bool) -> None:
    """No read was too stale, each showed its version as it is; and the writes are as they were acknowledged."""
    assert not (stale := ledger.stale()), f"{len(stale)} of {len(ledger.sights)}: {stale[:5]}"
    async with clients_of(replica) as (client,):
        for agent, recorder in ledger.recorders.items():
            if all_acknowledged:
                assert not recorder.where(lambda attempt: attempt.answer is not None and not attempt.acknowledged)
            marks = await read_marks(client, agent)
            assert_truthful(recorder, marks)
            assert_as_committed(ledger.sights, agent, marks.steps)
    _log.info("%d reads, %d refused, %d writes", len(ledger.sights), ledger.refused, _writes(ledger))


def _writes(ledger: Ledger) -> int:
    return sum(len(recorder.attempts) for recorder in ledger.recorders.values())


async def test_no_read_is_staler_than_its_bound_while_streams_fail(house: House) -> None:
    """Streams break, end, hang, come late, lose their history and are refused: reads on both replicas stay true."""
    closed = [replica.metric("holdfast_stream_closed_total") for replica in house.replicas]
    hits = [replica.metric("holdfast_cache_hits_total") for replica in house.replicas]
    for number in range(rounds(1)):
        async with traffic(house.replicas) as ledger:
            house.order(WILD)
            await wait_until_async(lambda times=number + 1: _all_dealt(house, times), 60, "each kind of fault")
            house.order(CALM)
            await asyncio.gather(*(asyncio.to_thread(replica.wait_ready, 20) for replica in house.replicas))
            await ledger.moves(BACK_SECONDS)
        await assert_read_truly(ledger, house.replicas[1], all_acknowledged=True)
    for number, replica in enumerate(house.replicas):
        happened = house.faults[number].happened()
        breaks = sum(happened[kind] for kind in (BROKEN, ENDED, LOST, HUNG))
        assert replica.metric("holdfast_stream_closed_total") - closed[number] >= breaks, "faults that were not felt"
        assert replica.metric("holdfast_cache_hits_total") > hits[number], "nothing was answered from memory"
        _log.info("%s: %s", replica.name, dict(happened))


def _all_dealt(house: House, times: int) -> bool:
    return all(faults.happened()[kind] >= times for faults in house.faults for kind in (*DEALT, SLOW))


async def test_replica_without_a_stream_is_not_ready_and_its_reads_are_fresh(house: House) -> None:
    """503 within 5 s and for as long as there is no stream; 200 by itself afterwards; the other one stays ready."""
    house.order(CALM)
    other, deaf = house.replicas
    for replica in house.replicas:
        await asyncio.to_thread(replica.wait_ready, 10)
    async with traffic(house.replicas) as ledger:
        await ledger.moves(BACK_SECONDS)
        began = time.monotonic()
        house.faults[1].order(DEAD)
        await _readiness_becomes(deaf, 503, began + 5.0)
        while time.monotonic() < began + 5.5:
            assert await asyncio.to_thread(deaf.readiness) == 503
            assert await asyncio.to_thread(other.readiness) == 200
        await ledger.moves(BACK_SECONDS)
        house.faults[1].order(CALM)
        await _readiness_becomes(deaf, 200, time.monotonic() + 10.0)
        await ledger.moves(BACK_SECONDS)
    await assert_read_truly(ledger, deaf, all_acknowledged=True)
    assert not ledger.refused


async def test_stream_that_brings_nothing_is_opened_anew(house: House) -> None:
    """A stream that answers, but with nothing, ever: the replica is not ready, then follows a new one by itself."""
    house.order(CALM)
    mute = house.replicas[1]
    await asyncio.to_thread(mute.wait_ready, 10)
    closed = mute.metric("holdfast_stream_closed_total")
    async with traffic(house.replicas) as ledger:
        await ledger.moves(BACK_SECONDS)
        house.faults[1].order(MUTE)
        await _readiness_becomes(mute, 503, time.monotonic() + 5.0)
        await _readiness_becomes(mute, 200, time.monotonic() + 5.0)
        await ledger.moves(BACK_SECONDS)
    assert mute.metric("holdfast_stream_closed_total") == closed + 1
    await assert_read_truly(ledger, mute, all_acknowledged=True)


async def _readiness_becomes(replica: Replica, wanted: int, until: float) -> None:
    while (status := await asyncio.to_thread(replica.readiness)) != wanted:
        assert time.monotonic() < until, f"{replica.name} still answers {status}"


async def test_no_read_is_staler_than_its_bound_while_the_database_fails(house: House) -> None:
    """The database is killed and restarted, and hangs for shorter and longer than a read may be behind."""
    house.order(CALM)
    for _ in range(rounds(1)):
        async with traffic(house.replicas) as ledger:
            await ledger.moves(BACK_SECONDS)
            house.database.kill9()
            await asyncio.to_thread(house.database.restart)
            for seconds in (0.8, 3.0):
                await ledger.moves(BACK_SECONDS)
                async with paused(house.database, seconds):
                    pass
            await ledger.moves(BACK_SECONDS)
        await assert_read_truly(ledger, house.replicas[1], all_acknowledged=False)


async def test_naive_cache_is_caught(tmp_path: Path) -> None:
    """The checks find what a cache without bounds, tokens and tombstones serves: they would find it in the real one."""
    faults = Faults(tmp_path, "naive")
    with deployment(tmp_path, "true", "naive", prepare={"naive": NaiveCache(faults)}) as (_, replicas):
        async with traffic(replicas) as ledger:
            faults.order(LATE)
            await wait_until_async(ledger.stale, 30, "a read that is too stale")
        assert {sight.replica for sight, _ in ledger.stale()} == {1}


@pytest.mark.parametrize("case", killed.CASES, ids=str)
async def test_own_write_is_seen_here_at_once_and_elsewhere_with_its_version(house: House, case: killed.Case) -> None:
    """After a write, all that was in memory is read anew: as by `no-cache`, on both replicas."""
    house.order(CALM)
    async with clients_of(*house.replicas) as (here, there):
        agent = await killed.prepared(there, case)
        for client in (here, there):
            await view(client, agent)
        answer = await killed.carry_out(here, case, agent)
        assert answer.is_success, answer.text
        target = killed._target(case, answer, agent)
        at_once = await view(here, target)
        assert at_once == await view(there, target, headers=STRONG)
        if case.name == "delete":
            assert {status for status, *_ in at_once.values()} == {404}
        else:
            version = answer.headers["etag"].strip('"')
            assert at_once[""][1] == f'"{version}"'
            assert await view(there, target, query=f"min_version={version}") == at_once


async def view(
    client: httpx.AsyncClient, agent: str, *, query: str = "", headers: dict[str, str] | None = None
) -> dict[str, tuple[int, str | None, Any]]:
    """All that can be read of an agent: status, ETag and body of each read."""
    seen = {}
    for read in killed.READS:
        answer = await client.get(f"/v1/agents/{agent}{read}{'&' if '?' in read else '?'}{query}", headers=headers)
        seen[read] = (answer.status_code, answer.headers.get("etag"), answer.json())
    return seen
