"""Lives: ephemeral agents that are over are archived, and removed when they were archived for long enough.

Any replica does it, and all of them may: each step is a commit like any other. When a life is over is judged by two
clocks (`app.clock`), so none of them ends it too soon. What an agent learned stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any

from app.clock import Clock
from app.mongo import Mongo, unavailable_when_failing
from app.store import Store
from app.telemetry import get_logger
from models.agent import AgentRecord, delete
from models.assignment import archive
from models.change import Change, Stamp
from models.errors import HoldfastError, NotFound
from models.tenant import own_scope

_LOOK_SECONDS = 1.0
_BATCH = 100
_log = get_logger(__name__)


class Lives:
    """Ends the lives of all tenants' agents. `kept_seconds`: how long an archived one may still be read."""

    def __init__(self, mongo: Mongo, store: Store, clock: Clock, *, kept_seconds: float, seconds: float) -> None:
        self._mongo = mongo
        self._store = store
        self._clock = clock
        self._kept = timedelta(seconds=kept_seconds)
        self._seconds = seconds

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                full = max(await self.archive(), await self.remove()) == _BATCH
            except HoldfastError as error:
                _log.warning("lives wait for the database", code=error.code)
                full = False
            except Exception:  # noqa: BLE001 - the top of the loop
                _log.exception("lives can't be looked after")
                full = False
            await asyncio.sleep(0 if full else _LOOK_SECONDS)

    async def archive(self) -> int:
        """Archive some that are over; how many were looked at. Raises Unavailable."""
        return await self._each(
            {"expires_at": {"$lte": self._clock.earliest()}, "archived": {"$in": [None, False]}}, self._end
        )

    async def remove(self) -> int:
        """Remove some that were archived for long enough; how many were looked at. Raises Unavailable."""
        until = self._clock.earliest() - self._kept
        archived = {"archived": True, "last.at": {"$lte": until}}
        return await self._each({"expires_at": {"$lte": until}, **archived}, self._remove)

    async def _each(self, query: Mapping[str, Any], do: Callable[[str, str], Awaitable[None]]) -> int:
        with unavailable_when_failing(self._seconds):
            # unscoped: lives of all tenants' agents end
            found = await self._mongo.agents.find({**query, "deleted_at": None}, {"_id": 1}).limit(_BATCH).to_list()
        for one in found:
            tenant, _, agent = one["_id"].partition(":")
            try:
                await do(tenant, agent)
            except NotFound:
                continue
            except HoldfastError as error:  # one agent's trouble is no other's
                _log.warning("a life can't be ended", agent=agent, tenant=tenant, code=error.code)
        return len(found)

    async def _end(self, tenant: str, agent: str) -> None:
        closing = self._clock.new_id()
        await self._store.commit(own_scope(tenant), agent, lambda record, at: archive(record, at, closing))

    async def _remove(self, tenant: str, agent: str) -> None:
        def move(record: AgentRecord, at: Stamp) -> Change:
            gone = record.archived and record.ended_by(at.judged_at - self._kept)
            return delete(record, at) if gone else record.unchanged()

        await self._store.commit(own_scope(tenant), agent, move)
