"""HEAD, branches and the difference of two places."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.driver import Api, etag


async def test_checkout_of_a_step_detaches_head(api: Api) -> None:
    """200 with the place and its workspace; nothing is deleted, the branch stays where it was."""
    agent = await api.made()
    await agent.append({"id": "a", "role": "user", "workspace": 1})
    await agent.added("b")
    answer = await agent.call("PUT", "/head", {"step_id": "a"}, expect=200)
    place = answer.json()
    assert (place["head"], place["version"], place["workspace"]) == ("a", 4, 1)
    assert answer.headers["etag"] == etag(4)
    read = await agent.read(steps="all")
    assert (read["head"], read["branch"], read["branches"], read["step_count"]) == ("a", None, {"main": "b"}, 2)


async def test_checkout_of_a_branch_attaches_head(api: Api) -> None:
    """The branch moves along with what is appended; when HEAD is detached none does."""
    agent = await api.made()
    await agent.added("a", "b")
    await agent.call("PUT", "/branches/side", {"step_id": "a"})
    await agent.call("PUT", "/head", {"branch": "side"})
    await agent.added("c")
    read = await agent.read()
    assert (read["head"], read["branch"], read["branches"]) == ("c", "side", {"main": "b", "side": "c"})
    await agent.checkout("a")
    await agent.added("d")
    read = await agent.read()
    assert (read["head"], read["branch"], read["branches"]) == ("d", None, {"main": "b", "side": "c"})


async def test_checkout_of_the_root_is_allowed(api: Api) -> None:
    """The path is empty then, and the next step begins a second tree below the root."""
    agent = await api.made()
    await agent.added("a")
    assert (await agent.checkout("root"))["head"] == "root"
    assert await agent.path() == []
    await agent.added("b")
    assert await agent.path() == ["b"]


async def test_checkout_of_where_head_is_changes_nothing(api: Api) -> None:
    """By step and by branch."""
    agent = await api.made()
    await agent.added("a")
    await agent.checkout("a")
    await agent.call("PUT", "/head", {"branch": "main"})
    read = await agent.read()
    assert (read["version"], read["branch"]) == (2, "main")


@pytest.mark.parametrize("body", [{"step_id": "nowhere"}, {"branch": "nowhere"}, {"branch": "a"}, {"step_id": "main"}])
async def test_checkout_of_the_unknown_is_not_found(api: Api, body: dict[str, str]) -> None:
    """A step is no branch and a branch is no step."""
    agent = await api.made()
    await agent.added("a")
    await agent.call("PUT", "/head", body, expect="not-found")
    assert await agent.version() == 2


@pytest.mark.parametrize(
    "body", [{}, {"step_id": "root", "branch": "main"}, {"step_id": None}, {"step_id": 1}, {"ref": "a"}, []]
)
async def test_checkout_takes_exactly_one_target(api: Api, body: object) -> None:
    """Neither none nor both, nor anything else."""
    await (await api.made()).call("PUT", "/head", body, expect="invalid-request")


async def test_branches_are_listed_with_the_current_one(api: Api) -> None:
    """A new agent has `main` at the root."""
    agent = await api.made()
    answer = await agent.call("GET", "/branches")
    assert answer.json() == {"branches": {"main": "root"}, "branch": "main", "head": "root", "version": 1}
    assert answer.headers["etag"] == etag(1)


@pytest.mark.parametrize("name", ["HEAD", "root"])
async def test_names_of_places_are_no_names_for_branches(api: Api, name: str) -> None:
    """A ref of that name would never lead to the branch."""
    agent = await api.made()
    await agent.call("PUT", f"/branches/{name}", {"step_id": "root"}, expect="invalid-request")


@pytest.mark.parametrize("name", ["feature.x", "$set", "a b", "ветка", "a~b", "100%", "a%2Eb", "x" * 128, "@workspace"])
async def test_branch_names_come_back_exactly(api: Api, name: str) -> None:
    """Whatever stands in a name, it is that branch and no other."""
    agent = await api.made()
    await agent.added("a")
    path = f"/branches/{name.replace('%', '%25')}"
    answer = await agent.call("PUT", path, {"step_id": "a"})
    assert (answer.json()["name"], answer.json()["step_id"]) == (name, "a")
    assert (await agent.read("/branches"))["branches"] == {"main": "a", name: "a"} == (await agent.read())["branches"]
    await agent.call("PUT", "/head", {"branch": name})
    assert (await agent.read())["branch"] == name
    await agent.call("PUT", "/head", {"branch": "main"})
    await agent.call("DELETE", path, expect=204)
    assert (await agent.read("/branches"))["branches"] == {"main": "a"}


@pytest.mark.parametrize("name", ["x" * 129, "a%00", "a%0Ab", "%7F"])
async def test_impossible_branch_name_is_refused(api: Api, name: str) -> None:
    """At most 128 characters, no control characters."""
    await (await api.made()).call("PUT", f"/branches/{name}", {"step_id": "root"}, expect="invalid-request")


async def test_branch_moves_to_any_known_step(api: Api) -> None:
    """Only to a step or the root; the current branch moves with HEAD alone."""
    agent = await api.made()
    await agent.added("a", "b")
    for step in ("b", "a", "root"):
        await agent.call("PUT", "/branches/side", {"step_id": step})
        assert (await agent.read("/branches"))["branches"]["side"] == step
    await agent.call("PUT", "/branches/side", {"step_id": "nowhere"}, expect="not-found")
    await agent.call("PUT", "/branches/main", {"step_id": "a"}, expect="conflict")
    await agent.call("PUT", "/branches/main", {"step_id": "b"}, expect=200)
    await agent.checkout("a")
    await agent.call("PUT", "/branches/main", {"step_id": "root"}, expect=200)
    assert (await agent.read())["head"] == "a"


async def test_deleted_branch_leaves_its_steps(api: Api) -> None:
    """204; unknown 404; the current branch can't be deleted."""
    agent = await api.made()
    await agent.added("a")
    await agent.call("PUT", "/branches/side", {"step_id": "a"})
    await agent.call("DELETE", "/branches/side", expect=204)
    await agent.call("DELETE", "/branches/side", expect="not-found")
    await agent.call("DELETE", "/branches/main", expect="conflict")
    await agent.checkout("root")
    await agent.call("DELETE", "/branches/main", expect=204)
    assert (await agent.read("/steps/a"))["id"] == "a"
    assert (await agent.read())["branches"] == {}


