"""Export and import: one JSON snapshot, out and in again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.driver import Api, Handle, Json

VOLATILE = ("id", "version", "created_at")


def essence(export: Json) -> Json:
    """An export without ids of its own, versions and times of the agent."""
    steps = [{name: value for name, value in step.items() if name != "version"} for step in export["steps"]]
    return {**{name: value for name, value in export.items() if name not in VOLATILE}, "steps": steps}


def text_of(value: Any) -> str:
    """One text for equal JSON values, another where only the kind of a number differs."""
    return json.dumps(value, sort_keys=True)


def nested(levels: int) -> Any:
    """A JSON value of so many levels."""
    return [nested(levels - 1)] if levels else "bottom"


async def rich_agent(api: Api) -> Handle:
    """An agent with everything that an export can hold."""
    agent = await api.made(
        name="Ada",
        model="m",
        owner="ann",
        settings={"a.b": None, "max_steps": 1},
        labels={"a": "1", "$x": "y.z"},
        delegate={"user": {"id": 1}, "token": "5ecret-token"},
        workspace={"": [1.0, True, None]},
        pool="p",
        platform="docker",
        region="eu",
        dormant=True,
        idle_seconds=60.5,
    )
    await agent.append(
        {"role": "user", "id": "a", "data": {"$d": {"v": 1.0}}}, {"role": "agent", "id": "b", "refs": [None]}
    )
    await agent.append({"role": "agent", "id": "x", "parent_id": "a", "workspace": None}, advance_head="false")
    await agent.append({"role": "user", "id": "c", "created_at": "2020-01-01T00:00:00.001Z"})
    await agent.call("PUT", "/branches/side.1", {"step_id": "x"})
    await agent.call("PUT", "/results/k.1", {"step_id": "b", "result": {"$r": 1}})
    await agent.call("PUT", "/workspace", "put at c")
    await agent.call("POST", "/revert", {"turn_id": "c"})
    return agent


async def imported(api: Api, export: Json, **changed: Any) -> Handle:
    answer = await api.call("POST", "/v1/agents/import", {**export, **changed}, expect=201)
    assert answer.headers["location"] == f"/v1/agents/{answer.json()['id']}"
    return Handle(api, answer.json()["id"])


async def test_import_of_an_export_gives_an_equal_agent(api: Api) -> None:
    """Equal but for id, versions and times; steps off the path, results, workspaces, branches and redo included."""
    agent = await rich_agent(api)
    export = await agent.read("/export")
    assert (export["holdfast"], export["id"], len(export["steps"])) == (1, agent.id, 4)
    copy = await imported(api, export, id=None)
    assert copy.id != agent.id
    assert text_of(essence(await copy.read("/export"))) == text_of(essence(export))
    copied, original = await copy.read(steps="all"), await agent.read(steps="all")
    apart = {"id", "version", "created_at", "updated_at", "expires_at", "size_bytes", "delegate", "steps"}
    assert {name: copied[name] for name in copied.keys() - apart} == {
        name: original[name] for name in copied.keys() - apart
    }
    assert await copy.read("/results") == await agent.read("/results")
    assert (await copy.call("POST", "/redo")).json()["workspace"] == "put at c"
    assert (await copy.append("on"))["steps"][0]["seq"] == 5


async def test_second_import_is_as_equal_as_the_first(api: Api) -> None:
    """Also of an agent with nothing in it, with only a token, detached, or cleared."""
    agents = [
        await rich_agent(api),
        await api.made(),
        await api.made(delegate={"token": "t"}),
        await api.made(delegate={}),
    ]
    for change in (("PUT", "/head", {"step_id": "a"}), ("POST", "/clear")):
        agents.append(await rich_agent(api))
        await agents[-1].call(*change)
    for agent in agents:
        export = await agent.read("/export")
        copy = await imported(api, export, id=None)
        assert essence(await copy.read("/export")) == essence(export)


async def test_delegate_token_is_in_no_export(api: Api) -> None:
    """Neither in the clear, nor sealed, nor masked; the user is."""
    agent = await rich_agent(api)
    answer = await agent.call("GET", "/export")
    assert "5ecret" not in answer.text
    assert answer.json()["delegate"] == {"user": {"id": 1}}
    given = {**answer.json(), "id": None, "delegate": {"user": {"id": 1}, "token": "smuggled"}}
    assert (await (await imported(api, given)).read("/delegate")) == {"user": {"id": 1}}


async def test_import_under_the_exported_id_needs_it_free(api: Api) -> None:
    """Taken: 409. Deleted: the version continues."""
    agent = await rich_agent(api)
    export = await agent.read("/export")
    await api.call("POST", "/v1/agents/import", export, expect="conflict")
    version = await agent.version()
    await agent.call("DELETE")
    again = await imported(api, export)
    assert again.id == agent.id
    assert await again.version() == version + 2
    assert essence(await again.read("/export")) == essence(export)


async def test_import_under_another_id(api: Api) -> None:
    """An optional `id` names the new agent."""
    agent = await api.made()
    copy = await imported(api, await agent.read("/export"), id=f"{agent.id}-copy")
    assert copy.id == f"{agent.id}-copy"


async def test_step_of_any_accepted_size_and_depth_can_be_imported_again(api: Api) -> None:
    """What was accepted on writing is accepted on import, though an export wraps it in more levels."""
    agent = await api.made()
    await agent.call("PUT", "/workspace", nested(32))
    await agent.call("PATCH", "/settings", {"deep": nested(31)})
    await agent.append({"role": "agent", "data": {"deep": nested(30)}})
    await agent.call("PUT", "/results/k", {"result": nested(31)})
    export = await agent.read("/export")
    assert essence(await (await imported(api, export, id=None)).read("/export")) == essence(export)


async def test_minimal_snapshot_is_enough(api: Api) -> None:
    """The format's number alone makes an empty agent."""
    read = await (await imported(api, {"holdfast": 1})).read()
    assert (read["name"], read["head"], read["branch"], read["version"]) == ("Bob", "root", "main", 1)


