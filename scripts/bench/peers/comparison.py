"""An agent that grows, kept here and by what others use: what it takes, what a step costs, what loading it costs."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from subprocess import CalledProcessError

from rich.console import Console

from scripts.bench.lab import Lab
from scripts.bench.peers.contender import BYTES, HISTORY, STATE, STEP, Contender, Patience, Taken, peer
from scripts.bench.peers.holdfast import HOLDFAST, MEMORY, NEWEST, NOTHING, Holdfast
from scripts.bench.peers.installation import python, versions
from scripts.bench.peers.postgres import INSTALL, cluster
from scripts.bench.report import Bound, Finding, Row
from scripts.bench.rounds import Spread, ratios
from scripts.bench.scale import Scale

NAME = "peers"
_SIZES = (100, 500, 1_000)
_UNITS = {BYTES: "bytes", STEP: "ms", STATE: "ms", HISTORY: "ms"}
_DEFAULT = "LangGraph, MongoDBSaver"
_DELTA = "LangGraph, MongoDBSaver, DeltaChannel"
_ALONE = {
    _DEFAULT: "langgraph-mongodb",
    f"{_DEFAULT}, one run": "langgraph-mongodb-run",
    _DELTA: "langgraph-mongodb-delta",
    f"{_DELTA}, one run": "langgraph-mongodb-delta-run",
    "LangGraph, SqliteSaver": "langgraph-sqlite",
    "LangGraph, SqliteSaver, DeltaChannel": "langgraph-sqlite-delta",
    "ADK, MongoDbSessionService": "adk-mongodb",
    "ADK, SqliteSessionService": "adk-sqlite",
    "ADK, DatabaseSessionService on SQLite": "adk-sqlalchemy",
}
_POSTGRES = {
    "LangGraph, PostgresSaver": "langgraph-postgres",
    "LangGraph, PostgresSaver, DeltaChannel": "langgraph-postgres-delta",
}
_PEERS = _ALONE | _POSTGRES
_RANK = {name: rank for rank, name in enumerate((HOLDFAST, MEMORY, NOTHING, NEWEST, *_PEERS))}
_AIMS = {(BYTES, _DEFAULT): 100.0, (STEP, _DEFAULT): 1.5, (BYTES, _DELTA): 4.0, (STEP, _DELTA): 1.5}
"""How many times a peer's figure is expected to be Holdfast's, at the largest size; of the others, as much."""

_STATE = Patience(calls=7, seconds=3)
_HISTORY = Patience(calls=3, seconds=4)
_SLOW_SECONDS = 60
_PACKAGES = (
    "langgraph",
    "langgraph-checkpoint-mongodb",
    "langgraph-checkpoint-sqlite",
    "langgraph-checkpoint-postgres",
    "google-adk",
    "pymongo",
    "psycopg",
    "aiosqlite",
)
_ABOUT = (
    "One agent whose every step adds a message of 1 000 bytes, durable before the next. A ratio is the peer's figure "
    "over Holdfast's: above 1, Holdfast is better. Holdfast is asked over HTTP (http.client), JSON encoded and decoded "
    "by the caller; peers are called in their process. 'bytes stored': BSON of all documents of all collections for "
    "MongoDB, the whole file for SQLite, tables with indexes for PostgreSQL. 'time per step': p50 of all steps so far; "
    "LangGraph: one `graph.invoke` with one message, durability as by default, or ('one run') one superstep of a "
    "single invocation with durability='sync'; ADK: `append_event` to a session in memory. 'latest state': p50 of "
    "loading all messages: `get_state`, `get_session`, GET of the agent, from memory after asking the database for "
    "the version ('no-cache'), without asking, or all from the database ('nothing in memory'). 'whole history': "
    "`get_state_history` (every state that ever was, 20 at a time), `get_session`, GET with steps=all (every step and "
    "its parent). MongoDB is written with majority and journal, SQLite and PostgreSQL with their defaults, which reach "
    "the disk. "
)

Found = dict[tuple[int, str], dict[str, list[Taken]]]
"""By size and measure, then by variant: what each round found."""


async def run(lab: Lab, scale: Scale) -> Finding:
    """Let all of them keep an agent, in turns at each size."""
    try:
        venv = await asyncio.to_thread(python)
    except CalledProcessError as failure:
        return Finding(NAME, f"Not measured: the peers could not be installed ({failure}).", [])
    sizes = [steps for steps in _SIZES if steps <= 2 * scale.events]
    found: Found = defaultdict(lambda: defaultdict(list))
    async with AsyncExitStack() as stack:
        contenders, missing = await _contenders(lab, venv, stack)
        rounds = Rounds(contenders, sizes, found)
        for number in range(max(1, scale.rounds // 3)):
            await rounds.go(number)
    rows = [row for steps in sizes for measure in _UNITS for row in _rows(steps, measure, found[steps, measure])]
    return Finding(NAME, f"{_ABOUT}{missing}Versions: {versions(*_PACKAGES)}.", rows)


async def _contenders(lab: Lab, venv: Path, stack: AsyncExitStack) -> tuple[list[Contender], str]:
    """Holdfast and its peers, ready, and what is to be said of those that are missing."""
    server = stack.enter_context(cluster())
    place = {"mongodb": lab.uri, "folder": str(lab.folder), "postgres": server}
    kinds = _ALONE if server is None else _PEERS
    peers = [await stack.enter_async_context(peer(venv, *each, place, lab.folder)) for each in kinds.items()]
    missing = f"PostgreSQL is not installed, so its rows are missing: {INSTALL}. " if server is None else ""
    return [Holdfast(lab), *peers], missing


class Rounds:
    """In each, all grow an agent of their own to each size; another one begins each time.

    Who takes too long for a size takes part in it, and in the larger ones, in the first round only.
    """

    def __init__(self, contenders: Sequence[Contender], sizes: Sequence[int], found: Found) -> None:
        self._contenders = contenders
        self._sizes = sizes
        self._found = found
        self._limits: dict[str, int] = {}

    async def go(self, number: int) -> None:
        async with AsyncExitStack() as stack:
            for contender in self._contenders:
                await contender.begin(f"{number}")
                stack.push_async_callback(contender.end)
            for index, steps in enumerate(self._sizes):
                first = (number * len(self._sizes) + index) % len(self._contenders)
                for contender in (*self._contenders[first:], *self._contenders[:first]):
                    if number == 0 or steps < self._limits.get(contender.name, steps + 1):
                        await self._turn(contender, steps)

    async def _turn(self, contender: Contender, steps: int) -> None:
        started = time.monotonic()
        for taken in await contender.measure(steps, _STATE, _HISTORY):
            self._found[steps, taken.measure][taken.variant].append(taken)
        seconds = time.monotonic() - started
        if seconds > _SLOW_SECONDS:
            self._limits.setdefault(contender.name, steps)
        Console(stderr=True).print(f"  {steps} steps, {contender.name}: {seconds:.0f} s", highlight=False)


def _rows(steps: int, measure: str, found: Mapping[str, Sequence[Taken]]) -> list[Row]:
    ours = [each.value for each in found[HOLDFAST]]
    return [_row(steps, measure, name, found[name], ours) for name in sorted(found, key=_RANK.__getitem__)]


def _row(steps: int, measure: str, name: str, taken: Sequence[Taken], ours: Sequence[float]) -> Row:
    """Set against as many rounds of Holdfast, the first ones."""
    own = [each.value for each in taken]
    other = name != HOLDFAST
    aimed = steps == _SIZES[-1] and name in _PEERS
    rounds = "" if len(own) == len(ours) else f"{len(own)} of {len(ours)} rounds"
    return Row(
        f"{steps} steps, {measure}",
        name,
        _UNITS[measure],
        Spread.of(own),
        ratios(own, ours[: len(own)]) if other else None,
        HOLDFAST if other else None,
        Bound("≥", _AIMS.get((measure, name), 1.0)) if aimed else None,
        "; ".join(filter(None, (taken[-1].note, rounds))),
    )
