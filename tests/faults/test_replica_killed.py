"""kill -9 of a replica: what it acknowledged is there at once on another replica, and after its restart."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.harness import (
    STRONG,
    Attempt,
    Recorder,
    Replica,
    assert_truthful,
    clients_of,
    deployment,
    read_marks,
    rounds,
    settle,
    wait_until_async,
    write,
)

pytestmark = pytest.mark.asyncio

Pair = tuple[Replica, Replica]

DELEGATE = {"user": {"id": "u-1", "roles": ["a.b", "$c"]}, "note": "on behalf"}


@dataclass(frozen=True)
class Case:
    """A kind of write: what it sends to the prepared agent `{id}`, and by which other names it can be asked for."""

    name: str
    method: str
    route: str
    body: Any = None
    path: dict[str, str] = field(default_factory=dict)
    query: str = ""
    before: tuple[tuple[str, str, Any], ...] = ()
    """Writes made beforehand on the surviving replica: method, path below the agent, body."""
    makes: bool = False
    """Whether it makes another agent, which is then the one to look at."""

    def __str__(self) -> str:
        return self.name

    def url(self, agent: str) -> str:
        return self.route.format(agent_id=agent, **self.path) + self.query


AGENT = "/v1/agents/{agent_id}"
CASES = (
    Case("create", "POST", "/v1/agents", {"name": "Ada", "workspace": {"a.b": [1]}, "labels": {"k": "v"}}, makes=True),
    Case("patch", "PATCH", AGENT, {"name": "Grace", "labels": {"team": None, "x": "1"}, "model": None}),
    Case("delete", "DELETE", AGENT),
    Case("patch settings", "PATCH", f"{AGENT}/settings", {"max_steps": 7, "own.$key": {"deep": None, "x": 1}}),
    Case("set delegate", "PUT", f"{AGENT}/delegate", {"user": {"id": "u-2"}, "token": "s3cret"}),
    Case("delete delegate", "DELETE", f"{AGENT}/delegate"),
    Case("put workspace", "PUT", f"{AGENT}/workspace", {"files": ["a", {"b.c": None}], "$x": 1.5}),
    Case("import", "POST", "/v1/agents/import", "export", makes=True),
    Case("fork", "POST", f"{AGENT}/fork", {"at": "two", "name": "fork"}, makes=True),
    Case("append", "POST", f"{AGENT}/steps", {"id": "new", "role": "agent", "content": "x", "workspace": {"n": 1}}),
    Case(
        "append a batch",
        "POST",
        f"{AGENT}/steps",
        {"steps": [{"id": f"b{n}", "role": "user", "content": str(n), "data": {"$k.": n}} for n in range(3)]},
    ),
    Case(
        "append aside",
        "POST",
        f"{AGENT}/steps",
        {"id": "aside", "role": "tool", "parent_id": "one", "tool_results": [{"id": "c", "output": {"o": 1}}]},
        query="?advance_head=false",
    ),
    Case("check out a step", "PUT", f"{AGENT}/head", {"step_id": "two"}),
    Case("check out a branch", "PUT", f"{AGENT}/head", {"branch": "side"}),
    Case("set a branch", "PUT", f"{AGENT}/branches/{{name}}", {"step_id": "one"}, {"name": "été.$1"}),
    Case("delete a branch", "DELETE", f"{AGENT}/branches/{{name}}", path={"name": "side"}),
    Case("revert", "POST", f"{AGENT}/revert", {"turn_id": "three"}),
    Case("redo", "POST", f"{AGENT}/redo", before=(("POST", "/revert", {"turn_id": "three"}),)),
    Case("clear", "POST", f"{AGENT}/clear"),
    Case("put a result", "PUT", f"{AGENT}/results/{{key}}", {"step_id": "two", "result": [{"$a": 1}]}, {"key": "a.b"}),
)

READS = ("", "?steps=all", "/results", "/branches", "/settings", "/delegate", "/workspace", "/export")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with deployment(tmp_path_factory.mktemp("killed"), "victim", "survivor") as (_, (victim, survivor)):
        yield victim, survivor


async def prepared(client: httpx.AsyncClient, case: Case) -> str:
    """An agent that has something of everything; two of them differ only in id and times."""
    agent = f"agent-{uuid4().hex}"
    at = f"/v1/agents/{agent}"
    steps = [{"id": step, "role": "user", "content": f"say {step}"} for step in ("one", "two", "three")]
    writes: list[tuple[str, str, Any]] = [
        ("PUT", "/workspace", {"start": True}),
        ("POST", "/steps", {"steps": steps}),
        ("POST", "/steps?advance_head=false", {"id": "beside", "role": "agent", "parent_id": "one", "workspace": [0]}),
        ("PUT", "/branches/side", {"step_id": "beside"}),
        ("PUT", "/results/kept", {"result": {"rows": [1, 2]}, "step_id": "one"}),
        ("PUT", "/delegate", {**DELEGATE, "token": "t0ken"}),
        *case.before,
    ]
    made = await client.post("/v1/agents", json={"id": agent, "model": "m", "labels": {"team": "core"}})
    assert made.status_code == 201, made.text
    for method, path, body in writes:
        answer = await client.request(method, at + path, json=body)
        assert answer.is_success, answer.text
    return agent


async def carry_out(client: httpx.AsyncClient, case: Case, agent: str) -> httpx.Response:
    """Send the case's write, at once when this returns it is acknowledged."""
    body = case.body
    if body == "export":
        exported = (await client.get(f"/v1/agents/{agent}/export")).json()
        body = {**exported, "id": f"{agent}-in"}
    elif case.name == "create":
        body = {**case.body, "id": f"{agent}-new"}
    return await client.request(case.method, case.url(agent), **({} if body is None else {"json": body}))


