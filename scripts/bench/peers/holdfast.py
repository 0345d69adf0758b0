"""Holdfast as its callers see it: JSON over HTTP by an ordinary client; replica and database are new for each agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from functools import partial
from http.client import HTTPConnection
from typing import Any

import orjson
from pymongo.asynchronous.database import AsyncDatabase

from app.mongo import open_client
from scripts.bench.http_client import UnexpectedAnswer
from scripts.bench.lab import Lab
from scripts.bench.peers.contender import BYTES, HISTORY, STATE, STEP, Patience, Taken
from scripts.bench.peers_worker.store import milliseconds
from scripts.bench.peers_worker.words import messages

HOLDFAST = "holdfast, no-cache"
MEMORY = "holdfast, from memory"
NOTHING = "holdfast, nothing in memory"
NEWEST = "holdfast, newest step"

_AGENT = "/v1/agents/bench"
_PATH = _AGENT
_ALL = f"{_AGENT}?steps=all&steps_limit=10000"
_NEWEST = f"{_AGENT}?steps_limit=1"
_STRONG = {"Cache-Control": "no-cache"}


class Caller:
    """A kept-alive connection of the standard library's client; it waits, as peers are waited for."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port)

    def post(self, path: str, body: object) -> object:
        return self._ask("POST", path, orjson.dumps(body), {"Content-Type": "application/json"})

    def load(self, path: str, steps: int, headers: dict[str, str]) -> None:
        """The agent as the caller's own objects; all of its steps."""
        found = self._ask("GET", path, None, headers)
        assert len(found["steps"]) >= steps, (path, len(found["steps"]))

    def close(self) -> None:
        """The next request connects anew."""
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Any:
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status not in {200, 201}:
            raise UnexpectedAnswer(f"{answer.status}: {content[:300]!r}")
        return orjson.loads(content)


class Holdfast:
    """A replica, default settings, and one agent."""

    name = HOLDFAST

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    async def begin(self, _: str) -> None:
        self._open = AsyncExitStack()
        self._place = await self._open.enter_async_context(self._lab.elsewhere())
        replica = await self._open.enter_async_context(self._place.replica())
        self._caller = self._open.enter_context(closing(Caller(replica.port)))
        self._milliseconds: list[float] = []
        self._caller.post("/v1/agents", {"id": "bench"})

    async def measure(self, steps: int, state: Patience, history: Patience) -> list[Taken]:
        self._caller.close()  # The replica lets go of connections that are long idle, as between two turns.
        texts = messages(steps)[len(self._milliseconds) :]
        self._milliseconds += await asyncio.to_thread(_append, self._caller, texts)
        loads = await self._loads(steps, state.calls, history.calls)
        size, note = await self._stored()
        return [Taken(BYTES, self.name, size, note), Taken.of(STEP, self.name, self._milliseconds), *loads]

    async def end(self) -> None:
        await self._open.aclose()

    async def _loads(self, steps: int, states: int, histories: int) -> list[Taken]:
        load = self._caller.load
        taken = [
            await _taken(STATE, HOLDFAST, states, partial(load, _PATH, steps, _STRONG)),
            await _taken(STATE, MEMORY, states, partial(load, _PATH, steps, {})),
            await _taken(STATE, NEWEST, states, partial(load, _NEWEST, 1, _STRONG)),
            await _taken(HISTORY, HOLDFAST, histories, partial(load, _ALL, steps, _STRONG)),
        ]
        forgetful = self._place.replica(cache_bytes=0, segment_bytes=0, blob_bytes=0)
        async with forgetful as replica:
            with closing(Caller(replica.port)) as other:
                taken.append(await _taken(STATE, NOTHING, states, partial(other.load, _PATH, steps, {})))
                taken.append(await _taken(HISTORY, NOTHING, histories, partial(other.load, _ALL, steps, {})))
        return taken

    async def _stored(self) -> tuple[int, str]:
        async with open_client(self._lab.uri) as client:
            await client.admin.command("fsync")
            database = client[self._place.database]
            names = sorted(await database.list_collection_names())
            sizes = {name: await _logical(database, name) for name in names}
            files = [await database.command("collStats", name) for name in names]
        on_disk = sum(stats["storageSize"] + stats["totalIndexSize"] for stats in files)
        parts = ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size > 10_000)
        return sum(sizes.values()), f"{on_disk:,} bytes of files ({parts})"


def _append(caller: Caller, texts: list[str]) -> list[float]:
    """What each append takes, one after another."""
    bodies = ({"steps": [{"role": "agent", "content": text}]} for text in texts)
    return [milliseconds(partial(caller.post, f"{_AGENT}/steps", body)) for body in bodies]


async def _taken(measure: str, variant: str, calls: int, load: Callable[[], None]) -> Taken:
    taken = await asyncio.to_thread(lambda: [milliseconds(load) for _ in range(calls)])
    return Taken.of(measure, variant, taken)


async def _logical(database: AsyncDatabase[dict[str, Any]], name: str) -> int:
    sizes = await database[name].aggregate([{"$group": {"_id": None, "bytes": {"$sum": {"$bsonSize": "$$ROOT"}}}}])
    found: list[int] = [group["bytes"] async for group in sizes]
    return sum(found)
