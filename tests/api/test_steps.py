"""Appending and reading steps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.api.driver import Api, Handle, Json, etag

WHOLE: Json = {
    "id": "whole",
    "role": "agent",
    "content": "line\n\ttext \0 \U0001f600",
    "turn_id": "turn",
    "index": 7,
    "tool_calls": [{"id": "c1", "name": "shell", "input": {"cmd": "ls"}}, {"id": "c2", "name": "none"}],
    "tool_results": [{"id": "c1", "output": ["a"], "is_error": False}, {"id": "c2"}],
    "usage": {"tokens": 1.0},
    "input_messages": [{"role": "user", "content": "x"}, "y", None],
    "source": "model",
    "workspace": {"cwd": "/"},
    "refs": ["a", {"b": 1}],
    "begin": True,
    "end": False,
    "data": {"nested": {"deep": [1, 1.0, True, None]}},
    "created_at": "2020-02-29T12:00:00.123Z",
}
ASSIGNED = {"id", "seq", "version", "parent_id", "turn_id", "index", "role", "created_at"}


async def test_step_is_kept_exactly_as_given(api: Api) -> None:
    """Every field, read by id, with the agent and in the list."""
    agent = await api.made()
    answered = (await agent.append(WHOLE))["steps"][0]
    read = await agent.read("/steps/whole")
    assert answered == read == {**WHOLE, "seq": 1, "version": 2, "parent_id": "root"}
    assert repr(read["usage"]["tokens"]) == "1.0"
    assert [read] == (await agent.read())["steps"] == (await agent.read("/steps"))["items"]


async def test_what_is_absent_stays_absent(api: Api) -> None:
    """A step of a role alone has only what the service assigns; given empty values are given values."""
    agent = await api.made()
    bare = (await agent.append({"role": "user"}))["steps"][0]
    assert bare.keys() == ASSIGNED
    empty: Json = {"content": "", "tool_calls": [], "usage": {}, "refs": [], "workspace": None, "data": {}}
    step = (await agent.append({"role": "agent", **empty}))["steps"][0]
    assert step.keys() == ASSIGNED | empty.keys()
    assert {name: step[name] for name in empty} == empty


async def test_append_hangs_steps_from_head_and_moves_it(api: Api) -> None:
    """201 with the steps, HEAD and version; the current branch moves along; all three are seen by the next read."""
    agent = await api.made()
    first = await agent.append("a")
    answer = await agent.call("POST", "/steps", {"steps": [{"role": "agent"}, {"role": "tool"}]}, expect=201)
    second = answer.json()
    ids = [first["steps"][0]["id"], *(step["id"] for step in second["steps"])]
    assert [step["parent_id"] for step in second["steps"]] == ids[:2]
    assert (second["head"], second["version"], answer.headers["etag"]) == (ids[2], 3, etag(3))
    assert [step["seq"] for step in second["steps"]] == [2, 3]
    assert [step["version"] for step in second["steps"]] == [3, 3]
    read = await agent.read()
    assert (read["head"], read["branches"], read["step_count"]) == (ids[2], {"main": ids[2]}, 3)
    assert [step["id"] for step in read["steps"]] == ids


async def test_steps_of_a_turn_share_its_id_and_count_up(api: Api) -> None:
    """A user's step opens a turn; what follows belongs to it, unless another turn is named."""
    agent = await api.made()
    roles = ("user", "agent", "tool", "user", "system", "agent")
    steps = (await agent.append(*({"role": role, "id": f"s{n}"} for n, role in enumerate(roles))))["steps"]
    assert [step["turn_id"] for step in steps] == ["s0", "s0", "s0", "s3", "s3", "s3"]
    assert [step["index"] for step in steps] == [0, 1, 2, 0, 1, 2]
    named = (await agent.append({"role": "agent", "turn_id": "mine"}, {"role": "agent"}))["steps"]
    assert [(step["turn_id"], step["index"]) for step in named] == [("mine", 0), ("mine", 1)]


@pytest.mark.parametrize(
    "bad", [{"role": "king"}, {"role": "user", "parent_id": "nowhere"}, {"role": "user", "id": "a"}]
)
async def test_batch_is_all_or_nothing(api: Api, bad: Json) -> None:
    """One bad step, and none is there."""
    agent = await api.made()
    batch = {"steps": [{"role": "user", "id": "a"}, bad]}
    await agent.call("POST", "/steps", batch, expect="invalid-request")
    read = await agent.read()
    assert (read["steps"], read["version"], read["head"]) == ([], 1, "root")


