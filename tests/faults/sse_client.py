"""A small client of server-sent events that keeps what it was told, is cut off, and goes on on another replica."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.harness import Replica

STREAM = {"Accept": "text/event-stream"}
_PAUSE_SECONDS = 0.05
_TIMEOUT = httpx.Timeout(10, read=30)
"""The feed sends something every 15 s."""


@dataclass(frozen=True)
class Told:
    """One event; its id is None where the feed gave it none."""

    kind: str
    data: Any
    id: str | None


async def told(response: httpx.Response) -> AsyncIterator[Told]:
    """The events of an answer, as far as they came whole."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield Told(fields["event"], json.loads(fields["data"]), fields.get("id"))
            fields = {}


@dataclass
class Follower:
    """Follows one feed over any number of connections; each goes on after the last id that was heard."""

    path: str
    last_id: str | None = None
    life_seconds: float = 1.0
    """How long a connection lives at most, before it is cut."""
    connections: list[list[Told]] = field(default_factory=list)
    """What was told, by connection; the last one is open or was the last."""
    cuts: int = 0
    cuts_amid: int = 0
    """Cuts between the events of one commit."""
    refusals: int = 0
    """Times that the replica was not able to open the feed."""
    ends: int = 0
    """Connections that the replica ended, in peace, with a gap or by its death."""

    @property
    def all(self) -> list[Told]:
        """Everything that was told, in order, repeats included."""
        return [event for events in self.connections for event in events]

    async def follow(
        self, url: str, *, until: Callable[[Follower], bool] = lambda _: False, cut_amid: float = 0
    ) -> None:
        """Open the feed once, and keep what it tells until `until` holds, or it ends.

        With the probability `cut_amid` it is cut after an event that is not the last of its commit. A replica that
        does not answer, or refuses the feed, ends it at once.
        """
        headers = STREAM if self.last_id is None else {**STREAM, "Last-Event-ID": self.last_id}
        with suppress(httpx.TransportError):
            async with (
                httpx.AsyncClient(base_url=url, timeout=_TIMEOUT) as client,
                client.stream("GET", self.path, headers=headers) as response,
            ):
                if response.status_code != 200:
                    assert response.status_code == 503, (await response.aread()).decode()
                    self.refusals += 1
                    await asyncio.sleep(_PAUSE_SECONDS)
                    return
                self.connections.append([])
                async for event in told(response):
                    self._take(event)
                    if event.id is None and random.random() < cut_amid:  # noqa: S311
                        self.cuts_amid += 1
                        return
                    if until(self):
                        return
        self.ends += 1

    async def follow_cut_off(
        self, replicas: Sequence[Replica], done: Callable[[Follower], bool], *, cut_amid: float = 0
    ) -> None:
        """Follow on random replicas, cut off at random moments, until `done` holds."""
        while not done(self):
            replica = random.choice(replicas)  # noqa: S311
            cut_at = time.monotonic() + random.uniform(0, self.life_seconds)  # noqa: S311
            reading = asyncio.create_task(self.follow(replica.url, until=done, cut_amid=cut_amid))
            while not (reading.done() or done(self) or time.monotonic() > cut_at):
                await asyncio.wait({reading}, timeout=0.02)
            self.cuts += reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

    def _take(self, event: Told) -> None:
        self.connections[-1].append(event)
        if event.id is not None:
            self.last_id = event.id
