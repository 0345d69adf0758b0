"""The hot read answers what the handler would: whoever asks however, and after every kind of write."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.api.hot import HotRead
from app.cache import Cache, Entry
from app.config import Settings
from app.runtime import Runtime, application_of, running
from models.tenant import Right
from tests.api.conftest import KeyMaker
from tests.api.driver import HOST, Api, bearer, calling, lifespan, serving
from tests.harness import rounds

Headers = dict[str, str] | list[tuple[str, str]]
ROUTE = "/v1/agents/{agent_id}"


class Counted:
    """The application behind the hot layer, which tells how often it was asked."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.asked = 0

    async def __call__(self, *call: Any) -> None:
        self.asked += 1
        await self._app(*call)


@dataclass
class Pair:
    """One replica, asked through its hot layer and behind it; and one that keeps nothing in memory."""

    hot: httpx.AsyncClient
    handler: httpx.AsyncClient
    fresh: httpx.AsyncClient
    runtime: Runtime
    layer: HotRead = field(repr=False)
    behind: Counted = field(repr=False)

    @property
    def api(self) -> Api:
        return Api(self.hot, None)

    async def was_hot(self, answer: Callable[[], Awaitable[httpx.Response]]) -> tuple[bool, httpx.Response]:
        before = self.behind.asked
        given = await answer()
        return self.behind.asked == before, given


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def warm(open_settings: Settings, mongo_uri: str) -> AsyncIterator[Pair]:
    """Where nobody needs a key."""
    async with AsyncExitStack() as stack:
        yield await paired(stack, open_settings, mongo_uri)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def warm_keyed(keyed_settings: Settings, mongo_uri: str) -> AsyncIterator[Pair]:
    """Where keys are needed."""
    async with AsyncExitStack() as stack:
        yield await paired(stack, keyed_settings, mongo_uri)


async def paired(stack: AsyncExitStack, settings: Settings, uri: str) -> Pair:
    runtime = Runtime(settings, uri)
    app: Any = application_of(runtime)
    app._app = behind = Counted(app._app)
    await stack.enter_async_context(lifespan(app))
    assert runtime.cache.age() is not None, "a replica that has started is ready"
    hold_age_still(runtime.cache)
    hot = await stack.enter_async_context(calling(app))
    handler = await stack.enter_async_context(calling(behind._app))
    fresh = await stack.enter_async_context(serving(settings.model_copy(update={"cache_bytes": 0}), uri))
    return Pair(hot.http, handler.http, fresh.http, runtime, app, behind)


def hold_age_still(cache: Cache) -> None:
    """So that no second passes between two answers."""
    glance = cache.glance

    def still(key: str, now: float) -> tuple[Entry, float] | None:
        found = glance(key, now)
        return None if found is None else (found[0], 0.25)

    cache.glance = still  # type: ignore[method-assign]


def shown(answer: httpx.Response, request_id: str | None) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """All of an answer, but for the request id where the caller gave none."""
    own = sorted((name.lower(), value) for name, value in answer.headers.raw)
    assert sum(name == b"x-request-id" for name, _ in own) == 1
    if request_id is None:
        own = [header for header in own if header[0] != b"x-request-id"]
    return answer.status_code, answer.content, own


async def compared(pair: Pair, method: str, path: str, headers: Headers, query: str = "") -> tuple[bool, int]:
    """Ask the hot layer twice, as it remembers requests, and the handler; whether it answered, and with what status."""
    sent = headers if isinstance(headers, list) else list(headers.items())
    raw = [(name.encode(), value.encode("latin-1")) for name, value in sent]
    given = dict(sent).get("X-Request-ID")
    url = f"{HOST}{path}" + (f"?{query}" if query else "")
    was_hot, hot = await pair.was_hot(lambda: pair.hot.request(method, url, headers=raw))
    still_hot, again = await pair.was_hot(lambda: pair.hot.request(method, url, headers=raw))
    handled = await pair.handler.request(method, url, headers=raw)
    request_id = given if hot.headers["x-request-id"] == given else None
    assert shown(hot, request_id) == shown(again, request_id) == shown(handled, request_id)
    assert was_hot <= still_hot
    assert given is None or (hot.headers["x-request-id"] == given) == (handled.headers["x-request-id"] == given)
    return was_hot, hot.status_code


