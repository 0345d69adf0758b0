"""A reader of feeds: a plain socket that takes server-sent events and tells their ids, each as soon as it is whole."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import cast

from scripts.bench.http_client import UnexpectedAnswer

Heard = Callable[[str], None]
"""Is told the id of each event."""

_EVENT = re.compile(rb"^id: ([^\n]+)\ndata: [^\n]*\n\n", re.MULTILINE)
_BEGUN = b"HTTP/1.1 200 "


class Reader(asyncio.Protocol):
    """One feed; `begun` is done when the replica has opened it."""

    def __init__(self, request: bytes, heard: Heard) -> None:
        self._request = request
        self._heard = heard
        self._held = b""
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.begun.done():
            self._begin(data)
        self._held += data
        end = 0
        for event in _EVENT.finditer(self._held):
            end = event.end()
            self._heard(event[1].decode())
        self._held = self._held[end:]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.begun.done():
            self.begun.set_exception(exc or ConnectionResetError("The feed was not opened."))

    def _begin(self, data: bytes) -> None:
        if data.startswith(_BEGUN):
            self.begun.set_result(None)
        else:
            self.begun.set_exception(UnexpectedAnswer(data[:300].decode(errors="replace")))


async def reading(port: int, request: bytes, heard: Heard) -> Reader:
    """A reader whose feed is open."""
    loop = asyncio.get_running_loop()
    _, reader = await loop.create_connection(lambda: Reader(request, heard), "127.0.0.1", port)
    await reader.begun
    return reader


def leave(readers: Iterable[Reader]) -> None:
    """Close their connections."""
    for reader in readers:
        reader.transport.close()
