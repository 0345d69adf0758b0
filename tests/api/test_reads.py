"""How fresh a read is, and when it need not be answered again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.api.driver import Api, Handle, etag

READS = [
    "",
    "/settings",
    "/delegate",
    "/workspace",
    "/export",
    "/steps/a",
    "/branches",
    "/diff?from=a",
    "/results",
    "/results/k",
]


async def whole(api: Api) -> Handle:
    """An agent that has something to read everywhere, at version 3."""
    agent = await api.made(delegate={"user": {}})
    await agent.added("a")
    await agent.call("PUT", "/results/k", {"result": 1})
    return agent


@pytest.mark.parametrize("path", READS)
async def test_read_tells_version_and_age(api: Api, path: str) -> None:
    """Every answer about an agent has ETag and Age, at most the staleness bound."""
    answer = await (await whole(api)).call("GET", path, expect=200)
    assert answer.headers["etag"] == etag(3)
    assert 0 <= float(answer.headers["age"]) <= 2


@pytest.mark.parametrize("path", READS)
async def test_known_version_is_not_sent_again(api: Api, path: str) -> None:
    """304 without a body for this version (also weak, or among others, or `*`); any other gets the answer."""
    agent = await whole(api)
    for tag in (etag(3), f"W/{etag(3)}", f'"1", {etag(3)}', "*"):
        answer = await agent.call("GET", path, headers={"If-None-Match": tag}, expect=304)
        assert (answer.content, answer.headers["etag"]) == (b"", etag(3))
    for tag in (etag(2), "3x", '"33"', ""):
        await agent.call("GET", path, headers={"If-None-Match": tag}, expect=200)


async def test_own_writes_are_seen_at_once(api: Api) -> None:
    """On the replica that acknowledged them, without asking for anything."""
    agent = await api.made()
    for n in range(10):
        await agent.call("PATCH", "/settings", {"n": n})
        assert (await agent.read("/settings"))["n"] == n


async def test_no_cache_reads_what_any_replica_acknowledged(api: Api, other_replica: Api) -> None:
    """Linearizable, whichever replica wrote."""
    agent = await api.made()
    for n in range(10):
        await agent.call("PATCH", "/settings", {"n": n})
        read = await agent.by(other_replica).read("/settings", headers={"Cache-Control": "max-age=0, No-Cache"})
        assert read["n"] == n


async def test_min_version_that_is_there_is_answered(api: Api, other_replica: Api) -> None:
    """Also by another replica."""
    agent = await whole(api)
    assert (await agent.by(other_replica).read(min_version=3))["version"] == 3


async def test_min_version_waits_for_the_write(api: Api, other_replica: Api) -> None:
    """A read that comes before its write is answered with it."""
    agent = await api.made()
    waiting = asyncio.create_task(agent.by(other_replica).read("/settings", min_version=2))
    await agent.call("PATCH", "/settings", {"late": True})
    assert (await waiting)["late"] is True


async def test_min_version_that_does_not_come_is_unavailable(api: Api) -> None:
    """503 with Retry-After after about two seconds, and never for the unknown."""
    agent = await api.made()
    loop = asyncio.get_running_loop()
    started = loop.time()
    answer = await agent.call("GET", "", min_version=2, expect="unavailable")
    assert 1.9 <= loop.time() - started <= 4
    assert int(answer.headers["retry-after"]) >= 1
    await Handle(api, "nobody").call("GET", "", min_version=2, expect="not-found")


@pytest.mark.parametrize("value", [-1, 10**30, "x", "", "1.5"])
async def test_min_version_is_a_version(api: Api, value: Any) -> None:
    """Nothing else."""
    await (await api.made()).call("GET", "", min_version=value, expect="invalid-request")


async def test_replicas_show_the_same_agent(api: Api, other_replica: Api) -> None:
    """To the byte, whatever is read."""
    agent = await whole(api)
    for path in READS:
        answers = [
            await agent.by(caller).call("GET", path, headers={"Cache-Control": "no-cache"})
            for caller in (api, other_replica)
        ]
        assert answers[0].content == answers[1].content


async def test_pages_of_steps_carry_the_version_too(api: Api) -> None:
    """Every answer about an agent has its ETag, and is spared a caller who has that version."""
    agent = await api.made()
    await agent.added("a")
    answer = await agent.call("GET", "/steps")
    assert answer.headers["etag"] == etag(2)
    again = await agent.call("GET", "/steps", headers={"If-None-Match": etag(2)}, expect=304)
    assert again.content == b""


@pytest.mark.parametrize("path", ["/steps/nope", "/results/nope", "/delegate"])
async def test_what_is_not_there_is_not_unchanged(api: Api, path: str) -> None:
    """A condition counts only where there would be an answer."""
    agent = await api.made()
    for condition in (etag(1), "*"):
        await agent.call("GET", path, headers={"If-None-Match": condition}, expect="not-found")
