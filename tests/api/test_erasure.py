"""Erasing leaves no trace of a tenant, of an agent a tombstone without content; nobody else's things are touched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bson
import pytest
import pytest_asyncio
from pymongo import MongoClient

from app.config import Settings
from app.fsck import Fsck
from app.runtime import Runtime, running
from models.tenant import Right, Scope
from tests.api.driver import Api, bearer, serving

RUNNER = {"pool": "pool-of-mine", "platform": "local", "capacity": 2}
SECRET = "what-only-mine-says"
OURS = Scope("mine", frozenset(Right), by="operator")


@dataclass(frozen=True)
class House:
    """A replica, a runtime beside it, and callers of the tenant `mine` and of another with the same names."""

    runtime: Runtime
    mine: Api
    other: Api
    database: Any

    def holding(self, text: str) -> dict[str, int]:
        """In how many documents of each collection a text stands, wherever in it."""
        found: dict[str, int] = {}
        for name in self.database.list_collection_names():
            for document in self.database[name].find():
                if text.encode() in bson.encode(document):
                    found[name] = found.get(name, 0) + 1
        return found

    async def flaws(self) -> list[str]:
        return [str(found) async for found in Fsck(self.runtime.mongo).findings()]


@pytest_asyncio.fixture(loop_scope="session")
async def house(
    new_database: Callable[[], str], data: Path, mongo_uri: str, mongo: MongoClient[dict[str, Any]]
) -> AsyncIterator[House]:
    name = new_database()
    settings = Settings(mongodb_database=name, data=data, embedder="lexical", seal_bytes=1024, deadline_seconds=4)
    async with serving(settings, mongo_uri) as api, running(settings, mongo_uri) as runtime:
        keys = {tenant: (await runtime.keys.create(tenant, list(Right)))[1] for tenant in ("mine", "other")}
        mine, other = (api.with_headers(bearer(keys[tenant])) for tenant in ("mine", "other"))
        yield House(runtime, mine, other, mongo[name])


async def lived_in(api: Api) -> None:
    """Something of every sort: agents with sealed steps, values apart, a fork; runners, commands, episodes, more."""
    keyed = {"Idempotency-Key": "once"}
    await api.call("POST", "/v1/agents", {"id": "ann", "name": SECRET}, headers=keyed, expect=201)
    for number in range(8):
        step = {"role": "user", "id": f"s{number}", "content": f"{SECRET} {number} " * 60}
        await api.call("POST", "/v1/agents/ann/steps", step, headers={"Idempotency-Key": f"s{number}"}, expect=201)
    await api.call("PUT", "/v1/agents/ann/workspace", {"files": SECRET * 2_000}, expect=200)
    await api.call("POST", "/v1/agents/ann/fork", {"at": "s5", "name": "her fork"}, expect=201)
    await api.call("POST", "/v1/agents", {"id": "bob", "pool": "pool-of-mine"}, expect=201)
    await api.call("POST", "/v1/runners", {"id": "r", **RUNNER}, expect=201)
    await api.call("POST", "/v1/agents/ann/commands", {"action": "custom", "payload": SECRET}, expect=201)
    await api.call("PUT", "/v1/pools/pool-of-mine", {"attempts": 2}, expect=200)
    await api.call("PUT", "/v1/retention", {"max_age_days": 9}, expect=200)
    await api.call("POST", "/v1/tickets", expect=201)
    learned = [{"agent_id": "ann", "task": SECRET}, {"agent_id": "bob", "task": "of bob"}]
    await api.call("POST", "/v1/episodes", {"episodes": learned}, expect=207)
    await api.call("GET", "/v1/sync", expect=200)


async def test_nothing_is_left_of_an_erased_tenant(house: House) -> None:
    """In no document of any collection, looked through byte by byte; the answer says what went."""
    await lived_in(house.mine)
    traces = house.holding("mine")
    assert traces.keys() >= {
        *("agents", "segments", "blobs", "runners", "pools", "commands", "episodes", "retention", "acts", "changes"),
        *("idempotency", "tickets", "keys"),
    }
    told = (await house.mine.call("DELETE", "/v1/tenants/mine", expect=200)).json()
    assert told["tenant"] == "mine"
    assert told["removed"].keys() == traces.keys()
    assert house.holding("mine") == {}
    assert house.holding(SECRET) == {}
    await house.mine.call("GET", "/v1/agents", expect="unauthenticated")


async def test_other_tenants_keep_all_they_have(house: House) -> None:
    """To the byte, though everything of theirs has the same names."""
    for api in (house.mine, house.other):
        await lived_in(api)
    kept = {agent: (await house.other.call("GET", f"/v1/agents/{agent}/export")).json() for agent in ("ann", "bob")}
    before = house.holding("other")
    await house.mine.call("DELETE", "/v1/tenants/mine", expect=200)
    for agent, export in kept.items():
        assert (await house.other.call("GET", f"/v1/agents/{agent}/export")).json() == export
    assert house.holding("other") == before
    assert await house.flaws() == []


async def test_only_an_admin_erases_and_only_its_own_tenant(house: House) -> None:
    """Another's tenant is as unknown as one that never was."""
    await lived_in(house.other)
    before = house.holding("other")
    for tenant in ("other", "nobodys", "default", "%24gt"):
        await house.mine.call("DELETE", f"/v1/tenants/{tenant}", expect="not-found")
    _, token = await house.runtime.keys.create("other", [Right.READ, Right.WRITE, Right.RUNNER])
    await house.other.with_headers(bearer(token)).call("DELETE", "/v1/tenants/other", expect="forbidden")
    assert {**house.holding("other"), "keys": 0, "acts": 0, "changes": 0} == {
        **before,
        "keys": 0,
        "acts": 0,
        "changes": 0,
    }


