"""How tests read feeds: over the application itself, for httpx waits for the end; parsed as the standard says."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import httpx

from tests.api.driver import Api, Json, problem_of

SECONDS = 10.0
"""How long a test waits for what has to come."""


@dataclass(frozen=True)
class Told:
    """One event. `id` is the one that it carries itself, `last_id` the one that a reader would resume after it."""

    kind: str
    data: Any
    id: str | None
    last_id: str | None


@dataclass
class Parser:
    """Server-sent events from bytes, cut anywhere."""

    events: list[Told] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._rest = ""
        self._last_id: str | None = None
        self._begin()

    def _begin(self) -> None:
        self._kind, self._data, self._id = "message", list[str](), None

    def feed(self, chunk: bytes) -> None:
        """More of the stream."""
        *lines, self._rest = (self._rest + self._decode(chunk)).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines:
            self._take(line)

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            self._dispatch()
        elif not name:
            self.comments.append(value)
        elif name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = self._last_id = value

    def _dispatch(self) -> None:
        if self._data:
            self.events.append(Told(self._kind, json.loads("\n".join(self._data)), self._id, self._last_id))
        self._begin()


class Reader:
    """A reader of one feed, which takes whatever comes unless it is told to `pause`."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.over = False
        """Whether the service has ended the answer."""
        self._parser = Parser()
        self._taken = 0
        self._changed = asyncio.Condition()
        self._takes = asyncio.Event()
        self._takes.set()
        self._left = asyncio.Event()
        self._asked = False

    @property
    def events(self) -> list[Told]:
        """All that came so far."""
        return self._parser.events

    @property
    def comments(self) -> list[str]:
        """Heartbeats so far."""
        return self._parser.comments

    async def take(self, count: int, seconds: float = SECONDS) -> list[Told]:
        """The next events, as many."""
        await self.wait(lambda: len(self.events) >= self._taken + count, seconds)
        return self._next(count)

    async def take_until(self, version: int, seconds: float = SECONDS) -> list[Told]:
        """The next events, up to the last of a commit."""
        ident = str(version)
        await self.wait(lambda: any(told.id == ident for told in self.events[self._taken :]), seconds)
        ids = [told.id for told in self.events[self._taken :]]
        return self._next(len(ids) - ids[::-1].index(ident))

    async def ended(self, seconds: float = SECONDS) -> list[Told]:
        """What is left, once the service has ended the answer."""
        await self.wait(lambda: self.over, seconds)
        return self._next(len(self.events) - self._taken)

    async def wait(self, holds: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Until it holds of what came."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(holds)
        except TimeoutError:
            raise AssertionError(f"waited {seconds:g} s in vain; so far came {self.status} {self.events}") from None

    def _next(self, count: int) -> list[Told]:
        self._taken += count
        return self.events[self._taken - count : self._taken]

    def pause(self) -> None:
        """Take nothing any more: what is sent waits."""
        self._takes.clear()

    def go_on(self) -> None:
        """Take again."""
        self._takes.set()

    def leave(self) -> None:
        """Hang up."""
        self._left.set()
        self._takes.set()

    @property
    def problem(self) -> Json:
        """What was answered instead of a feed."""
        return problem_of(httpx.Response(self.status, headers=self.headers, content=self.body))

    async def receive(self) -> Json:
        """The ASGI side: an empty request, then nothing until this reader leaves."""
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Json) -> None:
        """The ASGI side: what the service sends."""
        await self._takes.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")
            if self.headers["content-type"].startswith("text/event-stream"):
                self._parser.feed(message.get("body", b""))
            self.over = not message.get("more_body", False)
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def reading(
    api: Api,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    expect: int | str = 200,
    paused: bool = False,
    **query: Any,
) -> AsyncIterator[Reader]:
    """A reader of a feed, from the head of the answer on; it leaves in the end, and the service must notice."""
    reader = Reader()
    own = {name: value for name, value in api.http.headers.items() if name == "authorization"}
    scope = _scope(path, {**own, **(headers or {})}, query)
    serving = asyncio.create_task(api.app(scope, reader.receive, reader.send))
    try:
        await reader.wait(lambda: reader.status != 0)
        if isinstance(expect, int):
            assert reader.status == expect, reader.body
        else:
            await reader.wait(lambda: reader.over)
            assert reader.problem["code"] == expect, reader.body
        if paused:
            reader.pause()
        yield reader
    finally:
        reader.leave()
        await asyncio.wait_for(serving, SECONDS)


def following(api: Api, agent: str, since: object = None, **options: Any) -> Any:
    """A reader of an agent's feed."""
    resumed = {} if since is None else {"Last-Event-ID": str(since)}
    return reading(api, f"/v1/agents/{agent}/events", headers={**resumed, **options.pop("headers", {})}, **options)


def _scope(path: str, headers: Mapping[str, str], query: Mapping[str, Any]) -> Json:
    sent = {"host": "127.0.0.1", "accept": "text/event-stream", **{name.lower(): headers[name] for name in headers}}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": urlencode(query, doseq=True).encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
