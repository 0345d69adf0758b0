"""The change log under kills and failing streams: each commit once, in order, as pages and live; a hole says so.

Writers note what was acknowledged: agent, version and steps. Followers are cut and resume with the cursor; pages are
read to their end. Both have to tell the same, and all of it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.faults.sse_client import Follower
from tests.faults.stream_faults import CALM, DEAD, GONE, LATE, LOST, WILD, Faults
from tests.harness import Replica, clients_of, deployment, read_marks, rounds, wait_until_async

pytestmark = pytest.mark.asyncio

_log = logging.getLogger(__name__)

AGENTS = 3
LIVES = (0.7, 1.5, 30.0)
"""How long the connections of each follower live at most."""

WRITE_PAUSE = 0.05
FOUND_SECONDS = 30.0
LOG = "/v1/changes"

House = tuple[list[Replica], list[Faults]]
Entry = dict[str, Any]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("log")
    faults = [Faults(folder, name) for name in ("left", "right")]
    with deployment(folder, "left", "right", prepare={fault.name: fault for fault in faults}) as (_, replicas):
        yield replicas, faults


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replica, Faults]]:
    folder = tmp_path_factory.mktemp("alone")
    faults = Faults(folder, "only")
    with deployment(folder, "only", prepare={"only": faults}) as (_, (replica,)):
        yield replica, faults


@dataclass
class Commits:
    """What was acknowledged: the ids of the steps of each version of each agent."""

    agents: list[str]
    steps: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def append(self, clients: Sequence[httpx.AsyncClient], agent: str, count: int = 1) -> bool:
        """Append steps with ids of our own, on any replica; whether it was acknowledged."""
        steps = [{"id": uuid4().hex, "role": "agent"} for _ in range(count)]
        return await self._send(clients, agent, steps)

    async def append_on(self, clients: Sequence[httpx.AsyncClient], agent: str) -> None:
        """Append single steps and batches until it is over; what was not acknowledged is sent again elsewhere."""
        while not self.over.is_set():
            steps = [{"id": uuid4().hex, "role": "agent"} for _ in range(random.choice((1, 1, 3)))]  # noqa: S311
            while not await self._send(clients, agent, steps):
                pass
            await asyncio.sleep(random.uniform(0, 2 * WRITE_PAUSE))  # noqa: S311

    async def _send(self, clients: Sequence[httpx.AsyncClient], agent: str, steps: list[dict[str, Any]]) -> bool:
        try:
            answer = await random.choice(clients).post(f"/v1/agents/{agent}/steps", json={"steps": steps})  # noqa: S311
        except httpx.TransportError:
            await asyncio.sleep(WRITE_PAUSE)
            return False
        assert answer.is_success or answer.status_code == 503, answer.text
        if answer.is_success:
            told = answer.json()["steps"]
            self.steps[agent, told[0]["version"]] = [step["id"] for step in told]
        return answer.is_success


async def new_agents(client: httpx.AsyncClient, count: int = AGENTS) -> Commits:
    commits = Commits([f"agent-{uuid4().hex}" for _ in range(count)])
    for agent in commits.agents:
        assert (await client.post("/v1/agents", json={"id": agent})).status_code == 201
        commits.steps[agent, 1] = []
    return commits


async def pages(client: httpx.AsyncClient, *, after: str | None = None, limit: int = 200) -> list[Entry]:
    """The log from after a cursor to its end, page by page."""
    found: list[Entry] = []
    while True:
        answer = await client.get(LOG, params={"limit": limit, **({} if after is None else {"cursor": after})})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["items"]
        after = page["next_cursor"]
        if after is None:
            return found


async def pages_with(client: httpx.AsyncClient, wanted: dict[str, int], *, after: str | None) -> list[Entry]:
    """The log once it tells of each agent's wanted version."""
    for _ in range(int(FOUND_SECONDS / WRITE_PAUSE)):
        entries = await pages(client, after=after)
        if set(wanted.items()) <= {(entry["agent"], entry["version"]) for entry in entries}:
            return entries
        await asyncio.sleep(WRITE_PAUSE)
    raise AssertionError(f"the log does not come to tell of {wanted}")


async def final_versions(client: httpx.AsyncClient, commits: Commits) -> dict[str, int]:
    return {agent: (await read_marks(client, agent)).agent["version"] for agent in commits.agents}


