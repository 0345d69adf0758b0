"""Routes of runners and pools: register, heartbeat, claim, release, drain, leave; commands that come to a runner."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Controller, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from app.api import shapes
from app.api.agents import Limit
from app.api.answers import JSON, Answer, encode, page, reply
from app.api.bodies import (
    MAX_WAIT_SECONDS,
    ClaimBody,
    DoneBody,
    FailedBody,
    HeartbeatBody,
    PoolBody,
    ReleaseBody,
    RunnerBody,
)
from app.api.call import Acting, AnyRequest, Caller, Writing, leaving
from app.api.execution import shown_command
from app.api.paging import DEFAULT_LIMIT, runner_after, runners_cursor
from app.api.routes import DECIDE, LIST, POLL, RUNNER, gone
from app.commands import Commands
from app.config import Settings
from app.reconciler import Reconciler
from app.runners import Beaten, Runners
from models.command import CommandRecord
from models.commit import Reply
from models.ids import check_pool
from models.runner import PoolRecord, RunnerRecord, RunnerState

RunnerId = FromPath[str]
Fleet = NamedDependency[Runners]
Queue = NamedDependency[Commands]

_KEYED_ID = 22
_SHOWN = ("pool", "platform", "region", "capacity", "metadata", "state", "incarnation", "owner")
_TIMES = ("registered_at", "seen_at", "gone_at")


def _answer(value: Any) -> Answer[Any]:
    return Answer(encode(value), media_type=JSON)


def _said(value: Any) -> Reply:
    return Reply(200, encode(value))


def _said_of_command(command: CommandRecord) -> Reply:
    return _said(shown_command(command))


def shown_runner(runner: RunnerRecord, load: int, settings: Settings) -> dict[str, Any]:
    """A runner as callers see it."""
    return {
        "id": runner.name,
        **{field: getattr(runner, field) for field in (*_SHOWN, *_TIMES)},
        "load": load,
        "draining": runner.state == RunnerState.DRAINING,
        "heartbeat_seconds": settings.heartbeat_seconds,
        "ttl_seconds": settings.runner_ttl_seconds,
    }


def shown_beat(beaten: Beaten) -> dict[str, Any]:
    """What a heartbeat answers."""
    told = {"agents": beaten.agents, "lost": beaten.lost, "commands_waiting": beaten.commands_waiting}
    return {**told, "draining": beaten.runner.state == RunnerState.DRAINING}


def _shown_pool(pool: PoolRecord) -> dict[str, Any]:
    decided = {"restart": pool.restart, "attempts": pool.attempts, "backoff_seconds": pool.backoff_seconds}
    return {"pool": pool.id.partition(":")[2], **decided}


class RunnerRoutes(Controller):
    """Those who drive agents."""

    path = "/v1/runners"
    tags = ["runners"]

    @post(**RUNNER, summary="Register a runner, or one that was here before")
    async def register(
        self,
        data: JSONBody[RunnerBody],
        acting: Acting,
        runners: Fleet,
        settings: NamedDependency[Settings],
    ) -> Answer[shapes.Registered]:
        def shown(made: tuple[RunnerRecord, str, bool]) -> Reply:
            runner, token, new = made
            told = {**shown_runner(runner, 0, settings), "token": token}
            return Reply(201 if new else 200, encode(told), {"Location": f"/v1/runners/{runner.name}"})

        spec = data.given()
        if acting.known_by is not None:  # sent again it is the same runner, also if no answer was kept
            spec = {"id": acting.known_by[:_KEYED_ID], **spec}
        return await acting.answer(lambda: runners.register(acting.caller, spec), shown)

    @get(**LIST, summary="List runners, present and gone")
    async def list(
        self,
        caller: Caller,
        runners: Fleet,
        settings: NamedDependency[Settings],
        pool: FromQuery[str | None] = None,
        in_state: Annotated[RunnerState | None, QueryParameter(name="state")] = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: FromQuery[str | None] = None,
    ) -> Answer[shapes.RunnerList]:
        query = {name: value for name, value in (("pool", pool), ("state", in_state)) if value is not None}
        after = None if cursor is None else runner_after(cursor)
        found = await runners.page(caller, query, after=after, limit=limit + 1)
        more = runners_cursor(found[limit - 1][0].name) if len(found) > limit else None
        return page([shown_runner(runner, load, settings) for runner, load in found[:limit]], more)

    @get("/{runner_id:str}", **LIST, summary="Read a runner")
    async def read(
        self, runner_id: RunnerId, caller: Caller, runners: Fleet, settings: NamedDependency[Settings]
    ) -> Answer[shapes.Runner]:
        return _answer(shown_runner(*await runners.get(caller, runner_id), settings))

    @post("/{runner_id:str}/heartbeat", **RUNNER, status_code=200, summary="Say that the runner lives")
    async def heartbeat(
        self, runner_id: RunnerId, caller: Caller, runners: Fleet, data: JSONBody[HeartbeatBody | None] = None
    ) -> Answer[shapes.Beaten]:
        body = data or HeartbeatBody()
        return _answer(shown_beat(await runners.heartbeat(caller, runner_id, body.agents, body.capacity)))

    @post("/{runner_id:str}/claim", **RUNNER, status_code=200, summary="Claim agents that wait for a runner")
    async def claim(
        self, runner_id: RunnerId, caller: Caller, data: JSONBody[ClaimBody], runners: Fleet, request: AnyRequest
    ) -> Answer[shapes.Claims]:
        with leaving(request) as left:
            claims = await runners.claim(caller, runner_id, data.max, data.wait_seconds, known=data.agents, left=left)
        return _answer({"claims": claims})

    @post("/{runner_id:str}/release", **RUNNER, status_code=200, summary="Let an agent go, or hand it off")
    async def release(
        self, runner_id: RunnerId, data: JSONBody[ReleaseBody], posted: Writing, runners: Fleet
    ) -> Answer[shapes.Released]:
        return await posted.answer(
            lambda terms: runners.release(posted.caller, runner_id, data.agent, data.hand_off, terms),
            lambda done: reply(
                {
                    "agent": data.agent,
                    "state": done.record.state,
                    "fence": done.record.fence,
                    "version": done.record.version,
                },
                done.record.version,
            ),
        )

    @post("/{runner_id:str}/drain", **RUNNER, status_code=200, summary="Let a runner claim nothing more")
    async def drain(
        self, runner_id: RunnerId, acting: Acting, runners: Fleet, settings: NamedDependency[Settings]
    ) -> Answer[shapes.Runner]:
        return await acting.answer(
            lambda: runners.drain(acting.caller, runner_id), lambda drained: _said(shown_runner(*drained, settings))
        )

    @delete("/{runner_id:str}", **gone(RUNNER), summary="Take a runner off; its agents are free at once")
    async def leave(self, runner_id: RunnerId, caller: Caller, runners: Fleet) -> Answer[None]:
        await runners.leave(caller, runner_id)
        return Answer(b"", status_code=204)

    @get("/{runner_id:str}/commands", **POLL, summary="Get the runner's next commands, or wait for them")
    async def commands(
        self,
        runner_id: RunnerId,
        caller: Caller,
        runners: Fleet,
        wait_seconds: Annotated[float, QueryParameter(ge=0, le=MAX_WAIT_SECONDS)] = 0,
    ) -> Answer[shapes.Commands]:
        due = await runners.commands(caller, runner_id, wait_seconds)
        return page([shown_command(command) for command in due], None)


class CommandRoutes(Controller):
    """Commands, and how far they came."""

    path = "/v1/commands/{command_id:str}"
    tags = ["runners"]

    @get(**LIST, summary="Read a command")
    async def read(self, command_id: FromPath[str], caller: Caller, commands: Queue) -> Answer[shapes.Command]:
        return _answer(shown_command(await commands.get(caller, command_id)))

    @post("/ack", **RUNNER, status_code=200, summary="Take a command on")
    async def ack(self, command_id: FromPath[str], acting: Acting, commands: Queue) -> Answer[shapes.Command]:
        return await acting.answer(lambda: commands.ack(acting.caller, command_id), _said_of_command)

    @post("/complete", **RUNNER, status_code=200, summary="Say that a command is done")
    async def complete(
        self, command_id: FromPath[str], acting: Acting, commands: Queue, data: JSONBody[DoneBody | None] = None
    ) -> Answer[shapes.Command]:
        result = None if data is None else data.result
        return await acting.answer(lambda: commands.complete(acting.caller, command_id, result), _said_of_command)

    @post("/fail", **RUNNER, status_code=200, summary="Say that a command can't be done")
    async def fail(
        self, command_id: FromPath[str], acting: Acting, commands: Queue, data: JSONBody[FailedBody | None] = None
    ) -> Answer[shapes.Command]:
        error = None if data is None else data.error
        return await acting.answer(lambda: commands.fail(acting.caller, command_id, error), _said_of_command)


class PoolRoutes(Controller):
    """Pools, and what was decided for them."""

    path = "/v1/pools"
    tags = ["runners"]

    @get(**LIST, summary="Count each pool's runners, agents and commands")
    async def list(self, caller: Caller, runners: Fleet) -> Answer[shapes.PoolList]:
        return page(await runners.pools(caller), None)

    @get("/{pool:str}", **LIST, summary="Read how a pool restarts agents that failed")
    async def read(self, pool: FromPath[str], caller: Caller, runners: Fleet) -> Answer[shapes.Restarts]:
        return _answer(_shown_pool(await runners.pool(caller, check_pool(pool))))

    @put("/{pool:str}", **DECIDE, summary="Decide how a pool restarts agents that failed")
    async def decide(
        self, pool: FromPath[str], caller: Caller, data: JSONBody[PoolBody], runners: Fleet
    ) -> Answer[shapes.Restarts]:
        return _answer(_shown_pool(await runners.set_pool(caller, check_pool(pool), data.given())))


@post("/v1/reconcile", **DECIDE, status_code=200, summary="Free agents of runners that are gone", tags=["execution"])
async def reconcile(acting: Acting, reconciler: NamedDependency[Reconciler]) -> Answer[shapes.Report]:
    """Free what dead runners hold in the caller's tenant; it also runs by itself."""
    return await acting.answer(lambda: reconciler.reconcile(acting.caller), lambda report: _said(report.shown()))