STEP: Json = {"id": "a", "seq": 1, "parent_id": "root", "turn_id": "a", "index": 0, "role": "user"}
STEP |= {"created_at": "2020-01-01T00:00:00.000Z"}


@pytest.mark.parametrize(
    "snapshot",
    [
        {},
        {"holdfast": 2},
        {"holdfast": "1"},
        {"holdfast": None},
        {"holdfast": 1, "colour": "red"},
        {"holdfast": 1, "id": "root"},
        {"holdfast": 1, "head": "nowhere"},
        {"holdfast": 1, "branches": {"main": "nowhere"}},
        {"holdfast": 1, "branches": {}, "branch": "main"},
        {"holdfast": 1, "branches": {"a/b": "root"}, "branch": None},
        {"holdfast": 1, "redo": ["nowhere"]},
        {"holdfast": 1, "settings": {"max_steps": 0}},
        {"holdfast": 1, "results": [{"step_id": "nowhere", "key": "k", "result": 1}]},
        {"holdfast": 1, "workspaces": [{"step_id": "nowhere", "workspace": 1}]},
        {"holdfast": 1, "steps": [{"id": "a", "role": "user"}]},
        {"holdfast": 1, "steps": [{**STEP, "seq": 0}]},
        {"holdfast": 1, "steps": [{**STEP, "seq": 2**63 - 1}]},
        {"holdfast": 1, "steps": [{**STEP, "index": 2**63 - 1}]},
        {"holdfast": 1, "seq": 2**63 - 1},
        {"holdfast": 1, "steps": [{**STEP, "id": "root"}]},
        {"holdfast": 1, "steps": [{**STEP, "parent_id": "a"}]},
        {"holdfast": 1, "steps": [{**STEP, "parent_id": "b"}, {**STEP, "id": "b", "seq": 2}]},
        {"holdfast": 1, "steps": [STEP, STEP]},
        {"holdfast": 1, "steps": [STEP, {**STEP, "id": "b"}]},
        {"holdfast": 1, "steps": [{**STEP, "created_at": "yesterday"}]},
    ],
)
async def test_snapshot_that_makes_no_agent_is_refused(api: Api, snapshot: Json) -> None:
    """Unknown format versions, unknown fields, and what contradicts itself: 400."""
    await api.call("POST", "/v1/agents/import", snapshot, expect="invalid-request")


@pytest.mark.parametrize("value", [True, 1.0])
async def test_format_number_is_the_integer_one(api: Api, value: object) -> None:
    """Neither `true` nor `1.0`."""
    await api.call("POST", "/v1/agents/import", {"holdfast": value}, expect="invalid-request")
