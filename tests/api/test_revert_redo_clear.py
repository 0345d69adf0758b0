"""Going back before a turn, taking that back, and starting over."""

from __future__ import annotations

import pytest
import pytest_asyncio

from tests.api.driver import Api, Handle


@pytest_asyncio.fixture(loop_scope="session")
async def talk(api: Api) -> Handle:
    """Three turns of two steps each."""
    agent = await api.made()
    for n in (1, 2, 3):
        await agent.append({"role": "user", "id": f"u{n}"}, {"role": "agent", "id": f"a{n}", "workspace": n})
    return agent


async def test_revert_puts_head_before_the_turn_and_redo_brings_it_back(talk: Handle) -> None:
    """With the branch and the workspace, several times over, latest first."""
    place = (await talk.call("POST", "/revert", {"turn_id": "u3"}, expect=200)).json()
    assert (place["head"], place["workspace"], place["can_redo"]) == ("a2", 2, True)
    await talk.call("POST", "/revert", {"turn_id": "u1"})
    read = await talk.read()
    assert (read["head"], read["branches"], read["can_redo"], read["workspace"]) == (
        "root",
        {"main": "root"},
        True,
        None,
    )
    assert (await talk.call("POST", "/redo", expect=200)).json()["head"] == "a2"
    place = (await talk.call("POST", "/redo")).json()
    assert (place["head"], place["can_redo"], place["branch"]) == ("a3", False, "main")
    assert (await talk.read())["branches"] == {"main": "a3"}
    await talk.call("POST", "/redo", expect="conflict")


async def test_redo_outlives_the_replica(talk: Handle, other_replica: Api) -> None:
    """The redo stack is in the database."""
    await talk.call("POST", "/revert", {"turn_id": "u2"})
    assert (await talk.by(other_replica).call("POST", "/redo")).json()["head"] == "a3"


async def test_revert_of_a_turn_off_the_path_is_a_conflict(talk: Handle) -> None:
    """An unknown turn is not found."""
    await talk.call("POST", "/revert", {"turn_id": "u2"})
    await talk.call("POST", "/revert", {"turn_id": "u3"}, expect="conflict")
    await talk.call("POST", "/revert", {"turn_id": "nothing"}, expect="not-found")
    assert await talk.version() == 5


async def test_append_by_head_empties_the_redo_stack(talk: Handle) -> None:
    """Time went on another way."""
    await talk.call("POST", "/revert", {"turn_id": "u3"})
    await talk.append("else")
    assert not (await talk.read())["can_redo"]
    await talk.call("POST", "/redo", expect="conflict")


async def test_append_beside_head_leaves_the_redo_stack(talk: Handle) -> None:
    """HEAD did not move."""
    await talk.call("POST", "/revert", {"turn_id": "u3"})
    await talk.append({"role": "agent", "parent_id": "u1"}, advance_head="false")
    assert (await talk.call("POST", "/redo")).json()["head"] == "a3"


async def test_checkout_empties_the_redo_stack(talk: Handle) -> None:
    """Also of a branch."""
    for body in ({"step_id": "a1"}, {"branch": "main"}):
        await talk.call("PUT", "/head", {"step_id": "a3"})
        await talk.call("POST", "/revert", {"turn_id": "u3"})
        await talk.call("PUT", "/head", body)
        await talk.call("POST", "/redo", expect="conflict")


async def test_revert_while_detached_moves_no_branch(talk: Handle) -> None:
    """HEAD alone goes back."""
    await talk.call("PUT", "/head", {"step_id": "a2"})
    await talk.call("POST", "/revert", {"turn_id": "u2"})
    read = await talk.read()
    assert (read["head"], read["branch"], read["branches"]) == ("a1", None, {"main": "a3"})


@pytest.mark.parametrize("body", [{}, {"turn_id": None}, {"turn_id": 3}, {"turn_id": {"$gt": ""}}, {"turn_id": "a b"}])
async def test_revert_needs_a_turn(talk: Handle, body: object) -> None:
    """Anything but a turn's id is refused."""
    await talk.call("POST", "/revert", body, expect="invalid-request")


async def test_clear_leaves_only_the_root(talk: Handle) -> None:
    """Steps, results, side branches and redo are gone; settings, name and seq stay."""
    await talk.call("PUT", "/results/k", {"result": 1})
    await talk.call("PUT", "/branches/side", {"step_id": "a1"})
    await talk.call("PATCH", "", {"name": "Ada"})
    await talk.call("POST", "/revert", {"turn_id": "u3"})
    place = (await talk.call("POST", "/clear", expect=200)).json()
    assert (place["head"], place["branch"], place["version"]) == ("root", "main", 9)
    read = await talk.read(steps="all")
    assert (read["steps"], read["step_count"], read["head"], read["branches"]) == ([], 0, "root", {"main": "root"})
    assert (read["can_redo"], read["name"], read["workspace"]) == (False, "Ada", None)
    assert await talk.read("/results") == {"results": {}}
    await talk.call("GET", "/steps/u1", expect="not-found")
    await talk.call("POST", "/redo", expect="conflict")
    fresh = (await talk.append({"id": "u1", "role": "user"}))["steps"][0]
    assert (fresh["seq"], fresh["parent_id"]) == (7, "root")


async def test_clear_attaches_head_to_main(talk: Handle) -> None:
    """Whatever was checked out."""
    await talk.call("PUT", "/head", {"step_id": "a1"})
    await talk.call("DELETE", "/branches/main", expect=204)
    await talk.call("POST", "/clear")
    read = await talk.read()
    assert (read["branch"], read["branches"]) == ("main", {"main": "root"})
