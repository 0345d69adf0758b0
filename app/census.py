"""The census: who of a tenant is alive, and how much of everything it has. It only reads."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from app.mongo import Collection, Mongo, unavailable_when_failing
from models.execution import OVER
from models.runner import PRESENT
from models.tenant import Scope

_RUNNER = {"pool": 1, "state": 1, "seen_at": 1}
_AGENT = {"state": 1, "last.at": 1, "expires_at": 1, "runner": 1}
_MOST = 1_000
"""Of each kind that is named; the counts are of all."""


class Census:
    """Answers about a tenant. What fails raises Unavailable."""

    def __init__(self, mongo: Mongo, *, seconds: float) -> None:
        self._mongo = mongo
        self._seconds = seconds

    async def present(self, scope: Scope) -> dict[str, Any]:
        """Runners that are taken to live and ephemeral agents that do, each with when it was last heard of."""
        living = scope.filter({"state": {"$in": [state.value for state in PRESENT]}})
        ephemeral = {"$or": [{"ttl_seconds": {"$ne": None}}, {"idle_seconds": {"$ne": None}}]}
        over = {"deleted_at": None, "archived": {"$ne": True}, "state": {"$nin": [state.value for state in OVER]}}
        with unavailable_when_failing(self._seconds):
            runners = await self._mongo.runners.find(living, _RUNNER).sort("_id", 1).limit(_MOST).to_list()
            agents = self._mongo.agents.find(scope.filter({**ephemeral, **over}), _AGENT).sort("_id", 1)
            found = await agents.limit(_MOST).to_list()
        return {"runners": [_runner(one) for one in runners], "agents": [_agent(one) for one in found]}

    async def counted(self, scope: Scope) -> dict[str, Any]:
        """How many agents by state, steps, runners by state, commands by status, episodes."""
        agents, runners, commands, episodes, steps = await asyncio.gather(
            self._by(self._mongo.agents, scope, {"deleted_at": None}, "state"),
            self._by(self._mongo.runners, scope, {}, "state"),
            self._by(self._mongo.commands, scope, {"status": {"$exists": True}}, "status"),
            self._count(self._mongo.episodes, scope),
            self._steps(scope),
        )
        return {"agents": agents, "steps": steps, "runners": runners, "commands": commands, "episodes": episodes}

    async def _by(self, kind: Collection, scope: Scope, query: dict[str, Any], field: str) -> dict[str, int]:
        with unavailable_when_failing(self._seconds):
            grouped = {"$group": {"_id": f"${field}", "count": {"$sum": 1}}}
            found = await kind.aggregate([{"$match": scope.filter(query)}, grouped])
            return {str(one["_id"]): one["count"] async for one in found}

    async def _count(self, kind: Collection, scope: Scope) -> int:
        with unavailable_when_failing(self._seconds):
            return await kind.count_documents(scope.filter({}))

    async def _steps(self, scope: Scope) -> int:
        with unavailable_when_failing(self._seconds):
            summed = {"$group": {"_id": None, "steps": {"$sum": "$step_count"}}}
            found = await self._mongo.agents.aggregate([{"$match": scope.filter({"deleted_at": None})}, summed])
            return sum([one["steps"] async for one in found])


def _runner(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": _name(found), "pool": found["pool"], "state": found["state"], "last_seen": found["seen_at"]}


def _agent(found: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: found.get(name) for name in ("state", "runner", "expires_at")}
    return {"id": _name(found), **told, "last_seen": found.get("last", {}).get("at")}


def _name(found: Mapping[str, Any]) -> str:
    name: str = found["_id"].partition(":")[2]
    return name
