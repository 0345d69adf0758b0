"""The release before execution and the present one, side by side on one database, with the migration in the middle.

The old replica is the real one: the code of its commit, as a process of its own.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import MongoClient

from models.execution import State, activity_of, status_of
from tests.harness import (
    START_SECONDS,
    STRONG,
    Database,
    Recorder,
    Replica,
    Writers,
    assert_truthful,
    clients_of,
    free_port,
    read_marks,
    rounds,
    settle,
    wait_until,
    wait_until_async,
    writing,
)

pytestmark = pytest.mark.asyncio

OLD = "02b2a27"
"""The last commit before agents had more of execution than its fields."""

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("holdfast")
SECONDS = 90.0
TURNS = rounds(12)
LEGACY = {
    "legacy-rests": {"status": "running", "activity": "idle"},
    "legacy-ended": {"status": "stopped", "activity": "idle"},
    "legacy-fixed": {"status": "pending", "activity": "idle", "agent_id": "fixed"},
}
"""Documents of a program older than both."""

OLD_KINDS = ("append", "keyed", "result", "setting")
NEW_KINDS = ("append", "chosen", "setting")


@dataclass
class Upgrade:
    """Both replicas, with a client each, on one database."""

    uri: str
    folder: Path
    old: httpx.AsyncClient
    new: httpx.AsyncClient
    seen: dict[str, int] = field(default_factory=dict)
    """The newest version that was seen of each agent."""

    def program(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The present program, run to its end."""
        return subprocess.run(
            [PROGRAM, *words],
            env={**_inherited(), "MONGODB_URI": self.uri, "HOLDFAST_DATA": str(self.folder / "data")},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    async def look(self, agent: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The agent by both replicas, one after the other: no answer contradicts itself, or goes back."""
        found = []
        for client in (self.old, self.new):
            answer = await client.get(f"/v1/agents/{agent}?steps=none", headers=STRONG)
            assert answer.status_code in {200, 503}, answer.text
            if answer.status_code == 200:
                body = answer.json()
                state = State(body["state"])
                assert (body["status"], body["activity"]) == (status_of(state), activity_of(state))
                assert body["version"] >= self.seen.get(agent, 0)
                self.seen[agent] = body["version"]
                found.append(body)
            await client.get(f"/v1/agents/{agent}")  # so that both keep a copy, and bring it up to date
        return (found[0], found[-1]) if found else await self.look(agent)


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "MONGODB_"))}


@pytest.fixture(scope="module")
def old_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the old release's packages."""
    known = subprocess.run(["git", "cat-file", "-e", f"{OLD}^{{commit}}"], cwd=ROOT, capture_output=True, check=False)
    if known.returncode:
        pytest.skip(f"the old release, commit {OLD}, is not in this repository (a shallow clone, or no clone at all)")
    folder = tmp_path_factory.mktemp("old-code")
    archive = subprocess.run(["git", "archive", OLD, "app", "models"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


@contextmanager
def old_replica(code: Path, uri: str, folder: Path) -> Iterator[str]:
    """A replica of the old release, ready; its address."""
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    own = {"PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1", "HOLDFAST_DATA": str(folder / "data")}
    told = folder / "old.log"
    with told.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from app.cli import main; main()", "serve", "--port", port],
            env={**_inherited(), **own, "MONGODB_URI": uri, "HOLDFAST_LOG_LEVEL": "warning"},
            cwd=code,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: _ready(url) or process.poll() is not None, START_SECONDS, "the old replica to be ready")
        assert process.poll() is None, told.read_text()[-4000:]
        yield url
    finally:
        process.terminate()
        process.wait(timeout=SECONDS)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
async def upgrade(old_code: Path, tmp_path: Path) -> AsyncIterator[Upgrade]:
    """An old replica that has served for a while, beside documents of older programs; then a new one joins."""
    database = Database(tmp_path / "database").start()
    new = Replica(tmp_path, database.uri, "new")
    try:
        with old_replica(old_code, database.uri, tmp_path) as url:
            async with httpx.AsyncClient(base_url=url, timeout=60) as old, clients_of(new) as (client,):
                await _live_as_before(old, database.uri)
                new.start().wait_ready()
                yield Upgrade(database.uri, tmp_path, old, client)
    finally:
        new.stop()
        database.stop()


async def _live_as_before(old: httpx.AsyncClient, uri: str) -> None:
    """What is there before the upgrade: agents of the old release, one without a state, and what is older."""
    for agent in ({"id": "shared"}, {"id": "stateless"}, {"id": "pooled", "pool": "pool"}):
        assert (await old.post("/v1/agents", json=agent)).status_code == 201
    with MongoClient[Any](uri) as client:
        agents = client["holdfast"]["agents"]
        agents.update_one({"_id": "default:stateless"}, {"$unset": {"state": "", "activity": ""}})
        agents.insert_many(
            {"_id": f"default:{agent}", "tenant": "default", "steps": [{"role": "user"}], **said}
            for agent, said in LEGACY.items()
        )


async def _take_turns(client: httpx.AsyncClient, agent: str, fence: int | None = None) -> None:
    """A turn, with a step in its middle, from begin to end."""
    headers = {} if fence is None else {"Fencing-Token": str(fence)}
    begun = await client.post(f"/v1/agents/{agent}/turns", json={"content": "Go."}, headers=headers)
    assert begun.status_code == 201, begun.text
    turn = begun.json()["turn_id"]
    step = {"role": "agent", "content": "Going.", "turn_id": turn}
    assert (await client.post(f"/v1/agents/{agent}/steps", json=step, headers=headers)).status_code == 201
    done = {"outcome": "completed", "steps": [{"role": "agent", "content": "Gone.", "turn_id": turn}]}
    finished = await client.post(f"/v1/agents/{agent}/turns/{turn}/finish", json=done, headers=headers)
    assert finished.status_code == 200, finished.text


@asynccontextmanager
async def registered(client: httpx.AsyncClient) -> AsyncIterator[None]:
    """A runner, which beats."""
    spec = {"id": "runner", "pool": "pool", "platform": "local", "capacity": 3}
    made = await client.post("/v1/runners", json=spec)
    assert made.status_code == 201, made.text

    async def beat() -> None:
        while True:
            assert (await client.post("/v1/runners/runner/heartbeat", json={})).status_code == 200
            await asyncio.sleep(made.json()["heartbeat_seconds"])

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


async def _drive(client: httpx.AsyncClient) -> None:
    """What a runner does, again and again: claim, connect, a turn, release."""
    for _ in range(TURNS):
        claim = await _claim(client)
        fence, agent = claim["fence"], claim["agent"]
        if claim["state"] == "starting":
            connected = {"to": "idle", "trigger": "connected"}
            headers = {"Fencing-Token": str(fence)}
            moved = await client.post(f"/v1/agents/{agent}/transitions", json=connected, headers=headers)
            assert moved.status_code == 200, moved.text
        await _take_turns(client, agent, fence)
        released = await client.post("/v1/runners/runner/release", json={"agent": agent})
        assert released.status_code == 200, released.text


async def _claim(client: httpx.AsyncClient) -> dict[str, Any]:
    """The agent that waits in the pool; asked for again where others wrote it so often that there was no gap."""
    while True:
        claimed = await client.post("/v1/runners/runner/claim", json={"max": 1, "wait_seconds": 30})
        if claimed.status_code == 200:
            (claim,) = claimed.json()["claims"]
            return dict(claim)
        assert claimed.status_code == 503 and claimed.json()["written"] is False, claimed.text


async def _repeat_turns(client: httpx.AsyncClient, agent: str) -> None:
    for _ in range(TURNS):
        await _take_turns(client, agent)


@asynccontextmanager
async def looking(upgrade: Upgrade, *agents: str) -> AsyncIterator[None]:
    """Somebody reads the agents all the while, through both replicas."""

    async def look() -> None:
        while True:
            for agent in agents:
                await upgrade.look(agent)

    task = asyncio.create_task(look())
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_old_and_new_replicas_serve_the_same_agents_while_they_are_migrated(upgrade: Upgrade) -> None:
    """Nothing acknowledged is lost, `status` reads the same everywhere, versions only grow, and all is consistent."""
    recorders = {agent: Recorder() for agent in ("shared", "stateless", "pooled")}
    async with looking(upgrade, *recorders), registered(upgrade.new):
        shared, stateless, pooled = recorders.values()
        async with writing(shared) as all_kinds, writing(stateless) as some, writing(pooled) as others:
            _write(upgrade, all_kinds, "shared", OLD_KINDS, NEW_KINDS)
            _write(upgrade, some, "stateless", ("append",), ("setting",))
            _write(upgrade, others, "pooled", ("append",), ("setting",))
            driving = asyncio.gather(_repeat_turns(upgrade.new, "shared"), _drive(upgrade.new))
            await wait_until_async(lambda: upgrade.seen.get("shared", 0) > 1, SECONDS, "writes to be seen")
            migrated = await asyncio.to_thread(upgrade.program, "migrate")
            assert migrated.returncode == 0, migrated.stdout + migrated.stderr
            await driving
            for writers in (all_kinds, some, others):
                await writers.served(SECONDS)

    for agent, recorder in recorders.items():
        await settle(upgrade.old, agent)
        for client in (upgrade.old, upgrade.new):
            assert_truthful(recorder, await read_marks(client, agent))
    for agent in (*recorders, *LEGACY):
        by_old, by_new = await upgrade.look(agent)
        same = ("version", "status", "activity", "state", "head", "pool", "step_count")
        assert [by_old[name] for name in same] == [by_new[name] for name in same]
    for agent, said in LEGACY.items():
        body, _ = await upgrade.look(agent)
        assert (body["status"], body["activity"]) == (said["status"], said["activity"])
        assert (body["pool"], body["step_count"]) == (said.get("agent_id"), 1)
    checked = await asyncio.to_thread(upgrade.program, "doctor", "--fsck")
    assert checked.returncode == 0, checked.stdout
    again = await asyncio.to_thread(upgrade.program, "migrate")
    assert "all is up to date, 0 changed" in again.stdout


def _write(upgrade: Upgrade, writers: Writers, agent: str, by_old: tuple[str, ...], by_new: tuple[str, ...]) -> None:
    for name, client, kinds in (("old", upgrade.old, by_old), ("new", upgrade.new, by_new)):
        for kind in kinds:
            writers.add(client, agent, kind, f"{name}_{kind}")