def hot_requests(pair: Pair, status: int) -> float:
    labels = {"method": "GET", "route": ROUTE, "status": str(status)}
    return pair.runtime.metrics.registry.get_sample_value("holdfast_http_request_seconds_count", labels) or 0.0


@dataclass(frozen=True)
class Hot:
    """An agent through the hot layer, with the headers that go with every call."""

    pair: Pair
    id: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"/v1/agents/{self.id}"

    async def call(self, method: str, path: str = "", *body: Any, **query: Any) -> httpx.Response:
        return await self.pair.api.call(method, f"{self.path}{path}", *body, headers=self.headers, **query)

    async def warmed(self) -> Hot:
        """See to it that the copy is in memory and the caller known."""
        await self.known()
        await self.pair.handler.get(self.path, headers=self.headers)
        return self

    async def known(self) -> None:
        """Let the replica find out anew who asks, which it then knows for a second at least."""
        keys = self.pair.runtime.keys
        keys._open.end()
        keys._known.clear()
        await self.pair.handler.get("/v1/agents", params={"limit": 1}, headers=self.headers)


async def made(pair: Pair, headers: dict[str, str] | None = None, **fields: Any) -> Hot:
    """An agent at version 2 with something of everything."""
    given = {
        "workspace": {"w": "ä"},
        "labels": {"a": "1"},
        "delegate": {"user": {"id": 1}, "token": "t"},
        "pool": "blue",
        "settings": {"own.key": {"$x": [1.0, None]}},
    }
    answer = await pair.api.call("POST", "/v1/agents", {**given, **fields}, headers=headers or {})
    agent = Hot(pair, answer.json()["id"], headers or {})
    steps = [{"role": "user", "content": "ü\u2028"}, {"role": "agent", "data": {"a.b": 1e100}}]
    await agent.call("POST", "/steps", {"steps": steps})
    return await agent.warmed()


