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
_SENT = "step as sent"
_STORED = "step as stored"
_LONG = 500
_ABOUT = (
    "BSON bytes of the oplog entries of one append, set against the step: as it was sent, "
    f"{len(orjson.dumps(GIVEN))} bytes of JSON, and as it is stored (with seq, version, parent, turn, index, time), "
    "in BSON. The expectation is about the second. The driver writes the same stored step."
)

Append = Callable[[AgentRecord], Awaitable[object]]


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure agents of 10, 100 and 1 000 steps, and once what saving the whole document would have cost."""
    async with lab.runtime() as runtime, lab.driver() as collection:
        service, driver = by_service(runtime.agents), by_driver(collection)
        rows: list[Row] = []
        for steps in (10, 100, 1_000):
            case = f"{steps} steps"
            agent = await make_agent(runtime.agents, steps)
            ours = [await _left_by(runtime, agent, lambda to: service(0, to)) for _ in range(scale.calls)]
            theirs = [await _left_by(runtime, agent, lambda to: driver(0, to)) for _ in range(scale.calls)]
            rows += _rows(case, "holdfast", ours, agent, _EXPECTED) + _rows(case, "driver, $set", theirs, agent)
        agent = await make_agent(runtime.agents, _LONG)
        rows += _rows(f"{_LONG} steps", "Beanie save()", [await _left_by(runtime, agent, _save_whole)], agent)
    return Finding(NAME, _ABOUT, rows)


async def _left_by(runtime: Runtime, agent: AgentRecord, append: Append) -> float:
    """Bytes of the oplog entries about agents that came while the append ran."""
    oplog = runtime.mongo.client["local"]["oplog.rs"].with_options(codec_options=_RAW)
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


def _rows(case: str, variant: str, sizes: list[float], agent: AgentRecord, expected: Bound | None = None) -> list[Row]:
    """The same sizes against the step as sent and as stored."""
    sent, stored = len(orjson.dumps(GIVEN)), len(bson.encode(agent.steps[agent.head]))
    size = Spread.of(sizes)
    return [
        Row(case, variant, "bytes", size, Spread.of([each / sent for each in sizes]), _SENT),
        Row(case, variant, "bytes", size, Spread.of([each / stored for each in sizes]), _STORED, expected),
    ]
