"""What a step costs an agent that has ten, a thousand or ten thousand of them: time, oplog, events, and reads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import orjson
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from app.lanes import Terms
from app.runtime import Runtime
from models.agent import AgentRecord
from models.tenant import ANONYMOUS
from scripts.bench.http_client import Connection, get, post
from scripts.bench.lab import Lab
from scripts.bench.material import GIVEN, make_agent
from scripts.bench.report import Bound, Finding, Row, compared
from scripts.bench.rounds import Spread, Variant, milliseconds_each, take_turns
from scripts.bench.scale import Scale

NAME = "growth"
_SIZES = (10, 1_000, 10_000)
_READ = (500, 10_000)
_FIRST = f"{_SIZES[0]} steps"
_STEPS_OF_A_ROUND = 1_500
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
_ABOUT = (
    "An agent that has some steps of 1 KB already. 'append' is the p50 over HTTP, one client. 'oplog' and 'event' are "
    f"bytes per step over {_STEPS_OF_A_ROUND} appends one after another, so that what sealing costs is in them: all "
    "oplog entries about agents and segments, and the change events of agents. 'fork' and 'read' are p50s over HTTP; "
    "'from memory' is unchanged since it was read last, 'no-cache' asks the database for its version, 'nothing in "
    "memory' is a replica with cache_bytes=0 and segment_bytes=0. "
    "A read shows the newest 1 000 steps, or as many as `steps_limit` asks for."
)


@dataclass(frozen=True)
class _Place:
    """Agents of each size, and connections to a replica with memory and to one without."""

    runtime: Runtime
    agents: dict[int, AgentRecord]
    warm: Connection
    cold: Connection


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure agents of each size in turns."""
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(lab.runtime())
        agents = {steps: await make_agent(runtime.agents, steps) for steps in sorted({*_SIZES, *_READ})}
        warm = await stack.enter_async_context(lab.connection())
        cold = await stack.enter_async_context(lab.connection(cache_bytes=0, segment_bytes=0))
        place = _Place(runtime, agents, warm, cold)
        rows = await _reads(place, scale)
        rows += await _calls(place, scale, "append", "/steps", GIVEN, Bound("≤", 1.3))
        rows += await _calls(place, scale, "fork", "/fork", {}, None)
        rows += await _bytes(place)
    return Finding(NAME, _ABOUT, rows)


async def _calls(place: _Place, scale: Scale, case: str, path: str, body: object, bound: Bound | None) -> list[Row]:
    """A write to an agent of each size, set against the smallest."""

    def variant(steps: int) -> Variant:
        request = post(f"/v1/agents/{place.agents[steps].name_in_tenant}{path}", orjson.dumps(body))

        async def turn() -> list[float]:
            return await milliseconds_each(lambda: place.warm.ask(request), scale.calls)

        return Variant(f"{steps} steps", turn)

    figures = await take_turns([variant(steps) for steps in _SIZES], scale.rounds)
    expected = {} if bound is None else {f"{steps} steps": bound for steps in _SIZES[1:]}
    return compared(case, "ms", figures, against=_FIRST, expected=expected)


async def _reads(place: _Place, scale: Scale) -> list[Row]:
    """Reads of a middling and a long agent: what is shown of it, and all of it."""
    asked = {"newest 1 000": "", "all": "?steps_limit=10000"}
    rows: list[Row] = []
    for case, query in asked.items():
        variants = [
            _reading(f"{steps} steps, {name}", connection, place.agents[steps], query, scale, **headers)
            for steps in _READ
            for name, connection, headers in (
                ("from memory", place.warm, {}),
                ("no-cache", place.warm, {"Cache_Control": "no-cache"}),
                ("nothing in memory", place.cold, {}),
            )
        ]
        figures = await take_turns(variants, scale.rounds)
        rows += compared(f"read, {case}", "ms", figures, against=f"{_READ[0]} steps, from memory")
    return rows


def _reading(
    name: str, connection: Connection, agent: AgentRecord, query: str, scale: Scale, **headers: str
) -> Variant:
    request = get(f"/v1/agents/{agent.name_in_tenant}{query}", **headers)
    return Variant(name, lambda: milliseconds_each(lambda: connection.ask(request), max(3, scale.calls // 10)))


async def _bytes(place: _Place) -> list[Row]:
    """Oplog and events per step, for so many steps that some are sealed meanwhile."""
    rows: list[Row] = []
    first: dict[str, float] = {}
    for steps in _SIZES:
        for case, found in (await _left_by(place.runtime, place.agents[steps])).items():
            each = found / _STEPS_OF_A_ROUND
            ratio = None if case not in first else Spread.of([each / first[case]])
            against = None if ratio is None else _FIRST
            bound = None if ratio is None else Bound("≤", 1.5)
            rows.append(Row(case, f"{steps} steps", "bytes", Spread.of([each]), ratio, against, bound))
            first.setdefault(case, each)
    return sorted(rows, key=lambda row: row.case)


async def _left_by(runtime: Runtime, agent: AgentRecord) -> dict[str, float]:
    """Bytes of the oplog entries and of the change events that the appends leave."""
    oplog = runtime.mongo.client["local"]["oplog.rs"].with_options(codec_options=_RAW)
    newest = await oplog.find_one(sort=[("$natural", -1)])
    assert newest is not None
    watched = runtime.mongo.agents.with_options(codec_options=_RAW)
    async with await watched.watch([{"$match": {"documentKey._id": agent.id}}], max_await_time_ms=200) as stream:
        for _ in range(_STEPS_OF_A_ROUND):
            await runtime.agents.append(ANONYMOUS, agent.name_in_tenant, [GIVEN], Terms(), advance_head=True)
        told = await _all_of(stream.try_next)
    names = [runtime.mongo.agents.full_name, runtime.mongo.segments.full_name]
    about = [{"ns": {"$in": names}}, {"o.applyOps.ns": {"$in": names}}]
    entries = oplog.find({"ts": {"$gt": newest["ts"]}, "$or": about})
    return {"oplog, per step": float(sum([len(entry.raw) async for entry in entries])), "event, per step": told}


async def _all_of(next_one: Callable[[], Awaitable[RawBSONDocument | None]]) -> float:
    total = 0
    while (event := await next_one()) is not None:
        total += len(event.raw)
    return float(total)
