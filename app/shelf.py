"""A shelf: what was lately used, kept in memory up to so many bytes, the longest unused let go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shelf(Generic[T]):
    """Values by key, each of a size that its owner tells, `limit_bytes` of them all in all."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self.bytes = 0

    def get(self, key: str) -> T | None:
        """The value of a key, if it is here."""
        found = self._held.get(key)
        if found is None:
            return None
        self._held.move_to_end(key)
        return found[0]

    def held(self, keys: Iterable[str]) -> dict[str, T]:
        """Those of the keys that are here."""
        found = ((key, self.get(key)) for key in keys)
        return {key: value for key, value in found if value is not None}

    def put(self, key: str, value: T, size: int) -> None:
        """Keep a value; one that is larger than the shelf is not kept."""
        if size > self._limit or key in self._held:
            return
        self._held[key] = value, size
        self.bytes += size
        while self.bytes > self._limit:
            _, (_, gone) = self._held.popitem(last=False)
            self.bytes -= gone
