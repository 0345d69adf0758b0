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
    reads: int
    """Of all clients together, where processor time is counted: the system counts it in hundredths of a second."""
    seconds: int
    """Of a schedule that waits for nobody."""
    events: int
    """Replayed one after another."""
    agents: int
    """Kept in memory at once."""
    readers: int
    """Of feeds, at once."""
    episodes: int
    """In the largest space that is searched."""
    soak_seconds: int
    """Of the run that shows whether memory stays where it is."""


FULL = Scale(
    rounds=11,
    calls=40,
    calls_each=20,
    reads=8_000,
    seconds=5,
    events=500,
    agents=2_000,
    readers=1_000,
    episodes=100_000,
    soak_seconds=600,
)
QUICK = Scale(
    rounds=3,
    calls=10,
    calls_each=5,
    reads=1_600,
    seconds=2,
    events=100,
    agents=200,
    readers=100,
    episodes=10_000,
    soak_seconds=20,
)
