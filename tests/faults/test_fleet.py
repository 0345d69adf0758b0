"""A fleet of runners under kill -9 and SIGSTOP of runners, replicas and the database: no agent is ever stuck or stolen.

A short run is part of `make test`; `make test-long` does each of the six faults 200 times.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.faults.fleet import Prompter, RunnerProcess, Verdict, judged
from tests.harness import STRONG, Database, Replica, deployment, rounds, wait_until

TTL = 3.0
POOL = "fleet"
AGENTS = 24
RUNNERS = 4
CAPACITY = 12
SETTLED_SECONDS = 90.0

_log = logging.getLogger(__name__)


class Fleet:
    """A deployment with runners and agents, and what is done to it."""

    def __init__(self, folder: Path, database: Database, replicas: list[Replica]) -> None:
        self._folder = folder
        self.database = database
        self.replicas = replicas
        self.runners: list[RunnerProcess] = []
        self.present: list[RunnerProcess] = []
        self.agents: list[str] = []

    def more_runners(self, count: int = 1) -> None:
        urls = [replica.url for replica in self.replicas]
        new = []
        for _ in range(count):
            name = f"r{len(self.runners)}"
            new.append(RunnerProcess(self._folder, urls[::-1] if len(self.runners) % 2 else urls, name, POOL, CAPACITY))
            self.runners.append(new[-1])
        self.present += [runner.wait_registered() for runner in new]

    def more_agents(self, count: int) -> None:
        with self.client() as client:
            client.put(f"/v1/pools/{POOL}", json={"attempts": 1000, "backoff_seconds": 0}).raise_for_status()
            for _ in range(count):
                self.agents.append(client.post("/v1/agents", json={"pool": POOL}).raise_for_status().json()["id"])

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.replicas[0].url, timeout=20)

    def states(self) -> dict[str, tuple[str, str | None]]:
        """Of each agent the state and the runner."""
        with self.client() as client:
            found = {}
            for agent in self.agents:
                shown = client.get(f"/v1/agents/{agent}?steps=none", headers=STRONG).json()
                found[agent] = shown["state"], shown["runner"]
            return found

    def wait_driven(self, seconds: float = SETTLED_SECONDS) -> None:
        """Wait until each agent is idle, or busy, in the hands of a runner that lives."""
        names = {runner.name for runner in self.present}
        wait_until(
            lambda: all(state in ("idle", "busy") and by in names for state, by in self.states().values()),
            seconds,
            f"every agent to be driven by one of {sorted(names)}",
        )

    def stuck(self) -> list[str]:
        """Agents that do not come to rest in the hands of a runner that lives, though nobody prompts any more."""
        names = {runner.name for runner in self.present}
        until = time.monotonic() + SETTLED_SECONDS
        while time.monotonic() < until:
            wrong = [
                f"{agent} {state} {by}"
                for agent, (state, by) in self.states().items()
                if state != "idle" or by not in names
            ]
            if not wrong:
                return []
            time.sleep(0.2)
        return wrong

    def stop(self) -> None:
        for runner in self.runners:
            runner.stop()


@contextmanager
def fleet_of(folder: Path) -> Iterator[Fleet]:
    with deployment(folder, "left", "right", runner_ttl_seconds=TTL) as (database, replicas):
        fleet = Fleet(folder, database, replicas)
        try:
            yield fleet
        finally:
            fleet.stop()


@asynccontextmanager
async def prompted(fleet: Fleet) -> AsyncIterator[Prompter]:
    """The fleet while it is prompted."""
    prompter = Prompter(fleet.replicas, fleet.agents)
    task = asyncio.create_task(prompter.run())
    try:
        yield prompter
    finally:
        prompter.leave()
        await task


class Chaos:
    """The six faults: those of runners, of replicas and of the database at the same time, each in either order."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet = fleet
        self._random = random.Random(seed)  # noqa: S311 - the same faults again
        self.done: Counter[str] = Counter()

    async def round(self) -> None:
        """Each fault once."""
        pairs = [
            [self.kill_runner, self.pause_runner],
            [self.kill_replica, self.pause_replica],
            [self.kill_database, self.pause_database],
        ]
        await asyncio.gather(*map(self._one_after_the_other, pairs))

    async def _one_after_the_other(self, faults: list[Callable[[], Awaitable[None]]]) -> None:
        self._random.shuffle(faults)
        for fault in faults:
            await fault()
            self.done[fault.__name__] += 1

    async def kill_runner(self) -> None:
        victim = self._fleet.present.pop(self._random.randrange(len(self._fleet.present)))
        victim.kill9()
        await asyncio.to_thread(self._fleet.more_runners)

    async def pause_runner(self) -> None:
        """For longer than its lease, half of the time: then it comes back as a zombie."""
        victim = self._random.choice(self._fleet.present)
        victim.pause()
        await asyncio.sleep(self._random.choice((0.5, TTL + 1.5)))
        victim.resume()

    async def kill_replica(self) -> None:
        victim = self._random.choice(self._fleet.replicas)
        victim.kill9()
        await asyncio.to_thread(_restarted, victim)

    async def pause_replica(self) -> None:
        victim = self._random.choice(self._fleet.replicas)
        victim.pause()
        await asyncio.sleep(self._random.choice((0.5, TTL + 1)))
        victim.resume()

    async def kill_database(self) -> None:
        self._fleet.database.kill9()
        await asyncio.to_thread(self._fleet.database.restart)

    async def pause_database(self) -> None:
        """For longer than any lease, half of the time: nobody dies of it."""
        self._fleet.database.pause()
        await asyncio.sleep(self._random.choice((0.3, TTL + 1)))
        self._fleet.database.resume()


