"""A fleet under faults: runners as processes, prompts all along, and what has to hold of it afterwards.

The judge is the change log: it tells of each version of each agent by whom it was written and who drove the agent then.
What the runners were acknowledged stands in what they print.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from tests.harness import Replica, wait_until

Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
BY_A_RUNNER = "runner:"


class RunnerProcess:
    """One `scripts.example_runner`, and what it printed."""

    def __init__(self, folder: Path, urls: Sequence[str], name: str, pool: str, capacity: int) -> None:
        self.name = name
        self._log = folder / f"{name}.jsonl"
        self._errors = folder / f"{name}.err"
        options = [option for url in urls for option in ("--url", url)]
        options += ["--pool", pool, "--id", name, "--capacity", str(capacity), "--step-seconds", "0.2", "--steps", "2"]
        with self._log.open("wb") as output, self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scripts.example_runner", *options], cwd=ROOT, stdout=output, stderr=errors
            )
        self.killed_at: float | None = None
        self.pauses: list[tuple[float, float]] = []
        """Wall times of the beginning and the end; the same machine's as those of the change log."""

    def wait_registered(self) -> RunnerProcess:
        wait_until(
            lambda: any(event["event"] == "registered" for event in self.events()), 60, f"{self.name} to register"
        )
        return self

    def events(self) -> list[Json]:
        """What it printed; a line that was cut off by its death is no event."""
        lines = self._log.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def kill9(self) -> None:
        self.killed_at = time.time()
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        self.pauses.append((time.time(), float("inf")))
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self.pauses[-1] = (self.pauses[-1][0], time.time())

    def stop(self) -> None:
        """End it at once, or find that it ended."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGCONT)
        self._process.kill()
        self._process.wait()

    def errors(self) -> str:
        return self._errors.read_text()

    def was_faulty(self, at: float, ttl: float) -> bool:
        """Whether it may be taken to be dead at a wall time: it was killed, or silent for as long as its lease.

        Its last beat came before it was paused, by up to `ttl / 5` (how often it beats) and what a beat takes.
        """
        killed = self.killed_at is not None and self.killed_at < at
        return killed or any(begin + ttl * 0.7 < at < end + 2 * ttl for begin, end in self.pauses)


class Prompter:
    """Keeps every agent busy: prompts whichever is idle, over both replicas, and remembers what was taken."""

    def __init__(self, replicas: Sequence[Replica], agents: Sequence[str]) -> None:
        self._replicas = replicas
        self._agents = agents
        self._over = asyncio.Event()
        self.taken: dict[str, str] = {}
        """The agent of each turn whose prompt was acknowledged."""

    async def run(self) -> None:
        async with httpx.AsyncClient(timeout=15) as client:
            await asyncio.gather(*(self._prompt(client, number, agent) for number, agent in enumerate(self._agents)))

    def leave(self) -> None:
        self._over.set()

    async def _prompt(self, client: httpx.AsyncClient, number: int, agent: str) -> None:
        count = 0
        while not self._over.is_set():
            url = self._replicas[(number + count) % len(self._replicas)].url
            turn = f"{agent}-{count}"
            count += 1
            with suppress(httpx.HTTPError):
                answer = await client.post(f"{url}/v1/agents/{agent}/turns", json={"content": turn, "id": turn})
                if answer.is_success:
                    self.taken[turn] = agent
            await asyncio.sleep(0.3)


@dataclass
class Verdict:
    """What came of a run."""

    stuck: list[str] = field(default_factory=list)
    old_fence: list[str] = field(default_factory=list)
    lost_steps: list[str] = field(default_factory=list)
    lost_prompts: list[str] = field(default_factory=list)
    live_taken: list[str] = field(default_factory=list)
    disorder: list[str] = field(default_factory=list)
    """Fences or versions that went back, agents that were given to two."""
    take_overs: list[float] = field(default_factory=list)
    """Seconds from a runner's death to the claim of each agent that it drove."""
    counts: Counter[str] = field(default_factory=Counter)

    def told(self) -> str:
        """In a line for people."""
        found = sorted(self.take_overs)
        spread = (
            f"take-over p50 {found[len(found) // 2]:.1f} s, p99 {found[int(len(found) * 0.99)]:.1f} s of {len(found)}"
            if found
            else "no take-over"
        )
        wrong = ("stuck", "old_fence", "lost_steps", "lost_prompts", "live_taken", "disorder")
        return f"{ {name: len(getattr(self, name)) for name in wrong} }; {spread}; {dict(self.counts)}"

    def require_clean(self) -> None:
        """Fail, naming what is wrong."""
        wrong = {
            name: found[:5] for name, found in vars(self).items() if name not in ("take_overs", "counts") and found
        }
        assert not wrong, (wrong, self.told())