async def test_plain_read_is_answered_before_the_framework(warm: Pair) -> None:
    """And counted like any other, under the same route; 304 likewise."""
    agent = await made(warm)
    for headers, status in (({}, 200), ({"If-None-Match": '"2"'}, 304)):
        await agent.known()
        before, hits = hot_requests(warm, status), warm.runtime.cache.tally.hits
        was_hot, answer = await warm.was_hot(lambda headers=headers: warm.hot.get(agent.path, headers=headers))
        assert was_hot
        assert answer.status_code == status
        assert hot_requests(warm, status) == before + 1
        assert warm.runtime.cache.tally.hits == hits + 1
        await warm.handler.get(agent.path, headers=headers)
        assert hot_requests(warm, status) == before + 2


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HEADERS: list[tuple[Headers, bool, int]] = [
    ({}, True, 200),
    ({"If-None-Match": '"2"'}, True, 304),
    ({"If-None-Match": ' "2"  '}, True, 304),
    ({"If-None-Match": '"1"'}, True, 200),
    ({"If-None-Match": '"3"'}, True, 200),
    ({"If-None-Match": '"x"'}, True, 200),
    ({"If-None-Match": '"'}, True, 200),
    ({"If-None-Match": '"1", "2"'}, False, 304),
    ({"If-None-Match": '"1","3"'}, False, 200),
    ({"If-None-Match": 'W/"2"'}, False, 304),
    ({"If-None-Match": 'W/"1"'}, False, 200),
    ({"If-None-Match": "*"}, False, 304),
    ({"If-None-Match": "2"}, False, 200),
    ({"If-None-Match": ""}, False, 200),
    ({"If-None-Match": "\xff"}, False, 200),
    ({"If-None-Match": '\xa0"2"'}, False, 304),
    ([("If-None-Match", '"1"'), ("If-None-Match", '"2"')], False, 0),
    ({"Cache-Control": "no-cache"}, False, 200),
    ({"Cache-Control": "no-cache", "If-None-Match": '"2"'}, False, 304),
    ({"Cache-Control": "max-age=0"}, False, 200),
    ({"Cache-Control": ""}, False, 200),
    ({"Pragma": "no-cache"}, True, 200),
    ({"Accept-Encoding": "gzip"}, True, 200),
    ({"Accept-Encoding": "identity;q=0"}, True, 200),
    ({"Accept": "text/html"}, True, 200),
    ({"Accept": "text/event-stream"}, True, 200),
    ({"Content-Type": "text/plain"}, True, 200),
    ({"If-Match": '"7"'}, True, 200),
    ({"If-Match": "odd"}, True, 200),
    ({"Fencing-Token": "odd"}, True, 200),
    ({"If-Modified-Since": "Thu, 01 Jan 2099 00:00:00 GMT"}, True, 200),
    ({"Range": "bytes=0-1"}, True, 200),
    ({"Cookie": "a=b"}, True, 200),
    ({"X-HTTP-Method-Override": "DELETE"}, True, 200),
    ({"Host": "127.0.0.1"}, True, 200),
    ({"Host": "LocalHost:1"}, True, 200),
    ({"Host": "[::1]:8700"}, True, 200),
    ({"Host": "evil.example"}, False, 403),
    ({"Host": "127.0.0.1.evil.example"}, False, 403),
    ({"Host": ""}, False, 400),
    ({"Host": "["}, False, 400),
    ({"Host": "\xff"}, False, 403),
    ([("Host", "127.0.0.1"), ("Host", "evil.example")], False, 0),
    ({"Origin": "http://127.0.0.1"}, False, 200),
    ({"Origin": "http://evil.example"}, False, 403),
    ({"Origin": "null"}, False, 403),
    ({"Origin": ""}, False, 403),
    ({"X-Request-ID": "my-own/1"}, True, 200),
    ({"X-Request-ID": "x" * 128}, True, 200),
    ({"X-Request-ID": "x" * 129}, True, 200),
    ({"X-Request-ID": "a b"}, True, 200),
    ({"X-Request-ID": ""}, True, 200),
    ({"X-Request-ID": "\xff"}, True, 200),
    ([("X-Request-ID", "one"), ("X-Request-ID", "two")], False, 200),
    ({"X-Request-ID": "304", "If-None-Match": '"2"'}, True, 304),
    ({"traceparent": TRACE}, True, 200),
    ({"traceparent": TRACE, "If-None-Match": '"2"'}, True, 304),
    ({"traceparent": "odd"}, False, 200),
    ({"traceparent": ""}, False, 200),
    ({"traceparent": TRACE + "\xff"}, False, 200),
    ([("traceparent", TRACE), ("traceparent", TRACE)], False, 200),
    ({"tracestate": "a=b"}, True, 200),
    ({"Authorization": "Basic eDp5"}, False, 401),
    ({"Authorization": "Bearer"}, False, 401),
    ({"Authorization": "Bearer x"}, False, 401),
    ({"Authorization": "Bearer \xff"}, False, 401),
    ({"Authorization": ""}, False, 401),
]
"""Headers, whether the hot layer answers by itself, and the status; 0: whatever the handler says."""


@pytest.mark.parametrize(("headers", "plain", "status"), HEADERS, ids=str)
async def test_headers_make_no_difference_between_the_two(
    warm: Pair, headers: Headers, plain: bool, status: int
) -> None:
    """Where the hot layer answers, and where it leaves it to the handler."""
    agent = await made(warm)
    was_hot, answered = await compared(warm, "GET", agent.path, headers)
    assert was_hot is plain
    assert answered == (status or answered)


QUERIES: list[tuple[str, bool, int]] = [
    ("", True, 200),
    ("steps=all", False, 200),
    ("steps=none", False, 200),
    ("steps=path", False, 200),
    ("steps=x", False, 400),
    ("steps_limit=1", False, 200),
    ("steps_limit=0", False, 200),
    ("steps_limit=10001", False, 400),
    ("min_version=2", False, 200),
    ("min_version=3", False, 503),
    ("min_version=x", False, 400),
    ("x=1", False, 200),
    ("ticket=x", False, 200),
    ("&", False, 200),
    ("%ff", False, 0),
]


