"""Clocks that jump, by hours and in both directions, under one replica of two: neither leases nor lives go by them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import libfaketime
import pytest

from tests.harness import Database, free_port, wait_until

TTL = 2.0
JUMPS = ("+3600s", "-7200s", "+0s")
RUNNER = {"platform": "local", "capacity": 4, "pool": "clocks"}


class Replica:
    """A replica whose wall clock is set from outside, in a process of its own."""

    def __init__(self, folder: Path, database: Database, name: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._offset = folder / f"{name}.clock"
        self.jump("+0s")
        library = next(Path(libfaketime.__file__).parent.rglob("libfaketime.so.1"))
        self._env = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "MONGODB_URI": database.uri,
            "HOLDFAST_DATA": str(folder / name),
            "HOLDFAST_LOG_LEVEL": "warning",
            "HOLDFAST_RUNNER_TTL_SECONDS": str(TTL),
        }
        self._log = folder / f"{name}.log"
        self.start()

    def start(self) -> None:
        program = Path(sys.executable).with_name("holdfast")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([program, "serve", "--port", str(self.port)], env=self._env, stderr=log)

    def jump(self, offset: str) -> None:
        """Set its wall clock to so much before or after the true time."""
        self._offset.write_text(offset + "\n")

    def wait_ready(self) -> Replica:
        wait_until(self._ready, 60, "the replica to be ready")
        return self

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def _ready(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health/ready", timeout=5).is_success
        return False


@contextmanager
def two_replicas(folder: Path) -> Iterator[list[Replica]]:
    database = Database(folder / "data").start()
    replicas = [Replica(folder, database, name) for name in ("steady", "jumping")]
    try:
        yield [replica.wait_ready() for replica in replicas]
    finally:
        for replica in replicas:
            replica.stop()
        database.stop()


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    with two_replicas(tmp_path_factory.mktemp("clocks")) as both:
        yield both


@pytest.fixture
def client(replicas: list[Replica]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=replicas[0].url, timeout=20) as client:
        yield client


def test_clock_really_jumps(replicas: list[Replica]) -> None:
    """Else the rest would prove nothing: what the jumping replica writes bears its wall time."""
    steady, jumping = replicas
    jumping.jump("+3600s")
    made = [httpx.post(f"{each.url}/v1/agents", json={}).json()["updated_at"] for each in (steady, jumping)]
    jumping.jump("+0s")
    assert made[1] > made[0]
    assert int(made[1][11:13]) == (int(made[0][11:13]) + 1) % 24


def test_live_runner_keeps_its_agents_whatever_the_clocks_say(replicas: list[Replica], client: httpx.Client) -> None:
    """Beating all along, over both replicas, while one's clock jumps back and forth: nothing is taken."""
    agent = client.post("/v1/agents", json={"pool": "clocks"}).json()["id"]
    runner = client.post("/v1/runners", json=RUNNER).json()["id"]
    (claim,) = client.post(f"/v1/runners/{runner}/claim", json={"max": 1}).json()["claims"]
    until = time.monotonic() + 3 * TTL
    number = 0
    while time.monotonic() < until:
        replicas[1].jump(JUMPS[number % len(JUMPS)])
        beaten = httpx.post(f"{replicas[number % 2].url}/v1/runners/{runner}/heartbeat", json={}, timeout=20)
        assert beaten.is_success, beaten.text
        number += 1
        time.sleep(TTL / 8)  # the rhythm of the heartbeats
    shown = client.get(f"/v1/agents/{agent}").json()
    assert (shown["runner"], shown["fence"]) == (runner, claim["fence"])
    client.delete(f"/v1/runners/{runner}")
    client.delete(f"/v1/agents/{agent}")


@pytest.mark.parametrize("jump", JUMPS)
def test_silent_runner_dies_in_time_whatever_the_clocks_say(
    replicas: list[Replica], client: httpx.Client, jump: str
) -> None:
    """A clock that jumped by an hour, forwards or backwards, keeps nobody's agents from being taken over."""
    agent = client.post("/v1/agents", json={"pool": "clocks"}).json()["id"]
    silent = client.post("/v1/runners", json=RUNNER).json()["id"]
    client.post(f"/v1/runners/{silent}/claim", json={"max": 1})
    beaten = time.monotonic()
    client.post(f"/v1/runners/{silent}/heartbeat", json={})
    replicas[1].jump(jump)
    other = client.post("/v1/runners", json=RUNNER).json()["id"]

    def claimed() -> bool:
        url = replicas[1].url
        httpx.post(f"{url}/v1/runners/{other}/heartbeat", json={}, timeout=20)
        claims = httpx.post(f"{url}/v1/runners/{other}/claim", json={"max": 1}, timeout=20).json()["claims"]
        return [one["agent"] for one in claims] == [agent]

    wait_until(claimed, TTL + 20, "the agent to be taken over")
    assert time.monotonic() - beaten >= TTL * 0.9
    client.delete(f"/v1/runners/{other}")
    client.delete(f"/v1/agents/{agent}")


def test_ephemeral_agent_lives_as_long_as_was_asked_whatever_the_clocks_say(
    replicas: list[Replica], client: httpx.Client
) -> None:
    """While one replica's clock jumps by hours, both take its writes until its time is over, and none after that."""
    born = time.monotonic()
    agent = httpx.post(f"{replicas[1].url}/v1/agents", json={"ttl_seconds": 3}).json()["id"]
    answered = time.monotonic()
    statuses: list[tuple[float, float, int]] = []

    def over() -> bool:
        number = len(statuses)
        replicas[1].jump(JUMPS[number % len(JUMPS)])
        sent = time.monotonic()
        url = f"{replicas[number % 2].url}/v1/agents/{agent}/steps"
        answer = httpx.post(url, json={"role": "user", "content": "on"}, timeout=20)
        statuses.append((sent - answered, time.monotonic() - born, answer.status_code))
        return [status for _, _, status in statuses[-2:]] == [410, 410]

    wait_until(over, 3 + 20, "both replicas to refuse")
    replicas[1].jump("+0s")
    assert all(status == 201 for _, surely_before, status in statuses if surely_before < 3)
    assert not [status for surely_after, _, status in statuses if status == 201 and surely_after > 3 + 2]


@pytest.mark.parametrize("jump", ["+3600s", "-7200s"])
def test_replica_that_starts_with_a_wrong_clock_ends_no_life_too_soon(tmp_path: Path, jump: str) -> None:
    """Neither of agents that were there nor of its own; those that are over refuse writes on it, too."""
    with two_replicas(tmp_path) as (steady, jumping), httpx.Client(base_url=steady.url, timeout=20) as right:
        known, short = [right.post("/v1/agents", json={"ttl_seconds": seconds}).json()["id"] for seconds in (600, 1)]
        jumping.stop()
        jumping.jump(jump)
        jumping.start()
        jumping.wait_ready()
        with httpx.Client(base_url=jumping.url, timeout=20) as wrong:
            own = wrong.post("/v1/agents", json={"ttl_seconds": 600}).json()["id"]
            for agent in (known, own):
                for replica in (wrong, right):
                    written = replica.post(f"/v1/agents/{agent}/steps", json={"role": "user", "content": "on"})
                    assert written.status_code == 201, written.text
            wait_until(lambda: right.get(f"/v1/agents/{short}").json()["archived"], 20, "the short life to end")
            late = wrong.post(f"/v1/agents/{short}/steps", json={"role": "user", "content": "late"})
            assert late.status_code == 410, late.text
