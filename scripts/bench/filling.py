"""Memory of agents in a cache: fills one, in a process that does nothing else, and prints what it grew by.

Run as `python -m scripts.bench.filling URI DATABASE KEY…`, with the agents' keys.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys

import orjson

from app.api.shown import show
from app.cache import Cache
from app.clock import SystemClock
from app.config import Settings
from app.filling import Filling
from app.runtime import Runtime
from scripts.bench.material import hold
from scripts.bench.processes import resident_bytes

_ROOM = 2**40
_IDLE_SECONDS = 1e6


def main() -> None:
    """Print one object of JSON."""
    uri, database, *keys = sys.argv[1:]
    sys.stdout.buffer.write(orjson.dumps(asyncio.run(_filled(uri, database, keys))))


async def _filled(uri: str, database: str, keys: list[str]) -> dict[str, float]:
    """Bytes for each agent: of memory, with the record alone and with the answer; as the cache counts both; of BSON."""
    clock = SystemClock()
    cache = Cache(clock, limit_bytes=_ROOM, idle_seconds=_IDLE_SECONDS)
    runtime = Runtime(Settings(mongodb_uri=uri, mongodb_database=database), uri)
    await runtime.store.read(keys[0])
    cache.opened()
    begin = _resident()
    for key in keys:
        record = await runtime.store.read(key)
        await hold(runtime, record)
        cache.land(cache.depart(key), record)
    records, counted = _resident() - begin, cache.bytes
    cache.beat(clock.monotonic(), (1, 1))
    sizes = [_show(cache, runtime.filling, key) for key in keys]
    shown, counted_shown = _resident() - begin, cache.bytes
    await runtime.mongo.client.close()
    found = {
        "record": records,
        "counted": counted,
        "shown": shown,
        "counted_shown": counted_shown,
        "stored": sum(stored for stored, _ in sizes),
        "answer": sum(answer for _, answer in sizes),
    }
    return {name: value / len(keys) for name, value in found.items()}


def _show(cache: Cache, filling: Filling, key: str) -> tuple[int, int]:
    """Make the answer and keep it; the agent's size as it is stored, and the answer's."""
    cache.beat(SystemClock().monotonic(), (1, 1))
    entry = cache.look(key)
    assert entry is not None
    shown = show(entry, None, filling)
    cache.show(entry, shown, len(shown.body))
    return entry.record.stored_bytes(), len(shown.body)


def _resident() -> float:
    gc.collect()
    return resident_bytes(os.getpid())


if __name__ == "__main__":
    main()
