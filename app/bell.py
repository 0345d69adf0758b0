"""The bell: wakes those who wait for something to do. It carries nothing: whoever is woken looks for himself.

So a ring that is lost or comes twice costs time and nothing else, and those who wait also look now and then unasked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Waiter:
    """One who waits on a topic; what rings between two waits wakes the second at once."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake the one who waits, or who is about to."""
        self._rung.set()

    async def wait(self, seconds: float) -> None:
        """Wait for a ring, so long at most."""
        try:
            async with asyncio.timeout(seconds):
                await self._rung.wait()
        except TimeoutError:
            return
        finally:
            self._rung.clear()


class Bell:
    """Topics are names that ringers and waiters share."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[Waiter]] = {}
        self.stopped = False
        """Whether the replica ends, and nobody is to wait any more."""

    @contextmanager
    def listening(self, topic: str) -> Iterator[Waiter]:
        """Hear what rings from now on."""
        waiter = Waiter()
        self._waiters.setdefault(topic, set()).add(waiter)
        try:
            yield waiter
        finally:
            others = self._waiters[topic]
            others.discard(waiter)
            if not others:
                del self._waiters[topic]

    def ring(self, topic: str) -> None:
        """Wake everyone who waits on the topic."""
        for waiter in self._waiters.get(topic, ()):
            waiter.ring()

    def stop(self) -> None:
        """Wake everyone, for good."""
        self.stopped = True
        for topic in list(self._waiters):
            self.ring(topic)


def pool_topic(tenant: str, pool: str) -> str:
    """Rung when an agent of the pool may have become free, or a command came for one of the pool."""
    return f"{tenant}/{pool}"
