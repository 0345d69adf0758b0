"""The lightest HTTP client that is still one: a kept-alive socket, requests as bytes, answers cut at their length.

A comfortable client costs more than the service that it measures; this one costs a few dozen microseconds a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"


class UnexpectedAnswer(Exception):
    """The service answered with another status than the benchmark counts on."""


class Connection:
    """One connection to a replica, opened again when the replica let go of it; one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes, *, expect: int) -> bytes:
        """The body of the answer. Raises UnexpectedAnswer, which quotes it, for another status."""
        reader, writer = await self._open()
        writer.write(request)
        head = await reader.readuntil(_END_OF_HEAD)
        body = await reader.readexactly(_content_length(head))
        status = int(head[9:12])
        if status != expect:
            raise UnexpectedAnswer(f"{status} instead of {expect}: {body[:300].decode(errors='replace')}")
        return body

    async def close(self) -> None:
        if self._socket is not None:
            self._socket[1].close()
            self._socket = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._socket is None or self._socket[0].at_eof():
            await self.close()
            self._socket = await asyncio.open_connection("127.0.0.1", self._port)
        return self._socket


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """A connection to the replica on this port of the loopback."""
    connection = Connection(port)
    try:
        yield connection
    finally:
        await connection.close()


def post(path: str, body: bytes) -> bytes:
    """A POST of JSON, as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + _END_OF_HEAD + body


def get(path: str) -> bytes:
    """A GET, as it goes over the wire."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost".encode() + _END_OF_HEAD


def _content_length(head: bytes) -> int:
    start = head.lower().find(_LENGTH)
    return int(head[start + len(_LENGTH) : head.find(b"\r\n", start)]) if start >= 0 else 0
