"""Agents as wholes: create, read, patch, delete."""

from __future__ import annotations

import re
from collections.abc import Callable
from uuid import uuid4

import pytest

from tests.api.driver import Api, etag

FIELDS = (
    *("id", "tenant", "name", "model", "version", "created_at", "updated_at", "head", "branch", "branches", "state"),
    *("status", "activity", "settings", "delegate", "workspace", "labels", "pool", "platform", "region", "runner"),
    *("fence", "resource_id", "step_count", "size_bytes", "expires_at", "forked_from", "can_redo", "owner", "steps"),
)


async def test_new_agent_has_the_fields_of_the_contract_and_their_defaults(api: Api) -> None:
    """Every field is there, also without a value."""
    answer = await api.call("POST", "/v1/agents", {}, expect=201)
    agent = answer.json()
    assert agent.keys() >= set(FIELDS)
    expected = {"name": "Bob", "tenant": "default", "version": 1, "head": "root", "branch": "main", "steps": []}
    expected |= {"branches": {"main": "root"}, "state": "pending", "status": "pending", "activity": "idle"}
    expected |= {"workspace": None, "labels": {}, "step_count": 0, "can_redo": False, "owner": None, "runner": None}
    expected |= {"delegate": None, "model": None, "pool": None, "forked_from": None, "expires_at": None, "fence": 0}
    assert {name: agent[name] for name in expected} == expected
    assert answer.headers["location"] == f"/v1/agents/{agent['id']}"
    assert answer.headers["etag"] == etag(1)


async def test_new_agent_reads_as_its_creation_answered(api: Api) -> None:
    """The answer of the creation is the agent, to the byte."""
    fields = {"model": "m-1", "owner": "ann", "pool": "p", "platform": "docker", "region": "eu", "dormant": True}
    fields |= {"labels": {"team.x": "$red"}, "workspace": {"files": ["a"]}, "ttl_seconds": 9_000, "idle_seconds": 99.5}
    created = await api.call("POST", "/v1/agents", {**fields, "name": "Ada"}, expect=201)
    read = await api.call("GET", created.headers["location"])
    assert read.content == created.content
    assert {name: read.json()[name] for name in fields} == fields


async def test_times_are_utc_with_milliseconds(api: Api) -> None:
    """RFC 3339, `Z`, three digits."""
    agent = await (await api.made()).read()
    for field in ("created_at", "updated_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", agent[field])


async def test_server_made_ids_sort_by_creation(api: Api) -> None:
    """Later agents have greater ids, which are long strings."""
    ids = [(await api.made()).id for _ in range(5)]
    assert ids == sorted(ids)
    assert all(len(agent) >= 22 for agent in ids)


async def test_chosen_id_is_kept_and_can_be_taken_once(api: Api) -> None:
    """The second taker hears 409 conflict, and nothing of the first changes."""
    chosen = f"Agent_{uuid4().hex}-x"
    agent = await api.made(id=chosen)
    assert agent.id == chosen
    await api.call("POST", "/v1/agents", {"id": chosen, "name": "thief"}, expect="conflict")
    assert (await agent.read())["name"] == "Bob"


@pytest.mark.parametrize("bad", ["", "a b", "a/b", "a.b", "ä", "x" * 65, "root", "a\n", "$a", "import"])
async def test_impossible_chosen_id_is_refused(api: Api, bad: str) -> None:
    """Ids are 1 to 64 letters, digits, `_`, `-`, and neither `root` nor the name of a route."""
    await api.call("POST", "/v1/agents", {"id": bad}, expect="invalid-request")


@pytest.mark.parametrize("word", ["agents", "steps", "null", "0", "-", "_", "HEAD", "main"])
async def test_any_word_may_be_an_id(api: Api, word: str) -> None:
    """No id of the alphabet is swallowed by a route."""
    agent = await api.made(id=word)
    await agent.call("PATCH", "", {"name": word})
    assert (await agent.read())["name"] == word
    await agent.call("DELETE", "", expect=204)


async def test_unknown_agent_is_not_found(api: Api) -> None:
    """404 with a problem, for well-formed and impossible ids alike."""
    for unknown in ("nobody", "x" * 300, "a.b", "ä"):
        await api.call("GET", f"/v1/agents/{unknown}", expect="not-found")


async def test_patch_merges_and_counts_one_version(api: Api) -> None:
    """A merge patch: what is named changes, null takes away, labels merge key by key."""
    agent = await api.made(name="Ada", model="m", labels={"a": "1", "b": "2"}, pool="p")
    patch = {"name": "Eve", "model": None, "labels": {"a": None, "c": "3"}, "region": "eu", "idle_seconds": 5}
    answer = await agent.call("PATCH", "", patch, headers={"Content-Type": "application/merge-patch+json"})
    after = answer.json()
    assert answer.headers["etag"] == etag(2)
    assert (after["name"], after["model"], after["labels"]) == ("Eve", None, {"b": "2", "c": "3"})
    assert (after["pool"], after["region"], after["idle_seconds"], after["version"]) == ("p", "eu", 5, 2)
    assert await agent.read() == after


async def test_patch_of_labels_to_null_takes_all_of_them_away(api: Api) -> None:
    """RFC 7396: null removes the member, here back to no labels."""
    agent = await api.made(labels={"a": "1"})
    assert (await agent.call("PATCH", "", {"labels": None})).json()["labels"] == {}
    found = (await api.call("GET", "/v1/agents", label="a:1", limit=200)).json()["items"]
    assert agent.id not in [item["id"] for item in found]


