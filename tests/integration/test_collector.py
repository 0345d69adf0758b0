"""What nobody refers to is removed, and nothing else, whoever writes meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
import pytest_asyncio
from bson.binary import Binary

from app.collector import Collected
from app.config import Settings
from app.lanes import Terms
from app.reads import Freshness, Seen
from app.runtime import Runtime, running
from app.segments import opened
from models.agent import AgentRecord
from models.blob import key_of
from models.errors import NotFound, Unavailable
from models.packing import references
from models.path import path
from models.prompt import PROMPT
from models.tenant import Right, Scope
from tests.harness import rounds

ANN = Scope("acme", frozenset(Right), by="ann")
BOB = Scope("rivals", frozenset(Right), by="bob")
WAIT = 1.0


@pytest_asyncio.fixture
async def pair(tmp_path: Path, mongo_uri: str) -> AsyncIterator[tuple[Runtime, Runtime]]:
    """Two replicas that keep nothing in memory of what is stored apart, and seal after a few steps."""
    settings = Settings(
        mongodb_database=f"test_{uuid4().hex[:12]}",
        data=tmp_path,
        blob_bytes=0,
        segment_bytes=0,
        inline_bytes=100,
        seal_bytes=1024,
        deadline_seconds=WAIT / 2,
        collect_wait_seconds=WAIT,
    )
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(running(settings, mongo_uri)) for _ in range(2)]
        yield replicas[0], replicas[1]
        await replicas[0].mongo.client.drop_database(settings.mongodb_database)


def value(mark: object) -> str:
    return f"{mark}" * 200


async def make(runtime: Runtime, mark: object, scope: Scope = ANN) -> str:
    """A new agent with a large workspace."""
    return (await runtime.agents.create(scope, {"workspace": value(mark)}, Terms())).record.name_in_tenant


async def append(runtime: Runtime, agent: str, mark: object) -> None:
    await runtime.agents.append(ANN, agent, [{"role": "user", "content": value(mark)}], Terms(), advance_head=True)


async def stored(runtime: Runtime) -> set[str]:
    return {document["_id"] async for document in runtime.mongo.blobs.find({}, {"_id": 1})}


async def referred(runtime: Runtime) -> set[str]:
    """Values that an agent refers to, or a segment that an agent keeps."""
    segments = await kept(runtime)
    found: set[str] = set()
    async for agent in runtime.mongo.agents.find({}):
        within = references(agent.get("steps", {}), agent.get("results", {}))
        found.update(key_of(agent["tenant"], reference) for reference in within)
    async for document in runtime.mongo.segments.find({"_id": {"$in": list(segments)}}):
        within = references(opened(document).steps, opened(document).results)
        found.update(key_of(document["tenant"], reference) for reference in within)
    return found


async def kept(runtime: Runtime) -> set[str]:
    """Segments that an agent keeps."""
    return {one["id"] async for agent in runtime.mongo.agents.find({}) for one in agent.get("sealed", {}).values()}


async def segments_of(runtime: Runtime) -> set[str]:
    return {document["_id"] async for document in runtime.mongo.segments.find({}, {"_id": 1})}


async def whole(runtime: Runtime, agent: str, scope: Scope = ANN) -> Any:
    """All of an agent, with what is stored apart."""
    record = (await runtime.agents.get(scope, agent, Freshness(strong=True))).record

    def shown(known: AgentRecord) -> Any:
        steps = path(known)
        return {"steps": [known.step(step) for step in steps], "results": known.results}

    return orjson.loads(await runtime.filling.encoded(record, await runtime.filling.asked(record, shown)))


async def waiting(runtime: Runtime) -> asyncio.Task[Collected]:
    """A collection that has marked something and waits."""
    marked = asyncio.Event()
    collecting = asyncio.create_task(runtime.collector.collect())
    while not marked.is_set():
        if await runtime.mongo.blobs.find_one({"mark": {"$exists": True}}):
            marked.set()
        await asyncio.sleep(0.01)
        assert not collecting.done()
    return collecting


async def test_what_nobody_refers_to_is_removed_and_the_rest_stays(pair: tuple[Runtime, Runtime]) -> None:
    """Equal values of another tenant are values of their own."""
    here, _ = pair
    kept, gone, other = await make(here, 1), await make(here, 2), await make(here, 2, BOB)
    await append(here, kept, 3)
    await here.agents.delete(ANN, gone, Terms())
    done = await here.collector.collect()
    assert (done.looked_at, done.marked, done.removed) == (4, 1, 1)
    assert done.bytes > 0
    assert len(await stored(here)) == 3
    assert await stored(here) == await referred(here)
    assert (await whole(here, kept))["steps"][0]["content"] == value(3)
    assert (await whole(here, other, BOB))["results"] == {"root": {"@workspace": value(2)}}
    again = await here.collector.collect()
    assert (again.marked, again.removed) == (0, 0)


async def test_overwritten_and_cleared_values_are_removed(pair: tuple[Runtime, Runtime]) -> None:
    here, _ = pair
    agent = await make(here, 1)
    await here.agents.put_workspace(ANN, agent, value(2), Terms())
    await append(here, agent, 3)
    assert (await here.collector.collect()).removed == 1
    await here.agents.clear(ANN, agent, Terms())
    assert (await here.collector.collect()).removed == 2
    assert not await stored(here)


@pytest.mark.parametrize("where", [0, 1], ids=["on the same replica", "on the other"])
async def test_value_that_is_referred_to_again_while_marked_stays(pair: tuple[Runtime, Runtime], where: int) -> None:
    """By an append that would store the same, which stores nothing but takes the mark off."""
    here = pair[0]
    kept, gone = await make(here, 1), await make(here, 2)
    await here.agents.delete(ANN, gone, Terms())
    collecting = await waiting(here)
    await append(pair[where], kept, 2)
    assert (await collecting).removed == 0
    assert (await whole(here, kept))["steps"][0]["content"] == value(2)
    assert not await here.mongo.blobs.find_one({"mark": {"$exists": True}})


async def test_value_stored_for_a_commit_that_is_late_stays(
    pair: tuple[Runtime, Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marked between the storing and the commit, it is found referred to after the wait."""
    here, there = pair
    agent = await make(here, 1)
    send = here.store._bulk.send
    collecting: list[asyncio.Task[Collected]] = []

    async def late(*write: Any) -> Any:
        collecting.append(await waiting(there))
        return await send(*write)

    monkeypatch.setattr(here.store._bulk, "send", late)
    await append(here, agent, 2)
    assert (await collecting[0]).removed == 0
    assert (await whole(there, agent))["steps"][0]["content"] == value(2)


