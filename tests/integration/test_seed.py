"""`python -m scripts.seed` makes a living fleet on a served replica, as somebody who tries it would see it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.seed import STATES, Plan, _history, _spec
from tests.harness import Replica, deployment, free_port, wait_until

SECONDS = 60.0
ROOT = Path(__file__).parents[2]
AGENTS = 28
"""One for each state among those that are in no pool."""

SMALL = ("--agents", str(AGENTS), "--steps", "6", "--pace", "0.02", "--pools", "north, south")


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    with deployment(tmp_path_factory.mktemp("seed"), "one") as (_, replicas):
        yield replicas[0]


def start(*words: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "MONGODB_"))}
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "scripts.seed", *words]
    environment = {**inherited, "COLUMNS": "200"}
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def run(*words: str) -> tuple[int, str, str]:
    with start(*words) as process:
        out, err = process.communicate(timeout=SECONDS)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def get(replica: Replica, path: str) -> Any:
    return httpx.get(f"{replica.url}/v1{path}", headers={"Cache-Control": "no-cache"}).raise_for_status().json()


def seeded(replica: Replica, number: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(replica, "/agents?limit=200&label=seeded:true")["items"]
    return [agent for agent in found if agent["id"].startswith(f"seed-{number}-")]


def told(out: str, what: str) -> int:
    match = re.search(rf"(\d+) {what}", out)
    return int(match[1]) if match else 0


def test_it_makes_agents_with_a_past_in_every_state_and_only_once(replica: Replica) -> None:
    code, out, err = run("--url", replica.url, *SMALL, "--runners", "0")
    assert (code, told(out, "agents made")) == (0, AGENTS), err
    agents = seeded(replica, 1)
    assert len(agents) == AGENTS
    assert {agent["state"] for agent in agents if agent["pool"] is None} == set(STATES)
    assert {agent["pool"] for agent in agents} == {None, "north", "south"}
    assert all("second-thought" in agent["branches"] and agent["labels"]["team"] for agent in agents)
    one = get(replica, f"/agents/{agents[1]['id']}?steps=all")
    roles = Counter(step["role"] for step in one["steps"])
    assert roles["user"] and roles["agent"]
    assert get(replica, f"/agents/{one['id']}/results")["results"]["verdict"]
    code, again, _ = run("--url", replica.url, *SMALL, "--runners", "0")
    assert (code, told(again, "agents were there")) == (0, AGENTS)
    assert seeded(replica, 1) == agents


def test_runners_drive_agents_for_a_while_and_leave(replica: Replica) -> None:
    code, out, err = run("--url", replica.url, *SMALL, "--runners", "3", "--seconds", "4", "--random-seed", "2")
    assert code == 0, err
    assert told(out, "claims") > 0
    assert told(out, "turns") > 0
    runners = [one for one in get(replica, "/runners")["items"] if one["id"].startswith("seed-2-")]
    assert Counter(one["state"] for one in runners) == {"left": 3}
    assert {one["pool"] for one in runners} == {"north", "south"}
    agents = seeded(replica, 2)
    assert not [agent for agent in agents if agent["runner"]]
    assert max(agent["fence"] for agent in agents if agent["pool"]) > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_lives_until_it_is_stopped(replica: Replica, number: signal.Signals) -> None:
    """Ctrl-C is the way to end it: runners take themselves off, and the last line says what was done."""
    seed = str(10 + number)
    with start("--url", replica.url, *SMALL, "--runners", "2", "--random-seed", seed) as process:

        def driven() -> bool:
            return any(agent["state"] == "busy" and agent["runner"] for agent in seeded(replica, int(seed)))

        wait_until(driven, SECONDS, "a runner to drive")
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, "Traceback" in err) == (0, False)
    assert told(out, "agents made") == AGENTS
    assert not [agent for agent in seeded(replica, int(seed)) if agent["runner"]]


def test_what_it_makes_follows_from_the_seed() -> None:
    def made(seed: int) -> Any:
        plan = Plan(agents=3, runners=0, pools=("a", "b"), steps=20, pace=0, seed=seed)
        chances = [plan.chance("agent", number) for number in range(3)]
        return [(_spec(str(n), chance, "a"), _history(chance, 20)) for n, chance in enumerate(chances)]

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_it_refuses_politely(replica: Replica) -> None:
    code, out, err = run("--url", f"http://127.0.0.1:{free_port()}")
    assert (code, out) == (1, "")
    assert "Nobody answers" in err and "make serve" in err
    code, out, err = run("--url", replica.url, "--key", "hf_wrong")
    assert (code, out) == (1, "")
    assert "401" in err
    for words in (("--url", "replica"), ("--pools", " , "), ("--agents", "-1")):
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert words[0] in err
    code, out, _ = run("--help")
    assert code == 0 and "Example" in out
