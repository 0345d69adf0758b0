"""Load: connections that each ask the same thing again as soon as they are answered, as cheaply as a client can.

It does nothing between an answer and the next request, so that of the two processes the server is the busy one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from scripts.bench.http_answers import Answer, Answers
from scripts.bench.http_client import UnexpectedAnswer


class _Drum(Answers):
    """One connection: so many requests, back to back."""

    def __init__(self, request: bytes, expect: int) -> None:
        super().__init__()
        self._request = request
        self._expect = expect
        self._left = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def beat(self, times: int) -> asyncio.Future[None]:
        self._left = times
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(self._request)
        return self._done

    def answered(self, answer: Answer) -> None:
        if answer.status != self._expect:
            self.lost(UnexpectedAnswer(f"{answer.status} instead of {self._expect}"))
            return
        self._left -= 1
        if self._left:
            self.transport.write(self._request)
        else:
            self._done.set_result(None)

    def lost(self, error: Exception) -> None:
        if not self._done.done() and self._left:
            self._done.set_exception(error)


class Load:
    """Connections that stand ready."""

    def __init__(self, drums: list[_Drum]) -> None:
        self._drums = drums

    async def ask(self, times_each: int) -> None:
        """Ask so often over every connection. Raises UnexpectedAnswer."""
        await asyncio.gather(*(drum.beat(times_each) for drum in self._drums))


@asynccontextmanager
async def load(port: int, request: bytes, *, expect: int, connections: int) -> AsyncIterator[Load]:
    """So many connections to a server of the loopback."""
    drums = [await _connected(port, request, expect) for _ in range(connections)]
    try:
        yield Load(drums)
    finally:
        for drum in drums:
            drum.transport.close()


async def _connected(port: int, request: bytes, expect: int) -> _Drum:
    loop = asyncio.get_running_loop()
    _, drum = await loop.create_connection(lambda: _Drum(request, expect), "127.0.0.1", port)
    return drum