async def view(client: httpx.AsyncClient, agent: str) -> dict[str, Any]:
    """All that can be read of an agent, linearizably: status, body and ETag of each read."""
    answers = {read: await client.get(f"/v1/agents/{agent}{read}", headers=STRONG) for read in READS}
    return {read: (answer.status_code, answer.headers.get("etag"), answer.json()) for read, answer in answers.items()}


def without_identity(seen: Any, names: dict[str, str]) -> Any:
    """The same, with times left out and the names of agents replaced, so that twins look alike."""
    if isinstance(seen, dict):
        return {
            key: without_identity(value, names)
            for key, value in seen.items()
            if key not in ("created_at", "updated_at", "steps_before", "size_bytes")
        }
    if isinstance(seen, list | tuple):
        return [without_identity(item, names) for item in seen]
    if isinstance(seen, str):
        for name, alias in names.items():
            seen = seen.replace(name, alias)
    return seen


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_acknowledged_write_outlives_its_replica(pair: Pair, case: Case) -> None:
    """Killed right after its 2xx: the other replica shows the write at once, the killed one after its restart."""
    victim, _ = pair
    async with clients_of(*pair) as (on_victim, on_survivor):
        agent, twin = await prepared(on_survivor, case), await prepared(on_survivor, case)
        answer = await carry_out(on_victim, case, agent)
        victim.kill9()
        victim.start()
        assert answer.is_success, answer.text
        target = _target(case, answer, agent)
        at_once = await view(on_survivor, target)

        undisturbed = await carry_out(on_survivor, case, twin)
        twin_target = _target(case, undisturbed, twin)
        expected = await view(on_survivor, twin_target)

    names, twin_names = {target: "<target>", agent: "<agent>"}, {twin_target: "<target>", twin: "<agent>"}
    assert answer.status_code == undisturbed.status_code
    assert without_identity(at_once, names) == without_identity(expected, twin_names)
    assert without_identity(_body(answer), names) == without_identity(_body(undisturbed), twin_names)
    if case.name != "delete":
        assert at_once[""][1] == answer.headers["etag"]

    await asyncio.to_thread(victim.wait_ready)
    async with clients_of(victim) as (restarted,):
        assert await view(restarted, target) == at_once


def _target(case: Case, answer: httpx.Response, agent: str) -> str:
    return str(answer.json()["id"]) if case.makes else agent


def _body(answer: httpx.Response) -> Any:
    return answer.json() if answer.content else None


async def test_every_write_route_is_among_the_cases(pair: Pair) -> None:
    """No write route of agents and steps can be added without a kill test of its own."""
    document = httpx.get(f"{pair[1].url}/schema/openapi.json").json()
    routes = {
        (method.upper(), route)
        for route, operations in document["paths"].items()
        for method, operation in operations.items()
        if method != "get" and set(operation.get("tags", ())) & {"agents", "steps"}
    }
    assert routes, "the document tells of no writes"
    assert routes == {(case.method, case.route) for case in CASES}


@pytest.mark.parametrize("number", range(rounds(2)))
async def test_stream_of_appends_outlives_its_replica(pair: Pair, number: int) -> None:
    """Killed amid appends: each acknowledged step is there once; the rest are settled by repeating them elsewhere."""
    victim, _ = pair
    recorder = Recorder()
    agent = f"stream-{uuid4().hex}"
    enough = random.Random(number).randint(20, 120)  # noqa: S311
    async with clients_of(*pair) as (on_victim, on_survivor):
        assert (await on_survivor.post("/v1/agents", json={"id": agent})).status_code == 201
        writers = [
            asyncio.create_task(_write_until_dropped(recorder, on_victim, agent, kind, f"{kind}{writer}"))
            for kind in ("chosen", "keyed", "append")
            for writer in range(4)
        ]
        await wait_until_async(lambda: len(recorder.attempts) >= enough, 30, f"{enough} appends")
        victim.kill9()
        victim.start()
        await asyncio.gather(*writers)
        at_once = await read_marks(on_survivor, agent)
        assert_truthful(recorder, at_once)
        assert len(recorder.where(lambda attempt: attempt.acknowledged)) >= enough - len(writers)

        dropped = recorder.where(lambda attempt: attempt.answer is None and attempt.kind != "append")
        assert dropped, "the kill hit no request in flight"
        for attempt in dropped:
            await _settle_elsewhere(recorder, on_survivor, agent, attempt, at_once.count(attempt.mark))
        after = await read_marks(on_survivor, agent)
        assert_truthful(recorder, after)
        assert all(after.count(attempt.mark) == 1 for attempt in dropped)

    await asyncio.to_thread(victim.wait_ready)
    async with clients_of(victim) as (restarted,):
        assert await read_marks(restarted, agent) == after
        await settle(restarted, agent)


async def _write_until_dropped(recorder: Recorder, client: httpx.AsyncClient, agent: str, kind: str, name: str) -> None:
    number = 0
    answered = True
    while answered:
        number += 1
        attempt = await write(recorder, client, agent, kind, f"{name}-{number}")
        assert attempt.answer is None or attempt.acknowledged, str(attempt)
        answered = attempt.answer is not None


async def _settle_elsewhere(
    recorder: Recorder, client: httpx.AsyncClient, agent: str, dropped: Attempt, there: int
) -> None:
    """Repeat a dropped request: it answers 2xx, and says 200 for a step id that was there already."""
    repeated = await write(recorder, client, agent, dropped.kind, dropped.mark)
    assert repeated.acknowledged, str(repeated)
    assert repeated.answer is not None
    expected = 200 if there and dropped.kind == "chosen" else 201
    assert repeated.answer.status_code == expected, str(repeated)
