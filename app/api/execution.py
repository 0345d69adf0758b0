"""Routes of an agent's execution: transitions, turns, what its platform calls it, commands to its runner."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from litestar import Controller, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody

from app.api import shapes
from app.api.agents import Limit
from app.api.answers import Answer, Unsent, as_response, encode, reply
from app.api.bodies import CommandBody, FinishBody, ResourceBody, TransitionBody, TurnBody
from app.api.call import AgentId, Reading, Writing
from app.api.paging import DEFAULT_LIMIT, transitions_before, transitions_cursor
from app.api.routes import DRIVE, END_TURN, READ, WRITE
from app.commands import Commands
from app.execution import Execution
from app.lanes import Committed, Terms
from models.agent import AgentRecord
from models.command import CommandRecord
from models.commit import Reply
from models.transition import numbered

Doing = NamedDependency[Execution]

_HIDDEN = frozenset({"id", "tenant", "owner", "number", "incarnation", "born", "prepared", "expires_at"})


def _stands(committed: Committed) -> Unsent:
    return reply(asdict(committed.answer), committed.record.version)


def _finished(committed: Committed) -> Unsent:
    done = committed.answer
    told = {"turn_id": done.turn_id, "outcome": done.outcome, "steps": done.steps, "head": done.head}
    return reply({**told, **asdict(done.standing)}, committed.record.version)


def _resource(committed: Committed) -> Unsent:
    record = committed.record
    return reply({"resource_id": record.resource_id, "version": record.version}, record.version)


def shown_command(command: CommandRecord) -> dict[str, Any]:
    """A command as callers see it; what has no value is left out."""
    shown = {name: value for name, value in command.model_dump().items() if name not in _HIDDEN and value is not None}
    return {"id": command.name, **shown}


def _history(record: AgentRecord, limit: int, before: int | None) -> dict[str, Any]:
    found = [entry for entry in numbered(record) if before is None or entry["number"] < before]
    shown = [{name: value for name, value in entry.items() if name != "number"} for entry in found[:limit]]
    more = transitions_cursor(found[limit - 1]["number"]) if len(found) > limit else None
    return {"items": shown, "next_cursor": more}


class ExecutionRoutes(Controller):
    """What an agent does, and who may say so."""

    path = "/v1/agents/{agent_id:str}"
    tags = ["execution"]

    @post("/transitions", **DRIVE, status_code=200, summary="Move the agent to another state")
    async def transit(
        self, agent_id: AgentId, data: JSONBody[TransitionBody], posted: Writing, execution: Doing
    ) -> Answer[shapes.Standing]:
        return await posted.answer(
            lambda terms: execution.transit(posted.caller, agent_id, data.to, data.trigger, data.reason, terms), _stands
        )

    @get("/transitions", **READ, summary="Read the newest transitions; all are in the change log")
    async def transitions(
        self,
        agent_id: AgentId,
        reading: Reading,
        limit: Limit = DEFAULT_LIMIT,
        cursor: FromQuery[str | None] = None,
    ) -> Answer[shapes.TransitionList]:
        before = None if cursor is None else transitions_before(cursor)
        return await reading.answer(agent_id, lambda record: _history(record, limit, before))

    @post("/turns", **DRIVE, summary="Begin a turn with a user's step")
    async def begin(
        self, agent_id: AgentId, data: JSONBody[TurnBody], posted: Writing, execution: Doing
    ) -> Answer[shapes.Turn]:
        step = {"role": data.role, **data.given()}
        return await posted.answer(
            lambda terms: execution.begin(posted.caller, agent_id, step, terms),
            lambda done: reply(asdict(done.answer), done.record.version, 201),
        )

    @post("/turns/{turn_id:str}/finish", **END_TURN, status_code=200, summary="End a turn, with its last steps")
    async def finish(
        self,
        agent_id: AgentId,
        turn_id: FromPath[str],
        data: JSONBody[FinishBody],
        posted: Writing,
        execution: Doing,
    ) -> Answer[shapes.Finished]:
        steps = [step.given() for step in data.steps or ()]
        return await posted.answer(
            lambda terms: execution.finish(posted.caller, agent_id, turn_id, steps, data.outcome, data.error, terms),
            _finished,
        )

    @post("/stop", **DRIVE, status_code=200, summary="Ask the driver to stop the turn")
    async def stop(self, agent_id: AgentId, posted: Writing, execution: Doing) -> Answer[shapes.Standing]:
        return await posted.answer(lambda terms: execution.stop(posted.caller, agent_id, terms), _stands)

    @put("/resource", **DRIVE, summary="Keep what the platform calls the agent's process")
    async def set_resource(
        self, agent_id: AgentId, data: JSONBody[ResourceBody], guarded: Writing, execution: Doing
    ) -> Answer[shapes.Resource]:
        return await guarded.answer(
            lambda terms: execution.set_resource(guarded.caller, agent_id, data.resource_id, terms), _resource
        )

    @post("/commands", **WRITE, summary="Ask the agent's runner, or its pool, to do something")
    async def command(
        self, agent_id: AgentId, data: JSONBody[CommandBody], posted: Writing, commands: NamedDependency[Commands]
    ) -> Answer[shapes.Command]:
        async def encoded(command: CommandRecord) -> Reply:
            return Reply(201, encode(shown_command(command)), {"Location": f"/v1/commands/{command.name}"})

        terms = Terms(posted.guard, await posted.once(encoded))
        made = await commands.create(posted.caller, agent_id, data.given(), terms)
        return as_response(await encoded(made) if isinstance(made, CommandRecord) else made)
