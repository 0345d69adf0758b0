"""Background tasks, ended for certain."""

from __future__ import annotations

import asyncio

_PATIENCE_SECONDS = 0.5


async def end(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks and wait until they are over, whatever they end with.

    A task that awaits a library may lose a cancellation (`asyncio.wait_for` before Python 3.12 does, when what it
    waits for ends in the same moment), so it is cancelled again until it is over.
    """
    for task in tasks:
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_PATIENCE_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)
