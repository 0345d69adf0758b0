"""Feeds that are cut, on replicas that are killed and whose streams break: nothing is missing, nothing is out of order.

Writers append single steps and batches through random replicas, with ids of their own, and repeat what was not
acknowledged. Followers are cut at random moments, also within a batch, and resume after the last id that they heard.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.faults.sse_client import Follower, Told
from tests.faults.stream_faults import CALM, GONE, LOST, SEVERED, WILD, Faults
from tests.harness import (
    Replica,
    clients_of,
    deployment,
    read_marks,
    rounds,
    wait_until_async,
)

pytestmark = pytest.mark.asyncio

_log = logging.getLogger(__name__)

WRITERS = 3
LIVES = (0.5, 1.0, 2.0, 30.0, 30.0, 30.0)
"""How long the connections of each follower live at most; some are there when the stream behind them breaks."""

CUT_AMID = 0.05
WRITE_PAUSE = 0.05
FOUND_SECONDS = 30.0

House = tuple[list[Replica], list[Faults]]
Steps = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("feeds")
    faults = [Faults(folder, name) for name in ("left", "right")]
    with deployment(folder, "left", "right", prepare={fault.name: fault for fault in faults}) as (_, replicas):
        yield replicas, faults


async def new_agent(replica: Replica) -> str:
    async with clients_of(replica) as (client,):
        made = await client.post("/v1/agents", json={"id": f"agent-{uuid4().hex}"})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def append(clients: list[httpx.AsyncClient], agent: str, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Append the steps, on one replica after another until it is acknowledged; the steps as they were answered."""
    while True:
        try:
            answer = await random.choice(clients).post(f"/v1/agents/{agent}/steps", json={"steps": steps})  # noqa: S311
        except httpx.TransportError:
            await asyncio.sleep(WRITE_PAUSE)
            continue
        if answer.is_success:
            found: list[dict[str, Any]] = answer.json()["steps"]
            return found
        assert answer.status_code == 503, answer.text


async def append_on(clients: list[httpx.AsyncClient], agent: str, written: Steps, over: asyncio.Event) -> None:
    """Append until it is over: single steps and batches, small and large."""
    while not over.is_set():
        ids = [uuid4().hex for _ in range(random.choice((1, 1, 2, 7)))]  # noqa: S311
        steps = [{"id": step, "role": "agent", "content": step * random.choice((1, 40))} for step in ids]  # noqa: S311
        written.update({step["id"]: step for step in await append(clients, agent, steps)})
        await asyncio.sleep(random.uniform(0, 2 * WRITE_PAUSE))  # noqa: S311


def steps_once(events: list[Told]) -> list[dict[str, Any]]:
    """The steps that were told, each where it was told first; a repeat has to be the same."""
    found: Steps = {}
    for event in events:
        if event.kind == "step":
            assert found.setdefault(event.data["id"], event.data) == event.data, "told twice, not alike"
    return list(found.values())


def assert_in_order(connection: list[Told]) -> None:
    """On one connection versions never go back, each event's id is its version, and no step comes twice."""
    versions = [event.data["version"] for event in connection if event.kind != "gap"]
    assert all(earlier <= later for earlier, later in pairwise(versions)), versions
    assert all(event.id in (None, str(event.data["version"])) for event in connection if event.kind != "gap")
    ids = [event.data["id"] for event in connection if event.kind == "step"]
    assert len(set(ids)) == len(ids), "a step came twice on one connection"
    assert all(event.kind != "gap" for event in connection[:-1]), "something came after a gap"


def has_heard(follower: Follower, version: int) -> bool:
    return follower.last_id is not None and int(follower.last_id) >= version


@pytest.mark.parametrize("number", range(rounds(1)))
async def test_followers_that_are_cut_hear_each_step_once_and_in_order(house: House, number: int) -> None:
    """Cut, killed and broken: after dropping repeats by id, each follower has exactly the agent's steps, by seq."""
    replicas, faults = house
    agent = await new_agent(replicas[0])
    followers = [Follower(f"/v1/agents/{agent}/events", life_seconds=seconds) for seconds in LIVES]
    for follower in followers:
        await follower.follow(replicas[0].url, until=lambda follower: has_heard(follower, 1))
    written: Steps = {}
    over = asyncio.Event()
    final: list[int] = []

    def has_heard_all(follower: Follower) -> bool:
        return bool(final) and has_heard(follower, final[0])

    async with clients_of(*replicas) as clients, asyncio.TaskGroup() as group:
        for follower in followers:
            group.create_task(
                follower.follow_cut_off(replicas, has_heard_all, cut_amid=CUT_AMID / follower.life_seconds)
            )
        writers = [group.create_task(append_on(clients, agent, written, over)) for _ in range(WRITERS)]
        await _kill_while_streams_fail(replicas, faults, written)
        over.set()
        await asyncio.wait(writers)
        marks = await read_marks(clients[1], agent)
        final.append(marks.agent["version"])
    assert [step["seq"] for step in marks.steps] == list(range(1, len(marks.steps) + 1))
    assert written == {step["id"]: step for step in marks.steps}, "what was acknowledged is not what the agent holds"
    for follower in followers:
        assert steps_once(follower.all) == marks.steps
        for connection in follower.connections:
            assert_in_order(connection)
    _report(followers, faults, len(marks.steps))


