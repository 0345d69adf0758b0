"""Results: bound to steps, seen from HEAD."""

from __future__ import annotations

import pytest

from tests.api.driver import Api, etag


async def test_result_is_bound_to_head_unless_a_step_is_named(api: Api) -> None:
    """It reads back by its key and among all."""
    agent = await api.made()
    await agent.added("a", "b")
    put = await agent.call("PUT", "/results/load", {"result": {"rows": 3}})
    assert (put.json()["step_id"], put.json()["result"], put.headers["etag"]) == ("b", {"rows": 3}, etag(4))
    await agent.call("PUT", "/results/sort", {"step_id": "a", "result": None})
    expected = {"load": {"step_id": "b", "result": {"rows": 3}}, "sort": {"step_id": "a", "result": None}}
    assert await agent.read("/results") == {"results": expected}
    answer = await agent.call("GET", "/results/load")
    assert answer.json() == {"key": "load", **expected["load"]}
    assert answer.headers["etag"] == etag(5)


async def test_nearest_ancestor_wins_and_checkout_changes_the_view(api: Api) -> None:
    """What is bound below HEAD or on another branch is not seen."""
    agent = await api.made()
    await agent.added("a", "b", "c")
    for step, value in (("root", 0), ("a", 1), ("c", 3)):
        await agent.call("PUT", "/results/k", {"step_id": step, "result": value})
    await agent.call("PUT", "/results/late", {"step_id": "c", "result": "x"})
    seen = {}
    for step in ("root", "a", "b", "c"):
        await agent.checkout(step)
        results = (await agent.read("/results"))["results"]
        seen[step] = (results["k"]["step_id"], results["k"]["result"], "late" in results)
    assert seen == {"root": ("root", 0, False), "a": ("a", 1, False), "b": ("a", 1, False), "c": ("c", 3, True)}
    await agent.checkout("b")
    await agent.call("GET", "/results/late", expect="not-found")


async def test_same_key_and_step_overwrite(api: Api) -> None:
    """The last one is kept; the same again changes nothing."""
    agent = await api.made()
    for value in (1, 2, 2):
        await agent.call("PUT", "/results/k", {"result": value})
    assert (await agent.read("/results/k"))["result"] == 2
    assert await agent.version() == 3


@pytest.mark.parametrize("key", ["a.b", "$set", "@workspace", "a b", "ключ", "~", "100%", "x" * 128, "results", "root"])
async def test_result_keys_come_back_exactly(api: Api, key: str) -> None:
    """Also one that is named like the workspace's own."""
    agent = await api.made(workspace="mine")
    path = f"/results/{key.replace('%', '%25')}"
    await agent.call("PUT", path, {"result": key})
    assert await agent.read("/results") == {"results": {key: {"step_id": "root", "result": key}}}
    assert (await agent.read(path))["key"] == key
    assert await agent.read("/workspace") == "mine"


async def test_result_of_the_unknown_is_not_found(api: Api) -> None:
    """Unknown step on writing, unknown key on reading."""
    agent = await api.made()
    await agent.call("PUT", "/results/k", {"step_id": "nowhere", "result": 1}, expect="not-found")
    await agent.call("GET", "/results/k", expect="not-found")
    assert await agent.version() == 1


@pytest.mark.parametrize(
    "body", [{}, {"step_id": "root"}, {"result": 1, "step_id": 1}, {"result": 1, "key": "k"}, [1], "x"]
)
async def test_result_body_is_checked(api: Api, body: object) -> None:
    """`result` is needed, and nothing but it and `step_id` is known."""
    await (await api.made()).call("PUT", "/results/k", body, expect="invalid-request")