async def test_batch_of_nothing_is_refused(api: Api) -> None:
    """`steps` is not empty."""
    await (await api.made()).call("POST", "/steps", {"steps": []}, expect="invalid-request")


@pytest.mark.parametrize("name", ["", "root", "a.b", "$a", "a b", "ü", "x" * 65, "a\n"])
async def test_impossible_step_id_is_refused(api: Api, name: str) -> None:
    """Step ids have the alphabet of all ids and are not `root`."""
    await (await api.made()).call("POST", "/steps", {"role": "user", "id": name}, expect="invalid-request")


async def test_repeated_append_answers_the_same_without_effect(api: Api, other_replica: Api) -> None:
    """Same ids, same content: 200, the same answer on any replica, also after HEAD went on."""
    agent = await api.made()
    batch = {"steps": [{**WHOLE, "id": "one"}, {"role": "agent", "id": "two", "content": "x"}]}
    first = await agent.call("POST", "/steps", batch, expect=201)
    again = await agent.call("POST", "/steps", batch, expect=200)
    await agent.append("later")
    later = await agent.by(other_replica).call("POST", "/steps", batch, expect=200)
    assert first.json() == again.json() == later.json()
    assert first.headers["etag"] == later.headers["etag"]
    read = await agent.read()
    assert (read["step_count"], read["version"]) == (3, 3)


@pytest.mark.parametrize(
    ("given", "repeated"),
    [
        ({"content": "a"}, {"content": "b"}),
        ({"content": "a"}, {}),
        ({}, {"content": ""}),
        ({"data": {"v": 1}}, {"data": {"v": 1.0}}),
        ({"data": {"v": 1}}, {"data": {"v": True}}),
        ({"begin": True}, {"begin": False}),
        ({"workspace": None}, {}),
        ({"tool_results": [{"id": "x"}]}, {"tool_results": [{"id": "x", "is_error": False}]}),
        ({}, {"role": "agent"}),
    ],
)
async def test_same_id_with_other_content_is_refused(api: Api, given: Json, repeated: Json) -> None:
    """409 step-exists, also when only the kind of a number or the presence of a field differs."""
    agent = await api.made()
    await agent.append({"role": "user", "id": "s", **given})
    await agent.call("POST", "/steps", {"role": "user", "id": "s", **repeated}, expect="step-exists")
    assert await agent.version() == 2


async def test_batch_with_a_known_and_a_new_id_is_refused_whole(api: Api) -> None:
    """It is no repeat of an earlier request."""
    agent = await api.made()
    await agent.added("a")
    batch = {"steps": [{"role": "user", "id": "b"}, {"role": "user", "id": "a"}]}
    await agent.call("POST", "/steps", batch, expect="step-exists")
    assert await agent.path() == ["a"]


async def test_steps_of_different_appends_are_no_repeat_of_a_batch(api: Api) -> None:
    """Known ids in another order than they hang are refused."""
    agent = await api.made()
    await agent.added("a", "b")
    batch = {"steps": [{"role": "user", "id": "b", "content": "b"}, {"role": "user", "id": "a", "content": "a"}]}
    await agent.call("POST", "/steps", batch, expect="step-exists")


async def test_twice_the_same_id_in_a_batch_is_refused(api: Api) -> None:
    """Two steps can't have one id."""
    batch = {"steps": [{"role": "user", "id": "a"}, {"role": "user", "id": "a"}]}
    await (await api.made()).call("POST", "/steps", batch, expect="invalid-request")


async def test_explicit_parent_must_be_head_to_move_it(api: Api) -> None:
    """409 conflict tells where HEAD is; HEAD itself may be named."""
    agent = await api.made()
    await agent.added("a", "b")
    refused = await agent.append({"role": "user", "parent_id": "a"}, expect="conflict")
    assert refused["head"] == "b"
    await agent.append({"role": "user", "parent_id": "root"}, expect="conflict")
    await agent.append({"role": "user", "id": "c", "parent_id": "b"})
    assert await agent.path() == ["a", "b", "c"]