async def _kill_while_streams_fail(replicas: list[Replica], faults: list[Faults], written: Steps) -> None:
    """One replica after another dies by kill -9 amid writes, while every stream fails at random."""
    for fault in faults:
        fault.order(WILD)
    for victim in (*replicas, replicas[0]):
        enough = len(written) + 40
        await wait_until_async(lambda enough=enough: len(written) >= enough, FOUND_SECONDS, "more steps")
        victim.kill9()
        await asyncio.to_thread(victim.restart)
    for fault in faults:
        fault.order(CALM)


def _report(followers: list[Follower], faults: list[Faults], steps: int) -> None:
    connections, cuts, cuts_amid, ends = (
        sum(counts)
        for counts in zip(*((len(f.connections), f.cuts, f.cuts_amid, f.ends) for f in followers), strict=True)
    )
    told = sum(len(follower.all) for follower in followers)
    assert cuts and cuts_amid, "nobody was cut"
    _log.info(
        "%d steps, %d events told over %d connections: %d cuts, %d within a batch, %d ended by replicas; faults %s",
        *(steps, told, connections, cuts, cuts_amid, ends, [dict(fault.happened()) for fault in faults]),
    )


@pytest.mark.parametrize("order", [LOST, GONE])
async def test_lost_history_ends_feeds_with_a_gap_and_is_over_soon(house: House, order: str) -> None:
    """286: each feed's last event is `gap`; whoever resumes misses nothing; the replica is ready and reads truly."""
    replicas, faults = house
    replica = replicas[1]
    agent = await new_agent(replicas[0])
    followers = [Follower(f"/v1/agents/{agent}/events") for _ in range(3)]
    lost = replica.metric("holdfast_stream_lost_total")
    written: Steps = {}
    over = asyncio.Event()
    async with clients_of(*replicas) as clients, asyncio.TaskGroup() as group:
        feeds = [group.create_task(follower.follow(replica.url)) for follower in followers]
        await wait_until_async(lambda: all(follower.all for follower in followers), 10, "the feeds to begin")
        writer = group.create_task(append_on(clients, agent, written, over))
        await wait_until_async(lambda: len(written) > 10, FOUND_SECONDS, "some steps")
        faults[1].order(order)
        await asyncio.wait_for(asyncio.gather(*feeds), 10)
        await asyncio.to_thread(replica.wait_ready, 10)
        over.set()
        await writer
        marks = await read_marks(clients[0], agent)
        plain = await clients[1].get(f"/v1/agents/{agent}?min_version={marks.agent['version']}")
    assert replica.metric("holdfast_stream_lost_total") > lost
    assert plain.json()["steps"] == marks.steps
    for follower in followers:
        assert follower.all[-1].kind == "gap"
        await follower.follow(replica.url, until=lambda follower: has_heard(follower, marks.agent["version"]))
        assert steps_once(follower.all) == marks.steps
        for connection in follower.connections:
            assert_in_order(connection)


async def test_feed_opened_while_history_is_lost_misses_nothing(house: House) -> None:
    """Opened between the loss and the next stream, which begins where other replicas have come to by then."""
    replicas, faults = house
    agent = await new_agent(replicas[0])
    lost = replicas[1].metric("holdfast_stream_lost_total")
    faults[1].order(SEVERED)
    await wait_until_async(lambda: replicas[1].metric("holdfast_stream_lost_total") > lost, 10, "the loss")
    steps = Follower(f"/v1/agents/{agent}/events", last_id="1", life_seconds=60)
    log = Follower("/v1/changes", life_seconds=60)
    final: list[int] = []

    def has_heard_last(follower: Follower) -> bool:
        return bool(final) and any(event.data.get("version") == final[0] for event in follower.all if event.id)

    async with clients_of(*replicas) as clients, asyncio.TaskGroup() as group:
        log.last_id = (await clients[0].get("/v1/changes", params={"agent": agent})).json()["items"][0]["cursor"]
        for follower in (steps, log):
            group.create_task(follower.follow_cut_off(replicas[1:], has_heard_last))
        await wait_until_async(lambda: all(f.connections or f.refusals for f in (steps, log)), 10, "answers")
        for number in range(5):
            await append([clients[0]], agent, [{"id": f"unheard-{number}", "role": "agent"}])
        assert len((await clients[0].get("/v1/changes", params={"agent": agent})).json()["items"]) == 6
        faults[1].order(CALM)
        await asyncio.to_thread(replicas[1].wait_ready, 10)
        await append([clients[0]], agent, [{"id": "heard", "role": "agent"}])
        marks = await read_marks(clients[0], agent)
        final.append(marks.agent["version"])
    assert steps_once(steps.all) == marks.steps
    logged = [event.data["version"] for event in log.all if event.kind == "change" and event.data["agent"] == agent]
    assert logged == list(range(2, final[0] + 1))
