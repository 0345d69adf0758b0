"""Episodes stored per second over HTTP: one by one and in batches, with vectors of the caller and with texts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import chain, cycle

import orjson

from app.lexical import Lexical
from app.minilm import MiniLM
from scripts.bench.append_many import CLIENTS, Processors
from scripts.bench.http_client import Connection, connected, post
from scripts.bench.lab import Lab
from scripts.bench.lessons import lesson, shown, vectors
from scripts.bench.material import GIVEN
from scripts.bench.processes import Server
from scripts.bench.report import Finding, Row, compared
from scripts.bench.rounds import Variant, take_turns
from scripts.bench.scale import Scale

NAME = "episodes"
_STEP = "a step to an agent"
_VECTORS, _MINILM, _LEXICAL = "vectors given", f"texts, {MiniLM.name}", f"texts, {Lexical.name}"
_ABOUT = (
    "Episodes stored per second over HTTP, majority and journal. 'Vectors given': the caller sends one of 384 numbers "
    "with each; 'texts': the replica makes it, of some 210 characters. The lexical embedder is that of a replica of "
    "its own. Both have searched before, so that they keep what is stored in memory. Beside it appends of a 1 KB step "
    "over HTTP, alone or as a batch, each client to an agent of its own. Batches of 500 texts are left out where they "
    "would take a quarter of a minute each. The bytes of a request are noted, and the replica's processor time for "
    "each episode or step."
)


@dataclass(frozen=True)
class Crowd:
    """How many clients send how many in one request, and how often in a turn."""

    clients: int
    batch: int
    calls: int

    @property
    def name(self) -> str:
        clients = f"{self.clients} clients" if self.clients > 1 else "one client"
        return f"one by one, {clients}" if self.batch == 1 else f"batches of {self.batch}, {clients}"


@dataclass(frozen=True)
class _Place:
    """Replicas and connections to each of them."""

    server: Server
    lines: Sequence[Connection]


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure each kind in turns, for each crowd."""
    each = scale.calls_each // 5
    crowds = (Crowd(1, 1, scale.calls // 2), Crowd(CLIENTS, 1, 2 * each), Crowd(4, 50, max(1, each // 4)))
    async with AsyncExitStack() as stack:
        usual = await _open(stack, lab)
        lexical = await _open(stack, lab, embedder=Lexical.name)
        rows = [row for crowd in crowds for row in await _compare(usual, lexical, crowd, scale)]
        rows += await _compare(usual, lexical, Crowd(1, 500, 1), scale, slow=False)
    return Finding(NAME, _ABOUT, rows)


async def _open(stack: AsyncExitStack, lab: Lab, **changed: str) -> _Place:
    """A replica that has searched, and so follows what is stored."""
    server = await stack.enter_async_context(lab.replica(**changed))
    lines = [await stack.enter_async_context(connected(server.port)) for _ in range(CLIENTS)]
    await lines[0].ask(post("/v1/episodes/search", b'{"text": "anything"}'))
    return _Place(server, lines)


async def _compare(usual: _Place, lexical: _Place, crowd: Crowd, scale: Scale, *, slow: bool = True) -> list[Row]:
    spoken = {_VECTORS: (usual, True), _MINILM: (usual, False), _LEXICAL: (lexical, False)}
    if not slow:
        del spoken[_MINILM]
    ways = {_STEP: (usual, await _steps(usual, crowd))}
    ways |= {name: (place, _stored(crowd, given=given)) for name, (place, given) in spoken.items()}
    spent = {name: Processors(place.server) for name, (place, _) in ways.items()}
    variants = [_variant(name, place, requests, crowd, spent[name]) for name, (place, requests) in ways.items()]
    figures = await take_turns(variants, scale.rounds)
    notes = {name: f"{len(ways[name][1][0]):,} bytes; {each.told(served=True)}" for name, each in spent.items()}
    return compared(crowd.name, "/s", figures, against=_STEP, notes=notes)


def _variant(name: str, place: _Place, requests: Sequence[bytes], crowd: Crowd, spent: Processors) -> Variant:
    async def turn() -> list[float]:
        count = crowd.clients * crowd.batch * crowd.calls
        with spent.watched(count):
            started = time.perf_counter()
            await asyncio.gather(*(_send(place.lines[n], requests, n, crowd.calls) for n in range(crowd.clients)))
            return [count / (time.perf_counter() - started)]

    return Variant(name, turn)


async def _send(line: Connection, requests: Sequence[bytes], client: int, calls: int) -> None:
    """Send the request of this client so often."""
    for _ in range(calls):
        await line.ask(requests[client], expect=(201, 207))


async def _steps(place: _Place, crowd: Crowd) -> list[bytes]:
    """An append for each client, to an agent of its own."""
    made = [
        orjson.loads((await place.lines[0].ask(post("/v1/agents", b"{}"))).body)["id"] for _ in range(crowd.clients)
    ]
    body = orjson.dumps(GIVEN if crowd.batch == 1 else {"steps": [GIVEN] * crowd.batch})
    return [post(f"/v1/agents/{agent}/steps", body) for agent in made]


def _stored(crowd: Crowd, *, given: bool) -> list[bytes]:
    """A request for each client; without ids, so that sent again they are other episodes."""
    known = cycle(chain.from_iterable(vectors(1_000, seed=1)))
    requests = []
    for client in range(crowd.clients):
        told = [lesson(client * crowd.batch + number) for number in range(crowd.batch)]
        if given:
            told = [{**each, "embedding": shown(next(known))} for each in told]
        requests.append(post("/v1/episodes", orjson.dumps(told[0] if crowd.batch == 1 else {"episodes": told})))
    return requests
