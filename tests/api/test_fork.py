"""Forks: a new agent that shares the path up to a step."""

from __future__ import annotations

import pytest
import pytest_asyncio

from tests.api.driver import Api, Handle


@pytest_asyncio.fixture(loop_scope="session")
async def source(api: Api) -> Handle:
    """A path a-b-c, a side branch, results, a delegate, settings, labels."""
    agent = await api.made(
        name="Ada", model="m", settings={"mine": 1}, labels={"a": "1"}, delegate={"token": "secret"}, workspace="root's"
    )
    await agent.added("a", "b", "c")
    await agent.append({"id": "x", "role": "agent", "parent_id": "a"}, advance_head="false")
    await agent.call("PUT", "/branches/side", {"step_id": "x"})
    await agent.call("PUT", "/results/k", {"step_id": "b", "result": 1})
    await agent.call("PUT", "/results/k", {"step_id": "c", "result": 2})
    return agent


async def forked(agent: Handle, *body: object) -> Handle:
    answer = await agent.call("POST", "/fork", *body, expect=201)
    assert answer.headers["location"] == f"/v1/agents/{answer.json()['id']}"
    return Handle(agent.api, answer.json()["id"])


async def test_fork_shares_the_path_and_nothing_beside_it(source: Handle) -> None:
    """HEAD, steps, workspace, results and settings of the path; no side branch, no delegate."""
    fork = await forked(source, {"at": "b", "name": "Eve"})
    read = await fork.read(steps="all")
    assert [step["id"] for step in read["steps"]] == ["a", "b"]
    assert (read["head"], read["branch"], read["branches"]) == ("b", "main", {"main": "b"})
    assert (read["name"], read["model"], read["labels"], read["version"]) == ("Eve", "m", {"a": "1"}, 1)
    assert read["forked_from"] == {"agent": source.id, "step": "b"}
    assert (read["delegate"], read["workspace"], read["settings"]["mine"]) == (None, "root's", 1)
    assert await fork.read("/results") == {"results": {"k": {"step_id": "b", "result": 1}}}
    assert (read["state"], read["fence"], read["step_count"], read["can_redo"]) == ("pending", 0, 2, False)


async def test_inherited_steps_read_as_version_one(source: Handle) -> None:
    """Everything else of them is as it was."""
    fork = await forked(source)
    inherited = (await fork.read())["steps"]
    original = (await source.read())["steps"]
    assert inherited == [{**step, "version": 1} for step in original]
    assert (await fork.read("/steps/a")) == inherited[0]


@pytest.mark.parametrize("body", [(), ({},), ({"at": None},), ({"at": "HEAD"},), ({"at": "main"},)])
async def test_fork_is_at_head_unless_a_place_is_named(source: Handle, body: tuple[object, ...]) -> None:
    """Without a body, too; a branch is a place."""
    assert await (await forked(source, *body)).path() == ["a", "b", "c"]


async def test_fork_at_the_root_has_no_steps(source: Handle) -> None:
    """And begins its seq anew; the root's workspace is inherited."""
    fork = await forked(source, {"at": "root"})
    assert await fork.path() == []
    assert (await fork.append("x"))["steps"][0]["seq"] == 1
    assert await fork.read("/workspace") == "root's"


async def test_fork_at_the_unknown_is_not_found(source: Handle) -> None:
    """And makes nothing."""
    await source.call("POST", "/fork", {"at": "nowhere"}, expect="not-found")
    await source.call("POST", "/fork", {"at": 1}, expect="invalid-request")


async def test_fork_and_source_go_their_own_ways(source: Handle) -> None:
    """Writes on one are not seen on the other; deleting either leaves the other whole."""
    before = await source.read(steps="all")
    fork = await forked(source, {"at": "b"})
    new = (await fork.append("only here"))["steps"][0]
    assert (new["seq"], new["parent_id"], new["version"]) == (3, "b", 2)
    await fork.call("PATCH", "/settings", {"mine": 2})
    await fork.call("PUT", "/results/k", {"step_id": "b", "result": 9})
    assert await source.read(steps="all") == before
    await source.added("d")
    whole = await fork.read()
    await source.call("DELETE")
    assert await fork.read() == whole
    second = await forked(fork)
    kept = await second.read()
    await fork.call("DELETE")
    assert await second.read() == kept
    assert kept["forked_from"] == {"agent": fork.id, "step": new["id"]}


async def test_fork_leaves_the_source_untouched(source: Handle) -> None:
    """Its version stays."""
    version = await source.version()
    await forked(source)
    assert await source.version() == version


async def test_fork_respects_the_guards_of_the_source(source: Handle) -> None:
    """If-Match and Fencing-Token are about the agent that is forked."""
    await source.call("POST", "/fork", {}, headers={"If-Match": '"1"'}, expect="version-conflict")
    await source.call("POST", "/fork", {}, headers={"Fencing-Token": "7"}, expect="fenced-out")
    await source.call("POST", "/fork", {}, headers={"If-Match": f'"{await source.version()}"'}, expect=201)
