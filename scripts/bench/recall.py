"""Searches by meaning in small and large memories, in process and over HTTP; and whether the answers are exact."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
import orjson

from app.vectors import Facts, Row, Space, Wanted
from scripts.bench.http_client import Connection, connected, post
from scripts.bench.lab import Lab
from scripts.bench.latencies import Call, timed
from scripts.bench.lessons import (
    DIMENSION,
    LARGEST,
    MUCH,
    Exact,
    agent,
    fill,
    ident,
    lesson,
    questions,
    space_of,
    spaces_of,
    vectors,
)
from scripts.bench.recall_start import until_answered
from scripts.bench.report import Bound, Finding
from scripts.bench.report import Row as Line
from scripts.bench.rounds import Spread
from scripts.bench.scale import Scale

NAME = "recall"
_QUESTIONS = 100
_BEST = 10
_LOOKED_AT = 200
"""What a search for 10 that leaves out abandoned ones looks at."""
_ALL = "everything"
_MUCH, _LITTLE = "70 of 100 (min_reward)", "1 of 100 (agent)"
_WANTED = {_ALL: Wanted(), _MUCH: Wanted(min_reward=MUCH), _LITTLE: Wanted(agent=agent(7))}
_FILTERS: dict[str, dict[str, object]] = {
    _ALL: {},
    _MUCH: {"min_reward": MUCH},
    _LITTLE: {"agent": agent(7)},
    "exclude_abandoned": {"exclude_abandoned": True},
    "the best only (k=1)": {"k": 1},
}
_ABOUT = (
    f"One search for the {_BEST} nearest of so many episodes, vectors of {DIMENSION} numbers, one caller; p50 and p99 "
    "of a turn's calls. 'In process' is the space of vectors alone, filled here. 'HTTP' is a search by a vector "
    "through a replica that has searched before; its episodes were written straight into the collection, not through "
    f"the API, and the answer brings the {_BEST} episodes, vectors and all (its bytes are noted). By "
    f"'exclude_abandoned' the {_LOOKED_AT} nearest are looked at and the paths of their agents are read. 'By text' "
    "embeds the question first. Nothing approximate is used: the search is exact. 'Exact' is the share of the answers "
    f"over HTTP that are also among the {_BEST} nearest by a computation in double precision over all vectors as they "
    "were before they were stored in single precision."
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure the spaces alone, then a replica that has all of them."""
    spaces = spaces_of(scale)
    rows: list[Line] = []
    for count in spaces.values():
        rows += await _in_process(lab, count, scale)
    async with lab.elsewhere() as filled:
        await fill(filled, spaces)
        others = orjson.dumps(dict.fromkeys(spaces.keys() - {LARGEST}, DIMENSION)).decode()
        async with filled.replica(embedders=others) as server, connected(server.port) as connection:
            for embedder, count in spaces.items():
                rows += await _over_http(connection, embedder, count, scale)
            rows += [await _exact(connection, embedder, count) for embedder, count in spaces.items()]
    return Finding(NAME, _ABOUT, rows)


async def _in_process(lab: Lab, count: int, scale: Scale) -> list[Line]:
    space = space_of(count, resident_bytes=lab.settings.recall_bytes, folder=lab.folder)
    asked = cycle([each.astype(np.float32) for each in _asked()])
    calls = {name: _first(space, asked, wanted, _BEST) for name, wanted in _WANTED.items()}
    calls[f"{_ALL}, the {_LOOKED_AT} nearest"] = _first(space, asked, Wanted(), _LOOKED_AT)
    case = f"in process, {count}"
    return await timed(case, calls, count=_calls(scale), rounds=scale.rounds, against=_ALL)


def _first(space: Space, asked: cycle[Row], wanted: Wanted, most: int) -> Call:
    async def search() -> list[Facts]:
        return [found.facts for found in islice(space.search(next(asked), wanted), most)]

    return search


async def _over_http(connection: Connection, embedder: str, count: int, scale: Scale) -> list[Line]:
    requests = {name: questions(_QUESTIONS, embedder=embedder, **wanted) for name, wanted in _FILTERS.items()}
    if embedder == LARGEST:
        requests["by text"] = [_by_text(number) for number in range(_QUESTIONS)]
    await until_answered(connection, requests[_ALL][0])
    calls = {name: _asking(connection, asked) for name, asked in requests.items()}
    sizes = {name: len((await connection.ask(asked[0])).body) for name, asked in requests.items()}
    notes = {name: f"{size / 1000:.0f} KB" for name, size in sizes.items()}
    case = f"HTTP, {count}"
    return await timed(case, calls, count=_calls(scale), rounds=scale.rounds, against=_ALL, notes=notes)


def _asking(connection: Connection, requests: Sequence[bytes]) -> Call:
    turn = cycle(requests)
    return lambda: connection.ask(next(turn))


def _by_text(number: int) -> bytes:
    return post("/v1/episodes/search", orjson.dumps({"text": f"{number}: {lesson(number)['task']}"}))


async def _exact(connection: Connection, embedder: str, count: int) -> Line:
    """How much of the answers a computation in double precision finds too."""
    answers = [await connection.ask(request) for request in questions(_QUESTIONS, embedder=embedder)]
    found = [{item["episode"]["id"] for item in orjson.loads(answer.body)["items"]} for answer in answers]
    asked = _asked().T
    scores = np.concatenate([some @ asked for some in vectors(count, seed=count)])
    nearest = np.argpartition(-scores, _BEST, axis=0)[:_BEST].T
    expected = [{ident(embedder, number) for number in row.tolist()} for row in nearest]
    hits = sum(len(own & best) for own, best in zip(found, expected, strict=True))
    most = _QUESTIONS * _BEST
    return Line("exact", f"{count} episodes", f"of {most}", Spread.of([hits]), expected=Bound("≥", most))


def _asked() -> Exact:
    """The vectors of the questions."""
    return np.concatenate(list(vectors(_QUESTIONS, seed=0)))


def _calls(scale: Scale) -> int:
    return scale.events // 5
