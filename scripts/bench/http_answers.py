"""Answers of an HTTP server, cut out of what a socket brings, with the moment when they were whole.

By their length, or, where they come in chunks, by the last of these: JSON has no line breaks of its own.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import cast

_END_OF_HEAD = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it came; nothing of it is looked at before it is asked for."""

    head: bytes
    parts: list[bytes]
    at: float
    """When its last byte came, by the performance counter."""

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    @property
    def body(self) -> bytes:
        whole = b"".join(self.parts)
        if not _comes_in_chunks(self.head):
            return whole
        found: list[bytes] = []
        while whole:
            size, _, rest = whole.partition(b"\r\n")
            length = int(size, 16)
            found.append(rest[:length])
            whole = rest[length + 2 :]
        return b"".join(found)

    @property
    def version(self) -> int:
        """The version in its ETag."""
        return int(header(self.head, b"etag").strip(b'"'))


class Answers(asyncio.Protocol):
    """One end of a connection; `answered` gets each answer, `lost` the end of it all."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._begun = b""
        self._head = b""
        self._parts: list[bytes] = []
        self._missing = 0
        self._in_chunks = False
        self._end = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._missing and not self._in_chunks:
            self._begun += data
            self._head, end, data = self._begun.partition(_END_OF_HEAD)
            if not end:
                return
            self._begun = b""
            self._missing = int(header(self._head, b"content-length") or 0)
            self._in_chunks = _comes_in_chunks(self._head)
            self._parts, self._end = [], b""
        self._parts.append(data)
        if self._in_chunks:
            self._end = (self._end + data)[-len(_LAST_CHUNK) :]
            self._in_chunks = self._end != _LAST_CHUNK
        else:
            self._missing -= len(data)
        if not self._missing and not self._in_chunks:
            self.answered(Answer(self._head, self._parts, time.perf_counter()))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost(exc or ConnectionResetError("The server let go of the connection."))

    def answered(self, answer: Answer) -> None:
        raise NotImplementedError

    def lost(self, error: Exception) -> None:
        raise NotImplementedError


def _comes_in_chunks(head: bytes) -> bool:
    return header(head, b"transfer-encoding") == b"chunked"


def header(head: bytes, name: bytes) -> bytes:
    """The value of a header; nothing when there is none. Servers here write names in lower case."""
    _, found, rest = head.partition(b"\r\n" + name + b": ")
    return rest.partition(b"\r\n")[0] if found else b""
