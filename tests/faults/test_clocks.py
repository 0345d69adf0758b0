"""Clocks that jump, by hours and in both directions, under one replica of two: leases go by none of them."""

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
        env = {
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
        program = Path(sys.executable).with_name("holdfast")
        with (folder / f"{name}.log").open("wb") as log:
            self._process = subprocess.Popen([program, "serve", "--port", str(self.port)], env=env, stderr=log)

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
    made = [httpx.post(f"{each.url}/v1/agents", json={}).json()["created_at"] for each in (steady, jumping)]
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
