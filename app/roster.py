"""The roster: runners' and pools' documents. No other file writes them; none of them is ever an agent's.

A heartbeat is one small write. A runner is declared dead only by compare-and-set on the beat that was seen, so one that
beats meanwhile lives on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError

from app.acts import Acts
from app.clock import Clock
from app.mongo import Mongo, parsed, require_small, unavailable_when_failing
from models.act import POOL, ROSTER
from models.errors import Conflict, FencedOut, Forbidden, NotFound
from models.ids import keys_within, tenant_key
from models.runner import PRESENT, PoolRecord, RunnerRecord, RunnerState
from models.tenant import Right, Scope

_PRESENT = [state.value for state in PRESENT]
_PULSE = {"incarnation": 1, "beat": 1, "key": 1}


class Pulse(NamedTuple):
    """What is looked at of a present runner to see whether it lives."""

    runner: str
    """Its key."""
    incarnation: int
    beat: int
    """Moves with each heartbeat."""
    registered_by: str


class Roster:
    """Who there is to drive agents. What fails raises Unavailable."""

    def __init__(self, mongo: Mongo, acts: Acts, clock: Clock, *, seconds: float) -> None:
        self._mongo = mongo
        self._acts = acts
        self._clock = clock
        self._seconds = seconds
        self._heard: OrderedDict[tuple[str, int | str | None], float] = OrderedDict()

    async def register(self, scope: Scope, spec: Mapping[str, Any]) -> tuple[RunnerRecord, bool]:
        """A live runner in its next incarnation; whether it is new.

        Raises Conflict for a live one of another key, Forbidden for a runner's token, which makes no others.
        """
        if scope.runner is not None:
            raise Forbidden("A runner's token registers nobody: register with the key that it came from.")
        name = spec.get("id") or self._clock.new_id()
        key = _key(scope, name)
        require_small(spec.get("metadata"), "The metadata")
        now = self._clock.now()
        given = {"region": None, "metadata": {}, **{field: spec[field] for field in spec if field != "id"}}
        own = {"owner": scope.owner, "key": scope.by, "state": RunnerState.LIVE.value}
        fields = {**given, **own, "registered_at": now, "seen_at": now, "gone_at": None}
        with unavailable_when_failing(self._seconds):
            while True:
                mine = {"$or": [{"state": {"$nin": _PRESENT}}, {"key": scope.by}]}
                again = await self._changed({"_id": key, **mine}, {"$set": {**fields, "settled": False}, **_NEXT_LIFE})
                if again is not None:
                    return again, False
                if await self._found(key) is not None:
                    raise Conflict(f"A runner '{name}' lives, and another key registered it.")
                first = {"_id": key, "tenant": scope.tenant, **fields, "incarnation": 1, "beat": 0, "claims": 0}
                try:
                    await self._mongo.runners.insert_one({**first, "settled": True})
                except DuplicateKeyError:
                    continue
                return RunnerRecord.model_validate({**first, "settled": True}), True

    async def get(self, scope: Scope, name: str) -> RunnerRecord:
        """A runner of the scope, present or gone. Raises NotFound."""
        with unavailable_when_failing(self._seconds):
            found = await self._found(_key(scope, name))
        if found is None or not scope.sees(found.tenant, found.owner):
            raise NotFound(f"There is no runner '{name[:64]}'.")
        return found

    async def own(self, scope: Scope, name: str) -> RunnerRecord:
        """A present runner that the caller may speak for. Raises NotFound, Forbidden; FencedOut when it is no more."""
        return require_own(scope, await self.get(scope, name))

    async def page(
        self, scope: Scope, query: Mapping[str, Any], *, after: str | None, limit: int
    ) -> list[RunnerRecord]:
        """Runners of the scope, present and gone, in the order of their ids."""
        wanted = scope.filter({**query, "_id": keys_within(scope.tenant, after or "")})
        with unavailable_when_failing(self._seconds):
            found = await self._mongo.runners.find(wanted).sort("_id", 1).limit(limit).to_list()
        return [parsed(RunnerRecord, document) for document in found]

    async def beat(self, scope: Scope, name: str, capacity: int | None) -> RunnerRecord:
        """Take a heartbeat: one small write. Raises as `own` does."""
        _require_named(scope, name)
        self._hear(_key(scope, name), scope.by if scope.runner is None else scope.incarnation)
        guard: dict[str, Any] = {"_id": _key(scope, name), "state": {"$in": _PRESENT}}
        if scope.runner is not None:
            guard["incarnation"] = scope.incarnation
        elif Right.ADMIN not in scope.rights:
            guard["key"] = scope.by
        seen = {"seen_at": self._clock.now(), **({} if capacity is None else {"capacity": capacity})}
        with unavailable_when_failing(self._seconds):
            beaten = await self._changed(scope.filter(guard), {"$inc": {"beat": 1}, "$set": seen})
        return beaten or await self.own(scope, name)

    def heard_since(self, pulse: Pulse, instant: float) -> bool:
        """Whether a heartbeat of the runner came here after a monotonic time, be it answered or not.

        Only one of this incarnation's token or of the key that registered it counts.
        """
        senders = (pulse.incarnation, pulse.registered_by)
        return any(self._heard.get((pulse.runner, sender), float("-inf")) > instant for sender in senders)

    async def drain(self, scope: Scope, name: str) -> RunnerRecord:
        """Let a runner drive what it has and claim nothing more. Raises as `own` does."""
        runner = await self.own(scope, name)
        with unavailable_when_failing(self._seconds):
            await self._acts.tell(scope, ROSTER, did="drains", runner=runner.name, incarnation=runner.incarnation)
            drained = await self._changed(_of(runner), {"$set": {"state": RunnerState.DRAINING.value}})
        return drained or await self.own(scope, name)

    async def leave(self, scope: Scope, name: str) -> RunnerRecord:
        """Take a runner off the roster. Raises as `own` does."""
        runner = await self.own(scope, name)
        with unavailable_when_failing(self._seconds):
            await self._acts.tell(scope, ROSTER, did="left", runner=runner.name, incarnation=runner.incarnation)
            left = await self._changed(_of(runner), self._end(RunnerState.LEFT))
        return left or await self.own(scope, name)

    async def expire(self, pulse: Pulse) -> RunnerRecord | None:
        """Declare a silent runner dead, unless it has beaten since: then None."""
        with unavailable_when_failing(self._seconds):
            alive = {"_id": pulse.runner, "incarnation": pulse.incarnation, "state": {"$in": _PRESENT}}
            silent = {**alive, "beat": pulse.beat}
            return await self._changed(silent, self._end(RunnerState.DEAD))

    async def settled(self, runner: RunnerRecord) -> None:
        """Note that no agent is held by the runner's past any more; of one that died without a word, that it did."""
        life = {"runner": runner.name, "incarnation": runner.incarnation}
        with unavailable_when_failing(self._seconds):
            if runner.state is RunnerState.DEAD:
                named = f"{runner.id}:{runner.incarnation}"
                await self._acts.tell_once(runner.tenant, ROSTER, named, owner=runner.owner, did="died", **life)
            # unscoped: the key begins with the tenant
            await self._mongo.runners.update_one(
                {"_id": runner.id, "incarnation": runner.incarnation, "state": runner.state.value},
                {"$set": {"settled": True}},
            )

    async def pulses(self) -> list[Pulse]:
        """The pulse of every present runner of all tenants."""
        with unavailable_when_failing(self._seconds):
            # unscoped: replicas watch over the runners of all tenants
            found = await self._mongo.runners.find({"state": {"$in": _PRESENT}}, _PULSE).to_list()
        return [Pulse(one["_id"], one["incarnation"], one["beat"], one["key"]) for one in found]

    async def unsettled(self) -> list[RunnerRecord]:
        """Runners of all tenants whose past may still hold agents."""
        with unavailable_when_failing(self._seconds):
            # unscoped: as above
            found = await self._mongo.runners.find({"settled": False}, _WITHOUT_METADATA).to_list()
        return [parsed(RunnerRecord, document) for document in found]

    async def present(self, tenant: str, pool: str) -> list[RunnerRecord]:
        """The present runners of a pool, without their metadata."""
        query = {"tenant": tenant, "pool": pool, "state": {"$in": _PRESENT}}
        with unavailable_when_failing(self._seconds):
            # unscoped: by the tenant
            found = await self._mongo.runners.find(query, _WITHOUT_METADATA).to_list()
        return [parsed(RunnerRecord, document) for document in found]

    async def incarnations(self, keys: Collection[str]) -> dict[str, int]:
        """The incarnation of each of these runners, by key, as far as they are present."""
        with unavailable_when_failing(self._seconds):
            # unscoped: the keys begin with the tenant
            found = self._mongo.runners.find({"_id": {"$in": list(keys)}, "state": {"$in": _PRESENT}}, _PULSE)
            return {document["_id"]: document["incarnation"] async for document in found}

    async def take_slot(self, runner: RunnerRecord, session: AsyncClientSession) -> None:
        """In the transaction of a claim: see to it that the runner may claim one agent more.

        Every claim writes the runner's document, so two of one runner never pass each other, and what is counted is
        exact. Raises FencedOut when it is no more, Conflict when it drains or is full; PyMongoError.
        """
        # unscoped: the key begins with the tenant
        found = await self._mongo.runners.find_one_and_update(
            _of(runner), {"$inc": {"claims": 1}}, projection={"state": 1, "capacity": 1}, session=session
        )
        if found is None:
            raise _gone(runner.name, runner.incarnation, runner.incarnation)
        if found["state"] != RunnerState.LIVE:
            raise Conflict(f"The runner '{runner.name}' drains: it claims nothing more.")
        held = {"tenant": runner.tenant, "runner": runner.name, "incarnation": runner.incarnation}
        # unscoped: by the tenant
        count = await self._mongo.agents.count_documents(held, session=session, hint="by_runner")
        if count >= found["capacity"]:
            raise Conflict(f"The runner '{runner.name}' drives {count} agents, as many as it can.")

    async def pool(self, tenant: str, name: str) -> PoolRecord:
        """What was decided for a pool; the defaults where nothing was."""
        key = f"{tenant}:{name}"
        with unavailable_when_failing(self._seconds):
            # unscoped: the key begins with the tenant
            found = await self._mongo.pools.find_one({"_id": key})
        return PoolRecord.model_validate(found or {"_id": key, "tenant": tenant})

    async def set_pool(self, scope: Scope, name: str, decided: Mapping[str, Any]) -> PoolRecord:
        """Decide something for a pool; what is left out stays."""
        sets = {"$set": {"tenant": scope.tenant, **decided}}
        with unavailable_when_failing(self._seconds):
            await self._acts.tell(scope, POOL, did="decided", pool=name, decided=dict(decided))
            # unscoped: the key begins with the tenant
            await self._mongo.pools.update_one({"_id": f"{scope.tenant}:{name}"}, sets, upsert=True)
        return await self.pool(scope.tenant, name)

    def _end(self, state: RunnerState) -> dict[str, Any]:
        return {"$set": {"state": state.value, "gone_at": self._clock.now(), "settled": False}}

    def _hear(self, runner: str, sender: int | str | None) -> None:
        self._heard[runner, sender] = self._clock.monotonic()
        self._heard.move_to_end((runner, sender))
        while len(self._heard) > _REMEMBERED:
            self._heard.popitem(last=False)

    async def _found(self, key: str) -> RunnerRecord | None:
        # unscoped: the key begins with the tenant
        found = await self._mongo.runners.find_one({"_id": key})
        return None if found is None else parsed(RunnerRecord, found)

    async def _changed(self, guard: Mapping[str, Any], update: Mapping[str, Any]) -> RunnerRecord | None:
        # unscoped: guards name the key, which begins with the tenant
        found = await self._mongo.runners.find_one_and_update(guard, update, return_document=True)
        return None if found is None else parsed(RunnerRecord, found)


