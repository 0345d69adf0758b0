"""A mixed load, as a fleet makes it: clients that read, append, move HEAD, fork and delete, one after another."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import orjson

from scripts.bench.http_client import Connection, connected, delete, get, post, put
from scripts.bench.material import GIVEN
from scripts.bench.processes import Server

_SHORT = orjson.dumps(GIVEN)
_LARGE = orjson.dumps({"role": "tool", "content": "The build's log, line by line. " * 1_300})
_WEIGHTS = {"read": 50, "append": 30, "strong": 6, "large": 4, "workspace": 4, "head": 3, "fork": 2, "page": 1}
_EXPECTED = (200, 201, 404)
_LEAST = 4


@dataclass
class Fleet:
    """The agents that everybody works on, and how many operations were done."""

    agents: list[str] = field(default_factory=list)
    done: int = 0

    @property
    def mix(self) -> str:
        """What the load is made of."""
        return ", ".join(f"{share} % {name}" for name, share in _WEIGHTS.items())


async def started(server: Server, agents: int, steps: int) -> Fleet:
    """A fleet of so many agents with so many steps each."""
    fleet = Fleet()
    async with connected(server.port) as connection:
        for _ in range(agents):
            made = await connection.ask(post("/v1/agents", b"{}"))
            fleet.agents.append(orjson.loads(made.body)["id"])
            batch = orjson.dumps({"steps": [GIVEN] * steps})
            await connection.ask(post(f"/v1/agents/{fleet.agents[-1]}/steps", batch))
    return fleet


async def work(servers: Sequence[Server], fleet: Fleet, clients: int, enough: Callable[[], bool]) -> None:
    """Let so many clients, spread over the servers, work until it is enough."""
    async with AsyncExitStack() as stack:
        lines = [
            await stack.enter_async_context(connected(servers[number % len(servers)].port)) for number in range(clients)
        ]
        await asyncio.gather(*(_client(line, fleet, number, enough) for number, line in enumerate(lines)))


async def _client(line: Connection, fleet: Fleet, seed: int, enough: Callable[[], bool]) -> None:
    chance = random.Random(seed)
    names, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    while not enough():
        await _act(line, fleet, chance.choices(names, weights)[0], chance)
        fleet.done += 1


async def _act(line: Connection, fleet: Fleet, name: str, chance: random.Random) -> None:
    agent = f"/v1/agents/{chance.choice(fleet.agents)}"
    match name:
        case "read":
            request = get(agent)
        case "strong":
            request = get(agent, Cache_Control="no-cache")
        case "append":
            request = post(f"{agent}/steps", _SHORT)
        case "large":
            request = post(f"{agent}/steps", _LARGE)
        case "workspace":
            request = put(f"{agent}/workspace", orjson.dumps({"at": chance.random()}))
        case "head":
            request = put(f"{agent}/head", b'{"branch": "main"}')
        case "page":
            request = get(f"{agent}/steps?view=all&limit=200")
        case _:
            await _fork(line, fleet, agent)
            return
    await line.ask(request, expect=_EXPECTED)


async def _fork(line: Connection, fleet: Fleet, agent: str) -> None:
    """Fork an agent; the oldest of the fleet goes, so that there are always as many."""
    made = await line.ask(post(f"{agent}/fork", b"{}"), expect=_EXPECTED)
    if made.status == 201 and len(fleet.agents) > _LEAST:
        fleet.agents.append(orjson.loads(made.body)["id"])
        await line.ask(delete(f"/v1/agents/{fleet.agents.pop(0)}"), expect=(204, 404))