def assert_complete(entries: list[Entry], commits: Commits, final: dict[str, int]) -> None:
    """Each version of each agent once, in order, with the steps that were acknowledged; places only go up."""
    places = [entry["cursor"] for entry in entries]
    assert all(earlier < later for earlier, later in pairwise(places)), "the log goes back, or says something twice"
    for agent, version in final.items():
        own = [entry for entry in entries if entry["agent"] == agent]
        assert [entry["version"] for entry in own] == list(range(1, version + 1))
        for entry in own:
            if (agent, entry["version"]) in commits.steps:
                assert entry.get("steps", []) == commits.steps[agent, entry["version"]], entry
    assert {version for agent, version in commits.steps if agent in final}


async def end_of_log(client: httpx.AsyncClient) -> str:
    """The cursor of the newest entry."""
    commits = await new_agents(client, 1)
    return str((await pages_with(client, {commits.agents[0]: 1}, after=None))[-1]["cursor"])


def told_by(follower: Follower) -> list[Entry]:
    """The entries that a follower of the log was told, repeats included."""
    return [event.data for event in follower.all if event.kind == "change"]


@pytest.mark.parametrize("number", range(rounds(1)))
async def test_each_commit_is_told_once_whatever_is_cut_killed_or_broken(house: House, number: int) -> None:
    """Two replicas, killed in turn, streams failing: pages and followers tell every commit once, in one order."""
    replicas, _ = house
    async with clients_of(*replicas) as clients, asyncio.TaskGroup() as group:
        begin = await end_of_log(clients[0])
        commits = await new_agents(clients[0])
        followers = [Follower(LOG, last_id=begin, life_seconds=seconds) for seconds in LIVES]
        final: list[str] = []

        def has_heard_all(follower: Follower) -> bool:
            return bool(final and follower.last_id) and str(follower.last_id) >= final[0]

        for follower in followers:
            group.create_task(follower.follow_cut_off(replicas, has_heard_all))
        writers = [group.create_task(commits.append_on(clients, agent)) for agent in commits.agents]
        await _kill_while_streams_fail(house, commits)
        commits.over.set()
        await asyncio.wait(writers)
        versions = await final_versions(clients[0], commits)
        entries = await pages_with(clients[0], versions, after=begin)
        final.append(entries[-1]["cursor"])
    assert_complete(entries, commits, versions)
    async with clients_of(*replicas) as clients:
        for client, limit in zip(clients, (7, 200), strict=True):
            assert await pages(client, after=begin, limit=limit) == entries
    for follower in followers:
        assert told_by(follower) == entries
    assert sum(follower.cuts for follower in followers), "nobody was cut"
    _log.info("%d entries, %d cuts", len(entries), sum(follower.cuts for follower in followers))


async def _kill_while_streams_fail(house: House, commits: Commits) -> None:
    replicas, faults = house
    for fault in faults:
        fault.order(WILD)
    for victim in (*replicas, replicas[0]):
        enough = len(commits.steps) + 40
        await wait_until_async(lambda enough=enough: len(commits.steps) >= enough, FOUND_SECONDS, "more commits")
        victim.kill9()
        await asyncio.to_thread(victim.restart)
    for fault in faults:
        fault.order(CALM)


async def test_own_commit_is_on_the_next_page(house: House) -> None:
    """Pages hold what the replica that is asked has acknowledged."""
    replicas, faults = house
    for fault in faults:
        fault.order(CALM)
    for replica in replicas:
        await asyncio.to_thread(replica.wait_ready, 20)
    async with clients_of(*replicas) as clients:
        begin = await end_of_log(clients[0])
        commits = await new_agents(clients[0], 1)
        for number in range(rounds(20)):
            client = clients[number % 2]
            assert await commits.append([client], commits.agents[0])
            newest = (await pages(client, after=begin))[-1]
            assert newest["version"] == max(version for _, version in commits.steps)


