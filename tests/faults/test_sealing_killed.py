"""kill -9 at each point of a commit that seals: nothing acknowledged is lost, and what is left over is harmless."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.bulk import BulkWriter
from app.clock import SystemClock
from app.collector import Collector
from app.fsck import Fsck
from app.mongo import Mongo, open_client
from app.segments import Segments
from tests.harness import (
    STRONG,
    Recorder,
    Writers,
    assert_one_chain,
    assert_truthful,
    clients_of,
    deployment,
    read_marks,
    rounds,
    settle,
)

pytestmark = pytest.mark.asyncio

SEAL_BYTES = 4_096


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_the_segment() -> None:
    """The agent has too many steps; nothing is written."""
    _at_storing(before=True)


def after_the_segment() -> None:
    """The segment is durable; no agent keeps it."""
    _at_storing(before=False)


def after_the_commit() -> None:
    """The agent keeps the segment; nobody was told."""
    send = BulkWriter.send

    async def sent(self: BulkWriter, write: Any, size: int) -> Any:
        outcome = await send(self, write, size)
        if any(path.startswith("sealed.") for path in getattr(write, "_doc", {}).get("$set", {})):
            _die()
        return outcome

    BulkWriter.send = sent  # type: ignore[method-assign]  # this process is made to die


def _at_storing(*, before: bool) -> None:
    store = Segments.store

    async def stored(self: Segments, segments: Any) -> None:
        if segments and before:
            _die()
        await store(self, segments)
        if segments:
            _die()

    Segments.store = stored  # type: ignore[method-assign]  # this process is made to die


POINTS = [before_the_segment, after_the_segment, after_the_commit]


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.__name__.replace("_", " "))
async def test_nothing_is_lost_wherever_a_sealing_replica_dies(point: Callable[[], None], tmp_path: Path) -> None:
    """What was acknowledged is there, what was not once at most; the survivor goes on, and collects what is left."""
    with deployment(tmp_path, "dies", "stays", prepare={"dies": point}, seal_bytes=SEAL_BYTES) as (database, replicas):
        dying, staying = replicas
        for number in range(rounds(2)):
            if number:
                dying.restart()
            recorder = Recorder()
            async with clients_of(dying, staying) as (doomed, client):
                agent = (await client.post("/v1/agents", json={})).json()["id"]
                await _append_until_it_dies(recorder, doomed, agent)
                dying.ended(20)
                await settle(client, agent)
                assert_truthful(recorder, await read_marks(client, agent))
                for more in range(60):
                    answer = await client.post(
                        f"/v1/agents/{agent}/steps", json={"role": "agent", "content": f"{more}" * 99}
                    )
                    assert answer.status_code == 201, answer.text
                await _reads_whole(client, agent)
        await _check(database.uri)


async def test_two_replicas_that_seal_the_same_agent_lose_nothing(tmp_path: Path) -> None:
    """Both write it all the time; who is second has sealed in vain."""
    with deployment(tmp_path, "one", "two", seal_bytes=SEAL_BYTES) as (database, replicas):
        recorder = Recorder()
        async with clients_of(*replicas) as clients:
            agent = (await clients[0].post("/v1/agents", json={})).json()["id"]
            writers = Writers(recorder)
            for number, client in enumerate(clients):
                for kind in ("append", "chosen", "keyed"):
                    writers.add(client, agent, kind, f"{kind}{number}")
            for _ in range(rounds(5)):
                await writers.served(30)
            await writers.finish()
            await settle(clients[0], agent)
            assert_truthful(recorder, await read_marks(clients[0], agent))
            await _reads_whole(clients[1], agent)
        await _check(database.uri)


async def _append_until_it_dies(recorder: Recorder, client: httpx.AsyncClient, agent: str) -> None:
    for number in range(1_000):
        body = {"id": f"m{number}", "role": "user", "content": f"m{number}", "data": {"x": "x" * 200}}
        attempt = await recorder.send(client, "chosen", f"m{number}", "POST", f"/v1/agents/{agent}/steps", json=body)
        if attempt.answer is None:
            return
    raise AssertionError("the replica was to die")


async def _reads_whole(client: httpx.AsyncClient, agent: str) -> None:
    """The whole history is one chain, by every way to read it; and most of it is sealed."""
    found = (await client.get(f"/v1/agents/{agent}?steps_limit=10000", headers=STRONG)).json()
    assert_one_chain(found["steps"])
    assert found["size_bytes"] < len(json.dumps(found["steps"]))
    paged: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = await client.get(f"/v1/agents/{agent}/steps?limit=50" + (cursor and f"&cursor={cursor}"))
        page = answer.json()
        paged, cursor = [*paged, *page["items"]], page["next_cursor"]
    assert paged == found["steps"]


async def _check(uri: str) -> None:
    """The database is consistent, and holds no segment that no agent keeps once it was collected."""
    client = open_client(uri)
    try:
        mongo = Mongo.of(client, "holdfast")
        found = [str(flaw) async for flaw in Fsck(mongo).findings()]
        assert found == []
        await Collector(mongo, SystemClock(), wait_seconds=0.1).collect()
        kept = {one["id"] async for agent in mongo.agents.find({}) for one in agent["sealed"].values()}
        assert kept == {segment["_id"] async for segment in mongo.segments.find({}, {"_id": 1})} != set()
        assert [str(flaw) async for flaw in Fsck(mongo).findings()] == []
    finally:
        await client.close()
