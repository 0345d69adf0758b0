"""Runners: every verb of the contract about those who drive agents: register, beat, claim, release, drain, leave.

A claim is one transaction over the runner's document, which counts, and the agent's, which gets the runner and a new
fence: so no agent is ever claimed twice and no runner gets more than it can drive. Heartbeats touch no agent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from app.bell import Bell, Waiter, pool_topic
from app.clock import Clock
from app.commands import Commands
from app.lanes import Committed, Terms
from app.mongo import Mongo, unavailable_when_failing
from app.roster import Roster, require_own
from app.settling import Settling
from app.store import Store
from app.telemetry import Metrics, get_logger
from app.tenancy import Keys
from app.vault import SecretKeyProblem, Vault
from models.agent import AgentRecord
from models.assignment import CLAIMED_AS_IS, ClaimTerms, claim, claimed, orphan
from models.change import Change, Stamp
from models.command import CommandRecord
from models.commit import Guard
from models.errors import Conflict, HoldfastError, NotFound, Unavailable
from models.execution import State
from models.runner import PoolRecord, RunnerRecord, RunnerState
from models.tenant import Scope

_POLL_SECONDS = 0.5
"""How often who waits looks unasked."""

_YIELD_SECONDS, _YIELDS = 0.2, 10
"""How long a runner that has its share leaves the rest to those that have less, as long as they take of it."""

_AGAIN_SECONDS = 1.0
"""How long who waits for commands is left in peace with those that it was sent already."""

_OFFER_SECONDS = 10.0
"""For how long an agent that was handed off is left to the one that it was handed to."""

_SPARE = 16
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Beaten:
    """What a heartbeat answers."""

    runner: RunnerRecord
    agents: list[dict[str, Any]]
    lost: list[str]
    """Agents that the runner named and does not drive any more."""
    commands_waiting: int


class Runners:
    """Runners of all tenants, and what they are given to do.

    Calls for a runner raise NotFound, Forbidden for another's, FencedOut for one that is dead; all raise Unavailable.
    """

    def __init__(
        self,
        mongo: Mongo,
        store: Store,
        roster: Roster,
        settling: Settling,
        commands: Commands,
        keys: Keys,
        vault: Vault,
        bell: Bell,
        metrics: Metrics,
        clock: Clock,
        *,
        seconds: float,
    ) -> None:
        self._mongo = mongo
        self._store = store
        self._roster = roster
        self._settling = settling
        self._commands = commands
        self._keys = keys
        self._vault = vault
        self._bell = bell
        self._metrics = metrics
        self._clock = clock
        self._seconds = seconds
        self._first_seen: dict[tuple[str, int], float] = {}

    async def register(self, scope: Scope, spec: Mapping[str, Any]) -> tuple[RunnerRecord, str, bool]:
        """A runner in a new incarnation, its token, and whether it is new. What an earlier one drove is free at once.

        Raises Conflict when a live runner of another key has the id.
        """
        runner, new = await self._roster.register(scope, spec)
        with unavailable_when_failing(self._seconds):
            token = await self._keys.create_for_runner(scope, runner.name, runner.incarnation)
        if not new:
            await self._settle(runner)
        return runner, token, new

    @property
    def ending(self) -> bool:
        """Whether the replica ends, and nobody is to wait any more."""
        return self._bell.stopped

    async def own(self, scope: Scope, name: str) -> RunnerRecord:
        """A present runner that the caller may speak for."""
        return await self._roster.own(scope, name)

    async def get(self, scope: Scope, name: str) -> tuple[RunnerRecord, int]:
        """A runner, present or gone, and how many agents it drives."""
        runner = await self._roster.get(scope, name)
        return runner, (await self._loads(scope.tenant, [runner]))[runner.name]

    async def page(
        self, scope: Scope, query: Mapping[str, Any], *, after: str | None, limit: int
    ) -> list[tuple[RunnerRecord, int]]:
        """Runners in the order of their ids, each with how many agents it drives."""
        found = await self._roster.page(scope, query, after=after, limit=limit)
        loads = await self._loads(scope.tenant, found)
        return [(runner, loads[runner.name]) for runner in found]

    async def heartbeat(self, scope: Scope, name: str, driven: Sequence[str] | None, capacity: int | None) -> Beaten:
        """Say that the runner lives; what it drives by its agents' documents, and what it wrongly believes to drive."""
        runner = await self._roster.beat(scope, name, capacity)
        agents, waiting = await asyncio.gather(self._driven(runner), self._commands.waiting(runner))
        own = {agent["id"] for agent in agents}
        return Beaten(runner, agents, [agent for agent in driven or () if agent not in own], waiting)

    async def claim(
        self,
        scope: Scope,
        name: str,
        most: int,
        wait_seconds: float,
        *,
        known: Sequence[str] | None = None,
        left: Callable[[], bool] = lambda: False,
    ) -> list[dict[str, Any]]:
        """Up to `most` agents that waited for a runner; when there are none, those that come within the time.

        `known`: agents that the runner knows it drives; what it drives beside them is told again, for its claim was
        lost. Nothing more is claimed once the caller has `left`.
        """
        until = self._clock.monotonic() + wait_seconds
        runner = await self._roster.own(scope, name)
        lost = [] if known is None else await self._told_again(runner, set(known), most)
        if lost:
            return lost
        with self._bell.listening(pool_topic(runner.tenant, runner.pool)) as heard:
            while True:
                claims = [] if left() else await self._taken(scope, runner, most, left)
                if claims or left() or not await self._goes_on(heard, until):
                    return claims
                runner = await self._roster.own(scope, name)

    async def _told_again(self, runner: RunnerRecord, known: set[str], most: int) -> list[dict[str, Any]]:
        """The claims of agents that the runner drives and does not know of."""
        claims: list[dict[str, Any]] = []
        for one in await self._driven(runner):
            if one["id"] not in known and len(claims) < most:
                record = await self._store.read(f"{runner.tenant}:{one['id']}")
                if (record.runner, record.incarnation) == (runner.name, runner.incarnation):
                    claims.append({**claimed(record), **self._delegate(record)})
        return claims

    async def release(
        self, scope: Scope, name: str, agent: str, hand_off: str | bool | None, terms: Terms
    ) -> Committed:
        """Let an agent go, for any of the pool; or hand it to another, by its id or (True) to whichever has most room.

        For a while no other may claim it, as long as that one is present and has room. An open turn is broken off.
        Raises NotFound; Conflict when another drives the agent, or none is there to take it.
        """
        runner = await self._roster.get(scope, name)
        refused = _refusal(scope, runner)
        takers = await self._takers(runner) if hand_off else []
        closing = self._clock.new_id()

        def move(record: AgentRecord, at: Stamp) -> Change:
            if refused is not None:
                raise refused
            if (record.runner, record.incarnation) != (runner.name, runner.incarnation):
                raise Conflict(f"The runner '{runner.name}' does not drive the agent.", runner=record.runner)
            taker = _taker(record, takers, hand_off) if hand_off else None
            return orphan(record, f"its runner '{runner.name}' released it", at, closing, offered_to=taker)

        guard = terms.guard_of(scope) if scope.runner is None else terms.guard  # a token tells its incarnation
        if refused is not None:  # a repeat is answered as at first; else that it is refused comes before all terms
            guard = Guard()
        done = await self._store.commit(scope, agent, move, guard=guard, once=terms.once)
        if done.changed:
            with suppress(Unavailable):  # it was released; the commands are looked after
                await self._commands.follow(scope.tenant, [agent], None)
            self._bell.ring(pool_topic(runner.tenant, runner.pool))
        return done

    async def drain(self, scope: Scope, name: str) -> tuple[RunnerRecord, int]:
        """Let a runner drive what it has and claim nothing more; and how many agents that are."""
        runner = await self._roster.drain(scope, name)
        return runner, (await self._loads(scope.tenant, [runner]))[runner.name]

    async def leave(self, scope: Scope, name: str) -> None:
        """Take a runner off the roster; its agents are free at once."""
        await self._settle(await self._roster.leave(scope, name))

    async def commands(self, scope: Scope, name: str, wait_seconds: float) -> list[CommandRecord]:
        """The runner's next commands, in order; when there are none, those that come within the time."""
        until = self._clock.monotonic() + wait_seconds
        runner = await self._roster.own(scope, name)
        at_rest = min(until, self._clock.monotonic() + _AGAIN_SECONDS)
        with self._bell.listening(pool_topic(runner.tenant, runner.pool)) as heard:
            while True:
                due = await self._commands.next_for(runner, again=self._clock.monotonic() >= at_rest)
                if due or not await self._goes_on(heard, until):
                    return due
                runner = await self._roster.own(scope, name)

    async def pools(self, scope: Scope) -> list[dict[str, Any]]:
        """Every pool that has runners, agents, commands or a decision, by name."""
        runners = await self._grouped(self._mongo.runners, scope, {}, ["pool", "state"], capacity="$capacity")
        agents = await self._grouped(
            self._mongo.agents, scope, {"deleted_at": None}, ["pool", "state"], load=_IS_DRIVEN
        )
        with unavailable_when_failing(self._seconds):
            # unscoped: by the tenant
            decided = [each["_id"] async for each in self._mongo.pools.find({"tenant": scope.tenant}, {"_id": 1})]
        pools = _Pools([key.partition(":")[2] for key in decided] if scope.owner is None else [])
        for pool, state, count, capacity in runners:
            pools.add(pool, "runners", state, count, capacity=capacity if state in _CLAIMING else 0)
        for pool, state, count, load in agents:
            pools.add(pool, "agents", state, count, load=load)
        for pool, waiting, dead in await self._commands.counts(scope):
            pools.add(pool, commands_waiting=waiting, commands_dead=dead)
        return pools.listed()

    async def pool(self, scope: Scope, name: str) -> PoolRecord:
        """What was decided for a pool; the defaults where nothing was."""
        return await self._roster.pool(scope.tenant, name)

    async def set_pool(self, scope: Scope, name: str, decided: Mapping[str, Any]) -> PoolRecord:
        """Decide how a pool restarts agents that fail."""
        return await self._roster.set_pool(scope, name, decided)

    async def _settle(self, runner: RunnerRecord) -> None:
        """Let go of what the runner's past held; what can't be done now is done by reconciliation."""
        with suppress(Unavailable):
            await self._settling.settle(runner)

    async def _goes_on(self, heard: Waiter, until: float) -> bool:
        """Wait for a ring, or a little; False when the time is over."""
        left = until - self._clock.monotonic()
        if left <= 0 or self.ending:
            return False
        await heard.wait(min(left, _POLL_SECONDS))
        return True

    async def _taken(
        self, scope: Scope, runner: RunnerRecord, most: int, gone: Callable[[], bool]
    ) -> list[dict[str, Any]]:
        """Claim what waits: the runner's share of the pool at once, the rest after others had a moment to take it."""
        if runner.state != RunnerState.LIVE:
            return []
        pool = await self._roster.pool(runner.tenant, runner.pool)
        present = await self._roster.present(runner.tenant, runner.pool)
        limit = min((most + _SPARE) * max(1, len(present)), _LOOKED_AT)
        waiting = await self._waiting(runner, pool, limit)
        if not waiting:
            return []
        claiming = [one for one in present if one.state in _CLAIMING]
        loads = await self._loads(runner.tenant, claiming)
        most = min(most, runner.capacity - loads.get(runner.name, 0))
        if most <= 0:
            return []
        takers = {one.name for one in claiming if one.capacity > loads[one.name]} - {runner.name}
        terms = ClaimTerms(runner.driver(), pool.restarts())
        free = {
            agent: replace(terms, past_offer=seen.get("offered_to"))
            for agent, seen in waiting.items()
            if not self._is_kept(seen, takers)
        }
        share = min(most, _share(runner, claiming, loads, len(free)))
        claims = await self._claim_each(scope, runner, free, share)
        if share < most and len(claims) == share < len(free):
            with suppress(HoldfastError):  # what was claimed is told in any case
                rest = free.keys() - {one["agent"] for one in claims}
                left = await self._left_by_others(runner, pool, limit, rest)
                if not gone():
                    claims += await self._claim_each(scope, runner, {one: free[one] for one in left}, most - share)
        return claims

    async def _left_by_others(self, runner: RunnerRecord, pool: PoolRecord, limit: int, rest: set[str]) -> set[str]:
        """Those of the agents that still wait when nobody takes any of them for a moment."""
        for _ in range(_YIELDS):
            await asyncio.sleep(_YIELD_SECONDS)
            left = rest.intersection(await self._waiting(runner, pool, limit))
            if len(left) == len(rest):
                break
            rest = left
        return rest

    async def _claim_each(
        self, scope: Scope, runner: RunnerRecord, waiting: Mapping[str, ClaimTerms], most: int
    ) -> list[dict[str, Any]]:
        claims: list[dict[str, Any]] = []
        for agent, terms in waiting.items():
            if len(claims) >= most:
                break
            try:
                made = await self._claim_one(scope, runner, terms, agent)
            except NotFound:
                continue
            except Conflict:  # full, draining or gone: what it has is its own all the same
                if not claims:
                    await self._roster.own(scope, runner.name)
                break
            except Unavailable:
                if not claims:
                    raise
                break
            except HoldfastError as error:  # one agent's trouble is no other's
                _log.warning("an agent can't be claimed", agent=agent, tenant=runner.tenant, code=error.code)
                continue
            if made is not None:
                claims.append(made)
        if claims:
            with suppress(Unavailable):  # they are claimed; the commands are looked after
                await self._commands.follow(runner.tenant, [one["agent"] for one in claims], runner.name)
            self._metrics.claims.inc(len(claims))
        return claims

    async def _claim_one(
        self, scope: Scope, runner: RunnerRecord, terms: ClaimTerms, agent: str
    ) -> dict[str, Any] | None:
        """The claim, with the delegate's token in the clear; None when the agent is not to be had any more."""

        def move(record: AgentRecord, at: Stamp) -> Change:
            return claim(record, terms, at)

        done = await self._store.commit(
            scope, agent, move, beside=lambda session: self._roster.take_slot(runner, session)
        )
        if not done.changed:
            return None
        return {**done.answer, "version": done.record.version, **self._delegate(done.record)}

    def _delegate(self, record: AgentRecord) -> dict[str, Any]:
        if record.delegate is None:
            return {}
        sealed = record.delegate.get("token")
        if sealed is None:
            return {"delegate": record.delegate}
        try:
            token = self._vault.open(sealed, record.id)
        except SecretKeyProblem as problem:
            _log.error("a delegate's token can't be opened", agent=record.id, problem=str(problem))
            return {"delegate": {**record.delegate, "token": None}}
        _log.info("delegate handed to a runner", agent=record.id, runner=record.runner, fence=record.fence)
        return {"delegate": {**record.delegate, "token": token}}

    async def _waiting(self, runner: RunnerRecord, pool: PoolRecord, limit: int) -> dict[str, Mapping[str, Any]]:
        """Agents that wait for a runner like this, each as far as claims look at it.

        In no order, so that runners that ask together seldom collide.
        """
        fits = {
            "tenant": runner.tenant,
            "pool": runner.pool,
            "runner": None,
            "deleted_at": None,
            "dormant": {"$ne": True},
            "archived": {"$ne": True},
            "expires_at": {"$not": {"$lte": self._clock.earliest()}},
            "platform": {"$in": [None, runner.platform]},
            "region": {"$in": [None, runner.region]},
            **({} if runner.owner is None else {"owner": runner.owner}),
        }
        attempts = pool.restarts().attempts
        failed = {**fits, "state": State.FAILED.value, "failures": {"$not": {"$gt": attempts}}}
        with unavailable_when_failing(self._seconds):
            # unscoped: by the runner's tenant and owner
            ready = self._mongo.agents.find({**fits, "state": {"$in": _READY}}, _SEEN).sort("_id", 1)
            found = await ready.limit(limit).to_list()
            # unscoped: as above
            late = self._mongo.agents.find(failed, _SEEN).sort("_id", 1).limit(_LOOKED_AT)
            found += [one async for one in late if self._may_restart(one, pool)]
        random.shuffle(found)
        return {one["_id"].partition(":")[2]: one for one in found[:limit]}

    def _is_kept(self, seen: Mapping[str, Any], takers: Collection[str]) -> bool:
        """Whether the agent is left to the one that it was handed to."""
        return seen.get("offered_to") in takers and self._seen_for(seen) < _OFFER_SECONDS

    def _may_restart(self, seen: Mapping[str, Any], pool: PoolRecord) -> bool:
        return self._seen_for(seen) >= pool.pause(seen.get("failures", 0))

    def _seen_for(self, seen: Mapping[str, Any]) -> float:
        """For how many seconds the agent has been as it is, as far as this replica has seen."""
        now = self._clock.monotonic()
        if len(self._first_seen) > _REMEMBERED:
            self._first_seen.clear()
        return now - self._first_seen.setdefault((seen["_id"], seen["version"]), now)

    async def _takers(self, runner: RunnerRecord) -> list[RunnerRecord]:
        """Who of the pool may take over what this one hands off: the one with most room first."""
        present = await self._roster.present(runner.tenant, runner.pool)
        others = [one for one in present if one.name != runner.name and one.state in _CLAIMING]
        loads = await self._loads(runner.tenant, others)
        room = {one.name: one.capacity - loads[one.name] for one in others}
        return sorted((one for one in others if room[one.name] > 0), key=lambda one: -room[one.name])

    async def _driven(self, runner: RunnerRecord) -> list[dict[str, Any]]:
        held = {"tenant": runner.tenant, "runner": runner.name, "incarnation": runner.incarnation}
        with unavailable_when_failing(self._seconds):
            # unscoped: by the runner
            found = self._mongo.agents.find(held, {"fence": 1, "state": 1}).sort("_id", 1)
            return [
                {"id": one["_id"].partition(":")[2], "fence": one["fence"], "state": one["state"]}
                async for one in found
            ]

    async def _loads(self, tenant: str, runners: Sequence[RunnerRecord]) -> dict[str, int]:
        """How many agents each drives."""
        wanted = {"tenant": tenant, "runner": {"$in": [runner.name for runner in runners]}}
        group = {"_id": {"runner": "$runner", "incarnation": "$incarnation"}, "count": {"$sum": 1}}
        with unavailable_when_failing(self._seconds):
            # unscoped: by the tenant
            found = await self._mongo.agents.aggregate([{"$match": wanted}, {"$group": group}])
            counted = {(each["_id"]["runner"], each["_id"].get("incarnation")): each["count"] async for each in found}
        return {runner.name: counted.get((runner.name, runner.incarnation), 0) for runner in runners}

    async def _grouped(
        self, collection: Any, scope: Scope, query: dict[str, Any], by: Sequence[str], **summed: Any
    ) -> list[tuple[Any, ...]]:
        """Counts by pool and state, with a sum."""
        wanted = scope.filter({**query, "pool": {"$ne": None}})
        group = {"_id": {name: f"${name}" for name in by}, "count": {"$sum": 1}}
        sums = {name: {"$sum": value} for name, value in summed.items()}
        with unavailable_when_failing(self._seconds):
            found = await collection.aggregate([{"$match": wanted}, {"$group": {**group, **sums}}])
            rows: AsyncIterator[Any] = found
            return [
                (*(each["_id"][name] for name in by), each["count"], *(each[name] for name in summed))
                async for each in rows
            ]