@pytest.mark.parametrize(("query", "plain", "status"), QUERIES)
async def test_parameters_are_left_to_the_handler(warm: Pair, query: str, plain: bool, status: int) -> None:
    """All of them, known or not."""
    was_hot, answered = await compared(warm, "GET", (await made(warm)).path, {}, query)
    assert was_hot is plain
    assert answered == (status or answered)


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "OPTIONS", "TRACE", "BREW"])
async def test_other_methods_are_left_to_the_handler(warm: Pair, method: str) -> None:
    """HEAD is answered with the headers of the hot GET, all others are refused as ever."""
    agent = await made(warm)
    was_hot, status = await compared(warm, method, agent.path, {"X-Request-ID": "same"})
    assert not was_hot
    if method == "HEAD":
        headers = {"X-Request-ID": "same"}
        head = await warm.hot.head(agent.path, headers=headers)
        got = await warm.hot.get(agent.path, headers=headers)
        assert shown(head, "same") == (200, b"", shown(got, "same")[2])
        assert int(head.headers["content-length"]) == len(got.content)
        assert (await warm.hot.head(agent.path, headers={"If-None-Match": '"2"'})).status_code == 304
    elif method != "OPTIONS":
        assert status == 405


async def test_odd_paths_make_no_difference(warm: Pair) -> None:
    """The unknown, the deleted, what can't be an id, and other ways to write one that is there."""
    agent, gone = await made(warm), await made(warm)
    await gone.call("DELETE")
    first, rest = agent.id[0], agent.id[1:]
    ways = {
        f"/v1/agents/%{ord(first):02X}{rest}": (True, 200),
        f"/v1/agents/{agent.id}/": (False, 200),
        f"/v1/agents//{agent.id}": (False, 0),
        f"/V1/agents/{agent.id}": (False, 404),
        f"/v1/agents/default:{agent.id}": (False, 404),
        f"/v1/agents/{agent.id}%00": (False, 404),
        f"/v1/agents/{agent.id}%20": (False, 404),
        f"/v1/agents/{agent.id}.json": (False, 404),
        gone.path: (False, 404),
    }
    odd = ("nobody", "a.b", "$gt", "x" * 65, "x" * 5_000, "%00", "..", "root", "import", "%ff", "a%2Fb", "ä", "*")
    for path in [*ways, *(f"/v1/agents/{name}" for name in odd), "/v1/agents/", "/v1/agents", "/v1/agentsx"]:
        was_hot, status = await compared(warm, "GET", path, {})
        plain, wanted = ways.get(path, (False, 0))
        assert was_hot is plain, path
        assert status == (wanted or status), path


KEYS: list[tuple[str, bool, int]] = [
    ("reader", True, 200),
    ("runner", True, 200),
    ("lower case", True, 200),
    ("spaces", True, 200),
    ("owner", True, 200),
    ("writer", False, 403),
    ("admin", False, 403),
    ("other owner", False, 404),
    ("other tenant", False, 404),
    ("wrong secret", False, 401),
    ("unknown", False, 401),
    ("revoked", False, 401),
    ("cut", False, 401),
    ("longer", False, 401),
    ("none", False, 401),
    ("two", False, 0),
]


@pytest.mark.parametrize(("who", "plain", "status"), KEYS)
async def test_keys_make_no_difference_between_the_two(
    warm_keyed: Pair, new_key: KeyMaker, tenant: str, who: str, plain: bool, status: int
) -> None:
    """Each asks twice, so that the second time the key is known."""
    owner = bearer(await new_key(tenant, "read", "write", owner="ann"))
    agent = await made(warm_keyed, owner)
    headers = await caller(warm_keyed.runtime, new_key, tenant, who) if who != "owner" else owner
    for _ in range(2):
        was_hot, answered = await compared(warm_keyed, "GET", agent.path, headers)
        assert answered == (status or answered)
    assert was_hot is plain
    _, conditional = await compared(warm_keyed, "GET", agent.path, [*pairs(headers), ("If-None-Match", '"2"')])
    assert conditional == (304 if answered == 200 else answered)


def pairs(headers: Headers) -> list[tuple[str, str]]:
    return headers if isinstance(headers, list) else list(headers.items())


