"""How much is measured: enough for medians that stand, or a glance that shows that everything runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Rounds, and how much is done in a turn."""

    rounds: int
    calls: int
    """One after another, of one client."""
    calls_each: int
    """Of each of many clients."""


FULL = Scale(rounds=11, calls=40, calls_each=20)
QUICK = Scale(rounds=3, calls=10, calls_each=5)
