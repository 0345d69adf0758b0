"""An embedder at work, in a process that does nothing else; prints what it took.

Run as `python -m scripts.bench.embedding_work EMBEDDER`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence

import orjson

from app.embedding import Embedding
from app.lexical import Lexical
from app.minilm import MiniLM
from models.episode import text_of
from scripts.bench.lessons import lesson
from scripts.bench.processes import resident_bytes

_MB = 1e6
_TEXTS = {1: 24, 8: 24, 64: 64}
"""How many are embedded in batches of each size."""
_LONG = 6


def main() -> None:
    """Print one object of JSON."""
    (name,) = sys.argv[1:]
    kind: type[MiniLM | Lexical] = {MiniLM.name: MiniLM, Lexical.name: Lexical}[name]
    sys.stdout.buffer.write(orjson.dumps(asyncio.run(_measured(Embedding(kind.name, kind.dimension, kind.load)))))


async def _measured(embedding: Embedding) -> dict[str, object]:
    before, started = resident_bytes(os.getpid()), time.perf_counter()
    await embedding.embed(["The first one."])
    loading, loaded = time.perf_counter() - started, resident_bytes(os.getpid())
    rates: dict[str, dict[str, float]] = {}
    for kind, texts in _kinds().items():
        for batch, count in _TEXTS.items():
            some = texts[:count]
            case = "one at a time" if batch == 1 else f"batches of {batch}"
            rates[f"{kind}, {case}"] = await _rate(embedding, [some[at : at + batch] for at in range(0, count, batch)])
        rates[f"{kind}, 64 callers"] = await _rate(embedding, [[text] for text in texts], at_once=True)
    long = [text * _LONG for text in _kinds()["an episode"]]
    rates["long, one at a time"] = await _rate(embedding, [[text] for text in long[: _TEXTS[1]]])
    embedding.stop()
    return {
        "rates": rates,
        "loading": loading,
        "resident, loaded": (loaded - before) / _MB,
        "resident, after all": (resident_bytes(os.getpid()) - before) / _MB,
    }


def _kinds() -> dict[str, list[str]]:
    lessons = [lesson(number) for number in range(64)]
    return {"a sentence": [each["task"] for each in lessons], "an episode": [text_of(each) for each in lessons]}


async def _rate(embedding: Embedding, batches: Sequence[Sequence[str]], *, at_once: bool = False) -> dict[str, float]:
    """Texts and characters per second, and milliseconds of processor time for each text."""
    count = sum(map(len, batches))
    started, used = time.perf_counter(), time.process_time()
    if at_once:
        await asyncio.gather(*map(embedding.embed, batches))
    else:
        for batch in batches:
            await embedding.embed(batch)
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    characters = sum(len(text) for batch in batches for text in batch)
    return {"texts": count / seconds, "characters": characters / seconds, "processor": 1000 * processor / count}


if __name__ == "__main__":
    main()
