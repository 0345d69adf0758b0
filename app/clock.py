"""Time and new ids, passed in so that tests can hold them still.

Wall time is only ever shown or stored, never used to decide who may write; but for the end of an ephemeral agent's
life, and of what is kept of episodes, which are judged by two clocks.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
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

    def latest(self) -> datetime:
        """What the later of the machine's and the database's clock says; it never jumps."""
        ...

    def earliest(self) -> datetime:
        """What the earlier of the two says; it never jumps."""
        ...

    def new_id(self) -> str:
        """A new id: unguessable (74 random bits), 22 letters and digits, sortable by creation."""
        ...


class SystemClock:
    """The machine's own clocks; beside them the database's, as soon as that was `told`."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._clocks = [self.now()]

    def now(self) -> datetime:
        return _cut(datetime.now(UTC))

    def told(self, database: datetime) -> None:
        """The database's time is this now. Told again it changes nothing: both go on by the monotonic clock."""
        if len(self._clocks) == 1:
            self._clocks.append(_cut(database - timedelta(seconds=time.monotonic() - self._began)))

    def latest(self) -> datetime:
        return self._going_on(max(self._clocks))

    def earliest(self) -> datetime:
        return self._going_on(min(self._clocks))

    def _going_on(self, began: datetime) -> datetime:
        return _cut(began + timedelta(seconds=time.monotonic() - self._began))

    monotonic = staticmethod(time.monotonic)

    def new_id(self) -> str:
        return _base62(uuid7().int)


def _cut(value: datetime) -> datetime:
    return value.replace(microsecond=value.microsecond // 1000 * 1000)


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
