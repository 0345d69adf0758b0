"""Agents far larger than a document may be: every way to grow one and to read it, in bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio

from app.fsck import Fsck
from app.mongo import Mongo, open_client
from tests.harness import STRONG, Replica, assert_one_chain, deployment, rounds

pytestmark = pytest.mark.asyncio

KB = 1024
MB = 1024 * KB
AT_ONCE = 8
ROOM = 250 * MB
"""What a replica may grow by: its caches (a part of it) and what answers under way take."""


@dataclass(frozen=True)
class Place:
    """A replica that keeps little in memory, and its caller."""

    replica: Replica
    client: httpx.AsyncClient
    uri: str

    async def made(self) -> str:
        return str((await self.client.post("/v1/agents", json={})).json()["id"])

    async def get(self, path: str, **headers: str) -> Any:
        answer = await self.client.get(f"/v1/agents/{path}", headers=headers)
        assert answer.status_code == 200, answer.text[:300]
        return answer.json()

    async def append(self, agent: str, body: Any, query: str = "") -> None:
        answer = await self.client.post(f"/v1/agents/{agent}/steps{query}", content=orjson.dumps(body))
        assert answer.status_code == 201, answer.text[:300]

    async def paged(self, agent: str, query: str) -> list[Any]:
        """All steps of a view, page by page."""
        found: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await self.get(f"{agent}/steps?limit=200&{query}" + (cursor and f"&cursor={cursor}"))
            found, cursor = [*found, *page["items"]], page["next_cursor"]
        return found

    async def exported(self, agent: str) -> int:
        """Read an export as it comes; its bytes."""
        async with self.client.stream("GET", f"/v1/agents/{agent}/export") as answer:
            return sum([len(piece) async for piece in answer.aiter_bytes()])


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    small = {"cache_bytes": 16 * MB, "segment_bytes": 16 * MB, "blob_bytes": 16 * MB, "basis_bytes": 16 * MB}
    with deployment(tmp_path, "one", **small) as (database, [replica]):
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(base_url=replica.url, timeout=120, headers=headers) as client:
            yield Place(replica, client, database.uri)
        client_of_database = open_client(database.uri)
        found = [str(flaw) async for flaw in Fsck(Mongo.of(client_of_database, "holdfast")).findings()]
        await client_of_database.close()
        assert found == []


async def side_by_side(count: int, act: Callable[[int], Awaitable[None]]) -> None:
    """Do it so many times, a few at once."""
    numbers = iter(range(count))

    async def go_on() -> None:
        for number in numbers:
            await act(number)

    await asyncio.gather(*(go_on() for _ in range(AT_ONCE)))


def in_one_value(number: int) -> dict[str, Any]:
    return {"role": "agent", "content": f"{number} ".ljust(80 * KB, "x")}


def in_small_values(number: int) -> dict[str, Any]:
    part = f"{number} ".ljust(16_000, "x")
    calls = [{"id": "c", "name": "n", "input": part}]
    return {
        "role": "agent",
        "content": part,
        "refs": [part],
        "usage": {"u": part},
        "data": {"d": part},
        "tool_calls": calls,
    }


@pytest.mark.parametrize("step", [in_one_value, in_small_values])
async def test_250_appends_of_80_kb(place: Place, step: Callable[[int], dict[str, Any]]) -> None:
    """20 MB, whether each value is large or small ones are many; all of it reads back, and memory is bounded."""
    agent, before = await place.made(), place.replica.resident_bytes()
    for number in range(250):
        await place.append(agent, step(number))
    found = await place.get(agent, **STRONG)
    assert found["size_bytes"] < 4 * MB
    assert_one_chain(found["steps"])
    assert [one["content"] for one in found["steps"]] == [step(number)["content"] for number in range(250)]
    assert await place.exported(agent) > 19 * MB
    assert place.replica.resident_bytes() - before < ROOM


async def test_many_appends_of_1_kb(place: Place) -> None:
    """100 000 in the long run. What the replica holds does not grow with them."""
    count = rounds(2_500) * (2 if rounds(1) > 1 else 1)
    agent = await place.made()

    async def append(number: int) -> None:
        await place.append(agent, {"role": "agent", "content": f"{number} ".ljust(KB, "x")})

    await side_by_side(count // 5, append)
    before = place.replica.resident_bytes()
    await side_by_side(count - count // 5, append)
    assert place.replica.resident_bytes() - before < ROOM
    found = await place.get(agent, **STRONG)
    assert (found["step_count"], len(found["steps"])) == (count, 1_000)
    assert found["size_bytes"] < 300 * KB + count * 4
    steps = await place.paged(agent, "view=path")
    assert_one_chain(steps)
    assert len(steps) == count
    assert [step["seq"] for step in await place.paged(agent, f"view=all&after_seq={count - 500}")] == list(
        range(count - 499, count + 1)
    )
    assert await place.exported(agent) > count * KB
    assert place.replica.resident_bytes() - before < ROOM


async def test_chain_of_10_000_steps(place: Place) -> None:
    """Everything that walks along the path, from its end to the root."""
    agent = await place.made()
    for start in range(0, 10_000, 100):
        steps = [{"id": f"s{start + number}", "role": "user", "content": "c" * 200} for number in range(100)]
        await place.append(agent, {"steps": steps})
    found = await place.get(f"{agent}?steps_limit=10000", **STRONG)
    ids = [f"s{number}" for number in range(10_000)]
    assert [(step["id"], step["parent_id"]) for step in found["steps"]] == list(zip(ids, ["root", *ids], strict=False))
    assert (await place.get(f"{agent}/steps/s17"))["seq"] == 18
    assert [step["id"] for step in await place.paged(agent, "turn=s5000")] == ["s5000"]
    apart = await place.get(f"{agent}/diff?from=s17")
    assert (apart["merge_base"], len(apart["only_to"]), apart["only_from"]) == ("s17", 9_982, [])
    for way, body in (("revert", {"turn_id": "s100"}), ("redo", None), ("fork", {"at": "s9000"})):
        answer = await place.client.post(f"/v1/agents/{agent}/{way}", json=body)
        assert answer.is_success, answer.text
    fork = answer.json()
    assert (fork["step_count"], fork["head"]) == (9_001, "s9000")
    assert (await place.client.put(f"/v1/agents/{agent}/results/k", json={"step_id": "s3", "result": 1})).is_success
    assert await place.get(f"{agent}/results") == {"results": {"k": {"step_id": "s3", "result": 1}}}
    assert (await place.client.put(f"/v1/agents/{agent}/head", json={"step_id": "s50"})).json()["head"] == "s50"


async def test_root_with_thousands_of_children(place: Place) -> None:
    """5 000 in the long run."""
    count = min(5_000, rounds(1_000))
    agent = await place.made()

    async def append(number: int) -> None:
        child = {"id": f"c{number}", "parent_id": "root", "role": "agent", "content": "k" * 300}
        await place.append(agent, child, "?advance_head=false")

    await side_by_side(count, append)
    found = await place.get(f"{agent}?steps=all&steps_limit=10000", **STRONG)
    assert {step["parent_id"] for step in found["steps"]} == {"root"}
    assert len({step["id"] for step in found["steps"]}) == count == found["step_count"]
    for child in ("c0", f"c{count // 2}"):
        assert (await place.client.put(f"/v1/agents/{agent}/head", json={"step_id": child})).is_success
        assert [step["id"] for step in (await place.get(agent, **STRONG))["steps"]] == [child]
