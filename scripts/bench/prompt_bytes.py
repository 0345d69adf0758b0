"""What is stored of agents that send their whole context with each step."""

from __future__ import annotations

from typing import Any

import orjson

from app.lanes import Terms
from app.runtime import Runtime
from models.agent import AgentRecord
from models.path import path
from models.tenant import ANONYMOUS
from scripts.bench.lab import Lab
from scripts.bench.material import contexts_of
from scripts.bench.report import Bound, Finding, Row
from scripts.bench.rounds import Spread
from scripts.bench.scale import Scale

NAME = "prompt_bytes"
_STEPS = (10, 100, 300)
_EXPECTED = Bound("≤", 900_000)
_ABOUT = (
    "Agents whose every step adds two messages of about 1 KB of English-like words and sends all messages so far as "
    "`input_messages`. 'sent' is the JSON of all steps, 'new' that of the messages that were new; 'stored' is the BSON "
    "of the agent's document and of what is stored apart for it, before the database compresses it. All steps are "
    "read back and compared with what was sent. The expectation is that of 100 steps."
)


async def run(lab: Lab, _: Scale) -> Finding:
    """Measure agents of a few lengths, once each: bytes do not vary."""
    rows: list[Row] = []
    for steps in _STEPS:
        elsewhere = lab.elsewhere()
        async with elsewhere as place, place.runtime() as runtime:
            rows += await _measured(runtime, steps)
    return Finding(NAME, _ABOUT, rows)


async def _measured(runtime: Runtime, steps: int) -> list[Row]:
    contexts = contexts_of(steps)
    agent = (await runtime.agents.create(ANONYMOUS, {}, Terms())).record.name_in_tenant
    record = None
    for context in contexts:
        step: dict[str, Any] = {"role": "agent", "content": "done", "input_messages": context}
        record = (await runtime.agents.append(ANONYMOUS, agent, [step], Terms(), advance_head=True)).record
    assert record is not None
    known, shown = await runtime.filling.answered(record, _steps)
    read = orjson.loads(await runtime.filling.encoded(known, shown))
    assert [step["input_messages"] for step in read] == contexts
    stored = sum([await _stored(runtime, name) for name in ("agents", "segments", "blobs")])
    new = len(orjson.dumps(contexts[-1]))
    figures = {"sent": sum(len(orjson.dumps(context)) for context in contexts), "new": new, "stored": stored}
    expected = {"stored": _EXPECTED} if steps == 100 else {}
    return [
        Row(
            f"{steps} steps",
            name,
            "bytes",
            Spread.of([value]),
            expected=expected.get(name),
            note=f"{value / new:.2f}× new",
        )
        for name, value in figures.items()
    ]


def _steps(record: AgentRecord) -> list[dict[str, Any]]:
    return [record.step(step) for step in path(record)]


async def _stored(runtime: Runtime, collection: str) -> int:
    sizes = await runtime.mongo.database[collection].aggregate(
        [{"$group": {"_id": None, "bytes": {"$sum": {"$bsonSize": "$$ROOT"}}}}]
    )
    return sum([group["bytes"] async for group in sizes])
