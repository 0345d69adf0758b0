"""Orphans: agents that are assigned to a runner that is gone, or run without one. They are brought to where they wait.

Each is judged again in the commit itself, so any number of replicas may do this at once, and again: what another did
already changes nothing. An agent whose runner lives is never touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from itertools import starmap
from typing import Any

from app.bell import Bell, pool_topic
from app.clock import Clock
from app.mongo import Mongo, unavailable_when_failing
from app.roster import Roster
from app.store import Store
from app.telemetry import get_logger
from models.agent import AgentRecord
from models.assignment import orphan
from models.change import Change, Stamp
from models.errors import HoldfastError, NotFound
from models.execution import IN_TURN, State, Trigger
from models.runner import RunnerRecord
from models.tenant import Scope, own_scope
from models.transition import Move
from models.turn import broken_off

_AT_ONCE = 16
_PAGE = 200
_ASSIGNED = {"runner": 1, "incarnation": 1, "state": 1, "pool": 1, "dormant": 1, "version": 1}
_UNDER_WAY = [State.STARTING.value, *sorted(state.value for state in IN_TURN)]
_NO_RUNNER = "no live runner drives it"
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reconciled:
    """One agent that was brought to where it waits, or would be."""

    tenant: str
    agent: str
    state: str
    to: str
    reason: str

    def shown(self) -> dict[str, str]:
        """As callers see it."""
        return {"agent": self.agent, "from": self.state, "to": self.to, "reason": self.reason}


class Orphans:
    """Finds and frees orphans. What fails raises Unavailable."""

    def __init__(self, mongo: Mongo, store: Store, roster: Roster, bell: Bell, clock: Clock, *, seconds: float) -> None:
        self._mongo = mongo
        self._store = store
        self._roster = roster
        self._bell = bell
        self._clock = clock
        self._seconds = seconds

    async def free(self, runner: RunnerRecord) -> tuple[list[Reconciled], bool]:
        """Free every agent of a runner that is gone, or of its earlier incarnations; and whether those are all."""
        held = {
            "tenant": runner.tenant,
            "runner": runner.name,
            "incarnation": {"$lte": runner.past},
            "dormant": {"$ne": True},
        }
        freed: list[Reconciled] = []
        while found := await self._page(held):
            reason = _reason_of(runner)
            done = await self.free_each([(one, reason) for one in found])
            freed += done
            if not done:
                return freed, False  # the rest is tried again later
        return freed, True

    async def look_through(self, scope: Scope | None) -> AsyncIterator[tuple[int, list[tuple[Mapping[str, Any], str]]]]:
        """Every agent that a runner drives, or should: of each page how many, and the orphans with reasons.

        Those that a scope sees, or of all tenants. Only such agents are read, however many there are beside them.
        """
        driven = {"runner": {"$exists": True}, "deleted_at": None}
        undriven = {"state": {"$in": _UNDER_WAY}, "runner": None, "pool": {"$ne": None}, "deleted_at": None}
        for query, index in ((driven, "driven"), (undriven, "in_turn")):
            async for page in self._pages(query if scope is None else scope.filter(query), index):
                present = await self._present(page)
                judged = ((one, _why_orphaned(one, present)) for one in page)
                yield len(page), [(one, reason) for one, reason in judged if reason is not None]

    async def free_each(self, orphans: Iterable[tuple[Mapping[str, Any], str]]) -> list[Reconciled]:
        """Free these, each for its reason."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def freed(one: Mapping[str, Any], reason: str) -> Reconciled | None:
            async with limit:
                return await self._free_one(one, reason)

        done = await asyncio.gather(*starmap(freed, orphans))
        return [one for one in done if one is not None]

    def foreseen(self, seen: Mapping[str, Any], reason: str) -> Reconciled:
        """What freeing an orphan would come to."""
        tenant, _, agent = seen["_id"].partition(":")
        to = State.FAILED.value if seen["state"] in _UNDER_WAY else seen["state"]
        return Reconciled(tenant, agent, seen["state"], to, reason)

    async def end_turn(self, key: str, version: int, reason: str) -> Reconciled | None:
        """Break off a turn without a runner, at this very version of its agent."""
        tenant, _, agent = key.partition(":")
        closing = self._clock.new_id()

        def move(record: AgentRecord, stamp: Stamp) -> Change:
            if record.version != version or record.runner is not None or record.state not in IN_TURN:
                return record.unchanged()
            return broken_off(record, [Move(State.FAILED, Trigger.RECONCILIATION, reason)], stamp, closing)

        return await self._commit(own_scope(tenant), agent, move, reason)

    async def _free_one(self, seen: Mapping[str, Any], reason: str) -> Reconciled | None:
        tenant, _, agent = seen["_id"].partition(":")
        closing = self._clock.new_id()

        def move(record: AgentRecord, stamp: Stamp) -> Change:
            same = (record.runner, record.incarnation) == (seen.get("runner"), seen.get("incarnation"))
            if not same or record.dormant or (record.runner is None and record.state != seen["state"]):
                return record.unchanged()
            return orphan(record, reason, stamp, closing)

        return await self._commit(own_scope(tenant), agent, move, reason)

    async def _commit(self, scope: Scope, agent: str, move: Any, reason: str) -> Reconciled | None:
        before: list[str] = []

        def noted(record: AgentRecord, stamp: Stamp) -> Change:
            before[:] = [record.state]
            change: Change = move(record, stamp)
            return change

        try:
            done = await self._store.commit(scope, agent, noted)
        except NotFound:
            return None
        except HoldfastError as error:
            _log.warning("an agent could not be freed", agent=agent, tenant=scope.tenant, code=error.code)
            return None
        if not done.changed:
            return None
        record = done.record
        _log.info("agent freed", agent=agent, tenant=scope.tenant, state=before[0], to=record.state, reason=reason)
        if record.pool is not None:
            self._bell.ring(pool_topic(scope.tenant, record.pool))
        return Reconciled(scope.tenant, agent, before[0], record.state, reason)

    async def _page(self, query: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        with unavailable_when_failing(self._seconds):
            # unscoped: on behalf of nobody; queries name the tenant where there is one
            found = self._mongo.agents.find(query, _ASSIGNED).sort("_id", 1).limit(_PAGE)
            return [{"dormant": False, **document} async for document in found]

    async def _pages(self, query: Mapping[str, Any], index: str) -> AsyncIterator[list[Mapping[str, Any]]]:
        # unscoped: as above
        cursor = self._mongo.agents.find(query, _ASSIGNED, batch_size=_PAGE).hint(index)
        while True:
            with unavailable_when_failing(self._seconds):
                found = await cursor.to_list(_PAGE)
            if not found:
                return
            yield [{"dormant": False, **document} for document in found]

    async def _present(self, page: Iterable[Mapping[str, Any]]) -> dict[str, int]:
        """The incarnation of each present runner of these agents, by its key."""
        keys = {f"{one['_id'].partition(':')[0]}:{one['runner']}" for one in page if one.get("runner")}
        return await self._roster.incarnations(keys)


def _reason_of(runner: RunnerRecord) -> str:
    if runner.present:
        return f"its runner '{runner.name}' was registered anew"
    return f"its runner '{runner.name}' is {'silent' if runner.state == 'dead' else 'gone'}"


def _why_orphaned(seen: Mapping[str, Any], present: Mapping[str, int]) -> str | None:
    """Why the agent is an orphan; None for one that is none."""
    if seen["dormant"]:
        return None
    runner = seen.get("runner")
    if runner is None:
        return _NO_RUNNER if seen.get("pool") and seen["state"] in _UNDER_WAY else None
    tenant = seen["_id"].partition(":")[0]
    if present.get(f"{tenant}:{runner}") == seen.get("incarnation"):
        return None
    return f"its runner '{runner}' is gone or was registered anew"
