"""The lightest HTTP client that is still one: a kept-alive socket, requests as bytes, answers cut at their length.

A comfortable client costs more than the service that it measures; this one costs a few dozen microseconds a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from scripts.bench.http_answers import Answer, Answers

_END_OF_HEAD = b"\r\n\r\n"


class UnexpectedAnswer(Exception):
    """The service answered with another status than the benchmark counts on."""


class _Line(Answers):
    """A connection with at most one request under way."""

    def __init__(self) -> None:
        super().__init__()
        self.open = True
        self._waiting: asyncio.Future[Answer] | None = None

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._waiting

    def answered(self, answer: Answer) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(answer)

    def lost(self, error: Exception) -> None:
        self.open = False
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)


class Connection:
    """One connection to a replica, opened again when the replica let go of it; one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._line: _Line | None = None

    async def send(self, request: bytes, *, expect: int) -> bytes:
        """The body of the answer. Raises UnexpectedAnswer, which quotes it, for another status."""
        return (await self.ask(request, expect=(expect,))).body

    async def ask(self, request: bytes, *, expect: tuple[int, ...] = (200, 201)) -> Answer:
        """The answer. Raises UnexpectedAnswer, which quotes it, for another status than the expected ones."""
        answer = await (await self._open()).ask(request)
        if answer.status not in expect:
            told = answer.body[:300].decode(errors="replace")
            raise UnexpectedAnswer(f"{answer.status} instead of {expect}: {told}")
        return answer

    def close(self) -> None:
        if self._line is not None:
            self._line.transport.close()
            self._line = None

    async def _open(self) -> _Line:
        if self._line is None or not self._line.open:
            _, self._line = await asyncio.get_running_loop().create_connection(_Line, "127.0.0.1", self._port)
        return self._line


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """A connection to the replica on this port of the loopback."""
    connection = Connection(port)
    try:
        yield connection
    finally:
        connection.close()


def post(path: str, body: bytes) -> bytes:
    """A POST of JSON, as it goes over the wire."""
    return _sent("POST", path, body)


def put(path: str, body: bytes) -> bytes:
    """A PUT of JSON, as it goes over the wire."""
    return _sent("PUT", path, body)


def delete(path: str) -> bytes:
    """A DELETE, as it goes over the wire."""
    return _request("DELETE", path, {})


def get(path: str, **headers: str) -> bytes:
    """A GET, as it goes over the wire; of a header's name `_` stands for `-`."""
    return _request("GET", path, {name.replace("_", "-"): value for name, value in headers.items()})


def _sent(method: str, path: str, body: bytes) -> bytes:
    return _request(method, path, {"Content-Type": "application/json", "Content-Length": str(len(body))}) + body


def _request(method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + _END_OF_HEAD
