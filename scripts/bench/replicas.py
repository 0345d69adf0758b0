"""Two replicas against one on the same machine, under a mixed load."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from statistics import median

from scripts.bench.lab import Lab
from scripts.bench.mixed import Fleet, started, work
from scripts.bench.processes import Server, cpu_seconds
from scripts.bench.report import Finding, compared
from scripts.bench.rounds import Variant, take_turns
from scripts.bench.scale import Scale

NAME = "replicas"
_CLIENTS = 16
_AGENTS = 32
_STEPS = 50
_ONE = "one replica"
_TWO = "two replicas"
_ABOUT = (
    f"{_CLIENTS} clients that work on {_AGENTS} agents without a pause, all through one replica, or half of them "
    "through each of two. Client, replicas and database share the machine's processors: where one replica keeps a "
    "processor busy and the database and the client the other, a second replica has nothing to run on. '/cpu s' is "
    "operations per second of the replicas' processor time, their heartbeats and change streams included. The mix: "
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure both in turns, on the same agents."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(lab.replica()) for _ in range(2)]
        fleet = await started(servers[0], _AGENTS, _STEPS)
        costs: dict[str, list[float]] = {_ONE: [], _TWO: []}
        variants = [
            _variant(_ONE, servers[:1], servers, fleet, scale, costs[_ONE]),
            _variant(_TWO, servers, servers, fleet, scale, costs[_TWO]),
        ]
        figures = await take_turns(variants, scale.rounds)
    notes = {name: f"{1000 / median(each):.2f} ms of processor time per operation" for name, each in costs.items()}
    rows = compared("operations", "/s", figures, against=_ONE)
    rows += compared("operations, by cost", "/cpu s", costs, against=_ONE, notes=notes)
    return Finding(NAME, _ABOUT + fleet.mix + ".", rows)


def _variant(
    name: str, asked: Sequence[Server], running: Sequence[Server], fleet: Fleet, scale: Scale, costs: list[float]
) -> Variant:
    async def turn() -> list[float]:
        used, done, began = sum(cpu_seconds(server.pid) for server in running), fleet.done, time.monotonic()
        until = began + scale.seconds
        await work(asked, fleet, _CLIENTS, lambda: time.monotonic() >= until)
        operations = fleet.done - done
        costs.append(operations / (sum(cpu_seconds(server.pid) for server in running) - used))
        return [operations / (time.monotonic() - began)]

    return Variant(name, turn)
