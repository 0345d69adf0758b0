"""What runners cost one replica: heartbeats, with agents to drive and without; claims, of one runner and of four."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import count

import orjson

from scripts.bench.http_client import Connection, connected, post
from scripts.bench.lab import Lab
from scripts.bench.material import GIVEN
from scripts.bench.processes import Server
from scripts.bench.report import Finding, compared
from scripts.bench.rounds import Variant, take_turns
from scripts.bench.scale import Scale

NAME = "runners"
_LINES = 16
_RUNNERS = 40
_DRIVEN = 25
_CLAIMED = 100
_TTL_SECONDS = 3_600
_STEP = orjson.dumps(GIVEN)
_APPEND, _IDLE, _DRIVING = "appends of one step", "heartbeats, no agents", f"heartbeats, {_DRIVEN} agents each"
_ONE, _FOUR = "one runner", "four runners"
_ABOUT = (
    f"{_LINES} connections to one replica without a pause: heartbeats of {_RUNNERS} runners, or appends to as many "
    f"agents. Then {_CLAIMED} agents of a pool, claimed by one runner, or by four at once, 10 with each call."
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure heartbeats against appends, and claims of four runners against those of one."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(lab.replica(runner_ttl_seconds=_TTL_SECONDS))
        lines = [await stack.enter_async_context(connected(server.port)) for _ in range(_LINES)]
        idle = [await _registered(lines[0], "idle", 1) for _ in range(_RUNNERS)]
        driving = [await _driving(lines[0], number) for number in range(_RUNNERS)]
        agents = [await _made(lines[0]) for _ in range(_RUNNERS)]
        beats = await take_turns(
            [
                _load(_APPEND, lines, [post(f"/v1/agents/{agent}/steps", _STEP) for agent in agents], scale),
                _load(_IDLE, lines, [_beat(runner) for runner in idle], scale),
                _load(_DRIVING, lines, [_beat(runner) for runner in driving], scale),
            ],
            scale.rounds,
        )
        numbers = count()
        claims = await take_turns([_claims(_ONE, server, 1, numbers), _claims(_FOUR, server, 4, numbers)], scale.rounds)
    rows = compared("requests", "/s", beats, against=_APPEND)
    return Finding(NAME, _ABOUT, rows + compared("claims", "/s", claims, against=_ONE))


def _load(name: str, lines: list[Connection], requests: list[bytes], scale: Scale) -> Variant:
    """All lines send these requests, one after another, for a while."""

    async def turn() -> list[float]:
        began = time.monotonic()
        until = began + scale.seconds
        done = await asyncio.gather(
            *(_send_all(line, requests[number :: len(lines)], until) for number, line in enumerate(lines))
        )
        return [sum(done) / (time.monotonic() - began)]

    return Variant(name, turn)


async def _send_all(line: Connection, requests: list[bytes], until: float) -> int:
    sent = 0
    while time.monotonic() < until:
        await line.ask(requests[sent % len(requests)])
        sent += 1
    return sent


def _claims(name: str, server: Server, runners: int, numbers: Iterator[int]) -> Variant:
    """A pool's agents are claimed until there are none left."""

    async def turn() -> list[float]:
        pool = f"claims-{next(numbers)}"
        async with AsyncExitStack() as stack:
            lines = [await stack.enter_async_context(connected(server.port)) for _ in range(runners)]
            for _ in range(_CLAIMED):
                await _made(lines[0], pool=pool)
            names = [await _registered(line, pool, _CLAIMED // runners) for line in lines]
            began = time.monotonic()
            await asyncio.gather(*(_claim_all(line, runner) for line, runner in zip(lines, names, strict=True)))
            return [_CLAIMED / (time.monotonic() - began)]

    return Variant(name, turn)


async def _claim_all(line: Connection, runner: str) -> None:
    while orjson.loads((await line.ask(_claim(runner, 10))).body)["claims"]:
        pass


async def _driving(line: Connection, number: int) -> str:
    """A runner that drives as many agents as it can."""
    pool = f"driven-{number}"
    for _ in range(_DRIVEN):
        await _made(line, pool=pool)
    runner = await _registered(line, pool, _DRIVEN)
    await line.ask(_claim(runner, _DRIVEN))
    return runner


async def _made(line: Connection, **fields: str) -> str:
    return await _new(line, "/v1/agents", fields)


async def _registered(line: Connection, pool: str, capacity: int) -> str:
    return await _new(line, "/v1/runners", {"pool": pool, "platform": "local", "capacity": capacity})


async def _new(line: Connection, path: str, body: object) -> str:
    answer = await line.ask(post(path, orjson.dumps(body)))
    return str(orjson.loads(answer.body)["id"])


def _beat(runner: str) -> bytes:
    return post(f"/v1/runners/{runner}/heartbeat", b"{}")


def _claim(runner: str, most: int) -> bytes:
    return post(f"/v1/runners/{runner}/claim", orjson.dumps({"max": most}))
