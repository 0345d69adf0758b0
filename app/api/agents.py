"""Routes of agents: create, list, read, patch, delete, settings, delegate, workspace, export, import, fork."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from litestar import Controller, delete, get, patch, post, put
from litestar.params import FromQuery, JSONBody, QueryParameter

from app.agents import AgentQuery
from app.api import shapes, views
from app.api.answers import Answer, Unsent, encode, no_content, page, reply
from app.api.bodies import CreateBody, DelegateBody, ForkBody, PatchBody
from app.api.call import AgentId, Caller, Reading, Verbs, Writing
from app.api.paging import DEFAULT_LIMIT, MAX_LIMIT, agent_after, agents_cursor
from app.api.routes import DRIVE, IMPORT, LIST, READ, WRITE, gone
from app.filling import ByPart
from app.lanes import Committed
from app.telemetry import get_logger
from models.agent import AgentRecord
from models.errors import InvalidRequest, NotFound
from models.execution import State
from models.profile import masked
from models.results import workspace_at
from models.snapshot import Snapshot, bound_in, frame_of, parts, steps_in, workspaces_in

Limit = Annotated[int, QueryParameter(ge=1, le=MAX_LIMIT)]
StepsLimit = Annotated[
    int,
    QueryParameter(
        ge=0, le=10_000, description="The newest ones, when there are more; over 1000 are sent while they are made."
    ),
]
Status = Literal["pending", "running", "stopped", "failed"]


_log = get_logger(__name__)


def _created(committed: Committed) -> Unsent:
    record = committed.record
    location = f"/v1/agents/{record.name_in_tenant}"
    return reply(views.agent(record), record.version, 201, Location=location)


def _whole(committed: Committed) -> Unsent:
    return reply(views.agent(committed.record), committed.record.version)


def _bare(committed: Committed) -> Unsent:
    return reply(committed.answer, committed.record.version)


def _shown_delegate(record: AgentRecord) -> dict[str, Any]:
    delegate = masked(record.delegate)
    if delegate is None:
        raise NotFound("The agent has no delegate.")
    return delegate


def _exported(record: AgentRecord) -> dict[str, Any]:
    lists = {"steps": steps_in, "results": bound_in, "workspaces": workspaces_in}
    return {**frame_of(record), **{name: ByPart(parts, items) for name, items in lists.items()}}


def _listed(record: AgentRecord) -> orjson.Fragment:
    """The agent's summary, encoded; one that can't be read is said to be so, and the rest of the list stands."""
    try:
        return orjson.Fragment(encode(views.summary(record)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _log.error("agent is not readable", agent=record.id, exc_info=error)
        return orjson.Fragment(encode({"id": record.name_in_tenant, "error": "The stored agent can't be read."}))


class AgentRoutes(Controller):
    """Agents as wholes."""

    path = "/v1/agents"
    tags = ["agents"]

    @post(**WRITE, summary="Create an agent")
    async def create(self, data: JSONBody[CreateBody], posted: Writing, agents: Verbs) -> Answer[shapes.Agent]:
        return await posted.answer(lambda terms: agents.create(posted.caller, data.given(), terms), _created)

    @get(**LIST, summary="List agents, without steps and workspace")
    async def list(
        self,
        caller: Caller,
        agents: Verbs,
        in_state: Annotated[State | None, QueryParameter(name="state")] = None,
        status: FromQuery[Status | None] = None,
        pool: FromQuery[str | None] = None,
        runner: FromQuery[str | None] = None,
        label: Annotated[str | None, QueryParameter(description="key:value")] = None,
        archived: FromQuery[bool] = False,
        limit: Limit = DEFAULT_LIMIT,
        cursor: FromQuery[str | None] = None,
    ) -> Answer[shapes.AgentList]:
        if label is not None and ":" not in label:
            raise InvalidRequest("label takes key:value.")
        query = AgentQuery(in_state, status, pool, runner, label, archived)
        after = None if cursor is None else agent_after(cursor)
        found = await agents.list(caller, query, after=after, limit=limit + 1)
        more = agents_cursor(found[limit - 1].name_in_tenant) if len(found) > limit else None
        return page([_listed(record) for record in found[:limit]], more)

    @get("/{agent_id:str}", **READ, summary="Read an agent with its steps")
    async def read(
        self,
        agent_id: AgentId,
        reading: Reading,
        steps: FromQuery[views.StepsView] = "path",
        steps_limit: StepsLimit = views.STEPS_LIMIT,
    ) -> Answer[shapes.Agent]:
        if (steps, steps_limit) == ("path", views.STEPS_LIMIT):
            return await reading.answer_whole(agent_id)
        if steps == "none" or steps_limit <= views.STEPS_LIMIT:
            return await reading.answer(agent_id, lambda record: views.agent(record, steps, steps_limit))
        return await reading.answer_in_pieces(agent_id, lambda record: views.agent_in_parts(record, steps, steps_limit))

    @patch("/{agent_id:str}", **DRIVE, summary="Merge name, model, labels, placement, lifetimes")
    async def change(
        self, agent_id: AgentId, data: JSONBody[PatchBody], guarded: Writing, agents: Verbs
    ) -> Answer[shapes.Agent]:
        changes = data.given()
        return await guarded.answer(lambda terms: agents.patch(guarded.caller, agent_id, changes, terms), _whole)

    @delete("/{agent_id:str}", **gone(WRITE), summary="Delete an agent")
    async def remove(self, agent_id: AgentId, guarded: Writing, agents: Verbs) -> Answer[None]:
        return await guarded.answer(lambda terms: agents.delete(guarded.caller, agent_id, terms), no_content)

    @get("/{agent_id:str}/settings", **READ, summary="Read the settings")
    async def settings(self, agent_id: AgentId, reading: Reading) -> Answer[dict[str, Any]]:
        return await reading.answer(agent_id, lambda record: record.settings)

    @patch("/{agent_id:str}/settings", **DRIVE, summary="Merge settings (RFC 7396)")
    async def patch_settings(
        self, agent_id: AgentId, data: JSONBody[dict[str, Any]], guarded: Writing, agents: Verbs
    ) -> Answer[dict[str, Any]]:
        return await guarded.answer(lambda terms: agents.patch_settings(guarded.caller, agent_id, data, terms), _bare)

    @get("/{agent_id:str}/delegate", **READ, summary="Read on whose behalf the agent acts; the token is masked")
    async def delegate(self, agent_id: AgentId, reading: Reading) -> Answer[dict[str, Any]]:
        return await reading.answer(agent_id, _shown_delegate)

    @put("/{agent_id:str}/delegate", **WRITE, summary="Set on whose behalf the agent acts")
    async def set_delegate(
        self, agent_id: AgentId, data: JSONBody[DelegateBody], guarded: Writing, agents: Verbs
    ) -> Answer[dict[str, Any]]:
        delegate = data.given()
        return await guarded.answer(
            lambda terms: agents.set_delegate(guarded.caller, agent_id, delegate, terms),
            lambda done: reply(masked(done.record.delegate), done.record.version),
        )

    @delete("/{agent_id:str}/delegate", **gone(WRITE), summary="Forget the delegate")
    async def delete_delegate(self, agent_id: AgentId, guarded: Writing, agents: Verbs) -> Answer[None]:
        return await guarded.answer(
            lambda terms: agents.set_delegate(guarded.caller, agent_id, None, terms), no_content
        )

    @get("/{agent_id:str}/workspace", **READ, summary="Read the workspace seen from HEAD")
    async def workspace(self, agent_id: AgentId, reading: Reading) -> Answer[Any]:
        return await reading.answer(agent_id, lambda record: workspace_at(record, record.head))

    @put("/{agent_id:str}/workspace", **DRIVE, summary="Bind a workspace to HEAD")
    async def put_workspace(
        self, agent_id: AgentId, data: JSONBody[Any], guarded: Writing, agents: Verbs
    ) -> Answer[Any]:
        return await guarded.answer(lambda terms: agents.put_workspace(guarded.caller, agent_id, data, terms), _bare)

    @get("/{agent_id:str}/export", **READ, summary="Export the agent as one JSON snapshot")
    async def export(self, agent_id: AgentId, reading: Reading) -> Answer[Snapshot]:
        return await reading.answer_in_pieces(agent_id, _exported)

    @post("/import", **IMPORT, summary="Make an agent from a snapshot")
    async def take_in(self, data: JSONBody[Snapshot], posted: Writing, agents: Verbs) -> Answer[shapes.Agent]:
        return await posted.answer(lambda terms: agents.take_in(posted.caller, data, terms), _created)

    @post("/{agent_id:str}/fork", **WRITE, summary="Make a new agent that shares the path")
    async def fork(
        self, agent_id: AgentId, posted: Writing, agents: Verbs, data: JSONBody[ForkBody | None] = None
    ) -> Answer[shapes.Agent]:
        body = data or ForkBody()
        return await posted.answer(
            lambda terms: agents.fork(posted.caller, agent_id, terms, at=body.at, name=body.name), _created
        )
