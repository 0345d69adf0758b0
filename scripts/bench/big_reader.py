"""What others notice while one client reads a very long agent again and again from the same replica."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from statistics import quantiles

import orjson

from scripts.bench.http_answers import Answer
from scripts.bench.http_client import connected, get, post
from scripts.bench.lab import Lab
from scripts.bench.material import GIVEN, SHORT_STEPS, make_agent
from scripts.bench.report import Finding, Row, compared
from scripts.bench.rounds import Spread, Variant, milliseconds_each, take_turns
from scripts.bench.scale import Scale

Call = Callable[[], Awaitable[Answer]]

NAME = "big_reader"
_STEPS = 10_000
_HIGH_PERCENT = 95
_ALONE, _BESIDE = "alone", "beside a big reader"
_ABOUT = (
    f"What a small call over HTTP takes at a replica that answers nobody else, and while another client reads an agent "
    f"of {_STEPS} steps of 1 KB whole, its segments not in memory: p50 and p{_HIGH_PERCENT} of a read of a short agent "
    "from memory, and of an append to another, one after another for as long as the long answer takes. The replica "
    "works on one processor, so the long answer takes its share of it."
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure small calls, alone and beside the big reader, in turns."""
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(lab.runtime())
        long, short, grown = [await make_agent(runtime.agents, steps) for steps in (_STEPS, SHORT_STEPS, SHORT_STEPS)]
        replica = await stack.enter_async_context(lab.replica(segment_bytes=0))
        small = await stack.enter_async_context(connected(replica.port))
        big = await stack.enter_async_context(connected(replica.port))
        whole = get(f"/v1/agents/{long.name_in_tenant}?steps=all&steps_limit={_STEPS}")
        calls = {
            "read from memory": get(f"/v1/agents/{short.name_in_tenant}"),
            "append": post(f"/v1/agents/{grown.name_in_tenant}/steps", orjson.dumps(GIVEN)),
        }
        rows: list[Row] = []
        for case, request in calls.items():
            turns = _Turns(partial(small.ask, request), partial(big.ask, whole))
            rows += await turns.measured(case, scale)
    return Finding(NAME, _ABOUT, rows)


class _Turns:
    """Small calls, alone and while one long answer is under way."""

    def __init__(self, small: Call, big: Call) -> None:
        self._small = small
        self._big = big
        self._high: dict[str, list[float]] = {_ALONE: [], _BESIDE: []}
        self._long: list[float] = []

    async def measured(self, case: str, scale: Scale) -> list[Row]:
        variants = [Variant(_ALONE, partial(self._alone, scale.calls)), Variant(_BESIDE, self._beside)]
        figures = await take_turns(variants, scale.rounds)
        return [
            *compared(f"{case}, p50", "ms", figures, against=_ALONE),
            *compared(f"{case}, p{_HIGH_PERCENT}", "ms", self._high, against=_ALONE),
            Row(f"{case}, the long answer", _BESIDE, "ms", Spread.of(self._long)),
        ]

    async def _alone(self, calls: int) -> list[float]:
        return self._noted(_ALONE, await milliseconds_each(self._small, calls))

    async def _beside(self) -> list[float]:
        long = asyncio.create_task(milliseconds_each(self._big, 1))
        taken: list[float] = []
        while not long.done():
            taken += await milliseconds_each(self._small, 1)
        self._long += long.result()
        return self._noted(_BESIDE, taken)

    def _noted(self, name: str, taken: list[float]) -> list[float]:
        self._high[name].append(quantiles([taken[0], *taken], n=100, method="inclusive")[_HIGH_PERCENT - 1])
        return taken
