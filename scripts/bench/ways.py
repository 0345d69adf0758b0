"""The ways to append one step: the bare driver, the bare driver with a guard, the service in process and over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
from uuid_utils import uuid7

from app.agents import Agents
from app.lanes import Terms
from app.mongo import Collection
from models.agent import AgentRecord
from models.tenant import ANONYMOUS
from scripts.bench.http_client import Connection, post
from scripts.bench.material import GIVEN

Way = Callable[[int, AgentRecord], Awaitable[object]]
"""Appends a step to an agent, on behalf of the client of that number."""

_TERMS = Terms()
_BODY = orjson.dumps(GIVEN)


def by_driver(collection: Collection) -> Way:
    """One `update_one` that sets the step under its id: no version, order or HEAD; the least that an append can be."""

    async def append(_: int, agent: AgentRecord) -> object:
        return await collection.update_one({"_id": agent.id}, {"$set": _assigned(agent)})

    return append


def by_guarded_driver(collection: Collection) -> Way:
    """The same under a version in the filter, read again after each miss: what one writes by hand to be safe."""
    known: dict[tuple[int, str], int] = {}

    async def append(client: int, agent: AgentRecord) -> None:
        seen = client, agent.id
        while True:
            guard = {"_id": agent.id, "version": known.setdefault(seen, agent.version)}
            update = {"$set": _assigned(agent), "$inc": {"version": 1}}
            if (await collection.update_one(guard, update)).matched_count:
                known[seen] += 1
                return
            known[seen] = await _version(collection, agent.id)

    return append


def by_service(agents: Agents) -> Way:
    """The service's own verb, in this process."""

    async def append(_: int, agent: AgentRecord) -> object:
        return await agents.append(ANONYMOUS, agent.name_in_tenant, [GIVEN], _TERMS, advance_head=True)

    return append


def by_http(connections: Sequence[Connection]) -> Way:
    """A POST to a replica, each client over a connection of its own."""

    async def append(client: int, agent: AgentRecord) -> object:
        request = post(f"/v1/agents/{agent.name_in_tenant}/steps", _BODY)
        return await connections[client].send(request, expect=201)

    return append


def _assigned(agent: AgentRecord) -> dict[str, Any]:
    """A step as the service would store it, under a new id."""
    return {f"steps.{uuid7().hex}": agent.steps[agent.head]}


async def _version(collection: Collection, key: str) -> int:
    found = await collection.find_one({"_id": key}, {"version": 1})
    if found is None:
        raise LookupError(key)
    version: int = found["version"]
    return version
