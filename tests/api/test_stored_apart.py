"""Values too large for a document, and prompts that repeat their past, read as they were given, by every route."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from pymongo import MongoClient

from app.blobs import Blobs
from app.config import Settings
from app.filling import Filling
from tests.api.driver import Api, Handle, Json, etag, serving
from tests.api.feed_driver import following

LARGE = 40_000


def large(mark: str) -> str:
    return mark.ljust(LARGE, mark[-1])


def big_step(mark: str, prompt: list[Json]) -> Json:
    """A step in which everything is large."""
    return {
        "id": mark,
        "role": "agent",
        "content": large(f"content {mark}"),
        "tool_calls": [{"id": "c", "name": "read", "input": {"path": large(f"path {mark}")}}],
        "tool_results": [{"id": "c", "output": {"text": large(f"output {mark}"), "lines": [1, 2.0, None]}}],
        "input_messages": prompt,
        "workspace": {"files": {"a.py": large(f"file {mark}")}},
        "data": {"ü": large(f"data {mark}")},
        "usage": {"input": 1},
    }


def prompts(count: int) -> list[list[Json]]:
    """The contexts of so many steps, each with two messages more than the one before."""
    messages = [{"role": "user", "content": large(f"message {number}")} for number in range(2 * count)]
    return [messages[: 2 * number + 2] for number in range(count)]


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def forgetful(open_settings: Settings, mongo_uri: str) -> AsyncIterator[Api]:
    """A caller of a replica that keeps no values in memory."""
    async with serving(open_settings.model_copy(update={"blob_bytes": 0}), mongo_uri) as caller:
        yield caller


@pytest_asyncio.fixture(loop_scope="session")
async def agent(api: Api) -> Handle:
    """Three steps, each with everything large and the whole context, a result and a workspace of their own."""
    made = await api.made(workspace={"root": large("root")})
    for step in GIVEN:
        await made.append(step)
    await made.call("PUT", "/results/key", {"step_id": "b", "result": {"v": large("result")}})
    return made


GIVEN = [big_step(mark, prompt) for mark, prompt in zip("abc", prompts(3), strict=True)]


def given(step: Json) -> Json:
    """The fields of an answered step that its caller gave."""
    return {name: step[name] for name in GIVEN[0]}


async def test_steps_read_as_given_by_every_route_on_every_replica(
    agent: Handle, other_replica: Api, forgetful: Api
) -> None:
    """Whole, twice (from memory), paged, alone, exported."""
    for reader in (agent, agent.by(other_replica), agent.by(forgetful)):
        for _ in range(2):
            whole = await reader.read()
            assert [given(step) for step in whole["steps"]] == GIVEN
            assert whole["workspace"] == GIVEN[-1]["workspace"]
        page = await reader.read("/steps", limit=2)
        assert [given(step) for step in page["items"]] == GIVEN[:2]
        assert given(await reader.read("/steps/b")) == GIVEN[1]
        assert [given(step) for step in (await reader.read("/export"))["steps"]] == GIVEN
        assert await reader.read("/workspace") == GIVEN[-1]["workspace"]
        assert (await reader.read("/results/key"))["result"] == {"v": large("result")}
        assert (await reader.read("/results"))["results"]["key"]["result"] == {"v": large("result")}


async def test_the_document_stays_small(agent: Handle, document_bytes: Callable[[str], int]) -> None:
    """What is large is not in it."""
    assert document_bytes(f"default:{agent.id}") < 8_000
    assert (await agent.read())["size_bytes"] < 8_000


async def test_answers_of_writes_hold_the_values(agent: Handle) -> None:
    """Appends, also repeated ones; moves of HEAD with the workspace that they come to; workspaces and results."""
    step = big_step("d", prompts(4)[3])
    first = await agent.append(step)
    assert given(first["steps"][0]) == step
    again = await agent.append(step, expect=200)
    assert again == first
    await agent.append({**step, "data": {"ü": "other"}}, expect="step-exists")
    await agent.append({**step, "input_messages": prompts(4)[2]}, expect="step-exists")
    assert (await agent.checkout("a"))["workspace"] == GIVEN[0]["workspace"]
    workspace = {"w": large("w")}
    answer = await agent.call("PUT", "/workspace", workspace)
    assert answer.json() == workspace
    unchanged = await agent.call("PUT", "/workspace", workspace)
    assert unchanged.headers["etag"] == answer.headers["etag"], "the same value again writes nothing"
    assert (await agent.checkout("root"))["workspace"] == {"root": large("root")}
    result = (await agent.call("PUT", "/results/k", {"step_id": "a", "result": large("r")})).json()
    assert result == {"key": "k", "step_id": "a", "result": large("r")}


async def test_difference_is_that_of_the_values(agent: Handle) -> None:
    found = await agent.read("/diff", **{"from": "a", "to": "c"})
    changed = GIVEN[2]["workspace"]["files"]["a.py"]
    assert found["workspace"] == [{"op": "replace", "path": "/files/a.py", "value": changed}]
    assert (found["only_to"], found["merge_base"]) == (["b", "c"], "a")


async def test_fork_and_import_hold_the_same(agent: Handle, forgetful: Api, api: Api) -> None:
    """Also once the agent that they came from is gone."""
    fork = (await agent.call("POST", "/fork", {"at": "b"})).json()
    assert [given(step) for step in fork["steps"]] == GIVEN[:2]
    export = await agent.read("/export")
    copy = (await api.call("POST", "/v1/agents/import", {**export, "id": None})).json()
    assert [given(step) for step in copy["steps"]] == GIVEN
    await agent.call("DELETE", "")
    for made, expected in ((fork["id"], GIVEN[:2]), (copy["id"], GIVEN)):
        read = await Handle(forgetful, made).read()
        assert [given(step) for step in read["steps"]] == expected
    again = await Handle(forgetful, copy["id"]).read("/export")
    for name in ("id", "version", "created_at"):
        del export[name], again[name]
    for exported in (export, again):
        for step in exported["steps"]:
            del step["version"]
    assert again == export


async def test_feed_tells_the_values(agent: Handle, other_replica: Api) -> None:
    """Those of the past that is resumed, and those that come."""
    async with following(other_replica, agent.id, since=1) as reader:
        past = [told.data for told in await reader.take_until(5) if told.kind == "step"]
        assert [given(step) for step in past] == GIVEN
        step = big_step("d", prompts(4)[3])
        await agent.append(step)
        told = {event.kind: event.data for event in await reader.take_until(6)}
        assert given(told["step"]) == step
        assert told["head"]["workspace"] == step["workspace"]
        await agent.checkout("a")
        (moved,) = await reader.take_until(7)
        assert moved.data["workspace"] == GIVEN[0]["workspace"]
        await agent.call("PUT", "/results/k", {"result": large("r")})
        (put,) = await reader.take_until(8)
        assert put.data["results"]["k"]["result"] == large("r")


async def test_answer_of_a_keyed_request_is_repeated_with_its_values(agent: Handle) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    body = {"role": "agent", "content": large("once")}
    first = await agent.call("POST", "/steps", body, headers=headers)
    again = await agent.call("POST", "/steps", body, headers=headers)
    assert first.content == again.content
    assert first.json()["steps"][0]["content"] == large("once")
    assert first.headers["etag"] == again.headers["etag"] == etag(6)


async def test_equal_values_are_stored_once_for_a_tenant(
    api: Api, mongo: MongoClient[dict[str, Any]], open_settings: Settings
) -> None:
    """However many agents hold them, compressed."""
    blobs = mongo[open_settings.mongodb_database]["blobs"]
    value = {"unique": uuid4().hex, "text": large("x")}
    length = len(json.dumps(value, separators=(",", ":")))
    for _ in range(3):
        made = await api.made(workspace=value)
        await made.append(
            {"role": "user", "data": value}, {"role": "agent", "workspace": dict(reversed(value.items()))}
        )
    (found,) = blobs.find({"length": length})
    assert len(found["data"]) < LARGE / 100


async def test_context_sent_with_each_step_costs_what_is_new(
    new_database: Callable[[], str], data: Path, mongo_uri: str, mongo: MongoClient[dict[str, Any]]
) -> None:
    """A hundred steps that send 20 MB, of which 0.2 MB is new, take less than 0.9 MB of BSON."""
    settings = Settings(mongodb_database=new_database(), data=data)
    messages: list[Json] = []
    sent = 0
    async with serving(settings, mongo_uri) as api:
        agent = await api.made()
        for number in range(100):
            text = "".join(uuid4().hex for _ in range(31))
            messages = [*messages, {"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]
            sent += len(json.dumps(messages))
            await agent.append({"id": f"s{number}", "role": "agent", "input_messages": messages})
        assert sent > 10_000_000
        assert (await agent.read("/steps/s99"))["input_messages"] == messages
        assert (await agent.read("/steps/s63"))["input_messages"] == messages[:128]
    stored = mongo[settings.mongodb_database]
    sizes = [
        document["size"]
        for name in ("agents", "blobs")
        for document in stored[name].aggregate([{"$project": {"size": {"$bsonSize": "$$ROOT"}}}])
    ]
    assert sum(sizes) < 900_000


async def test_answers_are_bounded_and_say_where_to_go_on(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that take too much together come in several pages, each at least one step long; none is left out."""
    for place in ("models.listing.ANSWER_BYTES", "app.api.shown.ANSWER_BYTES"):
        monkeypatch.setattr(place, 3 * LARGE)
    agent = await api.made()
    for number in range(7):
        await agent.append({"id": f"s{number}", "role": "user", "content": large(f"{number}")})
    for _ in range(2):
        whole = await agent.read()
        assert [step["id"] for step in whole["steps"]] == ["s5", "s6"]
    older = await agent.read("/steps", cursor=whole["steps_before"])
    assert [step["id"] for step in older["items"]] == ["s0", "s1"]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await agent.read("/steps", limit=200, **cursor)
        seen += [step["id"] for step in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == [f"s{number}" for number in range(7)]
    monkeypatch.setattr("models.listing.ANSWER_BYTES", 1)
    assert len((await agent.read(steps="all"))["steps"]) == 1


@pytest.mark.parametrize("path", ["/export", "?steps_limit=1001"])
async def test_long_answer_is_whole_and_memory_holds_a_step_of_it(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """It is sent while it is encoded: no part of it but the pieces is ever longer than a step."""
    agent = await api.made()
    contexts = prompts(12)
    for number, context in enumerate(contexts):
        await agent.append({"id": f"s{number}", "role": "agent", "input_messages": context})
    lengths: list[int] = []
    encoded = Filling.encoded

    async def measured(*given: Any) -> bytes:
        text = await encoded(*given)
        lengths.append(len(text))
        return text

    monkeypatch.setattr(Filling, "encoded", measured)
    answer = await agent.call("GET", path)
    assert "content-length" not in answer.headers
    assert answer.headers["etag"] == etag(13)
    assert [step["input_messages"] for step in answer.json()["steps"]] == contexts
    assert max(lengths) < len(answer.content) / 5
    known = await agent.call("GET", path, headers={"If-None-Match": etag(13)}, expect=304)
    assert not known.content


async def test_feed_never_mixes_the_messages_of_two_lives(agent: Handle, other_replica: Api) -> None:
    """A reader who comes to a step after a clear, when another step has the id that its prompt goes on from: a gap."""
    async with following(other_replica, agent.id) as reader:
        await reader.take_until(5)
        reader.pause()
        old = prompts(5)
        await agent.append({"id": "x", "role": "agent", "input_messages": old[3]})
        await agent.append({"id": "y", "role": "agent", "input_messages": old[4]})
        await agent.call("POST", "/clear")
        await agent.append({"id": "x", "role": "agent", "input_messages": [{"role": "user", "content": large("new")}]})
        await agent.by(other_replica).read(min_version=9)
        reader.go_on()
        told = await reader.ended()
    sent = {event.data["id"]: event.data["input_messages"] for event in told if event.kind == "step"}
    assert sent.get("x", old[3]) == old[3]
    assert sent.get("y", old[4]) == old[4]
    assert told[-1].kind == "gap"


async def test_what_readers_wait_for_is_read_once_for_all_of_them(
    agent: Handle, forgetful: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    read = Blobs._read

    async def counted(*given: Any) -> Any:
        nonlocal reads
        reads += 1
        await asyncio.sleep(0.05)
        return await read(*given)

    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(following(forgetful, agent.id)) for _ in range(8)]
        for reader in readers:
            await reader.take_until(5)
        monkeypatch.setattr(Blobs, "_read", counted)
        await agent.append({"id": "d", "role": "user", "content": large("d")})
        for reader in readers:
            told = await reader.take_until(6)
            assert told[0].data["content"] == large("d")
        assert reads == 1


async def test_zero_below_zero_is_a_number_of_its_own(api: Api) -> None:
    """Whether it is stored apart or not."""
    agent = await api.made()
    for number, length in enumerate((1, LARGE)):
        step = {"id": f"s{number}", "role": "user", "data": {"zero": -0.0, "text": "x" * length}}
        await agent.append(step)
        await agent.append(step, expect=200)
        await agent.append({**step, "data": {**step["data"], "zero": 0.0}}, expect="step-exists")


async def test_answer_too_long_to_be_kept_for_a_repeated_request_is_refused_with_its_size(
    agent: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is written; without an Idempotency-Key it is done."""
    monkeypatch.setattr("app.idempotency._REPLY_BYTES", 100)
    answer = await agent.call("POST", "/fork", headers={"Idempotency-Key": uuid4().hex}, expect="too-large")
    assert (answer.json()["limit"], answer.json()["size"] > 100) == (100, True)
    await agent.call("POST", "/fork", expect=201)
