"""Reading an agent of 500 steps as JSON: in process and over HTTP, beside the object mapper's way."""

from __future__ import annotations

from contextlib import AsyncExitStack

import orjson

from app.api import views
from app.mongo import Collection
from app.reads import Freshness
from app.runtime import Runtime
from models.agent import Agent, AgentRecord
from models.tenant import ANONYMOUS
from scripts.bench.http_client import Connection, connected, get
from scripts.bench.lab import Lab
from scripts.bench.material import make_agent
from scripts.bench.report import Bound, Finding, compared
from scripts.bench.rounds import Turn, Variant, milliseconds_each, take_turns
from scripts.bench.scale import Scale

NAME = "read_500"
_STEPS = 500
_WHOLE_BYTES = 4 * 1024 * 1024
_HTTP = "holdfast, HTTP"
_BEANIE = "Beanie get, model_dump_json"
_EXPECTED = {_BEANIE: Bound("≥", 30.0)}
_ABOUT = (
    "p50 of one read, one client; the ratio is how many times as long as an answer from a replica's memory over HTTP. "
    "Beanie and the driver ask the database each time, in process; 'driver' is find_one to a dict and JSON of it as it "
    "is. 'encoded anew' has the agent from memory and makes the answer each time. 'no-cache' asks the database for the "
    "version, linearizable, and takes the rest from memory. 'nothing in memory' is a replica with cache_bytes and "
    "segment_bytes of 0, which reads the whole agent each time. Beanie, the driver and 'no segments' read an agent "
    "whose steps are all in its document. 'bare ASGI' is the floor, a constant answer of as many bytes "
    "(see cached_read). The HTTP client is the bare one of append_http; it takes all bytes and looks at none."
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure one agent, read by everybody."""
    async with lab.runtime(seal_bytes=_WHOLE_BYTES) as unsealing:
        whole = await make_agent(unsealing.agents, _STEPS)
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(lab.runtime())
        collection = await stack.enter_async_context(lab.driver())
        connection = await stack.enter_async_context(lab.connection())
        other = await stack.enter_async_context(lab.connection(cache_bytes=0, segment_bytes=0))
        agent = await make_agent(runtime.agents, _STEPS)
        size = len(await connection.send(_read(agent), expect=200))
        bare = await stack.enter_async_context(lab.bare([size]))
        floor = await stack.enter_async_context(connected(bare.port))
        variants = [
            Variant(_HTTP, _by_http(connection, _read(agent), scale)),
            Variant("bare ASGI, HTTP", _by_http(floor, get(f"/{size}"), scale)),
            Variant(_BEANIE, _by_beanie(whole, scale)),
            Variant("driver, find_one", _by_driver(collection, whole, scale)),
            Variant("holdfast, in process, encoded anew", _by_service(runtime, agent, scale)),
            Variant("holdfast, HTTP, no-cache", _by_http(connection, _read(agent, Cache_Control="no-cache"), scale)),
            Variant("holdfast, HTTP, nothing in memory", _by_http(other, _read(agent), scale)),
            Variant("holdfast, HTTP, nothing in memory, no segments", _by_http(other, _read(whole), scale)),
        ]
        figures = await take_turns(variants, scale.rounds)
    return Finding(NAME, _ABOUT, compared(f"{_STEPS} steps", "ms", figures, against=_HTTP, expected=_EXPECTED))


def _by_beanie(agent: AgentRecord, scale: Scale) -> Turn:
    async def read() -> bytes:
        document = await Agent.get(agent.id)
        assert document is not None
        return document.model_dump_json().encode()

    return lambda: milliseconds_each(read, scale.calls)


def _by_driver(collection: Collection, agent: AgentRecord, scale: Scale) -> Turn:
    async def read() -> bytes:
        return orjson.dumps(await collection.find_one({"_id": agent.id}))

    return lambda: milliseconds_each(read, scale.calls)


def _by_service(runtime: Runtime, agent: AgentRecord, scale: Scale) -> Turn:
    async def read() -> bytes:
        seen = await runtime.agents.get(ANONYMOUS, agent.name_in_tenant, Freshness())
        known, shown = await runtime.filling.answered(seen.record, views.agent)
        return await runtime.filling.encoded(known, shown)

    return lambda: milliseconds_each(read, scale.calls)


def _read(agent: AgentRecord, **headers: str) -> bytes:
    return get(f"/v1/agents/{agent.name_in_tenant}", **headers)


def _by_http(connection: Connection, request: bytes, scale: Scale) -> Turn:
    return lambda: milliseconds_each(lambda: connection.ask(request), scale.calls)