@pytest.mark.parametrize("order", [CALM, LATE])
@pytest.mark.parametrize("number", range(rounds(1)))
async def test_commit_of_a_killed_replica_is_in_the_log(alone: tuple[Replica, Faults], order: str, number: int) -> None:
    """Acknowledged by the only replica, which dies at once, its stream not having brought it: it is told after all."""
    replica, faults = alone
    async with clients_of(replica) as (client,):
        begin = await end_of_log(client)
        commits = await new_agents(client)
        faults.order(order)
        await asyncio.gather(*(commits.append([client], agent) for agent in commits.agents * 4))
        burst = [asyncio.create_task(commits.append([client], agent, 2)) for agent in commits.agents * 4]
        await wait_until_async(lambda: any(task.done() for task in burst), 10, "the first of a burst")
        replica.kill9()
        await asyncio.gather(*burst)
        faults.order(CALM)
        await asyncio.to_thread(replica.restart)
        final = await final_versions(client, commits)
        assert_complete(await pages_with(client, final, after=begin), commits, final)


@pytest.mark.parametrize("order", [LOST, GONE])
async def test_history_lost_by_one_replica_leaves_the_log_complete(house: House, order: str) -> None:
    """286 on one replica while another writes: each version is told, or one of its agent's gaps stands for it."""
    replicas, faults = house
    async with clients_of(*replicas) as clients, asyncio.TaskGroup() as group:
        begin = await end_of_log(clients[0])
        commits = await new_agents(clients[0])
        writers = [group.create_task(commits.append_on(clients, agent)) for agent in commits.agents]
        lost = replicas[1].metric("holdfast_stream_lost_total")
        for _ in range(rounds(3)):
            enough = len(commits.steps) + 20
            await wait_until_async(lambda enough=enough: len(commits.steps) >= enough, FOUND_SECONDS, "more commits")
            faults[1].order(order)
            lost += 1
            await wait_until_async(lambda lost=lost: _lost(replicas[1]) >= lost, 10, "the history to be lost")
        commits.over.set()
        await asyncio.wait(writers)
        final = await final_versions(clients[0], commits)
        entries = await pages_with(clients[0], final, after=begin)
    if order == LOST:
        assert_complete(entries, commits, final)
    else:
        assert_told_or_gap(entries, commits)
    await asyncio.to_thread(replicas[1].wait_ready, 10)


def _lost(replica: Replica) -> float:
    return replica.metric("holdfast_stream_lost_total")


def assert_told_or_gap(entries: list[Entry], commits: Commits) -> None:
    """No acknowledged version is missing without a later gap of its agent that says where it led."""
    told = [(entry["agent"], entry["version"]) for entry in entries]
    assert len(set(told)) == len(told), "a version is told twice"
    gaps = {place for place, entry in zip(told, entries, strict=True) if entry["kinds"] == ["gap"]}
    for agent, version in commits.steps.keys() - set(told):
        assert any(other == agent and led >= version for other, led in gaps), f"{agent} {version} is missing"


async def test_hole_that_nobody_can_fill_is_told_as_gaps(alone: tuple[Replica, Faults]) -> None:
    """The only replica misses commits for good: a gap with a snapshot for each agent, on pages and live; then on."""
    replica, faults = alone
    async with clients_of(replica) as (client,):
        begin = await end_of_log(client)
        commits = await new_agents(client)
        await pages_with(client, dict.fromkeys(commits.agents, 1), after=begin)
        closed = replica.metric("holdfast_stream_closed_total")
        faults.order(DEAD)
        await wait_until_async(lambda: replica.metric("holdfast_stream_closed_total") > closed, 10, "the break")
        for agent in commits.agents:
            for _ in range(3):
                assert await commits.append([client], agent)
        faults.order(GONE)
        await asyncio.to_thread(replica.wait_ready, 20)
        entries = await pages_with(client, dict.fromkeys(commits.agents, 4), after=begin)
        for agent in commits.agents:
            first, gap = (entry for entry in entries if entry["agent"] == agent)
            assert (first["version"], gap["version"], gap["kinds"]) == (1, 4, ["gap"])
            head = commits.steps[agent, 4][-1]
            assert gap["snapshot"] == {"version": 4, "state": "pending", "head": head, "branch": "main"}
            assert await commits.append([client], agent)
        entries = await pages_with(client, dict.fromkeys(commits.agents, 5), after=begin)
    assert [entry["kinds"] for entry in entries if entry["version"] == 5] == [["step", "head"]] * AGENTS
    follower = Follower(LOG, last_id=begin)
    await follower.follow(replica.url, until=lambda follower: follower.last_id == entries[-1]["cursor"])
    assert told_by(follower) == entries
