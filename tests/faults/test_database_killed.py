"""kill -9 of the database under concurrent writes on two replicas: nothing acknowledged is lost, nothing is doubled."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from itertools import cycle, islice
from uuid import uuid4

import httpx
import pytest

from models.settings import DEFAULTS
from tests.harness import (
    MIXED,
    Attempt,
    Database,
    Marks,
    Recorder,
    Replica,
    assert_truthful,
    clients_of,
    deployment,
    read_marks,
    rounds,
    settle,
    write,
    writing,
)

pytestmark = pytest.mark.asyncio

_log = logging.getLogger(__name__)

Deployment = tuple[Database, list[Replica]]

DEADLINE_SECONDS = 4.0
WRITERS = 20
BACK_SECONDS = 15.0
"""How soon after the database is back every writer has to be served again."""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    settings = {"deadline_seconds": DEADLINE_SECONDS, "attempt_seconds": 1.5}
    with deployment(tmp_path_factory.mktemp("database"), "left", "right", **settings) as parts:
        yield parts


async def test_killed_database_loses_nothing_acknowledged(deployed: Deployment) -> None:
    """Each acknowledged write is there once, each denied one is not; seq and versions add up; service comes back."""
    database, replicas = deployed
    recorder = Recorder()
    agent = f"agent-{uuid4().hex}"
    async with clients_of(*replicas) as clients:
        assert (await clients[0].post("/v1/agents", json={"id": agent})).status_code == 201
        async with writing(recorder) as writers:
            for number, (client, kind) in enumerate(islice(zip(cycle(clients), cycle(MIXED), strict=False), WRITERS)):
                writers.add(client, agent, kind, f"{kind}{number}")
            await writers.served(BACK_SECONDS)
            for _ in range(rounds(3)):
                database.kill9()
                await asyncio.to_thread(database.restart)
                await writers.served(BACK_SECONDS)

        for client in clients:
            await settle(client, agent)
        marks = await read_marks(clients[0], agent)
        assert_truthful(recorder, marks)
        assert not recorder.where(lambda attempt: attempt.refused)
        assert recorder.where(lambda attempt: not attempt.acknowledged), "the kills hit nothing in flight"
        assert marks.agent["version"] == 1 + _accepted(marks)

        for attempt in _repeatable(recorder):
            again = await write(recorder, clients[1], agent, attempt.kind, attempt.mark)
            assert again.acknowledged, str(again)
        assert_truthful(recorder, await read_marks(clients[1], agent))
    _log.info("%s", recorder.tally())


async def test_readiness_follows_the_database(deployed: Deployment) -> None:
    """/health/ready answers 503 within 5 s of the kill, /health/live stays 200, and ready comes back by itself."""
    database, replicas = deployed
    for _ in range(rounds(1)):
        for replica in replicas:
            assert replica.readiness() == 200
        database.kill9()
        killed = time.monotonic()
        await asyncio.gather(*(_readiness_becomes(replica, 503, killed + 5) for replica in replicas))
        for replica in replicas:
            assert httpx.get(f"{replica.url}/health/live").status_code == 200
        await asyncio.to_thread(database.restart)
        back = time.monotonic()
        await asyncio.gather(*(_readiness_becomes(replica, 200, back + BACK_SECONDS) for replica in replicas))


async def _readiness_becomes(replica: Replica, wanted: int, until: float) -> None:
    while (status := await asyncio.to_thread(replica.readiness)) != wanted:
        assert status is not None, "a probe hung or was dropped"
        assert time.monotonic() < until, f"{replica.name} still answers {status}"
    assert time.monotonic() < until


def _accepted(marks: Marks) -> int:
    """How many writes the agent shows: steps, results, settings, and the new name that `settle` gave it once."""
    return len(marks.steps) + len(marks.results) + len(marks.settings - DEFAULTS.keys()) + 1


def _repeatable(recorder: Recorder) -> list[Attempt]:
    """Unknown writes that can be repeated without harm."""
    return recorder.where(lambda attempt: attempt.unknown and attempt.kind in ("chosen", "keyed", "result", "setting"))