async def caller(runtime: Runtime, new_key: KeyMaker, tenant: str, who: str) -> Headers:
    """The headers of a kind of caller."""
    made: dict[str, Callable[[], Awaitable[str]]] = {
        "writer": lambda: new_key(tenant, "write"),
        "admin": lambda: new_key(tenant, "admin"),
        "runner": lambda: new_key(tenant, "runner"),
        "other owner": lambda: new_key(tenant, owner="bob"),
        "other tenant": lambda: new_key(f"{tenant}x"),
        "revoked": lambda: revoked(runtime, tenant),
    }
    token = await made.get(who, lambda: new_key(tenant, "read"))()
    other = token[:-1] + ("A" if token[-1] != "A" else "B")
    spelled: dict[str, Headers] = {
        "lower case": {"authorization": f"bearer {token}"},
        "spaces": {"Authorization": f"Bearer   {token}  "},
        "wrong secret": bearer(other),
        "unknown": bearer(f"hf_{'0' * 22}_{'x' * 43}"),
        "cut": bearer(token[:-1]),
        "longer": bearer(f"{token}x"),
        "none": {},
        "two": [("Authorization", f"Bearer {token}"), ("Authorization", "Bearer x")],
    }
    return spelled.get(who, bearer(token))


async def revoked(runtime: Runtime, tenant: str) -> str:
    record, token = await runtime.keys.create(tenant, [Right.READ])
    await runtime.keys.revoke(record.id)
    return token


async def test_key_revoked_elsewhere_opens_the_hot_read_no_longer(
    warm_keyed: Pair, keyed_settings: Settings, mongo_uri: str, tenant: str
) -> None:
    """Within the two seconds that a replica remembers keys."""
    async with running(keyed_settings, mongo_uri) as runtime:
        record, token = await runtime.keys.create(tenant, [Right.READ, Right.WRITE])
        agent = await made(warm_keyed, bearer(token))
        assert await compared(warm_keyed, "GET", agent.path, bearer(token)) == (True, 200)
        await runtime.keys.revoke(record.id)
    until = asyncio.get_running_loop().time() + 2.5
    while (answer := await warm_keyed.hot.get(agent.path, headers=bearer(token))).status_code == 200:
        assert asyncio.get_running_loop().time() < until
        await asyncio.sleep(0.05)
    assert answer.status_code == 401
    assert await compared(warm_keyed, "GET", agent.path, bearer(token)) == (False, 401)


async def test_first_key_closes_the_hot_read_to_everybody(
    new_database: Callable[[], str], data: Path, mongo_uri: str
) -> None:
    """From the moment that it is given out, also on a replica that answered without."""
    settings = Settings(mongodb_database=new_database(), data=data)
    async with AsyncExitStack() as stack:
        pair = await paired(stack, settings, mongo_uri)
        agent = await made(pair)
        assert await compared(pair, "GET", agent.path, {}) == (True, 200)
        async with running(settings, mongo_uri) as runtime:
            creating = asyncio.create_task(runtime.keys.create("default", [Right.READ]))
            while not creating.done():
                await pair.hot.get(agent.path)
                await asyncio.sleep(0.01)
            assert await compared(pair, "GET", agent.path, {}) == (False, 401)
            _, token = await creating
        await pair.hot.get(agent.path, headers=bearer(token))
        assert await compared(pair, "GET", agent.path, bearer(token)) == (True, 200)


async def test_silent_stream_ends_the_hot_read(new_database: Callable[[], str], data: Path, mongo_uri: str) -> None:
    """Before what it shows may be staler than two seconds; the handler goes on, from the database."""
    settings = Settings(mongodb_database=new_database(), data=data)
    async with AsyncExitStack() as stack:
        pair = await paired(stack, settings, mongo_uri)
        del pair.runtime.cache.glance  # the one of the class again
        agent = await made(pair)
        for task in pair.runtime.watcher._tasks:
            task.cancel()
        loop = asyncio.get_running_loop()
        silent = loop.time()
        await pair.fresh.patch(agent.path, json={"name": "unheard"})
        acknowledged = loop.time()
        while (answer := await pair.hot.get(agent.path)).json()["name"] != "unheard":
            assert loop.time() - acknowledged <= 2.1
            assert 0 <= float(answer.headers["age"]) <= 2
            await asyncio.sleep(0.02)
        was_hot, _ = await pair.was_hot(lambda: pair.hot.get(agent.path))
        assert not was_hot
        assert loop.time() - silent <= 2.5


