"""Limits: what breaks one is refused whole, and says which."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from app.config import Settings
from tests.api.driver import Api, Json, problem_of, serving

MIB = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small(open_settings: Settings, mongo_uri: str) -> AsyncIterator[Api]:
    """A caller of a replica with small limits, so that they are cheap to break."""
    limits = {"body_limit_bytes": 65_536, "step_limit_bytes": 4_096, "agent_limit_bytes": 100_000, "json_keys": 100}
    async with serving(open_settings.model_copy(update=limits), mongo_uri) as caller:
        yield caller


def fields_of(problem: Json) -> tuple[int, bool]:
    """The limit, and whether the size is given and above it."""
    return problem["limit"], problem["size"] > problem["limit"]


async def test_default_limits_are_those_of_the_contract(open_settings: Settings) -> None:
    """8 MiB, 4 MiB, 32, 10 000."""
    limits = open_settings
    assert (limits.body_limit_bytes, limits.step_limit_bytes) == (8 * MIB, 4 * MIB)
    assert (limits.json_depth, limits.json_keys) == (32, 10_000)


async def test_body_over_the_limit_is_too_large(small: Api) -> None:
    """413 with limit and size, with and without a Content-Length."""
    agent = await small.made()
    problem = (await agent.call("PUT", "/workspace", "x" * 70_000, expect="too-large")).json()
    assert fields_of(problem) == (65_536, True)

    async def chunks() -> AsyncIterator[bytes]:
        yield b'"'
        for _ in range(70):
            yield b"x" * 1000
        yield b'"'

    answer = await small.http.put(f"/v1/agents/{agent.id}/workspace", content=chunks())
    assert (answer.status_code, fields_of(answer.json())) == (413, (65_536, True))
    assert await agent.version() == 1


async def test_step_over_the_limit_is_too_large_and_nothing_of_its_batch_is_there(small: Api) -> None:
    """413 with limit and size, for an append and for an import."""
    agent = await small.made()
    batch = {"steps": [{"role": "user"}, {"role": "agent", "content": "x" * 4_096}]}
    assert fields_of((await agent.call("POST", "/steps", batch, expect="too-large")).json()) == (4_096, True)
    export = await agent.read("/export")
    step = {
        "id": "a",
        "seq": 1,
        "parent_id": "root",
        "turn_id": "a",
        "index": 0,
        "role": "user",
        "content": "x" * 4_096,
    }
    step["created_at"] = "2020-01-01T00:00:00.000Z"
    await small.call("POST", "/v1/agents/import", {**export, "id": None, "steps": [step]}, expect="too-large")
    assert await agent.version() == 1


async def test_agent_over_the_limit_is_too_large_and_stays_usable(small: Api) -> None:
    """What can't be sealed, because it is bound to the root, is refused while there is still room for steps."""
    agent = await small.made()
    for number in range(40):
        body = {"step_id": "root", "result": f"{number}".ljust(3_900)}
        answer = await agent.api.http.put(f"/v1/agents/{agent.id}/results/k{number}", json=body)
        if answer.status_code != 200:
            break
    assert answer.status_code == 413
    assert fields_of(answer.json()) == (50_000, True)
    assert await agent.version() >= 10
    await agent.call("PATCH", "", {"name": "small"})
    for number in range(20):
        await agent.append(f"still takes steps {number} ".ljust(3_000))
    await agent.call("POST", "/clear")
    await agent.append("fits again")


async def test_steps_have_no_limit(small: Api) -> None:
    """More of them than a document may hold, one by one and many at once."""
    agent = await small.made()
    for number in range(60):
        steps: list[Json] = [{"role": "user", "content": f"{number} {part} ".ljust(3_900)} for part in range(2)]
        await agent.append(*steps)
    read = await agent.read(steps_limit=10_000)
    assert read["step_count"] == len(read["steps"]) == 120
    assert [step["seq"] for step in read["steps"]] == list(range(1, 121))
    assert read["size_bytes"] < 100_000


@pytest.mark.parametrize(("levels", "expect"), [(32, 200), (33, 400), (2_000, 400), (200_000, 400)])
async def test_depth_is_limited(api: Api, levels: int, expect: int) -> None:
    """32 levels of arrays or objects are taken, 33 are not, and no depth is too much to be refused."""
    agent = await api.made()
    for body in ("[" * levels + "]" * levels, '{"a":' * levels + "1" + "}" * levels):
        answer = await api.http.put(f"/v1/agents/{agent.id}/workspace", content=body)
        assert answer.status_code == expect, answer.text
        if expect == 200:
            assert (await api.http.get(f"/v1/agents/{agent.id}/workspace")).text.replace(" ", "") == body


