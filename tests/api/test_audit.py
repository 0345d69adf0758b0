"""What the change log tells of beside agents and episodes: every admin act, every hand-over of a secret; no reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest_asyncio

from app.config import Settings
from app.runtime import Runtime, running
from models.tenant import Right
from tests.api.driver import Api, Json, bearer, serving

RUNNER = {"pool": "p", "platform": "local", "capacity": 2}


@dataclass(frozen=True)
class Office:
    """A replica with keys of a tenant and of another, and who wrote them."""

    api: Api
    runtime: Runtime
    mine: dict[str, str]
    other: dict[str, str]
    key: str

    async def call(self, method: str, path: str, *body: Any, expect: Any = None, **query: str) -> Any:
        return await self.api.call(method, path, *body, headers=self.mine, expect=expect, **query)

    async def told(self, kind: str, *did: str) -> list[Json]:
        """The acts of a kind, once there is one of each."""
        for _ in range(400):
            acts = await self.acts(kind)
            if {*did} <= {act["what"]["did"] for act in acts}:
                return acts
            await asyncio.sleep(0.05)
        raise AssertionError(f"waited 20 s in vain for {did} in the log")

    async def acts(self, *kinds: str) -> list[Json]:
        """The acts of these kinds so far, oldest first."""
        found = (await self.call("GET", "/v1/changes", kinds=",".join(kinds), limit="200")).json()["items"]
        return [entry for entry in found if "what" in entry]

    async def did(self, *kinds: str) -> list[str]:
        return [entry["what"]["did"] for entry in await self.acts(*kinds)]


@pytest_asyncio.fixture(loop_scope="session")
async def office(new_database: Callable[[], str], data: Path, mongo_uri: str) -> AsyncIterator[Office]:
    settings = Settings(mongodb_database=new_database(), data=data, embedder="lexical", runner_ttl_seconds=1)
    async with serving(settings, mongo_uri) as api, running(settings, mongo_uri) as runtime:
        record, token = await runtime.keys.create("mine", list(Right))
        _, other = await runtime.keys.create("other", list(Right))
        yield Office(api, runtime, bearer(token), bearer(other), record.id)


async def test_keys_and_their_end_are_told(office: Office) -> None:
    """By whom, which key, with which rights; never the key itself."""
    record, token = await office.runtime.keys.create("mine", [Right.READ])
    await office.runtime.keys.revoke(record.id)
    made, ended = [act for act in await office.told("key", "revoked") if act["what"]["key"] == record.id]
    assert (made["what"]["did"], made["what"]["rights"], made["by"]) == ("created", ["read"], "operator")
    assert (ended["what"]["did"], ended["by"]) == ("revoked", "operator")
    log = (await office.call("GET", "/v1/changes")).text
    assert token not in log
    assert token.split("_", 2)[2] not in log


async def test_hand_over_of_a_secret_is_told(office: Office) -> None:
    """A ticket, a runner's token, a delegate's token in a claim: to whom, and never what."""
    ticket = (await office.call("POST", "/v1/tickets")).json()["ticket"]
    runner = (await office.call("POST", "/v1/runners", {"id": "r", **RUNNER})).json()
    delegate = {"user": {"id": 1}, "token": "tell-nobody"}
    agent = (await office.call("POST", "/v1/agents", {"pool": "p", "delegate": delegate})).json()["id"]
    claim = (await office.call("POST", "/v1/runners/r/claim", {"max": 1})).json()["claims"][0]
    assert claim["delegate"]["token"] == "tell-nobody"
    assert [act["by"] for act in await office.acts("ticket")] == [office.key]
    (registered,) = await office.acts("roster")
    assert (registered["what"]["did"], registered["what"]["runner"]) == ("registered", "r")
    entries = (await office.call("GET", "/v1/changes", agent=agent, kinds="handed")).json()["items"]
    assert [(entry["by"], entry["runner"]) for entry in entries] == [(office.key, "r")]
    log = (await office.call("GET", "/v1/changes", limit="200")).text
    assert not any(secret in log for secret in (ticket, runner["token"], "tell-nobody"))


async def test_decisions_are_told(office: Office) -> None:
    """Of pools and of what is kept, with what was decided; and what was asked for and removed."""
    await office.call("PUT", "/v1/pools/p", {"attempts": 7})
    await office.call("PUT", "/v1/retention", {"min_reward": 0.5})
    episode = (await office.call("POST", "/v1/episodes", {"task": "a", "reward": 1})).json()["id"]
    await office.call("POST", "/v1/episodes", {"task": "b", "reward": 0.1})
    await office.call("DELETE", f"/v1/episodes/{episode}")
    await office.call("POST", "/v1/retention/apply")
    await office.call("POST", "/v1/reconcile")
    told = {act["kinds"][0]: act["what"] for act in await office.acts("pool", "retention", "reconciled")}
    assert told["pool"] == {"did": "decided", "pool": "p", "decided": {"attempts": 7}}
    assert told["retention"] == {"did": "decided", "min_reward": 0.5}
    assert told["reconciled"]["did"] == "asked for"
    gone = [act["what"] for act in await office.acts("forgotten")]
    assert {"did": "removed", "episode": episode} in gone
    assert {"did": "removed", "reason": "poor", "episodes": 1} in gone


async def test_life_of_a_runner_is_told(office: Office) -> None:
    """That it came, drains, left; and that it died without a word, once."""
    for name in ("goes", "dies"):
        await office.call("POST", "/v1/runners", {"id": name, **RUNNER})
    await office.call("POST", "/v1/runners/goes/drain")
    await office.call("DELETE", "/v1/runners/goes")
    told = await office.told("roster", "died")
    lives = [(act["what"]["runner"], act["what"]["did"], act["by"]) for act in told]
    assert lives == [
        *[(name, "registered", office.key) for name in ("goes", "dies")],
        *[("goes", did, office.key) for did in ("drains", "left")],
        ("dies", "died", "holdfast"),
    ]


async def test_command_is_told_from_its_giving_to_its_end(office: Office) -> None:
    """What is said in it is nobody's business."""
    agent = (await office.call("POST", "/v1/agents", {"pool": "p"})).json()["id"]
    await office.call("POST", "/v1/runners", {"id": "r", **RUNNER})
    await office.call("POST", "/v1/runners/r/claim", {"max": 1})
    office.mine["Fencing-Token"] = "1"
    given = {"action": "custom", "payload": {"word": "xyzzy"}}
    command = (await office.call("POST", f"/v1/agents/{agent}/commands", given)).json()["id"]
    await office.call("GET", "/v1/runners/r/commands")
    await office.call("POST", f"/v1/commands/{command}/complete", {"result": "xyzzy"})
    late = (await office.call("POST", f"/v1/agents/{agent}/commands", {**given, "deadline_seconds": 0.1})).json()["id"]
    told = [(act["what"]["command"], act["what"]["did"]) for act in await office.told("command", "failed")]
    assert told == [(command, "given"), (command, "completed"), (late, "given"), (late, "failed")]
    assert {act["what"]["agent"] for act in await office.acts("command")} == {agent}
    assert "xyzzy" not in (await office.call("GET", "/v1/changes", limit="200")).text