Write = Callable[[Api, str], Awaitable[Any]]


def calling_with(method: str, path: str, *body: Any, **query: Any) -> Write:
    return lambda api, agent: api.call(method, f"/v1/agents/{agent}{path}", *body, **query)


def appending(*ids: str, **query: Any) -> Write:
    steps = [{"id": step, "role": "user", "content": f"{step} ü"} for step in ids]
    return calling_with("POST", "/steps", {"steps": steps}, **query)


def long(prefix: str, count: int) -> Write:
    steps = [{"id": f"{prefix}{number}", "role": "agent"} for number in range(count)]
    return calling_with("POST", "/steps", {"steps": steps})


async def anew(api: Api, agent: str) -> None:
    """Delete, and create again."""
    await api.call("DELETE", f"/v1/agents/{agent}")
    await api.call("POST", "/v1/agents", {"id": agent, "name": "Eve"})


WRITES: dict[str, Write] = {
    "append one": appending("a"),
    "append again": appending("b"),
    "append a batch": appending("z", "y", "x"),
    "append aside": appending("side", advance_head="false"),
    "append with a workspace": calling_with("POST", "/steps", {"id": "ws", "role": "user", "workspace": {"n": [1.5]}}),
    "put a workspace": calling_with("PUT", "/workspace", {"put": None}),
    "put a null workspace": calling_with("PUT", "/workspace", None),
    "checkout a step": calling_with("PUT", "/head", {"step_id": "b"}),
    "append when detached": appending("detached"),
    "checkout the root": calling_with("PUT", "/head", {"step_id": "root"}),
    "append at the root": appending("second"),
    "checkout a branch": calling_with("PUT", "/head", {"branch": "main"}),
    "put a branch": calling_with("PUT", "/branches/b.$~ä", {"step_id": "side"}),
    "move a branch": calling_with("PUT", "/branches/b.$~ä", {"step_id": "a"}),
    "checkout it": calling_with("PUT", "/head", {"branch": "b.$~ä"}),
    "append on it": appending("on-it"),
    "checkout main again": calling_with("PUT", "/head", {"branch": "main"}),
    "delete the branch": calling_with("DELETE", "/branches/b.$~ä"),
    "revert": calling_with("POST", "/revert", {"turn_id": "y"}),
    "redo": calling_with("POST", "/redo"),
    "revert again": calling_with("POST", "/revert", {"turn_id": "b"}),
    "append after a revert": appending("other-way"),
    "put a result": calling_with("PUT", "/results/k.$", {"result": {"r": 1}}),
    "put it again": calling_with("PUT", "/results/k.$", {"result": {"r": 2}}),
    "put a result elsewhere": calling_with("PUT", "/results/k", {"step_id": "root", "result": "x" * 300}),
    "patch settings": calling_with("PATCH", "/settings", {"max_steps": 3, "deep": {"b": 1, "a": {"$": 2}}}),
    "patch settings away": calling_with("PATCH", "/settings", {"max_steps": None, "deep": {"b": None}}),
    "put a delegate": calling_with("PUT", "/delegate", {"user": {"x": 1}, "token": "other"}),
    "delete the delegate": calling_with("DELETE", "/delegate"),
    "patch labels": calling_with("PATCH", "", {"labels": {"z": "1", "a": "2", "m": "3"}}),
    "patch a label away": calling_with("PATCH", "", {"labels": {"z": None}}),
    "patch profile": calling_with("PATCH", "", {"name": "ü", "model": "m", "pool": None, "region": "r"}),
    "patch lifetimes": calling_with("PATCH", "", {"ttl_seconds": 3600, "idle_seconds": 60.5}),
    "patch lifetimes away": calling_with("PATCH", "", {"ttl_seconds": None, "idle_seconds": None}),
    "clear": calling_with("POST", "/clear"),
    "append the same ids": appending("a", "b"),
    "append the same id as before": appending("z"),
    "900 steps": long("n", 900),
    "200 more": long("m", 200),
    "1 more than can be shown": appending("last"),
    "checkout under the limit": calling_with("PUT", "/head", {"step_id": "n500"}),
    "checkout beyond it": calling_with("PUT", "/head", {"branch": "main"}),
    "create anew": anew,
    "append to the new one": appending("a", "b"),
}


