"""What a peer does for the benchmark, whatever it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Place:
    """Where peers may put their data; each agent has a database, or a file, of its own name."""

    mongodb: str
    folder: str
    postgres: str | None


@dataclass(frozen=True)
class Loaded:
    """What a load gave: messages or states, and whether that is all of them or what came in time."""

    items: int
    whole: bool = True


@dataclass(frozen=True)
class Stored:
    """What one agent takes, and what else is to be known of it."""

    bytes: int
    note: str


class Store(Protocol):
    """A peer that keeps one agent at a time."""

    def begin(self, name: str) -> None:
        """Open storage of its own, and make an agent without steps in it."""

    def append(self, texts: Sequence[str]) -> list[float]:
        """Add a message after another, each durable before the next; the milliseconds of each."""

    def state(self) -> Loaded:
        """Load what the agent needs to go on: all its messages."""

    def history(self, until: float) -> Loaded:
        """Load all that the peer can show of the past, or as much as `time.monotonic()` allows."""

    def stored(self) -> Stored:
        """What the agent takes now."""

    def end(self) -> None:
        """Remove the storage."""


def milliseconds(action: Callable[[], object]) -> float:
    """What one call takes."""
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1000
