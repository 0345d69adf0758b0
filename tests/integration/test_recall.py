"""Recall follows the database: what is in memory is what is stored, while it is read, after breaks and restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import pytest_asyncio

from app.mongo import Mongo, open_client
from app.recall import Recall
from app.vectors import BLOCK, Row, Wanted
from models.errors import Unavailable

WIDTH = 8
EVERYTHING = Wanted()


def document(tenant: str, number: int) -> dict[str, Any]:
    vector: Row = np.zeros(WIDTH, np.float32)
    vector[number % WIDTH] = 1
    ids = {"_id": f"{tenant}:e{number:06}", "tenant": tenant, "embedder": "e", "by": "test"}
    return {**ids, "vector": vector.tobytes(), "created_at": datetime.now(UTC)}


class Bench:
    """A database of some episodes, and recalls over it."""

    def __init__(self, mongo: Mongo, folder: Path) -> None:
        self.mongo = mongo
        self.folder = folder
        self.follows = True

    async def holds(self, tenant: str, count: int) -> None:
        await self.mongo.episodes.insert_many([document(tenant, number) for number in range(count)])

    def recall(self, limit: int = 2**30, seconds: float = 20) -> Recall:
        return Recall(self.mongo, self.folder, lambda: self.follows, limit=limit, seconds=seconds)


@pytest_asyncio.fixture
async def bench(mongo_uri: str, tmp_path: Path) -> AsyncIterator[Bench]:
    client = open_client(mongo_uri)
    mongo = Mongo.of(client, f"test_{uuid4().hex[:12]}")
    yield Bench(mongo, tmp_path)
    await client.drop_database(mongo.database.name)
    await client.close()


async def names(recall: Recall, tenant: str) -> set[str]:
    space = await recall.space(tenant, "e", WIDTH)
    return {one.facts.id for one in space.search(np.ones(WIDTH, np.float32), EVERYTHING)}


async def test_all_that_is_stored_is_read_and_nothing_of_others(bench: Bench) -> None:
    """In pages, of one tenant and one embedder."""
    await bench.holds("mine", 2_500)
    await bench.holds("minez", 3)
    await bench.mongo.episodes.insert_one({**document("mine", 9_999), "embedder": "other"})
    recall = bench.recall()
    assert await names(recall, "mine") == {f"mine:e{number:06}" for number in range(2_500)}
    assert await names(recall, "minez") == {f"minez:e{number:06}" for number in range(3)}
    await recall.stop()


async def test_what_happens_while_it_is_read_is_in_it(bench: Bench) -> None:
    """What is removed meanwhile does not come back with a page that was read before; what is new is there once."""
    await bench.holds("mine", 3_000)
    recall = bench.recall()
    reading = asyncio.create_task(names(recall, "mine"))
    await asyncio.sleep(0)
    new = document("mine", 5_000)
    await bench.mongo.episodes.insert_one(new)
    recall.heard(new)
    recall.removed("mine:e002999")
    recall.removed("mine:e000001")
    found = await reading
    assert "mine:e005000" in found
    assert found.isdisjoint({"mine:e002999", "mine:e000001"})
    assert len(found) == 2_999
    await recall.stop()


async def test_lost_stream_makes_it_read_anew(bench: Bench) -> None:
    """What was missed is found all the same; who waited for a reading that was given up is told to ask again."""
    await bench.holds("mine", 10)
    recall = bench.recall()
    await names(recall, "mine")
    await bench.mongo.episodes.insert_one(document("mine", 77))
    await bench.mongo.episodes.delete_one({"_id": "mine:e000003"})
    assert "mine:e000077" not in await names(recall, "mine")
    recall.lost()
    found = await names(recall, "mine")
    assert "mine:e000077" in found and "mine:e000003" not in found
    recall.lost()
    waiting = asyncio.create_task(names(recall, "mine"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    recall.lost()
    with pytest.raises(Unavailable):
        await waiting
    await recall.stop()


async def test_without_a_stream_every_search_reads_what_is_stored(bench: Bench) -> None:
    """So that nothing stale is ever found; what was kept before is not touched by it."""
    await bench.holds("mine", 5)
    recall = bench.recall()
    await names(recall, "mine")
    bench.follows = False
    await bench.mongo.episodes.insert_one(document("mine", 6))
    assert len(await names(recall, "mine")) == 6
    await bench.mongo.episodes.delete_one({"_id": "mine:e000006"})
    assert len(await names(recall, "mine")) == 5
    await recall.stop()


async def test_reading_that_takes_too_long_is_not_waited_for_and_goes_on(bench: Bench) -> None:
    """The caller is told to ask again; in the end the memory is there."""
    await bench.holds("mine", 4_000)
    recall = bench.recall(seconds=0.001)
    with pytest.raises(Unavailable, match="so far"):
        await names(recall, "mine")
    await recall.stop()
    patient = bench.recall()
    assert len(await names(patient, "mine")) == 4_000
    await patient.stop()


async def test_memory_is_bounded(bench: Bench) -> None:
    """Spaces that were not searched lately are let go; one that is too large for it lies in files, and is found."""
    for tenant in ("one", "two", "three"):
        await bench.holds(tenant, 20)
    size = BLOCK * WIDTH * 4
    recall = bench.recall(limit=2 * size)
    for tenant in ("one", "two", "three"):
        assert len(await names(recall, tenant)) == 20
    assert recall.bytes == 2 * size
    assert len(await names(recall, "one")) == 20
    await bench.holds("large", 2 * BLOCK + 5)
    small = bench.recall(limit=size)
    assert len(await names(small, "large")) == 2 * BLOCK + 5
    resident = [type(block.rows) for block in (await small.space("large", "e", WIDTH))._blocks]
    assert resident == [np.ndarray, np.memmap, np.memmap]
    for one in (recall, small):
        await one.stop()


async def test_space_of_which_most_is_gone_is_let_go(bench: Bench) -> None:
    """What was struck out takes no memory for ever."""
    await bench.holds("mine", BLOCK + 20)
    recall = bench.recall()
    await names(recall, "mine")
    gone = [f"mine:e{number:06}" for number in range(BLOCK + 10)]
    await bench.mongo.episodes.delete_many({"_id": {"$in": gone}})
    for key in gone:
        recall.removed(key)
    assert len(await names(recall, "mine")) == 10
    assert (await recall.space("mine", "e", WIDTH)).struck_out == 0
    await recall.stop()