async def test_owners_key_erases_nothing_and_decides_nothing(house: House) -> None:
    """Though it may do everything else: others' things are at stake."""
    await lived_in(house.mine)
    _, token = await house.runtime.keys.create("mine", list(Right), owner="ann")
    ann = house.mine.with_headers(bearer(token))
    before = house.holding(SECRET)
    await ann.call("DELETE", "/v1/tenants/mine", expect="forbidden")
    await ann.call("PUT", "/v1/retention", {"min_reward": 1}, expect="forbidden")
    await ann.call("POST", "/v1/retention/apply", expect="forbidden")
    assert house.holding(SECRET) == before


async def test_tenant_is_erased_after_one_of_its_agents_was(house: House) -> None:
    """What is noted of the agent goes with it."""
    await lived_in(house.mine)
    await house.runtime.erasure.agent(OURS, "ann", episodes=True)
    await house.mine.call("DELETE", "/v1/tenants/mine", expect=200)
    assert house.holding("mine") == {}


async def test_agent_that_is_made_anew_while_the_old_one_is_erased_keeps_its_log(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what was before the deletion goes, also by what is swept later."""
    await lived_in(house.mine)
    collect = house.runtime.collector.collect

    async def slow(**options: Any) -> Any:
        await house.mine.call("POST", "/v1/agents", {"id": "ann"}, expect=201)
        await house.mine.call("POST", "/v1/agents/ann/steps", {"role": "user"}, expect=201)
        return await collect(**options)

    monkeypatch.setattr(house.runtime.collector, "collect", slow)
    await house.runtime.erasure.agent(OURS, "ann", episodes=True)
    await house.runtime.erasure.sweep()
    entries = (await house.mine.call("GET", "/v1/changes", agent="ann")).json()["items"]
    assert [entry["kinds"][0] for entry in entries] == ["deleted", "created", "step"]
    assert await house.flaws() == []


async def test_what_comes_late_of_an_erased_tenant_is_swept(house: House) -> None:
    """An entry that a slow replica writes, a document that a commit brings that was under way."""
    await lived_in(house.mine)
    late = {name: house.database[name].find_one({"tenant": "mine"}) for name in ("changes", "agents", "episodes")}
    await house.mine.call("DELETE", "/v1/tenants/mine", expect=200)
    for name, document in late.items():
        house.database[name].insert_one(document)
    await house.runtime.erasure.sweep()
    assert house.holding("mine") == {}


async def test_tenant_that_is_made_anew_is_not_swept(house: House) -> None:
    """What somebody writes with a new key is new."""
    await lived_in(house.mine)
    await house.mine.call("DELETE", "/v1/tenants/mine", expect=200)
    _, token = await house.runtime.keys.create("mine", list(Right))
    again = house.mine.with_headers(bearer(token))
    made = (await again.call("POST", "/v1/agents", {"id": "ann"}, expect=201)).json()
    assert made["version"] == 1
    await again.call("GET", "/v1/changes", expect=200)
    await house.runtime.erasure.sweep()
    assert (await again.call("GET", "/v1/agents/ann", expect=200)).json()["name"] == made["name"]
    assert [entry["agent"] for entry in (await again.call("GET", "/v1/changes")).json()["items"]][-1] == "ann"


async def test_erased_agent_leaves_a_tombstone_and_whole_forks(house: House) -> None:
    """Its content is nowhere but in what its fork shares; its version goes on; the database is found consistent."""
    await lived_in(house.mine)
    (fork,) = [
        one["id"] for one in (await house.mine.call("GET", "/v1/agents")).json()["items"] if one["name"] == "her fork"
    ]
    shared = (await house.mine.call("GET", f"/v1/agents/{fork}/export")).json()
    version = (await house.mine.call("GET", "/v1/agents/ann")).json()["version"]
    done = await house.runtime.erasure.agent(OURS, "ann", episodes=True)
    assert done.forks == [fork]
    await house.mine.call("GET", "/v1/agents/ann", expect="not-found")
    assert (await house.mine.call("GET", f"/v1/agents/{fork}/export")).json() == shared
    assert not any(f"{SECRET} {number}" in str(shared) for number in (6, 7))
    assert house.holding(f"{SECRET} 7 ") == {}
    assert house.holding(SECRET).keys() <= {"agents", "segments", "blobs", "idempotency"}
    entries = (await house.mine.call("GET", "/v1/changes", agent="ann")).json()["items"]
    assert [(entry["kinds"], entry["version"]) for entry in entries] == [(["deleted"], version + 1)]
    (act,) = (await house.mine.call("GET", "/v1/changes", kinds="erased")).json()["items"]
    assert (act["what"]["agent"], act["by"]) == ("ann", "operator")
    episodes = (await house.mine.call("GET", "/v1/episodes")).json()["items"]
    assert [episode["task"] for episode in episodes] == ["of bob"]
    assert await house.flaws() == []
    again = (await house.mine.call("POST", "/v1/agents", {"id": "ann"}, expect=201)).json()
    assert again["version"] == version + 2
    await house.mine.call("GET", "/v1/changes", agent="ann")
    assert await house.flaws() == []


async def test_agent_without_forks_is_gone_with_all_that_only_it_had(house: House) -> None:
    """Also what it learned, unless that is to be kept; what others said stays."""
    await house.mine.call("POST", "/v1/agents", {"id": "solo"}, expect=201)
    for number in range(8):
        step = {"role": "user", "content": f"{SECRET} {number} " * 60}
        await house.mine.call(
            "POST", "/v1/agents/solo/steps", step, headers={"Idempotency-Key": f"s{number}"}, expect=201
        )
    await house.mine.call("PUT", "/v1/agents/solo/workspace", {"files": SECRET * 2_000}, expect=200)
    await house.mine.call("POST", "/v1/episodes", {"agent_id": "solo", "task": "learned"}, expect=201)
    foreseen = await house.runtime.erasure.agent_foreseen(OURS, "solo", episodes=False)
    assert "episodes" not in foreseen.removed
    await house.mine.call("PATCH", "/v1/agents/solo", {"ttl_seconds": 0.001}, expect=200)  # its life is over
    await house.runtime.erasure.agent(OURS, "solo", episodes=False)
    assert house.holding(SECRET) == {}
    assert len((await house.mine.call("GET", "/v1/episodes")).json()["items"]) == 1
    await house.runtime.erasure.agent(OURS, "solo", episodes=True)
    assert (await house.mine.call("GET", "/v1/episodes")).json()["items"] == []
    assert await house.flaws() == []


async def test_foreseeing_removes_nothing(house: House) -> None:
    """And counts what erasing would."""
    await lived_in(house.mine)
    before = house.holding("mine")
    would = await house.runtime.erasure.foreseen("mine")
    assert house.holding("mine") == before
    told = (await house.mine.call("DELETE", "/v1/tenants/mine", expect=200)).json()
    assert would.removed == told["removed"]
