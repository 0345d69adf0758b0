"""Reading an agent of 500 steps as JSON: in process and over HTTP, beside the object mapper's way."""

from __future__ import annotations

from contextlib import AsyncExitStack

import orjson

from app.api import views
from app.api.answers import encode
from app.mongo import Collection
from app.reads import Freshness
from app.runtime import Runtime
from models.agent import Agent, AgentRecord
from models.tenant import ANONYMOUS
from scripts.bench.http_client import Connection, connected, get
from scripts.bench.lab import Lab
from scripts.bench.material import make_agent
from scripts.bench.report import Finding, compared
from scripts.bench.rounds import Turn, Variant, milliseconds_each, take_turns
from scripts.bench.scale import Scale

NAME = "read_500"
_STEPS = 500
_BEANIE = "Beanie get, model_dump_json"
_ABOUT = (
    "p50 of one read, one client. Every read asks the database; bounded staleness (the default), not linearizable. "
    "The HTTP client is the bare one of append_http. 'driver' is find_one to a dict and JSON of it as it is."
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure one agent, read by everybody."""
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(lab.runtime())
        collection = await stack.enter_async_context(lab.driver())
        replica = await stack.enter_async_context(lab.replica())
        connection = await stack.enter_async_context(connected(replica.port))
        agent = await make_agent(runtime.agents, _STEPS)
        variants = [
            Variant(_BEANIE, _by_beanie(agent, scale)),
            Variant("driver, find_one", _by_driver(collection, agent, scale)),
            Variant("holdfast, in process", _by_service(runtime, agent, scale)),
            Variant("holdfast, HTTP", _by_http(connection, agent, scale)),
        ]
        figures = await take_turns(variants, scale.rounds)
    return Finding(NAME, _ABOUT, compared(f"{_STEPS} steps", "ms", figures, against=_BEANIE))


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
        return encode(views.agent(seen.record))

    return lambda: milliseconds_each(read, scale.calls)


def _by_http(connection: Connection, agent: AgentRecord, scale: Scale) -> Turn:
    request = get(f"/v1/agents/{agent.name_in_tenant}")
    return lambda: milliseconds_each(lambda: connection.send(request, expect=200), scale.calls)
