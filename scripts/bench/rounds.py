"""Rounds: every variant takes its turn again and again, so that a slow minute of the machine hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

Turn = Callable[[], Awaitable[Sequence[float]]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of doing the thing that is measured. A turn returns its measurements; preparing is not among them."""

    name: str
    turn: Turn


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some figures and the quarter of them on either side of it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        if len(figures) == 1:
            return cls(figures[0], figures[0], figures[0])
        low, _, high = quantiles(figures, n=4, method="inclusive")
        return cls(low, median(figures), high)


async def take_turns(variants: Sequence[Variant], rounds: int) -> dict[str, list[float]]:
    """A figure per variant and round: the median of the turn's measurements. Another variant begins each round."""
    figures: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for number in range(rounds):
        first = number % len(variants)
        for variant in (*variants[first:], *variants[:first]):
            figures[variant.name].append(median(await variant.turn()))
    return figures


def ratios(figures: Sequence[float], against: Sequence[float]) -> Spread:
    """Round by round one variant over another, so that only neighbours in time are compared."""
    return Spread.of([own / other for own, other in zip(figures, against, strict=True)])


async def milliseconds_each(action: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """The latency of each of `count` calls, one after another."""
    taken: list[float] = []
    for _ in range(count):
        started = time.perf_counter()
        await action()
        taken.append((time.perf_counter() - started) * 1000)
    return taken
