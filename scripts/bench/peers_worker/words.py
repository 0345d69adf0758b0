"""What is said: words that look like English and do not compress to nothing, and messages of about 1 KB of them."""

from __future__ import annotations

import random
from functools import cache

MESSAGE_BYTES = 1_000


@cache
def messages(count: int) -> list[str]:
    """So many messages, the same ones in every process; more of them begin with the same."""
    chance = random.Random(1)
    words = vocabulary(chance)
    return [_message(chance, words) for _ in range(count)]


def vocabulary(chance: random.Random) -> list[str]:
    """Words of two to nine letters."""
    return ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(3_000)]


def _message(chance: random.Random, words: list[str]) -> str:
    return " ".join(chance.choices(words, k=MESSAGE_BYTES // 5))[:MESSAGE_BYTES]