async def told_alike(agent: Hot, version: str, name: str) -> None:
    """The hot answer is the handler's, and that of who reads the document anew."""
    await agent.known()
    assert await compared(agent.pair, "GET", agent.path, {}) == (True, 200), name
    hot = await agent.pair.hot.get(agent.path)
    assert hot.headers["etag"] == version, name
    anew = await agent.pair.fresh.get(agent.path, headers={"Cache-Control": "no-cache"})
    assert hot.content == anew.content, name
    assert hot.headers["etag"] == anew.headers["etag"]


async def version_of(pair: Pair, agent: Hot) -> str:
    return (await pair.fresh.head(agent.path, headers={"Cache-Control": "no-cache"})).headers["etag"]


async def shown_at(agent: Hot, version: str | None) -> None:
    """Ask the hot layer until it shows this version, which may take two seconds at most."""
    loop = asyncio.get_running_loop()
    until = loop.time() + 2.1
    while (await agent.pair.hot.get(agent.path)).headers.get("etag") != version:
        assert loop.time() < until
        await asyncio.sleep(0.005)


async def test_own_writes_are_in_the_hot_answer_at_once(warm: Pair) -> None:
    """After each kind of write, to the byte; none of them makes the next read slow."""
    agent = await made(warm)
    for name, write in WRITES.items():
        await write(warm.api, agent.id)
        await told_alike(agent, await version_of(warm, agent), name)


async def test_writes_of_other_replicas_come_into_the_hot_answer(warm: Pair, other_replica: Api) -> None:
    """By their events, laid on the copy that is there: it is read anew for none of them."""
    agent = await made(warm)
    tally = warm.runtime.cache.tally
    for name, write in WRITES.items():
        misses, patches = tally.misses, tally.patches
        await write(other_replica, agent.id)
        version = await version_of(warm, agent)
        await shown_at(agent, version)
        await told_alike(agent, version, name)
        assert tally.misses == misses or name == "create anew", name  # where a read may find the tombstone
        assert tally.patches > patches, name


async def test_deletion_is_in_the_hot_answer(warm: Pair, other_replica: Api) -> None:
    """At once on the replica that did it, soon on the others."""
    own, others = await made(warm), await made(warm)
    await own.call("DELETE")
    assert await compared(warm, "GET", own.path, {}) == (False, 404)
    await other_replica.call("DELETE", others.path)
    await shown_at(others, None)
    assert await compared(warm, "GET", others.path, {}) == (False, 404)


@pytest.mark.parametrize("seed", range(rounds(3)))
async def test_any_order_of_writes_is_shown_to_the_byte(warm: Pair, other_replica: Api, seed: int) -> None:
    """By either replica, refused ones between; the answer is made from the one before it and must not show that."""
    dice = random.Random(seed)  # noqa: S311 - it keeps no secret
    agent = await made(warm)
    names = [name for name in WRITES if name not in ("900 steps", "200 more")]
    for _ in range(60):
        name = dice.choice(names)
        with suppress(AssertionError):  # a write that is not possible now is refused
            await WRITES[name](dice.choice([warm.api, other_replica]), agent.id)
        if dice.random() < 0.7:
            version = await version_of(warm, agent)
            await shown_at(agent, version)
            await told_alike(agent, version, name)


async def test_what_is_remembered_of_requests_is_bounded(warm: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.hot._REMEMBERED", 10)
    agent = await (await made(warm)).warmed()
    for number in range(25):
        assert await compared(warm, "GET", agent.path, {"Accept-Language": f"de;q=0.{number}"}) == (True, 200)
        assert 0 < len(warm.layer._questions) <= 10
    warm.layer._questions.clear()
    for headers in ({"Accept": "a" * 3000}, {"X-Request-ID": "mine"}, {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}):
        assert await compared(warm, "GET", agent.path, headers) == (True, 200)
        assert not warm.layer._questions, "what is long or comes once only is not remembered"
    await warm.hot.get("/v1/agents/" + "a" * 3_000)
    assert not warm.layer._questions
