"""A database that hangs (SIGSTOP) under writes: answers come in time, nothing acknowledged is lost, nothing doubled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import cycle, islice
from uuid import uuid4

import httpx
import pytest

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
    settle,
    wait_until_async,
    write,
    writing,
)

pytestmark = pytest.mark.asyncio

_log = logging.getLogger(__name__)

Deployment = tuple[Database, list[Replica]]

DEADLINE_SECONDS = 2.0
ATTEMPT_SECONDS = 0.7
MARGIN_SECONDS = 0.75
"""What the answer may take beside: a busy machine, the way there and back."""

WRITERS = 20
SERVED_SECONDS = 20.0
KEYED_AGENTS = 30
UNLOCKED_SECONDS = 5.0
"""How soon after a pause every agent takes writes again."""

READY = "/health/ready"

PAUSES = (0.3, 1.0, 1.9, 2.2, 4.5)
"""Shorter than an attempt, between, just around the deadline, much longer."""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    settings = {"deadline_seconds": DEADLINE_SECONDS, "attempt_seconds": ATTEMPT_SECONDS}
    with deployment(tmp_path_factory.mktemp("paused"), "left", "right", **settings) as parts:
        yield parts


@asynccontextmanager
async def paused(database: Database, seconds: float) -> AsyncIterator[None]:
    """Stop the database, let it go on after so long; leave when that has happened."""
    database.pause()
    going_on = asyncio.get_running_loop().call_later(seconds, database.resume)
    try:
        yield
        loop = asyncio.get_running_loop()
        await wait_until_async(lambda: loop.time() > going_on.when(), seconds + 5, "the resumption")
    finally:
        going_on.cancel()
        database.resume()


@pytest.mark.parametrize("seconds", PAUSES)
async def test_paused_database_delays_no_answer_and_doubles_no_write(deployed: Deployment, seconds: float) -> None:
    """Under writes of all kinds on two replicas: each answer within the deadline, each effect true to its answer."""
    database, replicas = deployed
    recorder = Recorder()
    agent = f"agent-{uuid4().hex}"
    async with clients_of(*replicas) as clients:
        assert (await clients[0].post("/v1/agents", json={"id": agent})).status_code == 201
        async with writing(recorder) as writers:
            for number, (client, kind) in enumerate(islice(zip(cycle(clients), cycle(MIXED), strict=False), WRITERS)):
                writers.add(client, agent, kind, f"{kind}{number}")
            await writers.served(SERVED_SECONDS)
            for _ in range(rounds(1)):
                async with paused(database, seconds):
                    pass
                await writers.served(SERVED_SECONDS)

        for client in clients:
            await settle(client, agent)
        marks = await read_marks(clients[0], agent)
        assert_truthful(recorder, marks)
        assert not recorder.where(lambda attempt: attempt.refused)
    slowest = max(recorder.attempts, key=lambda attempt: attempt.seconds)
    assert slowest.seconds <= DEADLINE_SECONDS + MARGIN_SECONDS, str(slowest)
    _log.info("%s", recorder.tally())


async def test_pause_amid_keyed_requests_leaves_no_agent_locked(deployed: Deployment) -> None:
    """Transactions that a pause cut off are over with it: every agent, and every key, can be written again soon."""
    database, replicas = deployed
    recorder = Recorder()
    agents = [f"agent-{uuid4().hex}" for _ in range(KEYED_AGENTS)]
    async with clients_of(*replicas) as clients:
        for agent in agents:
            assert (await clients[0].post("/v1/agents", json={"id": agent})).status_code == 201
        for number in range(rounds(2)):
            async with writing(recorder) as writers:
                for client, agent in zip(cycle(clients), agents, strict=False):
                    writers.add(client, agent, "keyed", f"{agent}.{number}")
                await writers.served(SERVED_SECONDS)
                async with paused(database, 1.5 * ATTEMPT_SECONDS):
                    writers.leave()
            began = asyncio.get_running_loop().time()
            unlocked = await asyncio.gather(*(_write_until_acknowledged(clients[1], agent, began) for agent in agents))
            assert max(unlocked) <= UNLOCKED_SECONDS, sorted(unlocked)[-5:]
        for attempt in recorder.where(lambda attempt: not attempt.acknowledged):
            agent = attempt.mark.partition(".")[0]
            again = await write(recorder, clients[1], agent, "keyed", attempt.mark)
            assert again.acknowledged, str(again)
        for agent in agents:
            own = Recorder(recorder.where(lambda attempt, agent=agent: attempt.mark.startswith(f"{agent}.")))
            assert_truthful(own, await read_marks(clients[0], agent))


async def _write_until_acknowledged(client: httpx.AsyncClient, agent: str, began: float) -> float:
    """Seconds until a plain write of the agent is acknowledged."""
    loop = asyncio.get_running_loop()
    while loop.time() < began + 70:
        answer = await client.patch(f"/v1/agents/{agent}/settings", json={"at": loop.time()})
        if answer.is_success:
            break
        assert answer.status_code == 503, answer.text
    return loop.time() - began


async def test_paused_database_delays_no_read(deployed: Deployment) -> None:
    """Reads of every kind, and /health/ready, answer in time during a pause: 200 or 503, never later, never a hang."""
    database, replicas = deployed
    agent = f"agent-{uuid4().hex}"
    async with clients_of(*replicas) as clients:
        assert (await clients[0].post("/v1/agents", json={"id": agent})).status_code == 201
        async with paused(database, 3.0):
            answers = await asyncio.gather(
                *(
                    client.get(path, headers=headers)
                    for client in clients
                    for path in (*(f"/v1/agents{more}" for more in ("", f"/{agent}", f"/{agent}?min_version=9")), READY)
                    for headers in ({}, STRONG)
                )
            )
        for answer in answers:
            assert answer.status_code == 503, answer.text
            assert answer.json()["code"] == "unavailable"
            assert answer.elapsed.total_seconds() <= 2.0 + ATTEMPT_SECONDS + MARGIN_SECONDS, answer.url
        for replica in replicas:
            await asyncio.to_thread(replica.wait_ready, 10)