@pytest.mark.parametrize(
    "patch", [{}, {"name": "Ada"}, {"labels": {}}, {"labels": {"a": "1", "x": None}}, {"pool": None}]
)
async def test_patch_to_the_same_values_leaves_the_version(api: Api, patch: dict[str, object]) -> None:
    """A request that changes nothing answers 200, and neither version nor time moves."""
    agent = await api.made(name="Ada", labels={"a": "1"})
    before = await agent.read()
    answer = await agent.call("PATCH", "", patch, expect=200)
    assert answer.json() == before == await agent.read()


@pytest.mark.parametrize(
    "field", ["settings", "owner", "id", "version", "head", "state", "fence", "colour", "workspace"]
)
async def test_patch_takes_only_its_own_fields(api: Api, field: str) -> None:
    """Anything else is an unknown field."""
    agent = await api.made()
    await agent.call("PATCH", "", {field: "x"}, expect="invalid-request")
    assert await agent.version() == 1


async def test_deleted_agent_is_gone_at_once(api: Api) -> None:
    """204, then 404 for every call, and out of the list."""
    agent = await api.made(pool=f"p{uuid4().hex}")
    await agent.added("s1")
    pool = (await agent.read())["pool"]
    await agent.call("DELETE", "", expect=204)
    await agent.call("GET", "", expect="not-found")
    await agent.call("GET", "", expect="not-found", headers={"Cache-Control": "no-cache"})
    await agent.call("GET", "/steps/s1", expect="not-found")
    await agent.call("DELETE", "", expect="not-found")
    await agent.call("POST", "/steps", {"role": "user"}, expect="not-found")
    assert (await api.call("GET", "/v1/agents", pool=pool)).json()["items"] == []


async def test_recreated_agent_continues_the_version_and_nothing_else(api: Api) -> None:
    """The version never goes back; content, HEAD and seq begin anew."""
    agent = await api.made(name="first", workspace=1)
    await agent.added("s1")
    await agent.call("PUT", "/results/k", {"result": 1})
    await agent.call("DELETE")
    again = await api.call("POST", "/v1/agents", {"id": agent.id}, expect=201)
    assert again.headers["etag"] == etag(5)
    fresh = again.json()
    assert (fresh["version"], fresh["name"], fresh["steps"], fresh["workspace"]) == (5, "Bob", [], None)
    assert (await agent.append("hello"))["steps"][0]["seq"] == 1
    assert await agent.read("/results") == {"results": {}}
    assert await agent.read() == (await api.call("GET", again.headers["location"])).json()


async def test_version_grows_by_one_with_every_accepted_write(api: Api) -> None:
    """A batch is one write, a refused write is none, a write without effect is none."""
    agent = await api.made()
    writes: list[tuple[str, str, object, int]] = [
        ("POST", "/steps", {"steps": [{"role": "user", "id": "a"}, {"role": "agent", "id": "b"}]}, 2),
        ("POST", "/steps", {"role": "king"}, 2),
        ("PATCH", "/settings", {"max_steps": 7}, 3),
        ("PATCH", "/settings", {"max_steps": 7}, 3),
        ("PUT", "/workspace", [1], 4),
        ("PUT", "/results/k", {"result": 1}, 5),
        ("PUT", "/results/k", {"result": 1}, 5),
        ("PUT", "/branches/b", {"step_id": "a"}, 6),
        ("PUT", "/branches/b", {"step_id": "a"}, 6),
        ("PUT", "/head", {"step_id": "a"}, 7),
        ("PUT", "/head", {"step_id": "a"}, 7),
        ("PUT", "/delegate", {"user": {"id": 1}}, 8),
        ("POST", "/revert", {"turn_id": "a"}, 9),
        ("POST", "/redo", {}, 10),
        ("POST", "/redo", {}, 10),
        ("DELETE", "/branches/b", None, 11),
        ("POST", "/clear", None, 12),
        ("POST", "/clear", None, 12),
    ]
    for method, path, body, version in writes:
        sent = () if body is None else (body,)
        answer = await agent.api.http.request(
            method, f"/v1/agents/{agent.id}{path}", **({"json": sent[0]} if sent else {})
        )
        assert answer.status_code < 500
        assert await agent.version() == version, (method, path, answer.text)
        if answer.is_success:
            assert answer.headers["etag"] == etag(version)


async def test_size_in_a_write_answer_is_the_size_of_the_next_read(api: Api) -> None:
    """`size_bytes` is measured the same way wherever it is shown, the list included."""
    agent = await api.made(name="Ada", workspace={"a.b": 1.0})
    for _ in range(3):
        await agent.append("hello")
        written = (await agent.call("PATCH", "", {"name": uuid4().hex})).json()
        read = await agent.read(headers={"Cache-Control": "no-cache"})
        assert written["size_bytes"] == read["size_bytes"] > 100
        assert written == read


async def test_size_is_that_of_the_stored_document(api: Api, document_bytes: Callable[[str], int]) -> None:
    """No more and no less than the database keeps."""
    agent = await api.made(name="Ada", settings={"x": "y" * 1000})
    created_size = (await agent.read())["size_bytes"]
    assert created_size == document_bytes(f"default:{agent.id}")
