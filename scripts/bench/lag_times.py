"""When appends were acknowledged by one replica, when another one told of them, and the lags between."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import mean, quantiles

from scripts.bench.report import Bound, Row
from scripts.bench.rounds import Spread

GET, FEED, LOG = "GET from memory", "feed of the agent", "change log, live"
_EXPECTED = {"p50": Bound("≤", 2.0), "p99": Bound("≤", 25.0)}

Append = tuple[str, int]
"""The agent, and the version that it came to."""


@dataclass
class Board:
    """What was acknowledged and seen in one turn, by agent and version."""

    acknowledged: dict[Append, float] = field(default_factory=dict)
    told: dict[str, dict[Append, float]] = field(default_factory=lambda: {FEED: {}, LOG: {}})
    shown: dict[Append, float] = field(default_factory=dict)
    round_trips: list[float] = field(default_factory=list)
    seconds: float = 0.0
    refused: int = 0

    def hear_agent(self, agent: str, ident: str) -> None:
        """An event of an agent's feed came; its id is the version."""
        self.told[FEED].setdefault((agent, int(ident)), time.perf_counter())

    def hear_log(self, ident: str) -> None:
        """An entry of the log came; its id is its position, which ends in version and agent."""
        self.told[LOG].setdefault((ident[28:], int(ident[16:28], 16)), time.perf_counter())

    @property
    def complete(self) -> bool:
        return all(self.acknowledged.keys() <= told.keys() for told in self.told.values())

    def lags(self, how: str) -> list[float]:
        """In milliseconds, none below 0."""
        seen = self.shown if how == GET else {at: self.told[how][at] for at in self.acknowledged}
        return [max(0.0, (moment - self.acknowledged[at]) * 1000) for at, moment in seen.items()]


@dataclass
class Lags:
    """The turns of one rate."""

    rate: int
    boards: list[Board] = field(default_factory=list)

    def rows(self) -> Iterator[Row]:
        for how in (GET, FEED, LOG):
            for name, percent in (("p50", 50), ("p99", 99)):
                figures = [quantiles(board.lags(how), n=100, method="inclusive")[percent - 1] for board in self.boards]
                note = self._note(how) if name == "p50" else ""
                expected = _EXPECTED[name]
                yield Row(
                    f"{self.rate} appends/s", f"{how}, {name}", "ms", Spread.of(figures), expected=expected, note=note
                )

    def _note(self, how: str) -> str:
        if how == GET:
            trips = [trip for board in self.boards for trip in board.round_trips]
            return f"{len(trips)} round trips, {mean(trips) * 1000:.2f} ms on average"
        lags = [lag for board in self.boards for lag in board.lags(how)]
        rate = mean(len(board.acknowledged) / board.seconds for board in self.boards)
        refused = sum(board.refused for board in self.boards)
        told = f"{rate:.0f}/s reached, {lags.count(0.0) / len(lags):.0%} before the acknowledgement"
        return f"{told}, {refused} × 503" if refused else told
