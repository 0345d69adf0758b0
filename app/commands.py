"""Commands: the durable queue of what agents' runners are asked to do. No other file writes it.

A command is sent by compare-and-set, so no two runners get it; it is sent again until it is acknowledged, so a lost
answer loses nothing. What a command does to the agent itself (a terminated agent stops, one that is to be started waits
for a runner) is done here, by the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from pymongo.errors import DuplicateKeyError, PyMongoError

from app.acts import Acts
from app.bell import Bell, pool_topic
from app.clock import Clock
from app.idempotency import Idempotency
from app.lanes import Once, Terms
from app.mongo import Mongo, parsed, require_small, unavailable_when_failing
from app.reads import Freshness, Reads
from app.roster import Roster, require_own
from app.store import Store
from app.telemetry import get_logger
from models.act import COMMAND
from models.agent import AgentRecord
from models.assignment import rest
from models.change import Change, Stamp
from models.command import UNFINISHED, WAITING, Action, CommandRecord, CommandStatus, Queued, deliverable
from models.commit import Reply
from models.errors import Conflict, HoldfastError, NotFound
from models.execution import OVER, State, Trigger
from models.ids import tenant_key
from models.runner import RunnerRecord
from models.tenant import Scope, own_scope
from models.transition import Move, move
from models.turn import broken_off

KEPT_FOR = timedelta(days=7)
"""How long a finished command is shown."""

_BATCH = 50
_PAGE = 1_000
_PREPARED = (Action.TERMINATE, Action.START, Action.WAKE)
"""What is done to the agent without a runner, as soon as that may be."""

_AWAKE = (Action.START.value, Action.WAKE.value)

_QUEUED = dict.fromkeys(Queued._fields[1:], 1)
_IN_HAND = (CommandStatus.SENT, CommandStatus.ACKED)
_ORDER = [("agent", 1), ("number", 1)]
_UNSENT = {"$set": {"status": CommandStatus.PENDING.value}, "$unset": {"runner": "", "incarnation": ""}}
_log = get_logger(__name__)
_UNFINISHED = [status.value for status in UNFINISHED]
_WAITING = [status.value for status in WAITING]


class Commands:
    """Commands of all tenants. What fails raises Unavailable."""

    def __init__(
        self,
        mongo: Mongo,
        acts: Acts,
        store: Store,
        reads: Reads,
        roster: Roster,
        bell: Bell,
        clock: Clock,
        *,
        seconds: float,
        kept: timedelta,
    ) -> None:
        self._mongo = mongo
        self._acts = acts
        self._store = store
        self._reads = reads
        self._roster = roster
        self._bell = bell
        self._clock = clock
        self._seconds = seconds
        self._kept = kept
        self._idempotency = Idempotency(mongo, clock)

    async def create(self, scope: Scope, agent: str, spec: Mapping[str, Any], terms: Terms) -> CommandRecord | Reply:
        """A new command, for the agent's runner or any of its pool; or the answer that was given before.

        Raises NotFound, IdempotencyMismatch, TooLarge for the payload, and what the guard does.

        `terminate` of an agent whose runner is gone is carried out at once; `start` and `wake` let one that stopped or
        sleeps be claimed again.
        """
        require_small(spec.get("payload"), "The payload")
        record = (await self._reads.agent(scope, agent, Freshness(strong=True))).record
        once = terms.once
        while True:
            replay = None if once is None else await self._replayed(once, scope)
            if replay is not None:
                return replay
            record.require_alive(self._clock.earliest())
            terms.guard_of(scope).check(record)
            command = await self._drawn_up(scope, record, spec)
            await self._tell(scope, command, "given", action=command.action.value)
            if once is None or await self._inserted_once(command, once):
                break
        if once is None:
            with unavailable_when_failing(self._seconds):
                await self._mongo.commands.insert_one(_document(command))
        await self._prepared(command)
        return command

    async def get(self, scope: Scope, name: str) -> CommandRecord:
        """A command of the scope. Raises NotFound."""
        key = tenant_key(scope.tenant, name, "command")
        with unavailable_when_failing(self._seconds):
            found = await self._mongo.commands.find_one(scope.filter({"_id": key}))
        if found is None:
            raise NotFound(f"There is no command '{name[:64]}'.")
        return parsed(CommandRecord, found)

    async def next_for(self, runner: RunnerRecord, *, again: bool) -> list[CommandRecord]:
        """The commands that the runner is to get now, in order: new ones, after what their agents' earlier ones are.

        `again`: also what it was sent and did not acknowledge, where nothing new came.
        """
        due: list[CommandRecord] = []
        refused: set[str] = set()
        queue = await self._queue(runner)
        news = {command.agent for command in queue if command.status is CommandStatus.PENDING}
        for command in [each for each in queue if again or each.agent in news][:_BATCH]:
            if command.agent in refused:
                continue
            sent = await self._sent(command, runner)
            if sent is None:  # another was first: what comes after it is not ours either
                refused.add(command.agent)
            else:
                due.append(sent)
        return due

    async def waiting(self, runner: RunnerRecord) -> int:
        """How many commands the runner has yet to acknowledge or to get."""
        return len(await self._queue(runner))

    async def ack(self, scope: Scope, name: str) -> CommandRecord:
        """The runner has taken the command on. Raises NotFound, FencedOut, Conflict."""
        return await self._advance(scope, name, CommandStatus.ACKED, {"acked_at": self._clock.now()})

    async def complete(self, scope: Scope, name: str, result: Any) -> CommandRecord:
        """The runner has done it. Raises as `ack` does."""
        require_small(result, "The result")
        command = await self.get(scope, name)
        if command.status in _IN_HAND:
            await self._require_holder(scope, command)
            await self._tell(scope, command, "completed")
            await self._done_to_agent(command)
        return await self._advance(scope, name, CommandStatus.COMPLETED, {"result": result, **self._finished()})

    async def fail(self, scope: Scope, name: str, error: str | None) -> CommandRecord:
        """The runner could not do it. Raises as `ack` does."""
        command = await self.get(scope, name)
        if command.status in _IN_HAND:
            await self._require_holder(scope, command)
            await self._tell(scope, command, "failed")
        return await self._advance(scope, name, CommandStatus.FAILED, {"error": error, **self._finished()})

    async def counts(self, scope: Scope) -> list[tuple[str | None, int, int]]:
        """Of each pool, how many commands wait, and how many died."""
        wanted = scope.filter({"$or": [{"status": {"$in": _WAITING}}, {"dead": True}]})
        alive = {"$cond": [{"$in": ["$status", _WAITING]}, 1, 0]}
        group = {"_id": "$pool", "waiting": {"$sum": alive}, "dead": {"$sum": {"$cond": ["$dead", 1, 0]}}}
        with unavailable_when_failing(self._seconds):
            found = await self._mongo.commands.aggregate([{"$match": wanted}, {"$group": group}])
            return [(each["_id"], each["waiting"], each["dead"]) async for each in found]

    async def leave(self, runner: RunnerRecord) -> None:
        """Let go of what a runner that is gone, or an earlier incarnation, had in hand.

        What it was sent goes to others; what it acknowledged is failed; what is to end an agent is carried out.
        """
        await self._let_go(runner.tenant, runner.name, runner.past)
        self._bell.ring(pool_topic(runner.tenant, runner.pool))

    async def follow(self, tenant: str, agents: Sequence[str], runner: str | None) -> None:
        """Let what waits for these agents be for the runner that claimed them; None: for any of their pool."""
        waiting = {"tenant": tenant, "agent": {"$in": list(agents)}, "status": {"$in": _WAITING}}
        with unavailable_when_failing(self._seconds):
            # unscoped: by the tenant
            await self._mongo.commands.update_many(waiting, _UNSENT if runner is None else {"$set": {"runner": runner}})

    async def tidy(self) -> None:
        """Let no command wait for ever: whose runner is gone or another, whose deadline passed, that is unprepared."""
        await self._bury()
        holders = await self._holders()
        present = await self._roster.incarnations(holders.keys())
        for holder, newest in holders.items():
            tenant, _, runner = holder.partition(":")
            if holder not in present:
                await self._let_go(tenant, runner, newest)
        in_hand = {"action": Action.TERMINATE.value, "runner": {"$ne": None}}
        unprepared = {"status": {"$in": _UNFINISHED}, "prepared": False, "$nor": [in_hand]}
        with unavailable_when_failing(self._seconds):
            # unscoped: of all tenants, on behalf of nobody
            found = await self._mongo.commands.find(unprepared).sort("created_at", 1).to_list(_PAGE)
        for document in found:
            await self._prepared(parsed(CommandRecord, document))
        await self._redirect()

    async def _redirect(self) -> None:
        """Let what waits be for who drives its agent; whoever claimed it may have been cut off before saying so."""
        driven = {"from": self._mongo.agents.name, "localField": "key", "foreignField": "_id", "as": "driven"}
        others: list[Mapping[str, Any]] = [
            {"$match": {"status": {"$in": _WAITING}, "runner": {"$ne": None}}},
            {"$limit": _PAGE},
            {"$set": {"key": {"$concat": ["$tenant", ":", "$agent"]}}},
            {"$lookup": {**driven, "pipeline": [{"$project": {"runner": 1}}]}},
            {"$set": {"driver": {"$first": "$driven.runner"}}},
            {"$match": {"driver": {"$type": "string"}, "$expr": {"$ne": ["$driver", "$runner"]}}},
            {"$group": {"_id": {"tenant": "$tenant", "driver": "$driver"}, "agents": {"$addToSet": "$agent"}}},
        ]
        with unavailable_when_failing(self._seconds):
            # unscoped: of all tenants, on behalf of nobody
            found = await (await self._mongo.commands.aggregate(others)).to_list()
        drivers = {f"{one['_id']['tenant']}:{one['_id']['driver']}": one["agents"] for one in found}
        for driver in await self._roster.incarnations(drivers):
            tenant, _, runner = driver.partition(":")
            await self.follow(tenant, drivers[driver], runner)

    async def _holders(self) -> dict[str, int]:
        """The key of every runner that has a command in hand or is to get one, and its newest incarnation there."""
        held = {"status": {"$in": _UNFINISHED}, "runner": {"$ne": None}}
        group = {"_id": {"tenant": "$tenant", "runner": "$runner"}, "newest": {"$max": "$incarnation"}}
        with unavailable_when_failing(self._seconds):
            # unscoped: of all tenants, on behalf of nobody
            found = await self._mongo.commands.aggregate([{"$match": held}, {"$group": group}])
            return {f"{one['_id']['tenant']}:{one['_id']['runner']}": one["newest"] or 0 async for one in found}

    async def _let_go(self, tenant: str, runner: str, past: int) -> None:
        """Take its commands from a runner: from its incarnations up to this one, and what was not sent yet."""
        of_its_past = [{"incarnation": {"$lte": past}}, {"incarnation": None}]
        mine: dict[str, Any] = {"tenant": tenant, "runner": runner, "$or": of_its_past}
        ends = {**mine, "status": {"$in": _UNFINISHED}, "action": Action.TERMINATE.value}
        reason = f"The runner '{runner}' was gone before it said that it was done."
        lost = {"status": CommandStatus.FAILED.value, "error": reason, **self._finished()}
        with unavailable_when_failing(self._seconds):
            # unscoped: by the tenant
            terminates = await self._mongo.commands.find(ends).to_list(_PAGE)
            unsent = {"$set": {**_UNSENT["$set"], "prepared": False}, "$unset": _UNSENT["$unset"]}
            # unscoped: as above
            await self._mongo.commands.update_many(ends, unsent)
            # unscoped: as above
            await self._mongo.commands.update_many({**mine, "status": {"$in": _WAITING}}, _UNSENT)
            await self._failed({**mine, "status": CommandStatus.ACKED.value}, lost)
        for found in terminates:
            await self._prepared(parsed(CommandRecord, {**found, "prepared": False}))

    async def _bury(self) -> None:
        late = {"status": {"$in": _UNFINISHED}, "deadline_at": {"$lte": self._clock.now()}}
        dead = {"status": CommandStatus.FAILED.value, "dead": True, "error": "Its deadline passed.", **self._finished()}
        with unavailable_when_failing(self._seconds):
            await self._failed(late, dead)

    async def _failed(self, query: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        """Let commands fail that nobody speaks for any more, and tell so; some at a time. Raises PyMongoError."""
        told = {"tenant": 1, "owner": 1, "agent": 1}
        # unscoped: of whichever tenants the query is
        while found := await self._mongo.commands.find(query, told).limit(_BATCH).to_list():
            for one in found:
                what = {"command": one["_id"].partition(":")[2], "agent": one["agent"], "error": fields["error"]}
                owner = one.get("owner")
                await self._acts.tell_once(one["tenant"], COMMAND, one["_id"], owner=owner, did="failed", **what)
            # unscoped: as above
            await self._mongo.commands.update_many(
                {**query, "_id": {"$in": [one["_id"] for one in found]}}, {"$set": fields}
            )

    async def _tell(self, scope: Scope, command: CommandRecord, did: str, **what: Any) -> None:
        """Tell the log what is about to come of a command."""
        what = {"did": did, "command": command.name, "agent": command.agent, **what}
        with unavailable_when_failing(self._seconds):
            await self._acts.tell_of(command.tenant, COMMAND, scope.by, owner=command.owner, **what)

    async def _drawn_up(self, scope: Scope, record: AgentRecord, spec: Mapping[str, Any]) -> CommandRecord:
        now = self._clock.now()
        seconds = spec.get("deadline_seconds")
        lives = await self._is_driven(record)
        return CommandRecord(
            id=f"{scope.tenant}:{self._clock.new_id()}",
            tenant=scope.tenant,
            owner=record.owner,
            agent=record.name_in_tenant,
            number=await self._next_number(record.id),
            pool=record.pool,
            action=spec["action"],
            payload=spec.get("payload"),
            runner=record.runner if lives else None,
            by=scope.by,
            born=record.created_at,
            prepared=spec["action"] not in _PREPARED,
            created_at=now,
            deadline_at=now + (self._kept if seconds is None else timedelta(seconds=seconds)),
        )

    async def _replayed(self, once: Once, scope: Scope) -> Reply | None:
        with unavailable_when_failing(self._seconds):
            return await self._idempotency.replay(once, scope.tenant)

    async def _inserted_once(self, command: CommandRecord, once: Once) -> bool:
        """Whether the command was written together with its record; if not, the record of another try may be there."""
        record = await self._idempotency.record(once, command.tenant, await once.encode(command), command.agent)
        with unavailable_when_failing(self._seconds):
            async with self._mongo.client.start_session() as session:
                try:
                    async with await session.start_transaction():
                        await self._idempotency.remember(record, session)
                        await self._mongo.commands.insert_one(_document(command), session=session)
                except PyMongoError as error:
                    if isinstance(error, DuplicateKeyError) or error.has_error_label("TransientTransactionError"):
                        return False
                    raise
        return True

    async def _prepared(self, command: CommandRecord) -> None:
        """Do to the agent what need not wait for a runner; what can't be done now is done by `tidy`."""
        if command.prepared:
            return
        try:
            if await (self._terminate(command) if command.action is Action.TERMINATE else self._woken(command)):
                await self._moved(command, _UNFINISHED, {"prepared": True})
        except HoldfastError as error:
            _log.warning("a command is not prepared", command=command.id, agent=command.agent, code=error.code)

    async def _terminate(self, command: CommandRecord) -> bool:
        """Stop the agent, if no live runner is there to do it; what its platform still holds is left to the pool."""
        record = await self._agent_of(command)
        if await self._is_in_hand(command) or (record is not None and await self._is_driven(record)):
            return False
        if record is not None:
            await self._stop(command)
            if record.resource_id is not None and record.pool is not None:
                return True
        done = {"status": CommandStatus.COMPLETED.value, "runner": None, **self._finished()}
        await self._moved(command, _UNFINISHED, done)
        return True

    async def _woken(self, command: CommandRecord) -> bool:
        """Let the agent wait for a runner, unless what was asked before has yet to stop it, or to let it sleep."""
        record = await self._agent_of(command)
        driven = record is not None and await self._is_driven(record)
        before = [Action.TERMINATE.value, *([Action.HIBERNATE.value] if driven else [])]
        earlier = {"number": {"$lt": command.number}, "status": {"$in": _UNFINISHED}, "action": {"$in": before}}
        if await self._has_sibling(command, earlier):
            return False
        await self._commit(command, _waiting_for_a_runner)
        return True

    async def _is_in_hand(self, command: CommandRecord) -> bool:
        """Whether a present runner has taken the command on."""
        taken = command.status is CommandStatus.ACKED
        return taken and await self._is_present(command.tenant, command.runner, command.incarnation)

    async def _is_driven(self, record: AgentRecord) -> bool:
        """Whether a present runner drives the agent."""
        return await self._is_present(record.tenant, record.runner, record.incarnation)

    async def _is_present(self, tenant: str, runner: str | None, incarnation: int | None) -> bool:
        """Whether there is a runner, and it is present in this incarnation."""
        if runner is None:
            return False
        key = f"{tenant}:{runner}"
        return (await self._roster.incarnations([key])).get(key) == incarnation

    async def _done_to_agent(self, command: CommandRecord) -> None:
        if command.action is Action.TERMINATE:
            await self._stop(command)
        elif command.action is Action.HIBERNATE:
            if await self._is_woken_later(command):
                return
            await self._commit(command, lambda record, at: rest(record, dormant=True, stamp=at))
        elif not command.prepared:
            await self._commit(command, _waiting_for_a_runner)

    async def _is_woken_later(self, command: CommandRecord) -> bool:
        """Whether the agent was asked to be awake after this command."""
        failed = CommandStatus.FAILED.value
        later = {"number": {"$gt": command.number}, "action": {"$in": _AWAKE}, "status": {"$ne": failed}}
        return await self._has_sibling(command, later)

    async def _has_sibling(self, command: CommandRecord, query: Mapping[str, Any]) -> bool:
        """Whether the same agent has another command that the query finds."""
        of_the_agent = {"tenant": command.tenant, "agent": command.agent, "born": command.born}
        with unavailable_when_failing(self._seconds):
            # unscoped: by the tenant
            return await self._mongo.commands.find_one({**of_the_agent, **query}, {"_id": 1}) is not None

    async def _stop(self, command: CommandRecord) -> None:
        closing = self._clock.new_id()

        def stopped(record: AgentRecord, at: Stamp) -> Change:
            if record.state == State.STOPPED:
                return record.unchanged()
            return broken_off(record, [Move(State.STOPPED, Trigger.USER_TERMINATED, "terminated")], at, closing)

        await self._commit(command, stopped)

    async def _commit(self, command: CommandRecord, what: Callable[[AgentRecord, Stamp], Change]) -> None:
        """Change the command's agent, if it is still there, and not another one under its id."""

        def move(record: AgentRecord, at: Stamp) -> Change:
            return what(record, at) if record.created_at == command.born else record.unchanged()

        try:
            await self._store.commit(own_scope(command.tenant), command.agent, move)
        except NotFound:
            return

    async def _agent_of(self, command: CommandRecord) -> AgentRecord | None:
        try:
            seen = await self._reads.agent(own_scope(command.tenant), command.agent, Freshness(strong=True))
        except NotFound:
            return None
        return seen.record

    async def _queue(self, runner: RunnerRecord) -> list[Queued]:
        """What is deliverable to the runner now, in order; without what is said in it."""
        whose = [{"runner": runner.name}, {"runner": None, "pool": runner.pool}]
        wanted = {"tenant": runner.tenant, "status": {"$in": _WAITING}, "$or": whose}
        if runner.owner is not None:
            wanted["owner"] = runner.owner
        with unavailable_when_failing(self._seconds):
            # unscoped: by the tenant and the runner's owner
            found = await self._mongo.commands.find(wanted, _QUEUED).sort(_ORDER).to_list(_PAGE)
            if not found:
                return []
            agents = list({document["agent"] for document in found})
            in_hand = {"$or": [{"status": CommandStatus.ACKED.value}, {"runner": {"$nin": [runner.name, None]}}]}
            elsewhere = {"tenant": runner.tenant, "status": {"$in": _UNFINISHED}, "agent": {"$in": agents}, **in_hand}
            # unscoped: as above
            found += await self._mongo.commands.find(elsewhere, _QUEUED).sort(_ORDER).to_list(_PAGE)
            keys = [f"{runner.tenant}:{agent}" for agent in agents]
            # unscoped: the keys begin with the tenant
            driven = self._mongo.agents.find({"_id": {"$in": keys}}, {"runner": 1})
            assigned = {document["_id"].partition(":")[2]: document.get("runner") async for document in driven}
        queue = sorted(map(Queued.of, found), key=lambda queued: (queued.agent, queued.number))
        return list(deliverable(queue, runner.name, assigned))

    async def _sent(self, command: Queued, runner: RunnerRecord) -> CommandRecord | None:
        """Send it to the runner, unless its state has changed meanwhile."""
        as_seen = {"_id": command.key, "status": command.status.value, "sends": command.sends, "runner": command.runner}
        whose = {"runner": runner.name, "incarnation": runner.incarnation}
        sent = {"status": CommandStatus.SENT.value, "sent_at": self._clock.now(), **whose}
        with unavailable_when_failing(self._seconds):
            # unscoped: the key begins with the tenant
            found = await self._mongo.commands.find_one_and_update(
                as_seen, {"$set": sent, "$inc": {"sends": 1}}, return_document=True
            )
        return None if found is None else parsed(CommandRecord, found)

    async def _advance(self, scope: Scope, name: str, to: CommandStatus, fields: Mapping[str, Any]) -> CommandRecord:
        """Move a command on by the word of the runner that has it. Said again, it is answered as at first."""
        command = await self.get(scope, name)
        await self._require_holder(scope, command)
        if command.status == to:
            return command
        before = [CommandStatus.SENT] if to is CommandStatus.ACKED else _IN_HAND
        moved = await self._moved(command, [status.value for status in before], {**fields, "status": to.value})
        if moved is not None:
            return moved
        now = await self._again(command)
        if now.status == to or (to is CommandStatus.ACKED and now.status is CommandStatus.COMPLETED):
            return now
        raise Conflict(f"The command is {now.status}: it can't be {to} any more, or not yet.", status=now.status)

    async def _require_holder(self, scope: Scope, command: CommandRecord) -> None:
        """Raise FencedOut, Conflict or Forbidden unless the caller speaks for the runner that has the command."""
        if scope.runner is not None:
            require_own(scope, await self._roster.get(scope, scope.runner))
        if command.runner is None:
            if command.status in _UNFINISHED:
                raise Conflict("The command was not sent to a runner yet.", status=command.status)
            return
        if scope.runner not in (None, command.runner):
            raise Conflict(f"The command went to the runner '{command.runner}': leave it alone.")
        if command.status in _UNFINISHED:
            require_own(scope, await self._roster.get(scope, command.runner))

    async def _moved(
        self, command: CommandRecord, before: Sequence[str], fields: Mapping[str, Any]
    ) -> CommandRecord | None:
        sets = {name: value for name, value in fields.items() if value is not None}
        gone = {name: "" for name, value in fields.items() if value is None}
        with unavailable_when_failing(self._seconds):
            # unscoped: the key begins with the tenant
            found = await self._mongo.commands.find_one_and_update(
                {"_id": command.id, "status": {"$in": list(before)}},
                {"$set": sets, **({"$unset": gone} if gone else {})},
                return_document=True,
            )
        return None if found is None else parsed(CommandRecord, found)

    async def _again(self, command: CommandRecord) -> CommandRecord:
        return await self.get(own_scope(command.tenant), command.name)

    async def _next_number(self, agent: str) -> int:
        """Counts an agent's commands, so that their order is that of their creation, on whichever replica."""
        with unavailable_when_failing(self._seconds):
            # unscoped: the key begins with the tenant
            counted = await self._mongo.commands.find_one_and_update(
                {"_id": f"{agent}:number"},
                {"$inc": {"number": 1}, "$setOnInsert": {"tenant": agent.partition(":")[0]}},
                upsert=True,
                return_document=True,
            )
        assert counted is not None  # noqa: S101 - it is made where it was not
        return int(counted["number"])

    def _finished(self) -> dict[str, Any]:
        now = self._clock.now()
        return {"finished_at": now, "expires_at": now + KEPT_FOR}


def _document(command: CommandRecord) -> dict[str, Any]:
    return command.model_dump(by_alias=True, exclude_none=True)


def _waiting_for_a_runner(record: AgentRecord, at: Stamp) -> Change:
    """Let an agent that sleeps, or of a pool that is over, be claimed; one whose life is over stays so."""
    if record.is_over(at.judged_at):
        return record.unchanged()
    if record.state in OVER and record.pool is not None:
        fields = {"dormant": False, "failures": 0}
        return move(record, [Move(State.STARTING, Trigger.SPAWN, "asked for")], at, **fields)
    return rest(record, dormant=False, stamp=at)