def _share(runner: RunnerRecord, claiming: Sequence[RunnerRecord], loads: Mapping[str, int], waiting: int) -> int:
    """How many more agents the runner may have before another of the pool has fewer for its capacity."""
    capacity = sum(one.capacity for one in claiming)
    if len(claiming) < 2 or not capacity:
        return runner.capacity
    fair = -(-(sum(loads.values()) + waiting) * runner.capacity // capacity)
    return max(0, fair - loads.get(runner.name, 0))


def _taker(record: AgentRecord, takers: Sequence[RunnerRecord], hand_off: str | Literal[True]) -> str:
    """The first that may drive the agent; or the one that was named, if it may. Raises Conflict."""
    for one in takers:
        if hand_off in (True, one.name) and one.driver().fits(record):
            return one.name
    who = "No other runner" if hand_off is True else f"No live runner '{hand_off}'"
    raise Conflict(f"{who} of the pool '{record.pool}' fits and has room: release the agent, or keep it.")


def _refusal(scope: Scope, runner: RunnerRecord) -> HoldfastError | None:
    """What keeps the caller from speaking for the runner, if anything does."""
    try:
        require_own(scope, runner)
    except HoldfastError as error:
        return error
    return None


class _Pools:
    """Pools as they are counted up."""

    def __init__(self, names: Sequence[str]) -> None:
        self._pools: dict[str, dict[str, Any]] = {}
        for name in names:
            self.add(name)

    def add(self, pool: str | None, kind: str = "", state: str = "", count: int = 0, **sums: int) -> None:
        if pool is None:
            return
        shown = self._pools.setdefault(pool, {"pool": pool, "runners": {}, "agents": {}, **dict.fromkeys(_SUMS, 0)})
        if kind:
            shown[kind][state] = count
        for name, value in sums.items():
            shown[name] += value

    def listed(self) -> list[dict[str, Any]]:
        return [self._pools[name] for name in sorted(self._pools)]


_SUMS = ("capacity", "load", "commands_waiting", "commands_dead")
_CLAIMING = (RunnerState.LIVE,)
_IS_DRIVEN = {"$cond": [{"$eq": [{"$type": "$runner"}, "string"]}, 1, 0]}
_READY = [State.PENDING.value, *(state.value for state in CLAIMED_AS_IS)]
_SEEN = {"version": 1, "failures": 1, "offered_to": 1}
_LOOKED_AT = 1_000
_REMEMBERED = 100_000
