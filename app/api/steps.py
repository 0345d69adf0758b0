"""Routes of steps, HEAD, branches, revert and redo, results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from litestar import Controller, delete, get, post, put
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from app.api import shapes
from app.api.agents import Limit
from app.api.answers import Answer, Unsent, no_content, reply
from app.api.bodies import BranchBody, HeadBody, ResultBody, RevertBody, StepBatch, StepsBody
from app.api.call import AgentId, Reading, Verbs, Writing
from app.api.paging import DEFAULT_LIMIT, steps_cursor, steps_window
from app.api.routes import APPEND, DRIVE, READ, gone
from app.filling import ByPart
from app.lanes import Committed
from models.agent import AgentRecord
from models.errors import NotFound
from models.ids import ROOT, plain_name
from models.json import difference
from models.listing import Window, page_of
from models.results import Result, result_of, results_in, results_up
from models.segment import Step
from models.tree import Comparison, branch_names, compare, resolve


def _appended(committed: Committed) -> Unsent:
    appended = committed.answer
    body = {"steps": appended.steps, "head": appended.head, "version": appended.version}
    if appended.turn_ended is not None:
        body["turn_ended"] = appended.turn_ended
    return reply(body, appended.version, 200 if appended.repeated else 201)


def _position(committed: Committed) -> Unsent:
    return reply(committed.answer, committed.record.version)


def _branches(record: AgentRecord) -> dict[str, Any]:
    current = None if record.branch is None else plain_name(record.branch)
    return {"branches": branch_names(record), "branch": current, "head": record.head, "version": record.version}


def _window(record: AgentRecord, view: str, ref: str | None, turn: str | None, after: int) -> Window:
    if ref is not None:
        return Window(resolve(record, ref), turn, after)
    return Window(record.head if view == "path" else None, turn, after)


def _page(record: AgentRecord, window: Window, limit: int) -> dict[str, Any]:
    if window.leaf is not None:
        record.require_step(window.leaf)
    found = page_of(record, window, limit)
    onward = None if found.next_after is None else steps_cursor(replace(window, after=found.next_after))
    return {"items": [record.step(step) for step in found.steps], "next_cursor": onward}


def _step(record: AgentRecord, step: str) -> Step:
    if step == ROOT:
        raise NotFound("The root holds nothing.")
    return record.step(record.require_step(step))


def _keyed(key: str, result: Result) -> dict[str, Any]:
    return {"key": key, "step_id": result.step_id, "result": result.result}


def _compared(found: Comparison) -> tuple[dict[str, Any], Callable[[Any], dict[str, Any]]]:
    left, right = found.workspaces
    lie = {"merge_base": found.merge_base, "only_from": found.only_from, "only_to": found.only_to}
    return {"from": left, "to": right}, lambda filled: {**lie, "workspace": difference(filled["from"], filled["to"])}


_RESULTS = ByPart(results_up, lambda record, part: results_in(record, part).items(), keyed=True)


def _result(record: AgentRecord, key: str) -> dict[str, Any]:
    found = result_of(record, key)
    if found is None:
        raise NotFound(f"No result of '{key[:64]}' is seen from HEAD.")
    return _keyed(key, found)


class StepRoutes(Controller):
    """The tree of one agent."""

    path = "/v1/agents/{agent_id:str}"
    tags = ["steps"]

    @post("/steps", **APPEND, summary="Append one step, or several together")
    async def append(
        self,
        agent_id: AgentId,
        data: JSONBody[StepsBody],
        posted: Writing,
        agents: Verbs,
        advance_head: FromQuery[bool] = True,
    ) -> Answer[shapes.Appended]:
        given = data.steps if isinstance(data, StepBatch) else [data]
        steps = [step.given() for step in given]
        return await posted.answer(
            lambda terms: agents.append(posted.caller, agent_id, steps, terms, advance_head=advance_head), _appended
        )

    @get("/steps", **READ, summary="Page through steps")
    async def list(
        self,
        agent_id: AgentId,
        reading: Reading,
        view: FromQuery[Literal["path", "all"]] = "path",
        ref: Annotated[str | None, QueryParameter(description="Step id or branch that the path ends at; HEAD.")] = None,
        turn: FromQuery[str | None] = None,
        after_seq: Annotated[int, QueryParameter(ge=0, le=2**63 - 1)] = 0,
        limit: Limit = DEFAULT_LIMIT,
        cursor: FromQuery[str | None] = None,
    ) -> Answer[shapes.StepList]:
        onward = None if cursor is None else steps_window(cursor)
        return await reading.answer(
            agent_id, lambda record: _page(record, onward or _window(record, view, ref, turn, after_seq), limit)
        )

    @get("/steps/{step_id:str}", **READ, summary="Read a step")
    async def read(self, agent_id: AgentId, step_id: FromPath[str], reading: Reading) -> Answer[shapes.Step]:
        return await reading.answer(agent_id, lambda record: _step(record, step_id))

    @put("/head", **DRIVE, summary="Check out a step or a branch")
    async def checkout(
        self, agent_id: AgentId, data: JSONBody[HeadBody], guarded: Writing, agents: Verbs
    ) -> Answer[shapes.Position]:
        return await guarded.answer(
            lambda terms: agents.checkout(guarded.caller, agent_id, terms, step=data.step_id, branch=data.branch),
            _position,
        )

    @get("/branches", **READ, summary="Read the branches")
    async def branches(self, agent_id: AgentId, reading: Reading) -> Answer[shapes.Branches]:
        return await reading.answer(agent_id, _branches)

    @put("/branches/{name:str}", **DRIVE, summary="Point a branch at a step")
    async def set_branch(
        self, agent_id: AgentId, name: FromPath[str], data: JSONBody[BranchBody], guarded: Writing, agents: Verbs
    ) -> Answer[shapes.Branch]:
        return await guarded.answer(
            lambda terms: agents.set_branch(guarded.caller, agent_id, name, data.step_id, terms),
            lambda done: reply(
                {"name": name, "step_id": data.step_id, "version": done.record.version}, done.record.version
            ),
        )

    @delete("/branches/{name:str}", **gone(DRIVE), summary="Forget a branch; its steps stay")
    async def delete_branch(
        self, agent_id: AgentId, name: FromPath[str], guarded: Writing, agents: Verbs
    ) -> Answer[None]:
        return await guarded.answer(
            lambda terms: agents.delete_branch(guarded.caller, agent_id, name, terms), no_content
        )

    @get("/diff", **READ, summary="How two places of the tree differ")
    async def diff(
        self,
        agent_id: AgentId,
        reading: Reading,
        start: Annotated[str, QueryParameter(name="from", description="Step id, branch or HEAD.")],
        end: Annotated[str, QueryParameter(name="to", description="Step id, branch or HEAD.")] = "HEAD",
    ) -> Answer[shapes.Difference]:
        return await reading.answer_filled(agent_id, lambda record: _compared(compare(record, start, end)))

    @post("/revert", **DRIVE, status_code=200, summary="Put HEAD before a turn")
    async def revert(
        self, agent_id: AgentId, data: JSONBody[RevertBody], posted: Writing, agents: Verbs
    ) -> Answer[shapes.Position]:
        return await posted.answer(lambda terms: agents.revert(posted.caller, agent_id, data.turn_id, terms), _position)

    @post("/redo", **DRIVE, status_code=200, summary="Take the latest revert back")
    async def redo(self, agent_id: AgentId, posted: Writing, agents: Verbs) -> Answer[shapes.Position]:
        return await posted.answer(lambda terms: agents.redo(posted.caller, agent_id, terms), _position)

    @post("/clear", **DRIVE, status_code=200, summary="Leave only the root")
    async def clear(self, agent_id: AgentId, posted: Writing, agents: Verbs) -> Answer[shapes.Position]:
        return await posted.answer(lambda terms: agents.clear(posted.caller, agent_id, terms), _position)

    @put("/results/{key:str}", **DRIVE, summary="Keep a result at a step")
    async def put_result(
        self, agent_id: AgentId, key: FromPath[str], data: JSONBody[ResultBody], guarded: Writing, agents: Verbs
    ) -> Answer[shapes.Result]:
        return await guarded.answer(
            lambda terms: agents.put_result(guarded.caller, agent_id, key, data.step_id, data.result, terms),
            lambda done: reply(_keyed(key, done.answer), done.record.version),
        )

    @get("/results", **READ, summary="Read the results seen from HEAD")
    async def results(self, agent_id: AgentId, reading: Reading) -> Answer[shapes.Results]:
        return await reading.answer_in_pieces(agent_id, lambda _: {"results": _RESULTS})

    @get("/results/{key:str}", **READ, summary="Read the result of a key seen from HEAD")
    async def result(self, agent_id: AgentId, key: FromPath[str], reading: Reading) -> Answer[shapes.Result]:
        return await reading.answer(agent_id, lambda record: _result(record, key))
