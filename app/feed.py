"""The feed: whoever wants to hear what happens gets a bounded queue. It knows no database and no HTTP.

Nothing is skipped: a queue that overflows is closed, and its reader learns that there is a gap after what it still
holds. What is told once is shared by all who hear it, and costs nothing while nobody listens.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from models.errors import FeedGap, TooMany, Unavailable

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Item(Generic[T]):
    """Something told. `frame` is kept by whoever encodes it first, for all others."""

    value: T
    size: int
    """Roughly, in bytes."""
    frame: bytes | None = None
    completing: asyncio.Future[None] | None = None
    """What is under way to make the value whole: once for all who hear it."""


@dataclass(frozen=True, slots=True)
class Caps:
    """How much may wait in one queue, and how many queues there may be."""

    items: int
    bytes: int
    of_a_tenant: int
    in_all: int


class Over(Exception):
    """The feed ends here, for no fault of its reader: the replica stops."""


class Subscription(Generic[T]):
    """One reader's queue. Only its reader awaits it."""

    def __init__(self, topic: str, tenant: str, caps: Caps) -> None:
        self.topic = topic
        self.tenant = tenant
        self._caps = caps
        self._items: deque[Item[T]] = deque()
        self._bytes = 0
        self._end: type[FeedGap | Over] | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more is taken in."""
        return self._end is not None

    def push(self, item: Item[T]) -> bool:
        """Take an item in. False when there is no room: then the queue is closed, with a gap after what it holds."""
        full = len(self._items) >= self._caps.items or self._bytes + item.size > self._caps.bytes
        if full and self._items:
            self.end(FeedGap)
            return False
        self._items.append(item)
        self._bytes += item.size
        self._wake()
        return True

    def end(self, how: type[FeedGap | Over]) -> None:
        """Close the queue; what it holds may still be read."""
        if self._end is None:
            self._end = how
            self._wake()

    async def next(self, seconds: float) -> Item[T] | None:
        """The next item; None when none comes within the time. Raises FeedGap or Over at the end."""
        if not self._items and self._end is None:
            await self._wait(seconds)
        if self._items:
            item = self._items.popleft()
            self._bytes -= item.size
            return item
        if self._end is Over:
            raise Over
        if self._end is not None:
            raise FeedGap("Events were lost: the reader was too slow, or the replica's history broke. Resume.")
        return None

    async def _wait(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(seconds, self._wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Feed:
    """All subscriptions of one replica, by topic: an agent's `_id`, or `<tenant>:` for its log."""

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._topics: dict[str, set[Subscription[object]]] = {}
        self._of_tenant: dict[str, int] = {}
        self._over = False
        self.position: str | None = None
        """The place in the log that everything told so far lies before; None until the change stream was opened."""
        self.count = 0
        self.gaps = 0

    def has(self, topic: str) -> bool:
        """Whether anybody listens."""
        return topic in self._topics

    def tell(self, topic: str, item: Item[object]) -> None:
        """Give an item to all who listen to the topic."""
        for subscription in self._topics.get(topic, ()):
            if not subscription.ended and not subscription.push(item):
                self.gaps += 1

    def gap(self) -> None:
        """Events were lost on their way to this replica: every reader has to resume."""
        for subscription in self._all():
            self.gaps += not subscription.ended
            subscription.end(FeedGap)

    def stop(self) -> None:
        """End every feed, now and from now on: the replica stops."""
        self._over = True
        for subscription in self._all():
            subscription.end(Over)

    @contextmanager
    def listening(self, topic: str, tenant: str) -> Iterator[Subscription[object]]:
        """A subscription, from entering on. Raises TooMany over the caps; Unavailable before the stream is open."""
        if self._over or self.position is None:
            raise Unavailable("Feeds are not open yet, or not any more: ask again, or ask another replica.")
        self._require_room(tenant)
        subscription: Subscription[object] = Subscription(topic, tenant, self._caps)
        self._topics.setdefault(topic, set()).add(subscription)
        self._count(tenant, 1)
        try:
            yield subscription
        finally:
            self._count(tenant, -1)
            self._topics[topic].discard(subscription)
            if not self._topics[topic]:
                del self._topics[topic]

    def _require_room(self, tenant: str) -> None:
        if self._of_tenant.get(tenant, 0) >= self._caps.of_a_tenant:
            raise TooMany(f"The tenant has {self._caps.of_a_tenant} feeds open on this replica: close one.", 5)
        if self.count >= self._caps.in_all:
            raise TooMany("This replica has as many feeds open as it may: ask another one, or later.", 5)

    def _count(self, tenant: str, change: int) -> None:
        self.count += change
        self._of_tenant[tenant] = self._of_tenant.get(tenant, 0) + change
        if not self._of_tenant[tenant]:
            del self._of_tenant[tenant]

    def _all(self) -> list[Subscription[object]]:
        return [subscription for subscriptions in self._topics.values() for subscription in subscriptions]


def log_topic(tenant: str) -> str:
    """The topic of a tenant's log; no agent's `_id` ends like this."""
    return f"{tenant}:"