async def test_fork_takes_marks_off_what_it_shares(pair: tuple[Runtime, Runtime]) -> None:
    """However its values came to bear one."""
    here, there = pair
    source = await make(here, 1)
    await here.mongo.blobs.update_many({}, {"$set": {"mark": "somebody's"}})
    fork = (await there.agents.fork(ANN, source, Terms(), at=None, name=None)).record.name_in_tenant
    assert not await here.mongo.blobs.find_one({"mark": {"$exists": True}})
    await here.agents.delete(ANN, source, Terms())
    assert (await here.collector.collect()).removed == 0
    assert (await whole(there, fork))["results"] == {"root": {"@workspace": value(1)}}


async def grow(runtime: Runtime, agent: str, mark: object, steps: int = 12) -> None:
    """Append so much that older steps are sealed."""
    for number in range(steps):
        await append(runtime, agent, f"{mark}{number}")


async def test_segments_that_no_agent_keeps_are_removed_with_what_they_refer_to(pair: tuple[Runtime, Runtime]) -> None:
    """In one go; those that a fork keeps stay, with all that is in them."""
    here, there = pair
    source, gone = await make(here, "a"), await make(here, "b")
    await grow(here, source, "a")
    await grow(here, gone, "b")
    fork = (await there.agents.fork(ANN, source, Terms(), at=None, name=None)).record.name_in_tenant
    before = await whole(there, fork)
    for agent in (source, gone):
        await here.agents.delete(ANN, agent, Terms())
    done = await here.collector.collect()
    assert done.removed > 12
    assert await segments_of(here) == await kept(here) != set()
    assert await stored(here) == await referred(here)
    assert await whole(there, fork) == before
    await there.agents.delete(ANN, fork, Terms())
    await here.collector.collect()
    assert not await segments_of(here) | await stored(here)


