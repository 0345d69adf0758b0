"""Memory of vectors in a space: fills one, in a process that does nothing else, and prints what it grew by.

Run as `python -m scripts.bench.recall_filling COUNT RESIDENT_BYTES FOLDER SEARCHES`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from itertools import chain, cycle, islice
from pathlib import Path
from statistics import median

import numpy as np
import orjson

from app.vectors import Row, Space, Wanted
from scripts.bench.latencies import p99
from scripts.bench.lessons import space_of, vectors
from scripts.bench.processes import own_and_mapped_bytes
from scripts.bench.rounds import milliseconds_each

_MB = 1e6
_QUESTIONS = 100


def main() -> None:
    """Print one object of JSON."""
    count, resident, folder, searches = sys.argv[1:]
    asked = cycle([each.astype(np.float32) for each in chain.from_iterable(vectors(_QUESTIONS, seed=0))])
    before = _resident()
    space = space_of(int(count), resident_bytes=int(resident), folder=Path(folder))
    after = _resident()
    taken = asyncio.run(milliseconds_each(lambda: _search(space, next(asked)), int(searches)))
    told = {
        "vectors": space.bytes / _MB,
        "own": (after[0] - before[0]) / _MB,
        "mapped": (after[1] - before[1]) / _MB,
        "search, p50": median(taken),
        "search, p99": p99(taken),
    }
    sys.stdout.buffer.write(orjson.dumps(told))


async def _search(space: Space, vector: Row) -> None:
    list(islice(space.search(vector, Wanted()), 10))


def _resident() -> tuple[float, float]:
    gc.collect()
    return own_and_mapped_bytes(os.getpid())


if __name__ == "__main__":
    main()
