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
        """A new id: unguessable (74 random bits), 22 letters and digits, sortable by creation."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        now = datetime.now(UTC)
        return now.replace(microsecond=now.microsecond // 1000 * 1000)

    monotonic = staticmethod(time.monotonic)

    def new_id(self) -> str:
        return _base62(uuid7().int)


def instant(value: datetime) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return value.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LENGTH = 22
"""Digits to base 62 that 128 bits take."""


def _base62(number: int) -> str:
    """The number in digits whose order as text is their order as numbers."""
    digits = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
