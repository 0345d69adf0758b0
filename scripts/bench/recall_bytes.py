"""What the vectors of episodes take of a replica's memory: kept in memory, and in files where there are too many."""

from __future__ import annotations

import math
from functools import partial

import orjson

from app.config import MIB
from scripts.bench.lab import Lab
from scripts.bench.lessons import DIMENSION
from scripts.bench.processes import output
from scripts.bench.report import Finding, Row, compared
from scripts.bench.rounds import Spread, Variant, take_turns
from scripts.bench.scale import Scale

NAME = "recall_bytes"
_MEMORY, _FILES = "in memory", "in files"
_LIMITS = {_MEMORY: 512 * MIB, _FILES: MIB}
_CASES = {"own": "MB", "vectors": "MB", "search, p50": "ms", "search, p99": "ms"}
_ABOUT = (
    "What a process that fills a space of vectors ({count} of {dimension} numbers, each with what it is filtered by) "
    "grows by. 'Vectors' is what the space counts. 'Own' is memory of its own, 'mapped' pages of files that the "
    "system may take back; they stay in the page cache here, so the searches (10 nearest, p50 and p99 of a turn) show "
    "what a mapping costs, not what a disk does. 'In files' is with HOLDFAST_RECALL_BYTES at its least, 1 MiB."
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Fill a space in a process of its own, of each kind in turn."""
    found: dict[str, dict[str, list[float]]] = {}
    variants = [Variant(name, partial(_filled, lab, scale, name, found)) for name in _LIMITS]
    await take_turns(variants, math.ceil(scale.rounds / 4))
    rows = [Row("mapped", name, "MB", Spread.of(found[name]["mapped"])) for name in _LIMITS]
    for case, unit in _CASES.items():
        rows += compared(case, unit, {name: found[name][case] for name in _LIMITS}, against=_MEMORY)
    return Finding(NAME, _ABOUT.format(count=scale.episodes, dimension=DIMENSION), rows)


async def _filled(lab: Lab, scale: Scale, name: str, found: dict[str, dict[str, list[float]]]) -> list[float]:
    arguments = (str(scale.episodes), str(_LIMITS[name]), str(lab.folder), str(scale.events))
    told = orjson.loads(await output(("-m", "scripts.bench.recall_filling", *arguments)))
    own = found.setdefault(name, {})
    for case, figure in told.items():
        own.setdefault(case, []).append(figure)
    return [told["own"]]
