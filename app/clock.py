"""Time and new ids, passed in so that tests can hold them still.

Wall time is only ever shown or stored, never used to decide who may write.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

from uuid_utils import uuid7


class Clock(Protocol):
    """What the service asks of time."""

    def now(self) -> datetime:
        """Wall time in UTC, cut to the millisecond that BSON and the API keep."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back, comparable only within this process."""
        ...

    def new_id(self) -> str:
        """A new id: unguessable (74 random bits), 32 characters, sortable by creation."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        now = datetime.now(UTC)
        return now.replace(microsecond=now.microsecond // 1000 * 1000)

    def monotonic(self) -> float:
        return time.monotonic()

    def new_id(self) -> str:
        return uuid7().hex
