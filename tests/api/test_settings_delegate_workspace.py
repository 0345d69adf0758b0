"""Settings, delegate and workspace: the bare values beside an agent's steps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pymongo import MongoClient

from app.config import Settings
from tests.api.driver import Api, etag

DEFAULTS = {
    "max_steps": 100,
    "tool_timeout_seconds": 240,
    "execution_timeout_seconds": 240,
    "result_char_limit": 2000,
    "result_cell_char_limit": 2000,
    "result_serialization": "tsv",
    "disabled_tools": [],
    "allowed_tools": None,
}

ODD_KEYS = {
    "a.b": 1,
    "$set": {"$gt": ""},
    "": {"": [{"": None}]},
    "ключ": "x",
    "a": {"b.c": 1.0, "~/": True},
    "@workspace": 0,
}
"""Keys that a database could take for something else."""


async def test_settings_of_a_new_agent_are_the_defaults(api: Api) -> None:
    """The bare object, with the version in the ETag."""
    agent = await api.made()
    answer = await agent.call("GET", "/settings")
    assert answer.json() == DEFAULTS
    assert answer.headers["etag"] == etag(1)


async def test_given_settings_lie_over_the_defaults_and_keep_their_nulls(api: Api) -> None:
    """A null in POST is a value, not a removal."""
    agent = await api.made(settings={"max_steps": None, "mine": None, "result_serialization": "json"})
    expected = {**DEFAULTS, "max_steps": None, "mine": None, "result_serialization": "json"}
    assert await agent.read("/settings") == expected == (await agent.read())["settings"]


async def test_settings_patch_is_a_merge_patch(api: Api) -> None:
    """Objects merge, null removes, anything else replaces; the answer is the whole object."""
    agent = await api.made(settings={"mine": {"a": 1, "b": {"c": 2}}, "list": [1, 2]})
    answer = await agent.call(
        "PATCH", "/settings", {"mine": {"a": None, "b": {"d": 3}}, "list": [3], "max_steps": None}
    )
    expected = {**DEFAULTS, "mine": {"b": {"c": 2, "d": 3}}, "list": [3]}
    del expected["max_steps"]
    assert answer.json() == expected == await agent.read("/settings")
    assert answer.headers["etag"] == etag(2)


async def test_concurrent_patches_of_different_keys_all_survive(api: Api, other_replica: Api) -> None:
    """On one replica and on two."""
    agent = await api.made()
    callers = [agent, agent.by(other_replica)]
    await asyncio.gather(*(callers[i % 2].call("PATCH", "/settings", {f"key{i}": i}) for i in range(20)))
    assert await agent.read("/settings") == {**DEFAULTS, **{f"key{i}": i for i in range(20)}}
    assert await agent.version() == 21


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("max_steps", value) for value in (0, -1, 1.5, True, "100", [], {"$gt": ""})],
        *[("result_char_limit", value) for value in (0, "x", 1.0)],
        *[("result_cell_char_limit", value) for value in (0, False)],
        *[("tool_timeout_seconds", value) for value in (0, -1, "1", True)],
        *[("execution_timeout_seconds", value) for value in (0, "1")],
        *[("result_serialization", value) for value in (1, [], {})],
        *[("disabled_tools", value) for value in ("rm", [1], {})],
        *[("allowed_tools", value) for value in ("rm", [None], 1)],
    ],
)
async def test_known_settings_have_types(api: Api, key: str, value: object) -> None:
    """A wrong type is refused in POST and in PATCH, and nothing changes."""
    await api.call("POST", "/v1/agents", {"settings": {key: value}}, expect="invalid-request")
    agent = await api.made()
    await agent.call("PATCH", "/settings", {key: value}, expect="invalid-request")
    assert await agent.version() == 1


@pytest.mark.parametrize("body", [[], 1, "x", None, True])
async def test_settings_patch_must_be_an_object(api: Api, body: object) -> None:
    """RFC 7396 would replace the whole; settings are always an object."""
    await (await api.made()).call("PATCH", "/settings", body, expect="invalid-request")


async def test_odd_keys_come_back_exactly(api: Api) -> None:
    """In settings, workspace, delegate, labels, results and step data; nothing else is touched by them."""
    step = {"role": "agent", "id": "s", "data": ODD_KEYS, "usage": ODD_KEYS, "workspace": ODD_KEYS, "refs": [ODD_KEYS]}
    step["tool_calls"] = [{"id": "t", "name": "n", "input": ODD_KEYS}]
    labels = {"a.b": "$x", "$set": "1", "x:y": "z"}
    agent = await api.made(
        settings=ODD_KEYS, workspace=ODD_KEYS, delegate={"user": ODD_KEYS, **ODD_KEYS}, labels=labels
    )
    await agent.append(step)
    await agent.call("PUT", "/results/k", {"result": ODD_KEYS})
    read = await agent.read()
    assert read["settings"] == {**DEFAULTS, **ODD_KEYS}
    assert read["delegate"] == {"user": ODD_KEYS, **ODD_KEYS}
    assert (read["workspace"], read["labels"]) == (ODD_KEYS, labels)
    assert {name: read["steps"][0][name] for name in step} == step
    assert (await agent.read("/results/k"))["result"] == ODD_KEYS
    await agent.call("PATCH", "/settings", {"a.b": None, "$set": {"$gt": None, "x.y": 1}, "": None})
    after = await agent.read("/settings")
    assert "a.b" not in after
    assert "" not in after
    assert after["$set"] == {"x.y": 1}
    assert after["a"] == ODD_KEYS["a"]


@pytest.mark.parametrize(
    "value",
    [1, 1.0, True, 0, 0.0, -0.5, False, None, "", "1", [], {}, [None], 2**63 - 1, -(2**63), 1e308, 5e-324, "\0"],
)
async def test_values_keep_their_kind(api: Api, value: object) -> None:
    """1, 1.0 and true are three values: as they were sent, so they come back."""
    agent = await api.made(workspace=value, settings={"v": value})
    await agent.append({"role": "agent", "data": {"v": value}})
    read = await agent.read()
    shown = [read["workspace"], read["settings"]["v"], read["steps"][0]["data"]["v"]]
    assert [repr(item) for item in shown] == [repr(value)] * 3


@pytest.mark.parametrize(
    ("first", "second"), [(1, 1.0), (1, True), (0, False), (1.0, True), ("1", 1), (None, False), ([], {})]
)
async def test_change_of_kind_is_a_change(api: Api, first: object, second: object) -> None:
    """A PUT from 1 to 1.0 or true counts, and a PUT of the same value does not."""
    agent = await api.made(workspace=[first])
    await agent.call("PUT", "/workspace", [first])
    assert await agent.version() == 1
    answer = await agent.call("PUT", "/workspace", [second])
    assert repr(answer.json()) == repr([second]) == repr(await agent.read("/workspace"))
    assert await agent.version() == 2


async def test_delegate_token_is_never_shown(api: Api) -> None:
    """Not by its own route, the agent, the list, the export or the answer of the write that brought it."""
    secret = "tok-5ecret-" + "x" * 20
    created = await api.call("POST", "/v1/agents", {"delegate": {"user": {"id": "u"}, "token": secret}, "pool": "pd"})
    agent_id = created.json()["id"]
    path = f"/v1/agents/{agent_id}"
    put = await api.call("PUT", f"{path}/delegate", {"user": {"id": "u"}, "token": secret + "2", "scope": ["a"]})
    assert put.json() == {"user": {"id": "u"}, "token": "***", "scope": ["a"]}
    assert (await api.call("GET", f"{path}/delegate")).json() == put.json()
    assert (await api.call("GET", path)).json()["delegate"] == put.json()
    shown = [created, put, await api.call("GET", "/v1/agents", pool="pd"), await api.call("GET", f"{path}/export")]
    assert all(secret not in answer.text for answer in shown)
    assert "***" not in shown[-1].text
    assert "***" in shown[-2].text


async def test_delegate_token_is_never_stored_in_the_clear(
    api: Api, mongo: MongoClient[dict[str, Any]], open_settings: Settings
) -> None:
    """No collection of the database holds its bytes, the idempotency records included."""
    secret = "c1ear-text-token"
    delegate = {"token": secret}
    headers = {"Idempotency-Key": "delegate-1"}
    agent_id = (await api.call("POST", "/v1/agents", {"delegate": delegate}, headers=headers)).json()["id"]
    await api.call("PUT", f"/v1/agents/{agent_id}/delegate", delegate)
    database = mongo[open_settings.mongodb_database]
    raw = b"".join(batch for name in database.list_collection_names() for batch in database[name].find_raw_batches({}))
    assert agent_id.encode() in raw
    assert secret.encode() not in raw


async def test_delegate_that_comes_back_masked_keeps_its_token(api: Api) -> None:
    """What a reader was shown can be put again; with no token there, `***` is refused."""
    agent = await api.made(delegate={"user": {"id": 1}, "token": "secret"})
    shown = await agent.read("/delegate")
    await agent.call("PUT", "/delegate", shown)
    assert await agent.version() == 1
    await agent.call("PUT", "/delegate", {**shown, "user": {"id": 2}})
    assert (await agent.read("/delegate")) == {"user": {"id": 2}, "token": "***"}
    await agent.call("DELETE", "/delegate", expect=204)
    await agent.call("PUT", "/delegate", shown, expect="invalid-request")
    await api.call("POST", "/v1/agents", {"delegate": shown}, expect="invalid-request")


async def test_delegate_put_to_the_same_value_leaves_the_version(api: Api) -> None:
    """With and without a token."""
    agent = await api.made(delegate={"user": {"id": 1}})
    await agent.call("PUT", "/delegate", {"user": {"id": 1}})
    assert await agent.version() == 1
    await agent.call("PUT", "/delegate", {"user": {"id": 1}, "token": "t"})
    await agent.call("PUT", "/delegate", {"user": {"id": 1}, "token": "t"})
    assert await agent.version() == 2
    await agent.call("PUT", "/delegate", {"user": {"id": 1}, "token": "u"})
    assert await agent.version() == 3


async def test_delegate_can_be_taken_away(api: Api) -> None:
    """Then there is none to read; taking none away changes nothing."""
    agent = await api.made(delegate={"user": {}})
    await agent.call("DELETE", "/delegate", expect=204)
    await agent.call("GET", "/delegate", expect="not-found")
    await agent.call("DELETE", "/delegate", expect=204)
    read = await agent.read()
    assert (read["delegate"], read["version"]) == (None, 2)


@pytest.mark.parametrize("workspace", [None, 0, "", [], {"a": {"b": [1]}}, "text"])
async def test_workspace_is_any_json_value(api: Api, workspace: object) -> None:
    """The bare value, both ways, with the version in the ETag."""
    agent = await api.made(workspace="before")
    answer = await agent.call("PUT", "/workspace", workspace)
    assert answer.json() == workspace == await agent.read("/workspace")
    assert answer.headers["etag"] == (await agent.call("GET", "/workspace")).headers["etag"] == etag(2)


async def test_workspace_follows_head(api: Api) -> None:
    """A step's workspace is the agent's when HEAD is on it; a PUT binds to HEAD; the nearest ancestor's is seen."""
    agent = await api.made(workspace="root's")
    await agent.append({"id": "a", "role": "agent", "workspace": "a's"}, {"id": "b", "role": "agent"})
    assert await agent.read("/workspace") == "a's"
    await agent.call("PUT", "/workspace", "b's")
    await agent.append({"id": "c", "role": "agent", "workspace": None}, {"id": "d", "role": "agent"})
    seen = {step: (await agent.checkout(step))["workspace"] for step in ("root", "a", "b", "c", "d")}
    assert seen == {"root": "root's", "a": "a's", "b": "b's", "c": None, "d": None}
    for step, workspace in seen.items():
        await agent.checkout(step)
        assert await agent.read("/workspace") == workspace == (await agent.read())["workspace"]


async def test_workspace_of_a_side_branch_stays_there(api: Api) -> None:
    """Steps that hang elsewhere do not change what HEAD sees, and a sibling's workspace is not an ancestor's."""
    agent = await api.made()
    await agent.append({"id": "a", "role": "user", "workspace": 1})
    await agent.append({"id": "x", "role": "agent", "parent_id": "a", "workspace": 2}, advance_head="false")
    assert await agent.read("/workspace") == 1
    await agent.append({"id": "b", "role": "agent"})
    assert await agent.read("/workspace") == 1
    assert (await agent.checkout("x"))["workspace"] == 2
    await agent.append({"id": "y", "role": "agent"})
    assert await agent.read("/workspace") == 2
