"""What one append leaves in the oplog, which every member of a replica set copies and every change stream reads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import bson
import orjson
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from uuid_utils import uuid7

from app.runtime import Runtime
from models.agent import Agent, AgentRecord
from scripts.bench.lab import Lab
from scripts.bench.material import GIVEN, make_agent
from scripts.bench.report import Bound, Finding, Row
from scripts.bench.rounds import Spread
from scripts.bench.scale import Scale
from scripts.bench.ways import by_driver, by_service

NAME = "oplog_bytes"
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
_EXPECTED = Bound("≤", 1.5)
_STEP = "the step's JSON"
_LONG = 500
_ABOUT = (
    "BSON bytes of the oplog entries of one append, set against the step as it was sent, "
    f"{len(orjson.dumps(GIVEN))} bytes of JSON ({len(bson.encode(GIVEN))} of BSON)."
)

Append = Callable[[AgentRecord], Awaitable[object]]


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure agents of 10, 100 and 1 000 steps, and once what saving the whole document would have cost."""
    async with lab.runtime() as runtime:
        service, driver = by_service(runtime.agents), by_driver(runtime.mongo.agents)
        rows: list[Row] = []
        for steps in (10, 100, 1_000):
            case = f"{steps} steps"
            agent = await make_agent(runtime.agents, steps)
            ours = [await _left_by(runtime, agent, lambda to: service(0, to)) for _ in range(scale.calls)]
            theirs = [await _left_by(runtime, agent, lambda to: driver(0, to)) for _ in range(scale.calls)]
            rows += [_row(case, "holdfast", ours, _EXPECTED), _row(case, "driver, $set", theirs)]
        agent = await make_agent(runtime.agents, _LONG)
        rows.append(_row(f"{_LONG} steps", "Beanie save()", [await _left_by(runtime, agent, _save_whole)]))
    return Finding(NAME, _ABOUT, rows)


async def _left_by(runtime: Runtime, agent: AgentRecord, append: Append) -> float:
    """Bytes of the oplog entries about agents that came while the append ran."""
    oplog = runtime.mongo.client["local"].get_collection("oplog.rs", codec_options=_RAW)
    newest = await oplog.find_one(sort=[("$natural", -1)])
    assert newest is not None
    await append(agent)
    about = runtime.mongo.agents.full_name
    entries = oplog.find({"ts": {"$gt": newest["ts"]}, "$or": [{"ns": about}, {"o.applyOps.ns": about}]})
    return float(sum([len(entry.raw) async for entry in entries]))


async def _save_whole(agent: AgentRecord) -> None:
    """Append as an object mapper's user would: read the document, put the step in, save."""
    document = await Agent.get(agent.id)
    assert document is not None
    document.steps[uuid7().hex] = agent.steps[agent.head]
    await document.save()


def _row(case: str, variant: str, sizes: list[float], expected: Bound | None = None) -> Row:
    step = len(orjson.dumps(GIVEN))
    return Row(
        case, variant, "bytes", Spread.of(sizes), Spread.of([size / step for size in sizes]), _STEP, expected
    )
