"""Lives of ephemeral agents: `ttl_seconds` from their creation on, `idle_seconds` from their last write on.

An end is stored by the later of two clocks and judged by the earlier one, so that no clock that is wrong ends a life
too soon.
"""

from __future__ import annotations

from datetime import datetime, timedelta


def end_of(
    ttl_seconds: float | None, idle_seconds: float | None, created_at: datetime | None, written_at: datetime
) -> datetime | None:
    """When an agent's life is over if nothing is written any more; None: never."""
    ends = [
        since + timedelta(seconds=seconds)
        for since, seconds in ((created_at or written_at, ttl_seconds), (written_at, idle_seconds))
        if seconds is not None
    ]
    return min(ends, default=None)