async def test_reads_and_refusals_are_not_told(office: Office) -> None:
    """Neither what was looked at nor what was refused is in the log."""
    agent = (await office.call("POST", "/v1/agents", {})).json()["id"]
    before = (await office.call("GET", "/v1/changes")).json()["items"]
    for path in (f"/v1/agents/{agent}", "/v1/episodes", "/v1/sync", "/v1/retention", "/v1/presence", "/v1/stats"):
        await office.call("GET", path, expect=200)
    await office.call("POST", "/v1/episodes/search", {"text": "x"}, expect=200)
    await office.call("DELETE", "/v1/episodes/unheard-of", expect="not-found")
    await office.call("POST", "/v1/runners/unheard-of/drain", expect="not-found")
    await office.call("POST", "/v1/agents/unheard-of/commands", {"action": "custom"}, expect="not-found")
    await office.call("POST", "/v1/retention/apply", {"dry_run": True}, expect=200)
    assert (await office.call("GET", "/v1/changes")).json()["items"] == before


async def test_other_tenants_and_owners_hear_nothing_of_it(office: Office) -> None:
    """An act is its tenant's; what has no owner is for keys that see every owner's."""
    await office.call("PUT", "/v1/pools/p", {"attempts": 7})
    _, ann = await office.runtime.keys.create("mine", [Right.READ], owner="ann")
    for stranger in (office.other, bearer(ann)):
        entries = (await office.api.call("GET", "/v1/changes", headers=stranger)).json()["items"]
        assert all(entry["kinds"] == ["key"] for entry in entries)


async def test_lost_stream_loses_no_act(office: Office) -> None:
    """What the log could not be told by the stream is told again from where it was written down."""
    await office.call("PUT", "/v1/pools/p", {"attempts": 7})
    await office.acts("pool")
    # unscoped: as if the log had never heard of it
    await office.runtime.mongo.changes.delete_many({"kinds": "pool"})
    assert await office.acts("pool") == []
    await office.runtime.changes.record_gap()
    assert [act["what"]["pool"] for act in await office.acts("pool")] == ["p"]
