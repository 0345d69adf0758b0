"""How tests talk to a replica: real HTTP messages, no sockets; every answer's status is checked where it arrives."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from app.config import Settings
from app.runtime import create_replica

Json = dict[str, Any]

HOST = "http://127.0.0.1"

STATUS = {
    "invalid-request": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "conflict": 409,
    "illegal-transition": 409,
    "fenced-out": 409,
    "agent-busy": 409,
    "step-exists": 409,
    "agent-expired": 410,
    "feed-gap": 410,
    "version-conflict": 412,
    "too-large": 413,
    "idempotency-mismatch": 422,
    "precondition-required": 428,
    "too-many": 429,
    "unavailable": 503,
}
"""The slugs of the contract. Written out a second time, so that a change of the program's table is noticed."""

_INNER_WORDS = re.compile("traceback|bson|mongo|pydantic|litestar", re.IGNORECASE)
"""What no caller is to read: stack traces and texts of drivers."""

_NOTHING = object()


def problem_of(answer: httpx.Response) -> Json:
    """The problem that an answer holds, checked in form."""
    assert answer.headers["content-type"].startswith("application/problem+json"), answer.text
    problem: Json = answer.json()
    assert {"type", "title", "status", "detail", "code"} <= problem.keys(), problem
    assert problem["type"] == f"/problems/{problem['code']}"
    assert problem["status"] == answer.status_code == STATUS[problem["code"]], problem
    assert not _INNER_WORDS.search(answer.text), answer.text
    return problem


def etag(version: int) -> str:
    return f'"{version}"'


class Api:
    """A caller of one replica. `expect` is a status or a problem's slug; left out, any 2xx."""

    def __init__(self, http: httpx.AsyncClient, app: Any, headers: Mapping[str, str] | None = None) -> None:
        self.http = http
        self.app = app
        """The ASGI application behind it, for what httpx can't do."""
        self._headers = headers or {}

    def with_headers(self, headers: Mapping[str, str]) -> Api:
        """The same, with headers that every request bears."""
        return Api(self.http, self.app, headers)

    async def call(
        self,
        method: str,
        path: str,
        body: Any = _NOTHING,
        *,
        expect: int | str | None = None,
        headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> httpx.Response:
        given = {} if body is _NOTHING else {"Content-Type": "application/json"}
        content = None if body is _NOTHING else json.dumps(body).encode()
        answer = await self.http.request(
            method, path, content=content, headers={**given, **self._headers, **(headers or {})}, params=params or None
        )
        if isinstance(expect, str):
            assert problem_of(answer)["code"] == expect, answer.text
        elif expect is None:
            assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        else:
            assert answer.status_code == expect, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer

    async def made(self, **fields: Any) -> Handle:
        """A new agent."""
        answer = await self.call("POST", "/v1/agents", fields, expect=201)
        return Handle(self, answer.json()["id"])


@dataclass(frozen=True)
class Handle:
    """One agent, seen through one caller."""

    api: Api
    id: str

    async def call(self, method: str, path: str = "", *body: Any, **options: Any) -> httpx.Response:
        return await self.api.call(method, f"/v1/agents/{self.id}{path}", *body, **options)

    async def read(self, path: str = "", **options: Any) -> Any:
        """The JSON of a GET."""
        return (await self.call("GET", path, **options)).json()

    async def version(self) -> int:
        version: int = (await self.read(steps="none"))["version"]
        return version

    async def append(self, *steps: Json | str, expect: int | str | None = 201, **options: Any) -> Any:
        """Append steps (a text stands for a user's step) in one request."""
        given = [{"role": "user", "content": step} if isinstance(step, str) else step for step in steps]
        body = given[0] if len(given) == 1 else {"steps": given}
        return (await self.call("POST", "/steps", body, expect=expect, **options)).json()

    async def added(self, *ids: str) -> None:
        """Append one user's step after another, each of a turn with its own id."""
        for step in ids:
            await self.append({"id": step, "role": "user", "content": step})

    async def checkout(self, step: str) -> Any:
        return (await self.call("PUT", "/head", {"step_id": step})).json()

    async def path(self, **options: Any) -> list[str]:
        """Step ids from the root to HEAD."""
        return [step["id"] for step in (await self.read(**options))["steps"]]

    def by(self, api: Api) -> Handle:
        """The same agent through another caller."""
        return Handle(api, self.id)


@asynccontextmanager
async def serving(settings: Settings, uri: str, token: str | None = None) -> AsyncIterator[Api]:
    """A replica of its own, from its start to its stop, and a caller of it."""
    app = create_replica(settings, uri)
    async with lifespan(app), calling(app, token) as api:
        yield api


@asynccontextmanager
async def calling(app: Any, token: str | None = None) -> AsyncIterator[Api]:
    """A caller of an application that runs."""
    headers = {} if token is None else bearer(token)
    transport = httpx.ASGITransport(_leaving_streams(app))
    async with httpx.AsyncClient(transport=transport, base_url=HOST, headers=headers, timeout=30) as http:
        yield Api(http, app)


def _leaving_streams(app: Any) -> Any:
    """The application to a client that hangs up as soon as a stream begins: httpx would wait for its end."""

    async def left(scope: Json, receive: Any, send: Any) -> None:
        begun = asyncio.Event()

        async def heard() -> Json:
            return {"type": "http.disconnect"} if begun.is_set() else await receive()

        async def told(message: Json) -> None:
            if (b"content-type", b"text/event-stream; charset=utf-8") in message.get("headers", ()):
                begun.set()
            await send(message)

        await app(scope, heard, told)

    return left


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    """An application from its start to its stop."""
    sent: asyncio.Queue[Json] = asyncio.Queue()
    heard: asyncio.Queue[Json] = asyncio.Queue()
    running = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}}, sent.get, heard.put))
    await sent.put({"type": "lifespan.startup"})
    assert (await heard.get())["type"] == "lifespan.startup.complete"
    try:
        yield
    finally:
        await sent.put({"type": "lifespan.shutdown"})
        assert (await heard.get())["type"] == "lifespan.shutdown.complete"
        await running