async def test_difference_names_the_fork_point_and_both_sides(api: Api) -> None:
    """Ids in order from the root; by step, branch or HEAD; root is the base of strangers."""
    agent = await api.made()
    await agent.added("a", "b", "c")
    await agent.checkout("a")
    await agent.added("x", "y")
    found = await agent.read("/diff", **{"from": "main", "to": "y"})
    assert found == {"merge_base": "a", "only_from": ["b", "c"], "only_to": ["x", "y"], "workspace": []}
    assert await agent.read("/diff", **{"from": "c", "to": "HEAD"}) == found
    assert await agent.read("/diff", **{"from": "main"}) == found
    same = await agent.read("/diff", **{"from": "y", "to": "y"})
    assert same == {"merge_base": "y", "only_from": [], "only_to": [], "workspace": []}
    up = await agent.read("/diff", **{"from": "b", "to": "root"})
    assert (up["merge_base"], up["only_from"], up["only_to"]) == ("root", ["a", "b"], [])
    await agent.checkout("root")
    await agent.added("alone")
    strangers = await agent.read("/diff", **{"from": "c", "to": "alone"})
    assert (strangers["merge_base"], strangers["only_to"]) == ("root", ["alone"])


async def test_difference_of_workspaces_is_a_json_patch(api: Api) -> None:
    """RFC 6902 operations that lead from the one to the other."""
    agent = await api.made(workspace={"keep": 1, "old": 1, "n": 1, "l": [1, 2, 3]})
    await agent.append({"id": "a", "role": "agent", "workspace": {"keep": 1, "n": 1.0, "l": [1, 4], "a/b~": [2]}})
    operations = (await agent.read("/diff", **{"from": "root", "to": "a"}))["workspace"]
    assert sorted(operations, key=repr) == sorted(
        [
            {"op": "remove", "path": "/old"},
            {"op": "replace", "path": "/n", "value": 1.0},
            {"op": "replace", "path": "/l/1", "value": 4},
            {"op": "remove", "path": "/l/2"},
            {"op": "add", "path": "/a~1b~0", "value": [2]},
        ],
        key=repr,
    )


@pytest.mark.parametrize("query", [{}, {"to": "root"}, {"from": "nowhere"}, {"from": "root", "to": "nowhere"}])
async def test_difference_of_the_unknown_is_refused(api: Api, query: dict[str, Any]) -> None:
    """`from` is needed; both must be there."""
    expected = "not-found" if "from" in query else "invalid-request"
    await (await api.made()).call("GET", "/diff", expect=expected, **query)
