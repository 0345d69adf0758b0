"""Reading agents whose values and prompts are stored apart, beside the same stored whole."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import orjson

from app.lanes import Terms
from app.mongo import ZSTD, Collection
from app.runtime import Runtime
from models.agent import AgentRecord
from models.tenant import ANONYMOUS
from scripts.bench.http_client import Connection, get
from scripts.bench.lab import Lab
from scripts.bench.material import contexts_of
from scripts.bench.peers_worker.words import vocabulary
from scripts.bench.report import Finding, Row, compared
from scripts.bench.rounds import Turn, Variant, milliseconds_each, take_turns
from scripts.bench.scale import Scale

NAME = "read_apart"
_VALUES, _VALUE_BYTES = 20, 40_000
_PROMPTS = 100
_WHOLE_BYTES = 4 * 1024 * 1024
_MEMORY = "from memory"
_ABOUT = (
    f"p50 of one read of a whole agent over HTTP, one client. 'values': {_VALUES} steps of {_VALUE_BYTES // 1000} KB, "
    "stored apart as by default, or in the agent's document (inline_bytes and seal_bytes of 4 MiB). 'prompts': "
    f"{_PROMPTS} steps that each send all messages so far, 10 MB, stored as what each adds; beside it the driver reads "
    "one document for each step with all of that in it (also compressed by zstd), and encodes it as JSON, in process. "
    "'nothing in memory' is a replica with cache_bytes, segment_bytes and blob_bytes of 0."
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure agents with values, then one with prompts."""
    async with AsyncExitStack() as stack:
        memory = await stack.enter_async_context(lab.connection())
        nothing = await stack.enter_async_context(lab.connection(cache_bytes=0, segment_bytes=0, blob_bytes=0))
        return Finding(
            NAME, _ABOUT, [*await _values(lab, memory, nothing, scale), *await _prompts(lab, memory, nothing, scale)]
        )


async def _values(lab: Lab, memory: Connection, nothing: Connection, scale: Scale) -> list[Row]:
    chance = random.Random(2)
    words = vocabulary(chance)
    texts = [" ".join(chance.choices(words, k=_VALUE_BYTES // 6)) for _ in range(_VALUES)]
    steps = [{"role": "agent", "content": text} for text in texts]
    async with lab.runtime() as runtime:
        apart = await _made(runtime, steps)
    async with lab.runtime(inline_bytes=_WHOLE_BYTES, seal_bytes=_WHOLE_BYTES) as runtime:
        whole = await _made(runtime, steps)
    variants = [
        Variant(f"apart, {_MEMORY}", _by_http(memory, apart, scale)),
        Variant(f"in the document, {_MEMORY}", _by_http(memory, whole, scale)),
        Variant("apart, nothing in memory", _by_http(nothing, apart, scale)),
        Variant("in the document, nothing in memory", _by_http(nothing, whole, scale)),
    ]
    return compared("values", "ms", await take_turns(variants, scale.rounds), against=f"apart, {_MEMORY}")


async def _prompts(lab: Lab, memory: Connection, nothing: Connection, scale: Scale) -> list[Row]:
    steps: list[dict[str, Any]] = [
        {"role": "agent", "content": "done", "input_messages": context} for context in contexts_of(_PROMPTS)
    ]
    async with lab.runtime() as runtime, lab.driver() as collection:
        agent = await _made(runtime, steps)
        whole = await collection.database.create_collection("steps_whole", storageEngine=ZSTD)
        await whole.insert_many([{"_id": number, **step} for number, step in enumerate(steps)])
        variants = [
            Variant(f"apart, {_MEMORY}", _by_http(memory, agent, scale)),
            Variant("apart, nothing in memory", _by_http(nothing, agent, scale)),
            Variant("driver, a document for each step", _by_driver(whole, scale)),
        ]
        figures = await take_turns(variants, scale.rounds)
    return compared("prompts", "ms", figures, against=f"apart, {_MEMORY}")


async def _made(runtime: Runtime, steps: Sequence[dict[str, Any]]) -> AgentRecord:
    made = await runtime.agents.create(ANONYMOUS, {}, Terms())
    for step in steps:
        made = await runtime.agents.append(ANONYMOUS, made.record.name_in_tenant, [step], Terms(), advance_head=True)
    return made.record.bare()


def _by_http(connection: Connection, agent: AgentRecord, scale: Scale) -> Turn:
    request = get(f"/v1/agents/{agent.name_in_tenant}")
    return lambda: milliseconds_each(lambda: connection.ask(request), scale.calls)


def _by_driver(collection: Collection, scale: Scale) -> Turn:
    async def read() -> bytes:
        return orjson.dumps(await collection.find({}).sort("_id", 1).to_list())

    return lambda: milliseconds_each(read, scale.calls)
