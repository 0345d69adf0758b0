"""What making vectors of texts takes, by each embedder, alone and in batches; and what loading it takes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import orjson

from app.lexical import Lexical
from app.minilm import MiniLM
from scripts.bench.lab import Lab
from scripts.bench.processes import output
from scripts.bench.report import Finding, Row, compared
from scripts.bench.rounds import Spread, Variant, take_turns
from scripts.bench.scale import Scale

NAME = "embedding"
_ONE_THREAD = f"{MiniLM.name}, one thread"
_KINDS: dict[str, tuple[str, dict[str, str]]] = {
    MiniLM.name: (MiniLM.name, {}),
    _ONE_THREAD: (MiniLM.name, {"OPENBLAS_NUM_THREADS": "1"}),
    Lexical.name: (Lexical.name, {}),
}
_ABOUT = (
    "Texts embedded per second as the service does it, in a thread beside the event loop, in a process that does "
    "nothing else: one at a time, in batches of 8 and 64, and from 64 callers with a text each, whom the service "
    "serves together. A sentence has some 60 characters, an episode some 210, 'long' fills the 256 tokens that count. "
    "'One thread' is with OPENBLAS_NUM_THREADS=1; by default numpy works on all processors. Noted: characters per "
    "second, and processor time for each text. 'Loading' is until the first vector is there, 'resident' what the "
    "process has grown by then, and after all batches."
)

Told = dict[str, Any]


async def run(_: Lab, scale: Scale) -> Finding:
    """Measure each embedder in a process of its own, in turns; the database is not asked for anything."""
    told: dict[str, list[Told]] = {name: [] for name in _KINDS}
    variants = [Variant(name, partial(_work, name, told[name])) for name in _KINDS]
    await take_turns(variants, math.ceil(scale.rounds / 4))
    rows: list[Row] = []
    for case in told[MiniLM.name][0]["rates"]:
        figures = {name: [each["rates"][case]["texts"] for each in own] for name, own in told.items()}
        notes = {name: _note(own[-1]["rates"][case]) for name, own in told.items()}
        rows += compared(case, "/s", figures, against=MiniLM.name, notes=notes)
    for case, unit in {"loading": "s", "resident, loaded": "MB", "resident, after all": "MB"}.items():
        rows += [Row(case, name, unit, Spread.of([each[case] for each in own])) for name, own in told.items()]
    return Finding(NAME, _ABOUT, rows)


async def _work(name: str, told: list[Told]) -> list[float]:
    embedder, environment = _KINDS[name]
    told.append(orjson.loads(await output(("-m", "scripts.bench.embedding_work", embedder), environment)))
    return [told[-1]["loading"]]


def _note(rate: dict[str, float]) -> str:
    return f"{rate['characters']:,.0f} characters/s, {rate['processor']:.2f} ms of processor time"