def judged(
    client: httpx.Client, runners: Sequence[RunnerProcess], prompter: Prompter, agents: Sequence[str], ttl: float
) -> Verdict:
    """Hold the change log and the agents against what was acknowledged and what was done to the runners."""
    verdict = Verdict()
    by_name = {runner.name: runner for runner in runners}
    steps = {agent: set(_step_ids(client, agent)) for agent in agents}
    for runner in runners:
        for event in runner.events():
            verdict.counts[event["event"]] += 1
            if event["event"] == "step" and event["step"] not in steps[event["agent"]]:
                verdict.lost_steps.append(f"{event['agent']} {event['step']}")
    verdict.lost_prompts = [turn for turn, agent in prompter.taken.items() if turn not in steps[agent]]
    verdict.counts["prompts"] = len(prompter.taken)
    for agent in agents:
        _judge_agent(_entries(client, agent), agent, by_name, ttl, verdict)
    return verdict


def _judge_agent(
    entries: Sequence[Json], agent: str, runners: dict[str, RunnerProcess], ttl: float, verdict: Verdict
) -> None:
    driver: str | None = None
    fence = version = 0
    lost_at: dict[str, float] = {}
    for entry in entries:
        at = datetime.fromisoformat(entry["at"]).timestamp()
        if entry["version"] != version + 1:
            verdict.disorder.append(f"{agent} {version} -> {entry['version']}")
        version = entry["version"]
        by = entry["by"].removeprefix(BY_A_RUNNER) if entry["by"].startswith(BY_A_RUNNER) else None
        if "runner" not in entry["kinds"]:
            if by is not None and by != driver:
                verdict.old_fence.append(f"{agent}@{version} by {by}, driven by {driver}")
            continue
        if entry["fence"] <= fence:
            verdict.disorder.append(f"{agent}@{version} fence {fence} -> {entry['fence']}")
        fence = entry["fence"]
        taker = entry.get("runner")
        if taker is not None and driver is not None:
            verdict.disorder.append(f"{agent}@{version} given to {taker} while {driver} drives it")
        if taker is None and by is None and driver is not None and not runners[driver].was_faulty(at, ttl):
            verdict.live_taken.append(f"{agent}@{version} from {driver}")
        if taker is None and driver is not None and (killed := runners[driver].killed_at) is not None:
            lost_at[agent] = killed
        if taker is not None and agent in lost_at:
            verdict.take_overs.append(at - lost_at.pop(agent))
        driver = taker


def _entries(client: httpx.Client, agent: str) -> list[Json]:
    """The agent's log, which may be a little behind: until it is at the document's version."""
    version = client.get(f"/v1/agents/{agent}?steps=none", headers={"Cache-Control": "no-cache"}).json()["version"]

    def whole() -> list[Json]:
        found = list(_pages(client, "/v1/changes", agent=agent))
        return found if found and found[-1]["version"] >= version else []

    entries: list[Json] = wait_until(whole, 30, f"the log of {agent} to be at version {version}")
    return entries


def _step_ids(client: httpx.Client, agent: str) -> Iterator[str]:
    for step in _pages(client, f"/v1/agents/{agent}/steps", view="all"):
        yield step["id"]


def _pages(client: httpx.Client, path: str, **query: str) -> Iterator[Json]:
    cursor: str | None = None
    while True:
        params = {**query, "limit": "200", **({"cursor": cursor} if cursor else {})}
        page = client.get(path, params=params).raise_for_status().json()
        yield from page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return