def require_own(scope: Scope, runner: RunnerRecord) -> RunnerRecord:
    """The runner, if it is present and the caller may speak for it. Raises Forbidden, FencedOut."""
    _require_named(scope, runner.name)
    if scope.runner is None and scope.by != runner.key and Right.ADMIN not in scope.rights:
        raise Forbidden(f"The runner '{runner.name}' was registered with another key.")
    stale = scope.incarnation not in (None, runner.incarnation)
    if stale or not runner.present:
        raise _gone(runner.name, scope.incarnation or runner.incarnation, runner.incarnation)
    return runner


def _require_named(scope: Scope, name: str) -> None:
    if scope.runner not in (None, name):
        raise Forbidden(f"This token is the runner '{scope.runner}' only.")


def _key(scope: Scope, name: str) -> str:
    return tenant_key(scope.tenant, name, "runner")


def _gone(name: str, incarnation: int, actual: int) -> FencedOut:
    return FencedOut(incarnation, actual, f"The runner '{name}' is gone, or was registered anew: register again.")


def _of(runner: RunnerRecord) -> dict[str, Any]:
    return {"_id": runner.id, "incarnation": runner.incarnation, "state": {"$in": _PRESENT}}


_NEXT_LIFE = {"$inc": {"incarnation": 1, "beat": 1}}
_REMEMBERED = 100_000
_WITHOUT_METADATA = {"metadata": 0}