async def test_family_is_whole_whoever_of_it_is_deleted(pair: tuple[Runtime, Runtime]) -> None:
    """Forks of forks, each further grown; the others lose nothing."""
    here, there = pair
    family = [await make(here, "a")]
    for number in range(3):
        await grow(here, family[-1], number)
        family.append((await there.agents.fork(ANN, family[-1], Terms(), at=None, name=None)).record.name_in_tenant)
    while len(family) > 1:
        before = {agent: await whole(there, agent) for agent in family}
        gone = family.pop(len(family) // 2)
        await here.agents.delete(ANN, gone, Terms())
        await here.collector.collect()
        assert {agent: await whole(there, agent) for agent in family} == {agent: before[agent] for agent in family}
        assert await segments_of(here) == await kept(here)


async def test_fork_takes_marks_off_the_segments_it_shares(pair: tuple[Runtime, Runtime]) -> None:
    """While they are about to be removed, for the source is deleted meanwhile."""
    here, there = pair
    source = await make(here, 1)
    await grow(here, source, "a")
    stale = (await here.agents.get(ANN, source, Freshness(strong=True))).record
    before = await whole(here, source)
    await here.agents.delete(ANN, source, Terms())
    collecting = await waiting(there)
    there.reads.agent = _always(stale)  # type: ignore[method-assign]  # read just before it was deleted
    fork = (await there.agents.fork(ANN, source, Terms(), at=None, name=None)).record.name_in_tenant
    del there.reads.agent
    await collecting
    assert await segments_of(here) == await kept(here) != set()
    assert (await whole(here, fork))["steps"] == [{**step, "version": 1} for step in before["steps"]]


def _always(record: AgentRecord) -> Any:
    async def read(*_: Any) -> Seen:
        return Seen(record)

    return read


async def test_interrupted_collection_leaves_nothing_that_the_next_does_not_finish(
    pair: tuple[Runtime, Runtime],
) -> None:
    here, there = pair
    await here.agents.delete(ANN, await make(here, 1), Terms())
    collecting = await waiting(here)
    collecting.cancel()
    await asyncio.wait([collecting])
    assert len(await stored(here)) == 1
    assert (await there.collector.collect()).removed == 1


async def test_unreadable_agent_keeps_its_tenants_values_and_stops_no_collector(pair: tuple[Runtime, Runtime]) -> None:
    """Nobody knows what it refers to; other tenants' are collected as ever."""
    here, _ = pair
    broken = await make(here, 1)
    for scope in (ANN, BOB):
        await here.agents.delete(scope, await make(here, 2, scope), Terms())
    damaged = {"steps": {"s": {"input_messages": Binary(b"rubbish", PROMPT)}}}
    await here.mongo.agents.update_one({"_id": f"acme:{broken}"}, {"$set": damaged})
    assert (await here.collector.collect()).removed == 1
    assert {key.partition(":")[0] for key in await stored(here)} == {"acme"}


async def test_values_are_looked_for_by_what_never_changes(pair: tuple[Runtime, Runtime]) -> None:
    """A write that moves an agent in an index while it is read does not hide it."""
    here, _ = pair
    for mark in range(40):
        await make(here, mark)
    collecting = asyncio.create_task(here.collector.collect())
    while not collecting.done():
        await here.mongo.agents.update_many({}, [{"$set": {"pool": {"$toString": {"$rand": {}}}}}])
    assert collecting.result().marked == 0


async def test_replica_collects_by_itself(pair: tuple[Runtime, Runtime], mongo_uri: str) -> None:
    here, _ = pair
    await here.agents.delete(ANN, await make(here, 1), Terms())
    often = here.settings.model_copy(update={"collect_hours": 1e-4})
    async with running(often, mongo_uri), asyncio.timeout(20):
        while await stored(here):  # noqa: ASYNC110 - the database is asked
            await asyncio.sleep(0.05)


async def test_collections_race_with_writers_and_lose_nothing(pair: tuple[Runtime, Runtime]) -> None:
    """Few values, written, shared, overwritten and let go by everybody all the time; two collectors, one after another.

    In the end every agent reads whole, and what is stored is what is referred to.
    """
    chance = random.Random(7)  # noqa: S311 - chooses what happens next
    loop = asyncio.get_running_loop()
    until = loop.time() + 5 * WAIT * rounds(1)
    agents = [await make(pair[0], mark) for mark in range(4)]
    removed = 0

    async def write() -> None:
        here, mark, agent = chance.choice(pair), chance.randrange(40), chance.choice(agents)
        match chance.randrange(12):
            case 0 if len(agents) < 8:
                agents.append(await make(here, mark))
            case 1 | 2 if len(agents) > 3:
                agents.remove(agent)
                await here.agents.delete(ANN, agent, Terms())
            case 3 if len(agents) < 8:
                fork = await here.agents.fork(ANN, agent, Terms(), at=None, name=None)
                agents.append(fork.record.name_in_tenant)
            case 4 | 5 | 6 | 7:
                await append(here, agent, mark)
            case _:
                await here.agents.put_workspace(ANN, agent, value(mark), Terms())

    async def go_on_writing() -> None:
        while loop.time() < until:
            with suppress(NotFound, Unavailable):
                await write()

    async def go_on_collecting(runtime: Runtime) -> None:
        nonlocal removed
        while loop.time() < until:
            removed += (await runtime.collector.collect()).removed

    await asyncio.gather(*(go_on_writing() for _ in range(3)), *map(go_on_collecting, pair))
    assert removed > 0
    for agent in agents:
        await whole(pair[1], agent)
    assert await referred(pair[0]) <= await stored(pair[0])
    assert await kept(pair[0]) <= await segments_of(pair[0])
    await pair[0].collector.collect()
    assert await stored(pair[0]) == await referred(pair[0])
    assert await segments_of(pair[0]) == await kept(pair[0])
