"""Two replicas, two processes, one agent: what they may do at once, and that only true conflicts are refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.harness import (
    STRONG,
    Marks,
    Recorder,
    Replica,
    assert_one_chain,
    assert_truthful,
    clients_of,
    deployment,
    read_marks,
    rounds,
    write,
)

pytestmark = pytest.mark.asyncio

Clients = list[httpx.AsyncClient]

APPENDS = 50
GUARDED_WRITERS = 4
GUARDED_WRITES = 12


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    with deployment(tmp_path_factory.mktemp("two"), "left", "right") as (_, replicas):
        yield replicas


@pytest.fixture
async def both(replicas: list[Replica]) -> AsyncIterator[Clients]:
    async with clients_of(*replicas) as clients:
        yield clients


async def new_agent(client: httpx.AsyncClient, **fields: Any) -> str:
    made = await client.post("/v1/agents", json={"id": f"agent-{uuid4().hex}", **fields})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


@pytest.mark.parametrize("number", range(rounds(2)))
async def test_appends_from_two_replicas_make_one_chain(both: Clients, number: int) -> None:
    """50 appends at once from each of two replicas: all accepted, one chain, seq 1…100, every version true."""
    recorder = Recorder()
    agent = await new_agent(both[0])
    sent = [
        write(recorder, client, agent, "append", f"{name}-{n}")
        for n in range(APPENDS)
        for name, client in zip(("left", "right"), both, strict=True)
    ]
    attempts = await asyncio.gather(*sent)
    assert Counter(attempt.answer and attempt.answer.status_code for attempt in attempts) == {201: 2 * APPENDS}
    for client in both:
        marks = await read_marks(client, agent)
        assert_truthful(recorder, marks)
        assert len(marks.steps) == 2 * APPENDS
        assert marks.agent["version"] == 1 + 2 * APPENDS
        assert [step["version"] for step in marks.steps] == list(range(2, 2 + 2 * APPENDS))
        assert marks.agent["head"] == marks.steps[-1]["id"]


async def test_guarded_appends_are_accepted_on_their_version_only(both: Clients) -> None:
    """Writers with If-Match: each acknowledged step is on the path right after its version; every other got 412."""
    recorder = Recorder()
    agent = await new_agent(both[0])
    writers = [
        _write_guarded(recorder, both[number % 2], agent, f"writer{number}", rounds(GUARDED_WRITES))
        for number in range(GUARDED_WRITERS)
    ]
    seen = dict(pair for pairs in await asyncio.gather(*writers) for pair in pairs)
    marks = await read_marks(both[0], agent)
    assert_truthful(recorder, marks)
    accepted = recorder.where(lambda attempt: attempt.acknowledged)
    assert len(accepted) == len(marks.steps)
    for step in marks.steps:
        assert step["version"] == seen[step["content"]] + 1
    refused = recorder.where(lambda attempt: not attempt.acknowledged)
    assert refused, "the writers never met"
    for attempt in refused:
        assert attempt.answer is not None and attempt.answer.status_code == 412, str(attempt)
        problem = attempt.answer.json()
        assert problem["code"] == "version-conflict"
        assert problem["expected"] == seen[attempt.mark] < problem["actual"]


async def _write_guarded(
    recorder: Recorder, client: httpx.AsyncClient, agent: str, name: str, wanted: int
) -> list[tuple[str, int]]:
    """Append with If-Match until that many were accepted; the version that each append was guarded by."""
    guarded: list[tuple[str, int]] = []
    accepted = 0
    while accepted < wanted:
        version = (await client.get(f"/v1/agents/{agent}?steps=none", headers=STRONG)).json()["version"]
        mark = f"{name}-{len(guarded)}"
        guarded.append((mark, version))
        attempt = await recorder.send(
            client,
            "append",
            mark,
            "POST",
            f"/v1/agents/{agent}/steps",
            json={"role": "user", "content": mark},
            headers={"If-Match": f'"{version}"'},
        )
        accepted += attempt.acknowledged
    return guarded


async def test_edits_of_different_things_all_succeed(both: Clients) -> None:
    """Eight kinds of edits at once on two replicas, again and again: none is refused, none is lost."""
    agent = await new_agent(both[0])
    at = f"/v1/agents/{agent}"
    assert (await both[0].post(f"{at}/steps", json={"id": "start", "role": "user"})).status_code == 201
    count = rounds(6)
    for number in range(count):
        answers = await asyncio.gather(
            *(
                client.request(method, f"{at}{path}", json=body)
                for name, client in zip(("left", "right"), both, strict=True)
                for method, path, body in _edits(f"{name}{number}")
            )
        )
        assert {answer.status_code for answer in answers} <= {200, 201}, [answer.text for answer in answers]

    marks = await read_marks(both[1], agent)
    _assert_all_there(marks, {f"{name}{number}" for name in ("left", "right") for number in range(count)})
    versions = [int(step["version"]) for step in marks.steps]
    assert len(set(versions)) == len(versions)
    assert [step["seq"] for step in marks.steps] == list(range(1, len(marks.steps) + 1))
    assert marks.agent["version"] == 2 + 2 * 8 * count
    branches = (await both[0].get(f"{at}/branches", headers=STRONG)).json()["branches"]
    assert len(branches) == 1 + 2 * count


def _edits(mark: str) -> list[tuple[str, str, Any]]:
    """Writes of eight different things; every one of them changes something."""
    return [
        ("PATCH", "/settings", {mark: mark}),
        ("PUT", f"/results/{mark}", {"result": mark, "step_id": "start"}),
        ("PATCH", "", {"labels": {mark: "1"}}),
        ("PUT", f"/branches/{mark}", {"step_id": "start"}),
        ("POST", "/steps?advance_head=false", {"role": "agent", "content": f"aside {mark}", "parent_id": "start"}),
        ("POST", "/steps", {"role": "user", "content": mark}),
        ("PUT", "/workspace", {"by": mark}),
        ("PATCH", "", {"name": mark}),
    ]


def _assert_all_there(marks: Marks, wanted: set[str]) -> None:
    contents = Counter(step.get("content") for step in marks.steps)
    assert contents == Counter({None: 1, **dict.fromkeys(wanted, 1), **{f"aside {mark}": 1 for mark in wanted}})
    assert wanted <= marks.settings
    assert wanted <= marks.results
    assert wanted == set(marks.agent["labels"])


async def test_same_id_is_created_once(both: Clients) -> None:
    """Creates of one id at once on both replicas: exactly one 201, every other 409; so again after a delete."""
    for _ in range(rounds(3)):
        agent = f"agent-{uuid4().hex}"
        for life in range(2):
            answers = await asyncio.gather(
                *(client.post("/v1/agents", json={"id": agent, "name": f"n{n}"}) for client in both for n in range(5))
            )
            assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 9}
            winner = next(answer.json() for answer in answers if answer.status_code == 201)
            found = (await both[1].get(f"/v1/agents/{agent}", headers=STRONG)).json()
            assert (found["name"], found["version"]) == (winner["name"], 1 + 2 * life)
            assert (await both[0].delete(f"/v1/agents/{agent}")).status_code == 204


@pytest.mark.parametrize("keyed", ["append", "create", "fork", "import", "redo"])
async def test_one_key_at_once_on_two_replicas_has_one_effect(both: Clients, keyed: str) -> None:
    """One Idempotency-Key at once on both replicas: one effect; each answer is the same 2xx, or 409 while it runs."""
    for _ in range(rounds(3)):
        agent = await new_agent(both[0])
        at = f"/v1/agents/{agent}"
        steps = [{"id": step, "role": "user", "content": step} for step in ("one", "two")]
        assert (await both[0].post(f"{at}/steps", json={"steps": steps})).status_code == 201
        for turn in ("two", "one"):
            assert (await both[0].post(f"{at}/revert", json={"turn_id": turn})).status_code == 200
        before = (await both[0].get(at, headers=STRONG)).json()
        fresh = f"fresh-{uuid4().hex}"
        path, body = {
            "append": (f"{at}/steps", {"role": "user", "content": "keyed"}),
            "create": ("/v1/agents", {"owner": fresh}),
            "fork": (f"{at}/fork", {"name": fresh}),
            "import": ("/v1/agents/import", {"holdfast": 1, "name": fresh}),
            "redo": (f"{at}/redo", None),
        }[keyed]
        key = {"Idempotency-Key": uuid4().hex}
        request = {"headers": key} if body is None else {"headers": key, "json": body}
        answers = await asyncio.gather(*(client.post(path, **request) for client in both for _ in range(4)))
        answers.append(await both[1].post(path, **request))
        given = [answer for answer in answers if answer.is_success]
        for answer in answers:
            if not answer.is_success:
                assert (answer.status_code, answer.json()["code"]) == (409, "conflict"), answer.text
                assert answer.headers["retry-after"]
        assert len({(answer.status_code, answer.content, answer.headers["etag"]) for answer in given}) == 1
        after = (await both[1].get(at, headers=STRONG)).json()
        effects = {
            "append": after["step_count"] - before["step_count"],
            "redo": after["version"] - before["version"],
        }.get(keyed)
        assert (await _made(both[0], fresh) if effects is None else effects) == 1
        if keyed == "redo":
            assert after["head"] == "one"
            assert after["can_redo"]


async def _made(client: httpx.AsyncClient, fresh: str) -> int:
    """How many agents have this name or owner."""
    found = 0
    cursor: str | None = None
    while True:
        page = (await client.get("/v1/agents", params={"limit": 200, **({"cursor": cursor} if cursor else {})})).json()
        found += sum(fresh in (agent["name"], agent["owner"]) for agent in page["items"])
        cursor = page["next_cursor"]
        if cursor is None:
            return found


async def test_acknowledged_write_is_seen_by_the_other_replica_at_once(both: Clients) -> None:
    """Each write acknowledged by one replica is in the next `no-cache` read of the other, whichever wrote before."""
    agent = await new_agent(both[0])
    for number in range(rounds(20)):
        writer, reader = both[number % 2], both[1 - number % 2]
        mark = f"m-{number}"
        attempt = await write(Recorder(), writer, agent, "append", mark)
        assert attempt.acknowledged, str(attempt)
        marks = await read_marks(reader, agent)
        assert marks.steps[-1]["content"] == mark
        assert_one_chain(marks.steps)
