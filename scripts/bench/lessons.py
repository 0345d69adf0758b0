"""What agents learned: episodes as callers send them and as they are stored, and databases that are full of them.

Their vectors are random and of length 1, the same ones in every process: the nearest of them are hardly nearer than the
rest, which is the hardest case for whoever must tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from app.lanes import Terms
from app.minilm import MiniLM
from app.mongo import Mongo, open_client
from app.runtime import Runtime
from app.vectors import Facts, Space
from models.entry import position
from models.tenant import ANONYMOUS
from scripts.bench.http_client import post
from scripts.bench.lab import Lab
from scripts.bench.material import GIVEN
from scripts.bench.scale import Scale

Exact = NDArray[np.float64]
"""Vectors in double precision, one in each row."""

DIMENSION = MiniLM.dimension
LARGEST = MiniLM.name
"""The space of the replica's own embedder is the largest."""
AGENTS = 100
MUCH = 0.3
"""The reward that 70 of 100 episodes have, or more."""

_STEPS, _NAMED_STEPS = 15, 20
"""Every fourth episode names a step that its agent does not have, as if it had been abandoned."""

_BATCH = 1_000
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_DIGITS = 8
_DID = ("Fixed a failing build", "Moved the orders table", "Answered a refund request", "Wrote a summary of the call")
_WITH = ("by pinning a version", "after reading the trace", "without asking the customer", "with the tool that was new")
_THEN = (
    "It took three attempts, because the cache still held what was there the day before.",
    "The first answer was wrong; the second one passed all the checks that we have.",
    "Nobody had to look at it again, and the next case of this kind was done in a minute.",
)
_SAID = ("Look at the log first next time.", "Good, but slow.", "Ask before anything is removed.")


def lesson(number: int) -> dict[str, Any]:
    """An episode without an id, as a caller sends it: some 210 characters that it is found by."""
    return {
        "agent_id": agent(number % AGENTS),
        "session_id": f"session-{number // 50}",
        "step_id": f"step-{(number // AGENTS + number) % _NAMED_STEPS}",
        "task": f"{_pick(_DID, number)} of case {number} {_pick(_WITH, number // 4)}",
        "input": {"case": number, "asked": f"{_pick(_WITH, number // 3)}"},
        "output": _pick(_THEN, number),
        "critique": _pick(_SAID, number),
        "reward": number % 10 / 10,
        "tokens": 512,
    }


def facts(number: int) -> Facts:
    """What is known of it in memory; no two of them share a text."""
    told = lesson(number)
    return Facts(
        id=f"{ANONYMOUS.tenant}:{ident(LARGEST, number)}",
        agent=told["agent_id"],
        session=told["session_id"],
        step=told["step_id"],
        owner=None,
        reward=told["reward"],
        at=_BEGAN.timestamp() + number,
    )


def space_of(count: int, *, resident_bytes: int, folder: Path) -> Space:
    """So many episodes as a replica that was searched has them in memory, filled in this process."""
    space = Space(DIMENSION, has_room=lambda more: space.resident_bytes + more <= resident_bytes, folder=folder)
    for number, vector in enumerate(chain.from_iterable(vectors(count, seed=count))):
        space.add(facts(number), vector.astype(np.float32))
    return space


def spaces_of(scale: Scale) -> dict[str, int]:
    """Embedders, each with as many episodes as are searched: a hundredth, a tenth, and all."""
    small, middle = scale.episodes // 100, scale.episodes // 10
    return {f"bench-{small}": small, f"bench-{middle}": middle, LARGEST: scale.episodes}


def agent(number: int) -> str:
    """The name of one of the agents that learned."""
    return f"learner-{number}"


def vectors(count: int, seed: int) -> Iterator[Exact]:
    """So many, a thousand at a time; more of them begin with the same."""
    chance = np.random.default_rng(seed)
    for begin in range(0, count, _BATCH):
        some = chance.standard_normal((_BATCH, DIMENSION))[: count - begin]
        yield some / np.linalg.norm(some, axis=1, keepdims=True)


def shown(vector: Exact) -> list[float]:
    """A vector as it goes over the wire."""
    return [round(number, _DIGITS) for number in vector.tolist()]


def questions(count: int, **wanted: Any) -> list[bytes]:
    """Searches by so many vectors that are none of those that are stored."""
    asked = np.concatenate(list(vectors(count, seed=0)))
    return [post("/v1/episodes/search", orjson.dumps({"vector": shown(each), **wanted})) for each in asked]


async def fill(lab: Lab, spaces: Mapping[str, int]) -> None:
    """Write so many episodes of each embedder straight into the collection, as replicas have done long ago.

    Then come their agents. No replica may have been at work in this database: it would have to tell of each episode.
    """
    async with open_client(lab.uri) as client:
        mongo = Mongo.of(client, lab.database)
        await mongo.prepare()
        for embedder, count in spaces.items():
            documents = _stored(embedder, count)
            while batch := list(islice(documents, _BATCH)):
                await mongo.episodes.insert_many(batch, ordered=False)
    async with lab.runtime() as runtime:
        for number in range(AGENTS):
            await _make_learner(runtime, number)


def _stored(embedder: str, count: int) -> Iterator[dict[str, Any]]:
    """Documents as they lie there, with a place in the change log."""
    for number, vector in enumerate(chain.from_iterable(vectors(count, seed=count))):
        yield {
            **lesson(number),
            "_id": f"{ANONYMOUS.tenant}:{ident(embedder, number)}",
            "tenant": ANONYMOUS.tenant,
            "metadata": {},
            "embedder": embedder,
            "vector": vector.astype("<f4").tobytes(),
            "by": ANONYMOUS.by,
            "stored_at": _BEGAN + timedelta(seconds=number),
            "created_at": _BEGAN + timedelta(seconds=number),
            "position": position((1, number + 1)),
        }


def ident(embedder: str, number: int) -> str:
    """The id of an episode that is stored."""
    return f"{embedder}-{number:06}"


async def _make_learner(runtime: Runtime, number: int) -> None:
    steps = [{"id": f"step-{each}", **GIVEN} for each in range(_STEPS)]
    await runtime.agents.create(ANONYMOUS, {"id": agent(number)}, Terms(), steps=steps)


def _pick(texts: tuple[str, ...], number: int) -> str:
    return texts[number % len(texts)]