def _restarted(replica: Replica) -> None:
    """Start a replica until it stays: it gives up at once while the database is away, as whoever runs it expects."""
    while True:
        replica.start()
        wait_until(
            lambda: replica.readiness() == 200 or not replica.alive, 60, f"{replica.name} to serve, or to give up"
        )
        if replica.alive:
            return


def verdict_of(fleet: Fleet, prompter: Prompter) -> Verdict:
    stuck = fleet.stuck()
    with fleet.client() as client:
        verdict = judged(client, fleet.runners, prompter, fleet.agents, TTL)
    verdict.stuck = stuck
    return verdict


@pytest.mark.timeout(7200)
async def test_nothing_is_stuck_stolen_or_lost_under_every_fault(tmp_path: Path) -> None:
    """However often runners, replicas and the database are killed or paused while agents are prompted."""
    times = 3 if rounds(1) == 1 else max(200, 10 * rounds(1))
    with fleet_of(tmp_path) as fleet:
        fleet.more_agents(AGENTS)
        fleet.more_runners(RUNNERS)
        chaos = Chaos(fleet, seed=times)
        async with prompted(fleet) as prompter:
            for number in range(times):
                await chaos.round()
                await asyncio.sleep(1)  # for turns to go on; with faults all the time nothing would be tried
                _log.warning("round %d of %d: %s, %d prompts", number + 1, times, dict(chaos.done), len(prompter.taken))
            await asyncio.sleep(TTL)  # a little time without faults, so that there are turns to finish
        verdict = await asyncio.to_thread(verdict_of, fleet, prompter)
    _log.warning("%s: %s", dict(chaos.done), verdict.told())
    verdict.require_clean()
    assert verdict.counts["finished"] > times, "turns were finished in between"


async def test_silent_runners_agents_are_taken_over_within_the_lease_and_three_seconds(tmp_path: Path) -> None:
    """Each agent of a killed runner is claimed by another, idle ones without a change of state; nobody else's moves."""
    with fleet_of(tmp_path) as fleet:
        fleet.more_agents(AGENTS)
        fleet.more_runners(3)
        fleet.wait_driven()
        for _ in range(rounds(2)):
            before = fleet.states()
            driven = Counter(by for _, by in before.values())
            victim = max(fleet.present, key=lambda runner: driven[runner.name])
            fleet.present.remove(victim)
            mine = {agent for agent, (_, by) in before.items() if by == victim.name}
            victim.kill9()
            fleet.wait_driven(TTL + 30)
            after = fleet.states()
            assert {agent: after[agent] for agent in after.keys() - mine} == {
                agent: before[agent] for agent in before.keys() - mine
            }
            fleet.more_runners()
        verdict = await asyncio.to_thread(verdict_of, fleet, Prompter(fleet.replicas, []))
    _log.warning(verdict.told())
    verdict.require_clean()
    assert verdict.take_overs
    assert max(verdict.take_overs) <= TTL + 3


async def test_zombie_is_fenced_out_and_comes_back_to_life(tmp_path: Path) -> None:
    """A runner that was paused in the middle of turns, replaced, and goes on: its late writes are refused."""
    with fleet_of(tmp_path) as fleet:
        fleet.more_agents(8)
        fleet.more_runners(2)
        fleet.wait_driven()
        async with prompted(fleet) as prompter:
            for _ in range(rounds(2)):
                for victim in fleet.present:
                    victim.pause()
                    await asyncio.sleep(TTL + 2.5)
                    victim.resume()
                    await asyncio.to_thread(
                        wait_until,
                        lambda victim=victim: any(
                            event["event"] == "registered" and event["incarnation"] > 1 for event in victim.events()
                        ),
                        30,
                        f"{victim.name} to register anew",
                    )
        verdict = await asyncio.to_thread(verdict_of, fleet, prompter)
    _log.warning(verdict.told())
    verdict.require_clean()
    assert verdict.counts["dead"] >= 2 * rounds(2)


async def test_nobody_dies_of_a_database_that_was_away_for_longer_than_the_lease(tmp_path: Path) -> None:
    """Paused, or killed and brought back late: every runner keeps what it drives."""
    with fleet_of(tmp_path) as fleet:
        fleet.more_agents(8)
        fleet.more_runners(2)
        fleet.wait_driven()
        before = fleet.states()
        for _ in range(rounds(1)):
            fleet.database.pause()
            await asyncio.sleep(TTL + 2)
            fleet.database.resume()
            await asyncio.sleep(TTL)  # long enough for a lease to end that should not have
            fleet.database.kill9()
            await asyncio.sleep(TTL + 2)
            await asyncio.to_thread(fleet.database.restart)
            fleet.wait_driven()
            await asyncio.sleep(TTL)
        assert fleet.states() == before
        with fleet.client() as client:
            runners = client.get("/v1/runners").json()["items"]
        assert {(runner["state"], runner["incarnation"]) for runner in runners} == {("live", 1)}
