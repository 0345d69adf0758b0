"""WebSockets over real connections and two replicas: events as they happen, frames as their HTTP twins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.config import Settings
from app.runtime import running
from app.tenancy import CACHED_SECONDS
from models.tenant import Right
from tests.harness import Database, Replica, deployment

Json = dict[str, Any]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, list[Replica]]]:
    with deployment(tmp_path_factory.mktemp("sockets"), "a", "b", runner_ttl_seconds=2) as (database, replicas):
        yield database, replicas


@pytest.fixture
def here(served: tuple[Database, list[Replica]]) -> Replica:
    return served[1][0]


@pytest.fixture
def there(served: tuple[Database, list[Replica]]) -> Replica:
    return served[1][1]


class Conversation:
    """One open socket; events and answers are told apart."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.events: list[Json] = []

    async def next(self) -> Json:
        """The next event or unasked frame."""
        if self.events:
            return self.events.pop(0)
        told: Json = json.loads(await self._socket.recv())
        return told

    async def says(self, frame: Json | str | bytes) -> Json:
        """Send a frame; the answer to it."""
        await self._socket.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))
        while True:
            told: Json = json.loads(await self._socket.recv())
            if told["type"] in ("answer", "error"):
                return told
            self.events.append(told)


@asynccontextmanager
async def talking(replica: Replica, path: str, **headers: str) -> AsyncIterator[Conversation]:
    """A socket of a path; headers with `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"ws://127.0.0.1:{replica.port}{path}"
    async with connect(url, additional_headers=named, open_timeout=20) as socket:
        yield Conversation(socket)


async def refusal(replica: Replica, path: str, **headers: str) -> tuple[int, str]:
    """How a socket is refused: status and code."""
    with pytest.raises(InvalidStatus) as refused:
        async with talking(replica, path, **headers):
            pass
    response = refused.value.response
    assert response.headers["content-type"].startswith("application/problem+json")
    problem = json.loads(response.body or b"{}")
    assert problem["status"] == response.status_code
    return response.status_code, problem["code"]


async def made(replica: Replica, **fields: Any) -> str:
    async with replica.client() as client:
        ident: str = (await client.post("/v1/agents", json=fields)).json()["id"]
        return ident


async def test_agent_is_prompted_and_followed_over_a_socket(here: Replica, there: Replica) -> None:
    """What is done on one replica is told on the other: a snapshot, then each event with its type."""
    agent = await made(here)
    async with talking(here, f"/v1/agents/{agent}/ws") as one, talking(there, f"/v1/agents/{agent}/ws") as two:
        assert [(await each.next())["type"] for each in (one, two)] == ["snapshot"] * 2
        told = await one.says({"type": "prompt", "id": "1", "content": "go"})
        assert (told["id"], told["status"], told["answer"]["fence"]) == ("1", 201, 1)
        for each in (one, two):
            events = [await each.next() for _ in range(3)]
            assert [event["type"] for event in events] == ["step", "head", "state"]
            assert (events[0]["content"], events[2]["state"]) == ("go", "busy")
        stopped = await two.says({"type": "stop", "id": "s", "fencing_token": 1, "if_match": 2})
        assert stopped["answer"]["state"] == "stopping"


async def test_frames_are_fenced_and_done_once_like_their_twins(here: Replica, there: Replica) -> None:
    """The same id is the same request, on any replica; another body under it is a mistake; guards are guards."""
    agent = await made(here)
    path = f"/v1/agents/{agent}/ws"
    prompt = {"type": "prompt", "id": "p", "content": "x", "step_id": "mine"}
    async with talking(here, path) as one, talking(there, path) as two:
        first = await one.says(prompt)
        assert await two.says(prompt) == first
        assert (await two.says({**prompt, "content": "y"}))["code"] == "idempotency-mismatch"
        assert (await one.says({"type": "prompt", "id": "q", "content": "x"}))["code"] == "agent-busy"
        fenced = await one.says({"type": "stop", "id": "r", "fencing_token": 7})
        assert (fenced["code"], fenced["fence"], fenced["actual"], fenced["id"]) == ("fenced-out", 7, 1, "r")
        assert (await one.says({"type": "stop", "id": "t", "if_match": 9}))["code"] == "version-conflict"
        assert (await one.says({"type": "checkout", "id": "u", "step_id": "root"}))["code"] == "agent-busy"
    async with here.client() as client:
        await client.post(f"/v1/agents/{agent}/turns/mine/finish", json={"outcome": "completed"})
    async with talking(there, path) as two:
        moved = await two.says({"type": "checkout", "id": "v", "step_id": "root"})
        assert moved["answer"]["head"] == "root"


BAD_FRAMES: list[tuple[str | bytes, str]] = [
    ("hello", "invalid-request"),
    ("[]", "invalid-request"),
    ("{}", "invalid-request"),
    (b"{}", "invalid-request"),
    ('{"type":"prompt"}', "invalid-request"),
    ('{"type":"dance","id":"1"}', "invalid-request"),
    ('{"type":"prompt","id":7}', "invalid-request"),
    ('{"type":"prompt","id":"1"}', "invalid-request"),
    ('{"type":"prompt","id":"1","content":{"$gt":""}}', "invalid-request"),
    ('{"type":"prompt","id":"1","content":"x","unknown":1}', "invalid-request"),
    ('{"type":"stop","id":"1","fencing_token":"x"}', "invalid-request"),
    ('{"type":"stop","id":"1","fencing_token":true}', "invalid-request"),
    ('{"type":"stop","id":"a b"}', "invalid-request"),
    ('{"type":"checkout","id":"1"}', "invalid-request"),
    ('{"type":"checkout","id":"1","step_id":"nowhere"}', "not-found"),
    ('{"a":' * 2000, "invalid-request"),
    ('{"n":' + "9" * 30 + "}", "invalid-request"),
    ('{"type":"prompt","id":"1","content":"' + "x" * 9_000_000 + '"}', "too-large"),
]


async def test_bad_frames_are_answered_and_the_socket_stays_open(here: Replica) -> None:
    """Each with its code; nothing is written."""
    agent = await made(here)
    async with talking(here, f"/v1/agents/{agent}/ws") as one:
        for frame, code in BAD_FRAMES:
            told = await one.says(frame)
            assert (told["type"], told["code"]) == ("error", code), (frame[:60], told)
            assert told["detail"]
        assert (await one.says({"type": "prompt", "id": "1", "content": "fine"}))["status"] == 201


async def test_socket_resumes_after_a_version(here: Replica) -> None:
    """Steps since then, a snapshot, and what happens: as the feed does; by header or by query."""
    agent = await made(here)
    async with here.client() as client:
        for step in ("a", "b"):
            await client.post(f"/v1/agents/{agent}/steps", json={"role": "user", "id": step})
    path = f"/v1/agents/{agent}/ws"
    async with (
        talking(here, path, Last_Event_ID="2") as by_header,
        talking(here, f"{path}?last_event_id=2") as by_query,
    ):
        for each in (by_header, by_query):
            told = [await each.next() for _ in range(2)]
            assert [(one["type"], one.get("id")) for one in told] == [("step", "b"), ("snapshot", None)]
    assert await refusal(here, f"{path}?last_event_id=x") == (400, "invalid-request")


async def test_socket_is_refused_with_a_problem(here: Replica) -> None:
    """At the handshake, before it is open."""
    agent = await made(here)
    assert await refusal(here, "/v1/agents/nobody/ws") == (404, "not-found")
    assert await refusal(here, "/v1/nothing") == (404, "not-found")
    assert await refusal(here, "/v1/runners/nobody/ws") == (404, "not-found")
    assert await refusal(here, f"/v1/agents/{agent}/ws", Origin="http://evil.example") == (403, "forbidden")
    assert await refusal(here, f"/v1/agents/{agent}/ws", Authorization="Bearer x") == (401, "unauthenticated")


async def test_runner_gets_its_commands_over_a_socket_of_another_replica(here: Replica, there: Replica) -> None:
    """As soon as they are created, in order, again until acknowledged; heartbeats go over it as well."""
    agent = await made(here, pool="sockets")
    async with here.client() as client:
        body = {"pool": "sockets", "platform": "local", "capacity": 1}
        runner = (await client.post("/v1/runners", json=body)).json()["id"]
        await client.post(f"/v1/runners/{runner}/claim", json={"max": 1})
        async with talking(there, f"/v1/runners/{runner}/ws") as socket:
            ids = []
            for number in range(2):
                answer = await client.post(f"/v1/agents/{agent}/commands", json={"action": "custom", "payload": number})
                ids.append(answer.json()["id"])
            seen: list[str] = []
            while len(set(seen)) < 2 or seen[-1] != ids[1]:
                told = await socket.next()
                assert told["type"] == "command"
                seen.append(told["id"])
            assert list(dict.fromkeys(seen)) == ids
            for number, command in enumerate(ids):
                acked = await socket.says({"type": "ack", "id": str(number), "command": command})
                assert acked["answer"]["status"] == "acked"
            done = await socket.says({"type": "complete", "id": "2", "command": ids[0], "result": 1})
            assert done["answer"]["result"] == 1
            failed = await socket.says({"type": "fail", "id": "3", "command": ids[1], "error": "no"})
            assert failed["answer"]["status"] == "failed"
            beaten = await socket.says({"type": "heartbeat", "id": "4", "agents": [agent, "x"]})
            assert [one["id"] for one in beaten["answer"]["agents"]] == [agent]
            assert beaten["answer"]["lost"] == ["x"]
            assert (await socket.says({"type": "ack", "id": "5"}))["code"] == "invalid-request"
            assert (await socket.says({"type": "ack", "id": "6", "command": "no"}))["code"] == "not-found"
            await client.delete(f"/v1/runners/{runner}")
            assert (await socket.next())["code"] == "fenced-out"
            with pytest.raises(ConnectionClosed) as closed:
                await socket.next()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.reason == "fenced-out"


async def test_keys_and_tickets_open_sockets_as_they_open_feeds(tmp_path: Path) -> None:
    """A reader hears and may say nothing; a ticket opens once; a stranger's agent is unknown."""
    with deployment(tmp_path, "keyed") as (database, (replica,)):
        settings = Settings(mongodb_uri=database.uri, data=tmp_path / "keys")
        async with running(settings, database.uri) as runtime:
            _, writer = await runtime.keys.create("mine", [Right.READ, Right.WRITE])
            _, reader = await runtime.keys.create("mine", [Right.READ])
            _, stranger = await runtime.keys.create("other", list(Right))
        key = {name: f"Bearer {token}" for name, token in (("w", writer), ("r", reader), ("s", stranger))}
        async with replica.client() as client:
            client.headers["Authorization"] = key["w"]
            agent = (await client.post("/v1/agents", json={})).json()["id"]
            ticket = (await client.post("/v1/tickets")).json()["ticket"]
        path = f"/v1/agents/{agent}/ws"
        assert await refusal(replica, path) == (401, "unauthenticated")
        assert await refusal(replica, path, Authorization=key["s"]) == (404, "not-found")
        assert await refusal(replica, "/v1/runners/x/ws", Authorization=key["r"]) == (403, "forbidden")
        async with talking(replica, path, Authorization=key["r"]) as socket:
            assert (await socket.says({"type": "prompt", "id": "1", "content": "x"}))["code"] == "forbidden"
        async with talking(replica, f"{path}?ticket={ticket}") as socket:
            assert (await socket.says({"type": "prompt", "id": "1", "content": "x"}))["status"] == 201
        assert await refusal(replica, f"{path}?ticket={ticket}") == (401, "unauthenticated")
        async with talking(replica, path, Authorization=key["w"]) as socket:
            async with running(settings, database.uri) as runtime:
                await runtime.keys.revoke(writer.split("_")[1])
            await asyncio.sleep(CACHED_SECONDS + 0.5)
            with pytest.raises(ConnectionClosed) as closed:
                await socket.says({"type": "prompt", "id": "2", "content": "x"})
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


async def test_sockets_end_with_their_replica(tmp_path: Path) -> None:
    """They do not keep it from stopping; the code says that it goes away, and it ends in peace."""
    with deployment(tmp_path, "ending") as (_, (replica,)):
        agent = await made(replica)
        async with talking(replica, f"/v1/agents/{agent}/ws") as socket:
            await socket.next()
            replica.terminate()
            with pytest.raises(ConnectionClosed) as closed:
                await socket.next()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code in (1001, 1012)
        assert replica.ended(20) == 0


def test_plain_get_of_a_socket_is_a_problem(here: Replica) -> None:
    """Not found, as any path without a route."""
    answer = httpx.get(f"{here.url}/v1/agents/x/ws")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
