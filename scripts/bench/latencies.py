"""Latencies of calls that take turns: the p50 of each turn, and its p99, for what is rare and slow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from statistics import quantiles

from scripts.bench.report import Row, compared
from scripts.bench.rounds import Variant, milliseconds_each, take_turns

Call = Callable[[], Awaitable[object]]


def p99(taken: list[float]) -> float:
    """Up to which 99 of 100 took."""
    return quantiles([taken[0], *taken], n=100, method="inclusive")[98]


async def timed(
    case: str,
    calls: Mapping[str, Call],
    *,
    count: int,
    rounds: int,
    against: str,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """Two rows for each call, which is made `count` times in a turn, one after another."""
    high: dict[str, list[float]] = {name: [] for name in calls}

    async def turn(name: str) -> list[float]:
        taken = await milliseconds_each(calls[name], count)
        high[name].append(p99(taken))
        return taken

    figures = await take_turns([Variant(name, partial(turn, name)) for name in calls], rounds)
    return [
        *compared(f"{case}, p50", "ms", figures, against=against, notes=notes),
        *compared(f"{case}, p99", "ms", high, against=against),
    ]
