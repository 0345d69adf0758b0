"""If-Match, Fencing-Token, and the order in which a write is checked."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio
from pymongo import MongoClient

from app.config import Settings
from tests.api.conftest import KeyMaker
from tests.api.driver import Api, Handle, bearer, etag

WRITES: list[tuple[str, str, Any]] = [
    ("PATCH", "", {"name": "x"}),
    ("DELETE", "", None),
    ("PATCH", "/settings", {"x": 1}),
    ("PUT", "/delegate", {"user": {}}),
    ("DELETE", "/delegate", None),
    ("PUT", "/workspace", 1),
    ("POST", "/steps", {"role": "user"}),
    ("PUT", "/head", {"step_id": "a"}),
    ("PUT", "/branches/b", {"step_id": "a"}),
    ("DELETE", "/branches/side", None),
    ("POST", "/revert", {"turn_id": "a"}),
    ("POST", "/redo", {}),
    ("POST", "/clear", {}),
    ("PUT", "/results/k", {"result": 1}),
    ("POST", "/fork", {}),
]
NAMES = [f"{method} {path}" for method, path, _ in WRITES]


@pytest_asyncio.fixture(loop_scope="session")
async def agent(api: Api) -> Handle:
    """An agent at which every one of the writes would be accepted."""
    agent = await api.made(delegate={"token": "t"})
    await agent.added("a", "b")
    await agent.call("PUT", "/branches/side", {"step_id": "a"})
    await agent.call("POST", "/revert", {"turn_id": "b"})
    return agent


@pytest.mark.parametrize(("method", "path", "body"), WRITES, ids=NAMES)
async def test_if_match_guards_every_write(agent: Handle, method: str, path: str, body: Any) -> None:
    """Another version: 412 with both, nothing changes. This version, `*` and no quotes: accepted."""
    sent = () if body is None else (body,)
    problem = (await agent.call(method, path, *sent, headers={"If-Match": etag(3)}, expect="version-conflict")).json()
    assert (problem["expected"], problem["actual"]) == (3, 5)
    assert await agent.version() == 5
    await agent.call(method, path, *sent, headers={"If-Match": etag(5)})


@pytest.mark.parametrize(("method", "path", "body"), WRITES, ids=NAMES)
async def test_fencing_token_guards_every_write(agent: Handle, method: str, path: str, body: Any) -> None:
    """Another fence: 409 fenced-out with both, nothing changes. The agent's: accepted."""
    sent = () if body is None else (body,)
    problem = (await agent.call(method, path, *sent, headers={"Fencing-Token": "4"}, expect="fenced-out")).json()
    assert (problem["fence"], problem["actual"]) == (4, 0)
    assert await agent.version() == 5
    await agent.call(method, path, *sent, headers={"Fencing-Token": "0", "If-Match": "*"})


@pytest.mark.parametrize(
    "tag", ["abc", '"a"', "", '"1", "2"', "-1", "1.0", 'W/"1"', '"' + "9" * 40 + '"', "0x1", "1 2"]
)
async def test_if_match_that_is_no_version_is_refused(agent: Handle, tag: str) -> None:
    """400 rather than a guess."""
    await agent.call("PATCH", "", {"name": "x"}, headers={"If-Match": tag}, expect="invalid-request")


@pytest.mark.parametrize("token", ["abc", "", "-1", "1.0", "9" * 40, '"1"', "0x1", "*", "1 2", "1_0"])
async def test_fencing_token_that_is_no_fence_is_refused(agent: Handle, token: str) -> None:
    """400 rather than a guess."""
    await agent.call("PATCH", "", {"name": "x"}, headers={"Fencing-Token": token}, expect="invalid-request")


async def test_checks_come_in_the_order_of_the_contract(api: Api, agent: Handle) -> None:
    """Exists, If-Match, fence, then what the step hangs from; each hides the later ones."""
    wrong = {"role": "user", "parent_id": "nowhere"}
    both = {"If-Match": etag(1), "Fencing-Token": "9"}
    await Handle(api, "nobody").call("POST", "/steps", wrong, headers=both, expect="not-found")
    await agent.call("POST", "/steps", wrong, headers=both, expect="version-conflict")
    await agent.call("POST", "/steps", wrong, headers={"If-Match": etag(5), "Fencing-Token": "9"}, expect="fenced-out")
    await agent.call("POST", "/steps", wrong, headers={"If-Match": etag(5), "Fencing-Token": "0"}, expect="not-found")


async def test_busy_agent_keeps_its_head(api: Api, mongo: MongoClient[dict[str, Any]], open_settings: Settings) -> None:
    """Inside a turn a checkout, revert, redo and clear are refused before their target is looked at."""
    agent = await api.made()
    await agent.added("a")
    stored = mongo[open_settings.mongodb_database]["agents"]
    stored.update_one({"_id": f"default:{agent.id}"}, {"$set": {"state": "busy", "version": 3}})
    for method, path, body in [
        ("PUT", "/head", {"step_id": "root"}),
        ("PUT", "/head", {"step_id": "nowhere"}),
        ("PUT", "/head", {"branch": "nowhere"}),
        ("POST", "/revert", {"turn_id": "a"}),
        ("POST", "/redo", {}),
        ("POST", "/clear", {}),
    ]:
        await agent.call(method, path, body, expect="agent-busy")
        await agent.call(method, path, body, headers={"Fencing-Token": "1"}, expect="fenced-out")
    await agent.added("b")


async def test_runner_key_must_send_the_fence_on_an_assigned_agent(
    keyed: Api, new_key: KeyMaker, tenant: str, mongo: MongoClient[dict[str, Any]], keyed_settings: Settings
) -> None:
    """428 without, also for a fork; on an agent without a runner, and for other keys, it is left to them."""
    runner = bearer(await new_key(tenant, "read", "write", "runner"))
    writer = bearer(await new_key(tenant, "write"))
    made = await keyed.call("POST", "/v1/agents", {}, headers=writer)
    path = f"/v1/agents/{made.json()['id']}"
    await keyed.call("PATCH", f"{path}/settings", {"a": 1}, headers=runner)
    stored = mongo[keyed_settings.mongodb_database]["agents"]
    stored.update_one({"_id": f"{tenant}:{made.json()['id']}"}, {"$set": {"runner": "r1", "fence": 7, "version": 3}})
    await keyed.call("PATCH", f"{path}/settings", {"a": 2}, headers=runner, expect="precondition-required")
    await keyed.call("POST", f"{path}/fork", {}, headers=runner, expect="precondition-required")
    await keyed.call(
        "PATCH", f"{path}/settings", {"a": 2}, headers={**runner, "Fencing-Token": "6"}, expect="fenced-out"
    )
    await keyed.call("PATCH", f"{path}/settings", {"a": 2}, headers={**runner, "Fencing-Token": "7"})
    await keyed.call("PATCH", f"{path}/settings", {"a": 3}, headers=writer)