async def test_without_advancing_a_step_hangs_anywhere_and_head_stays(api: Api) -> None:
    """The answer names the unmoved HEAD; the branch, too, stays."""
    agent = await api.made()
    await agent.added("a", "b")
    answer = await agent.append(
        {"role": "agent", "id": "x", "parent_id": "a"}, {"role": "agent", "id": "y"}, advance_head="false"
    )
    assert (answer["head"], [step["parent_id"] for step in answer["steps"]]) == ("b", ["a", "x"])
    await agent.append({"role": "agent", "id": "z", "parent_id": "root"}, advance_head="false")
    await agent.append({"role": "agent", "id": "w"}, advance_head="false")
    read = await agent.read(steps="all")
    parents = {step["id"]: step["parent_id"] for step in read["steps"]}
    assert parents == {"a": "root", "b": "a", "x": "a", "y": "x", "z": "root", "w": "b"}
    assert (read["head"], read["branches"], read["version"]) == ("b", {"main": "b"}, 6)


@pytest.mark.parametrize("advance", ["true", "false"])
async def test_unknown_parent_is_not_found(api: Api, advance: str) -> None:
    """404, and nothing is written."""
    agent = await api.made()
    await agent.append({"role": "user", "parent_id": "nowhere"}, expect="not-found", advance_head=advance)
    assert await agent.version() == 1


async def test_parent_inside_a_batch_may_only_be_the_step_before(api: Api) -> None:
    """Named or left out, each hangs from the one before."""
    agent = await api.made()
    await agent.append({"role": "user", "id": "a"}, {"role": "agent", "id": "b", "parent_id": "a"})
    batch = {"steps": [{"role": "user", "id": "c"}, {"role": "user", "parent_id": "a"}]}
    await agent.call("POST", "/steps", batch, expect="invalid-request")


async def test_appends_from_many_callers_lose_nothing(api: Api, other_replica: Api) -> None:
    """One chain, each seq once, each commit a version of its own, whichever replica took it."""
    agent = await api.made()
    callers = [agent, agent.by(other_replica)]
    answers = await asyncio.gather(*(callers[i % 2].append({"role": "user", "id": f"s{i}"}) for i in range(30)))
    read = await agent.read(headers={"Cache-Control": "no-cache"})
    assert [step["seq"] for step in read["steps"]] == list(range(1, 31))
    assert sorted(answer["version"] for answer in answers) == list(range(2, 32))
    assert [answer["head"] for answer in sorted(answers, key=lambda a: a["version"])] == [
        s["id"] for s in read["steps"]
    ]


async def test_step_by_id_is_found_off_the_path_too(api: Api) -> None:
    """With the agent's version in the ETag; root and strangers are not found."""
    agent = await api.made()
    await agent.added("a", "b")
    await agent.checkout("a")
    answer = await agent.call("GET", "/steps/b")
    assert (answer.json()["parent_id"], answer.headers["etag"]) == ("a", etag(4))
    for unknown in ("root", "nowhere", "x" * 300, "%00"):
        await agent.call("GET", f"/steps/{unknown}", expect="not-found")


async def test_agent_shows_its_path_all_or_no_steps(api: Api) -> None:
    """`path` is the default, in order; `all` goes by seq; root is never listed."""
    agent = await api.made()
    await agent.added("a", "b")
    await agent.checkout("a")
    await agent.added("c")
    assert await agent.path() == ["a", "c"] == await agent.path(steps="path")
    assert await agent.path(steps="all") == ["a", "b", "c"]
    assert await agent.path(steps="none") == []
    await agent.call("GET", "", steps="some", expect="invalid-request")


@pytest.mark.parametrize("view", ["path", "all"])
async def test_steps_before_leads_to_the_older_steps(api: Api, view: str) -> None:
    """Beyond `steps_limit` the newest are shown, and the cursor pages through exactly the others."""
    agent = await api.made()
    ids = [f"s{n}" for n in range(7)]
    await agent.added(*ids)
    whole = await agent.read(steps=view)
    assert whole["steps_before"] is None
    cut = await agent.read(steps=view, steps_limit=3)
    assert [step["id"] for step in cut["steps"]] == ids[4:]
    older: list[Any] = []
    cursor = cut["steps_before"]
    while cursor is not None:
        page = await agent.read("/steps", cursor=cursor, limit=3)
        older += page["items"]
        cursor = page["next_cursor"]
    assert [step["id"] for step in older] == ids[:4]
    for limit in (-1, 10_001, "x"):
        await agent.call("GET", "", steps_limit=limit, expect="invalid-request")


