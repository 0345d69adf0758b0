"""Pauses between tries, for whoever repeats what the database did not do."""

from __future__ import annotations

import asyncio
from random import Random

_CHANCE = Random()  # noqa: S311 - spreads load, hides nothing; of its own, so that nobody else's seed decides


class Backoff:
    """Pauses that grow from about 1 ms to `longest` seconds, with jitter; whoever loops decides when to stop."""

    def __init__(self, longest: float = 0.5) -> None:
        self.pauses = 0
        self._longest = longest

    async def pause(self) -> None:
        """Wait, a little longer each time."""
        await asyncio.sleep(_CHANCE.uniform(0.2, 1.0) * min(self._longest, 0.001 * 2**self.pauses))
        self.pauses = min(self.pauses + 1, 16)

    def reset(self) -> None:
        """Begin with short pauses again."""
        self.pauses = 0