async def test_keys_are_limited(small: Api) -> None:
    """All objects of a body together; the items of a batch of steps each for itself."""
    agent = await small.made()
    wide = {f"k{n}": n for n in range(100)}
    await agent.call("PUT", "/workspace", wide)
    for over in ({**wide, "more": 1}, {"a": wide}, [wide, {"a": 1}]):
        await agent.call("PUT", "/workspace", over, expect="invalid-request")
    data = {f"k{n}": n for n in range(90)}
    await agent.append({"role": "user", "data": data}, {"role": "user", "data": data})
    await agent.append({"role": "user", "data": {**wide}}, expect="invalid-request")


@pytest.mark.parametrize("number", ["9223372036854775807", "-9223372036854775808"])
async def test_integers_reach_as_far_as_64_bits(api: Api, number: str) -> None:
    """They come back exactly."""
    agent = await api.made()
    await api.http.put(f"/v1/agents/{agent.id}/workspace", content=number)
    assert (await agent.call("GET", "/workspace")).text == number


@pytest.mark.parametrize(
    "value",
    [
        "9223372036854775808",
        "-9223372036854775809",
        "1" * 30,
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        '{"a\\u0000b": 1}',
    ],
)
async def test_what_json_or_the_database_does_not_hold_is_refused(api: Api, value: str) -> None:
    """At any depth, in every kind of body."""
    agent = await api.made()
    for method, path, body in [
        ("PUT", "/workspace", value),
        ("PUT", "/workspace", f'{{"a": [{value}]}}'),
        ("PATCH", "/settings", f'{{"a": {value}}}'),
        ("PUT", "/results/k", f'{{"result": {value}}}'),
        ("POST", "/steps", f'{{"role": "user", "data": {{"a": {value}}}}}'),
        ("POST", "/steps", f'{{"steps": [{{"role": "user", "data": {{"a": {value}}}}}]}}'),
    ]:
        answer = await api.http.request(method, f"/v1/agents/{agent.id}{path}", content=body)
        assert problem_of(answer)["code"] == "invalid-request"
    assert await agent.version() == 1


async def test_many_settings_are_one_agent(small: Api) -> None:
    """Sizes add up over writes of every kind."""
    agent = await small.made()
    refused: Any = None
    for n in range(8):
        refused = await small.http.put(f"/v1/agents/{agent.id}/results/k{n}", json={"result": "x" * 15_000})
    assert refused.status_code == 413


@pytest.mark.parametrize("value", [{"$ref": "a", "$id": 1}, {"x": [{"$ref": "a", "$id": {}, "$db": "b", "y": None}]}])
async def test_objects_that_look_like_references_come_back_as_they_were(api: Api, value: Json) -> None:
    """`$ref` and `$id` are keys like any other, wherever they stand."""
    mark = uuid4().hex
    agent = await api.made(settings={"schema": value}, delegate={"user": value}, labels={"mark": mark})
    await agent.call("PUT", "/workspace", value)
    await agent.call(
        "POST", "/steps", {"id": "s", "role": "tool", "data": value, "tool_results": [{"id": "c", "output": value}]}
    )
    await agent.call("PUT", "/results/key", {"result": value})
    whole = await agent.read()
    assert whole["settings"]["schema"] == whole["delegate"]["user"] == value
    assert whole["steps"][0]["data"] == whole["steps"][0]["tool_results"][0]["output"] == value
    assert await agent.read("/workspace") == value == (await agent.read("/results/key"))["result"]
    (listed,) = (await api.call("GET", "/v1/agents", label=f"mark:{mark}")).json()["items"]
    assert listed["settings"]["schema"] == value


async def test_only_steps_have_key_limits_of_their_own(small: Api) -> None:
    """A `steps` list elsewhere counts with its body; that of a batch does not, and each step stays within the limit."""
    agent = await small.made()
    crowd = [{f"k{number}": 0 for number in range(40)} for _ in range(3)]
    await agent.call("PUT", "/workspace", {"steps": crowd}, expect="invalid-request")
    await agent.call("POST", "/steps", {"steps": [{"role": "user", "data": data} for data in crowd]})
    crowded = {f"k{number}": 0 for number in range(101)}
    await agent.call("POST", "/steps", {"steps": [{"role": "user", "data": crowded}]}, expect="invalid-request")


async def test_guards_of_a_creation_look_at_what_was_there_before(api: Api) -> None:
    """If-Match on an id that was never used, or on a deleted one, is about its version."""
    await api.call("POST", "/v1/agents", {"id": "guarded"}, headers={"If-Match": '"7"'}, expect="version-conflict")
    await api.call("POST", "/v1/agents", {"id": "guarded"}, expect=201)


async def test_method_that_a_path_does_not_have_is_told_with_those_it_has(api: Api) -> None:
    """405 with Allow."""
    answer = await api.call("PUT", "/v1/agents", {}, expect="method-not-allowed")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "OPTIONS", "POST"}