@pytest.mark.parametrize("view", ["path", "all"])
async def test_many_steps_are_the_same_made_in_parts(api: Api, view: str) -> None:
    """Over a thousand: in order, whole, the cursor leads to exactly the others; forks show what they see of them."""
    agent = await api.made()
    for start in range(0, 1_200, 200):
        await agent.append(*({"id": f"s{number}", "role": "user"} for number in range(start, start + 200)))
    await agent.append({"id": "side", "role": "user", "parent_id": "s700"}, advance_head=False)
    ids = [f"s{number}" for number in range(1_200)] + (["side"] if view == "all" else [])
    shown = await agent.call("GET", steps=view, steps_limit=1_100)
    cut = shown.json()
    assert [step["id"] for step in cut["steps"]] == ids[-1_100:]
    older = await agent.read("/steps", cursor=cut["steps_before"], limit=200)
    assert [step["id"] for step in older["items"]] == ids[:-1_100]
    whole = await agent.read(steps=view, steps_limit=10_000)
    assert [step["id"] for step in whole["steps"]] == ids
    assert whole["steps_before"] is None
    few = await agent.read(steps=view, steps_limit=1_000)
    assert {**few, "steps": None, "steps_before": None} == {**cut, "steps": None, "steps_before": None}
    assert cut["steps"][-1_000:] == few["steps"]
    same = {"If-None-Match": shown.headers["etag"]}
    await agent.call("GET", steps=view, steps_limit=1_100, headers=same, expect=304)
    fork = Handle(api, (await agent.call("POST", "/fork", {"at": "s1150"})).json()["id"])
    assert [step["id"] for step in (await fork.read(steps=view, steps_limit=2_000))["steps"]] == ids[:1_151]


async def test_steps_limit_is_a_thousand_unless_said_otherwise(api: Api) -> None:
    """A long path shows its newest thousand."""
    agent = await api.made()
    await agent.append(*({"role": "agent", "id": f"s{n}"} for n in range(1005)))
    read = await agent.read()
    assert (len(read["steps"]), read["steps"][0]["id"], read["step_count"]) == (1000, "s5", 1005)
    assert len((await agent.read(steps_limit=10_000))["steps"]) == 1005


async def test_list_of_steps_filters_by_view_ref_turn_and_seq(api: Api) -> None:
    """Each filter narrows, and they go together."""
    agent = await api.made()
    await agent.append({"role": "user", "id": "a"}, {"role": "agent", "id": "b"})
    await agent.append({"role": "user", "id": "c"})
    await agent.call("PUT", "/branches/side", {"step_id": "b"})
    await agent.append({"role": "agent", "id": "x", "parent_id": "b"}, advance_head="false")

    async def listed(**query: object) -> list[str]:
        return [step["id"] for step in (await agent.read("/steps", **query))["items"]]

    assert await listed() == ["a", "b", "c"] == await listed(view="path")
    assert await listed(view="all") == ["a", "b", "c", "x"]
    assert await listed(ref="x") == ["a", "b", "x"]
    assert await listed(ref="side") == ["a", "b"]
    assert await listed(ref="root") == []
    assert await listed(turn="a") == ["a", "b"]
    assert await listed(turn="a", view="all") == ["a", "b", "x"]
    assert await listed(turn="nothing") == []
    assert await listed(after_seq=2) == ["c"]
    assert await listed(after_seq=1, view="all", turn="a") == ["b", "x"]
    await agent.call("GET", "/steps", ref="nowhere", expect="not-found")


@pytest.mark.parametrize("query", [{"view": "all"}, {"view": "path"}, {"ref": "s5"}, {"turn": "s3"}, {"after_seq": 2}])
async def test_pages_of_steps_are_the_list_in_pieces(api: Api, query: dict[str, Any]) -> None:
    """Any page size gives the same steps in the same order, also while HEAD moves on."""
    agent = await api.made()
    await agent.added(*(f"s{n}" for n in range(8)))
    whole = [step["id"] for step in (await agent.read("/steps", **query))["items"]]
    for limit in (1, 3, 8):
        page = await agent.read("/steps", limit=limit, **query)
        paged = [step["id"] for step in page["items"]]
        while page["next_cursor"] is not None:
            page = await agent.read("/steps", limit=limit, cursor=page["next_cursor"])
            paged += [step["id"] for step in page["items"]]
        assert paged == whole


async def test_seq_is_never_used_twice(api: Api) -> None:
    """It goes on after a checkout, a side branch and a clear."""
    agent = await api.made()
    await agent.added("a", "b")
    await agent.checkout("root")
    await agent.added("c")
    await agent.call("POST", "/clear")
    assert (await agent.append("d"))["steps"][0]["seq"] == 4
