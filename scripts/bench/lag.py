"""How long after an append is acknowledged by one replica another replica shows and tells it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import orjson

from scripts.bench.http_client import Connection, connected, get, post
from scripts.bench.lab import Lab
from scripts.bench.lag_times import FEED, Append, Board, Lags
from scripts.bench.material import GIVEN
from scripts.bench.processes import Server
from scripts.bench.report import Finding
from scripts.bench.rounds import Variant, take_turns
from scripts.bench.scale import Scale
from scripts.bench.sse_client import leave, reading

NAME = "lag"
_RATES = (20, 500)
"""Appends per second."""
_AGENTS = 50
_STEPS = 10
_MOST = 256
"""Appends under way at once: more than that, and the schedule is not kept."""
_BETWEEN_SAMPLES = 0.02
_PATIENCE = 10.0
_STEP = orjson.dumps(GIVEN)
_ABOUT = (
    f"Appends of a 1 KB step to {_AGENTS} agents through one replica, on a schedule that waits for nobody; from the "
    "moment when the acknowledgement came to the moment when another replica had told it: in a GET answered from its "
    "memory, in the server-sent events of the agent, and in those of the tenant's log. One process, one clock. "
    "The GET is sent when the acknowledgement comes, and again as soon as it is answered, for one append at a time "
    f"and {1 / _BETWEEN_SAMPLES:.0f} in a second at most; what is shown is when the first one that shows the append "
    "was answered, so that a round trip (noted) is the least that it can be. An event may come before the "
    "acknowledgement: that counts as no lag, and how often is noted. p50 and p99 are of one turn's appends. "
    "A 503 (noted, where there was one) is no acknowledgement."
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure a calm and a busy schedule, in turns."""
    async with lab.replica() as writer, lab.replica() as reader:
        lags = [Lags(rate) for rate in _RATES]
        await take_turns([_variant(writer, reader, each, scale) for each in lags], scale.rounds)
    return Finding(NAME, _ABOUT, [row for each in lags for row in each.rows()])


def _variant(writer: Server, reader: Server, lags: Lags, scale: Scale) -> Variant:
    async def turn() -> list[float]:
        board = Board()
        agents = await _new_agents(writer)
        async with _listening(reader, agents, board), _sampled(reader, board) as sample:
            await _schedule(writer, agents, lags.rate, scale.seconds, board, sample)
            await _until_complete(board)
        lags.boards.append(board)
        return board.lags(FEED)

    return Variant(f"{lags.rate}/s", turn)


async def _new_agents(writer: Server) -> list[str]:
    async with connected(writer.port) as connection:
        return [await _new_agent(connection) for _ in range(_AGENTS)]


async def _new_agent(connection: Connection) -> str:
    made = orjson.loads(await connection.send(post("/v1/agents", b"{}"), expect=201))
    agent: str = made["id"]
    steps = orjson.dumps({"steps": [GIVEN] * _STEPS})
    await connection.send(post(f"/v1/agents/{agent}/steps", steps), expect=201)
    return agent


@asynccontextmanager
async def _listening(reader: Server, agents: list[str], board: Board) -> AsyncIterator[None]:
    """A reader of each agent's feed, which brings the agent into memory, and one of the log."""
    readers = [
        await reading(reader.port, get(f"/v1/agents/{agent}/events"), partial(board.hear_agent, agent))
        for agent in agents
    ]
    readers.append(await reading(reader.port, get("/v1/changes", Accept="text/event-stream"), board.hear_log))
    try:
        async with connected(reader.port) as connection:
            for agent in agents:
                await connection.ask(get(f"/v1/agents/{agent}"))
        yield
    finally:
        leave(readers)


async def _schedule(
    writer: Server, agents: list[str], rate: int, seconds: int, board: Board, sample: asyncio.Queue[Append]
) -> None:
    """Send an append whenever it is due, whether or not those before were answered."""
    async with AsyncExitStack() as stack:
        idle: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for _ in range(_MOST):
            idle.put_nowait(await stack.enter_async_context(connected(writer.port)))
        started = time.perf_counter()
        sent: list[asyncio.Task[None]] = []
        for number in range(rate * seconds):
            await asyncio.sleep(started + number / rate - time.perf_counter())
            sent.append(asyncio.create_task(_append(idle, agents[number % _AGENTS], board, sample)))
        await asyncio.gather(*sent)
        board.seconds = time.perf_counter() - started


async def _append(idle: asyncio.Queue[Connection], agent: str, board: Board, sample: asyncio.Queue[Append]) -> None:
    connection = await idle.get()
    answer = await connection.ask(post(f"/v1/agents/{agent}/steps", _STEP), expect=(201, 503))
    idle.put_nowait(connection)
    if answer.status == 503:
        board.refused += 1
        return
    board.acknowledged[agent, answer.version] = answer.at
    if sample.empty():
        sample.put_nowait((agent, answer.version))


@asynccontextmanager
async def _sampled(reader: Server, board: Board) -> AsyncIterator[asyncio.Queue[Append]]:
    """Where an append goes that is to be looked for; one that comes while another is looked for has to be new."""
    queue: asyncio.Queue[Append] = asyncio.Queue()
    polling = asyncio.create_task(_poll(reader, board, queue))
    try:
        yield queue
    finally:
        polling.cancel()


async def _poll(reader: Server, board: Board, queue: asyncio.Queue[Append]) -> None:
    async with connected(reader.port) as connection:
        while True:
            agent, version = await queue.get()
            board.shown[agent, version] = await _shown_at(connection, agent, version, board)
            await asyncio.sleep(_BETWEEN_SAMPLES)
            while not queue.empty():
                queue.get_nowait()


async def _shown_at(connection: Connection, agent: str, version: int, board: Board) -> float:
    request = get(f"/v1/agents/{agent}", If_None_Match=f'"{version - 1}"')
    while True:
        sent = time.perf_counter()
        answer = await connection.ask(request, expect=(200, 304))
        board.round_trips.append(answer.at - sent)
        if answer.version >= version:
            return answer.at


async def _until_complete(board: Board) -> None:
    """Wait for what is still on its way."""
    until = time.perf_counter() + _PATIENCE
    while not board.complete:
        if time.perf_counter() > until:
            raise TimeoutError("An append was acknowledged and never told.")
        await asyncio.sleep(0.01)
