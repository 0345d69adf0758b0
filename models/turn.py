"""Turns: a user's step and the agent's steps that answer it, with the states that go along, each move in one change.

While a turn is open the agent remembers it (`{id, last, steps, calls, begun_at}`): its newest step, how many followed,
and which tool calls have no result yet. An agent that was made busy by a bare transition has a turn without an id: the
one that HEAD is in. When a turn is over, how it ended is bound to its last step, which reads `end` from then on. One
that nobody goes on with is *broken off*: its acknowledged steps stay, and one more step says so and answers every tool
call that was left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from models import tree
from models.agent import AgentRecord, widened
from models.change import RUNNER, Change, Stamp
from models.errors import AgentBusy, Conflict, IllegalTransition, NotFound
from models.execution import IN_TURN, OVER, State, Trigger
from models.ids import END, ROOT
from models.listing import Window, page_of
from models.packing import INLINE_BYTES
from models.path import upwards
from models.segment import Step
from models.settings import most_steps
from models.transition import Move, Standing, move, move_along, standing
from models.tree import Appended, Draft

COMPLETED, MAX_STEPS, INTERRUPTED = "completed", "max_steps", "interrupted"
"""How a turn ends that its driver did not finish: by a bare transition, with its last step of all, broken off."""

_START = (Move(State.STARTING, Trigger.SPAWN), Move(State.IDLE, Trigger.CONNECTED))
_UNANSWERED = "The turn was interrupted before this call had a result; it was not repeated."


@dataclass(frozen=True, slots=True)
class Begun:
    """What the begin of a turn answers; `fence` guards its writes."""

    turn_id: str
    step: Step
    version: int
    fence: int


@dataclass(frozen=True, slots=True)
class Finished:
    """What the end of a turn answers."""

    turn_id: str
    outcome: str
    steps: list[Step]
    head: str
    standing: Standing


def begin(record: AgentRecord, draft: Draft, stamp: Stamp, *, inline: int = INLINE_BYTES) -> Change:
    """Open a turn: the user's step and the way to busy in one change. An agent without a runner gets a new fence.

    Without a pool an agent is spawned by the way. The same turn begun again, with a chosen id, is answered as at first.
    Raises AgentBusy, IllegalTransition, and what an append raises.
    """
    turn_id = draft.given.get("turn_id", draft.id)
    draft = replace(draft, given={**draft.given, "turn_id": turn_id, "begin": True})
    if record.turn is not None and draft.chosen and record.turn["id"] == turn_id and record.has(draft.id):
        repeated = tree.append(record, [draft], stamp, inline=inline)
        return record.unchanged(_begun(record, repeated))
    if record.state in IN_TURN:
        raise AgentBusy(f"The agent is {record.state}: wait for the turn to end, or stop it.", state=record.state)
    ways = _way_to_busy(record)
    move(record, ways, stamp)  # the state is judged before the step
    appended = tree.append(record, [draft], stamp, inline=inline)
    if not appended.kinds:
        raise Conflict(f"The step '{draft.id}' is there already, and its turn is not open.")
    opened = {"id": turn_id, "last": draft.id, "steps": 0, "begun_at": stamp.now}
    turn = {**opened, "calls": _open_calls([], [draft.given])}
    fence = {} if record.runner is not None else {"fence": record.fence + 1}
    change = move_along(appended, ways, stamp, turn=turn, **fence)
    return replace(change, answer=_begun(change.record, appended))


def append(
    record: AgentRecord,
    drafts: Sequence[Draft],
    stamp: Stamp,
    *,
    advance_head: bool = True,
    inline: int = INLINE_BYTES,
) -> Change:
    """Append steps as `tree.append` does; at HEAD those that name no other turn are of the open one, which may end so.

    Raises Conflict for a step of a turn that was ended so. The last one itself, sent again, is answered as at first.
    """
    named = _named(record) if advance_head else None
    appended = tree.append(record, drafts, stamp, advance_head=advance_head, turn=named, inline=inline)
    if not appended.kinds:
        ended = record.results.get(drafts[-1].id, {}).get(END, {}).get("outcome") == MAX_STEPS
        return replace(appended, answer=replace(appended.answer, turn_ended=MAX_STEPS)) if ended else appended
    if advance_head:
        _require_room(record, drafts)
    turn = record.turn
    if turn is None or not advance_head:
        return appended
    own = [step for step in appended.answer.steps if turn["id"] in (None, step["turn_id"])]
    if not own:
        return appended
    count = turn["steps"] + len(own)
    if count >= most_steps(record.settings):
        ended = _ended(appended, own[-1]["id"], MAX_STEPS, stamp)
        shown = _ending_with(own[-1]["id"], appended.answer.steps)
        return replace(ended, answer=replace(appended.answer, steps=shown, turn_ended=MAX_STEPS))
    calls = _open_calls(turn["calls"], own)
    put = {"turn.last": own[-1]["id"], "turn.steps": count, **({} if calls == turn["calls"] else {"turn.calls": calls})}
    return _with(appended, put)


def finish(
    record: AgentRecord,
    turn: str,
    drafts: Sequence[Draft],
    outcome: str,
    error: str | None,
    stamp: Stamp,
    *,
    inline: int = INLINE_BYTES,
) -> Change:
    """End the open turn, with its last steps if there are any: the agent is idle again.

    Raises IllegalTransition for a turn that is over, NotFound for an unknown one, and what an append raises.
    """
    _require_open(record, turn)
    if not drafts:
        last = turn_of(record)[1]
        change = _ended(record, last, outcome, stamp, error)
        steps: list[Step] = []
    else:
        appended = tree.append(record, drafts, stamp, turn=_named(record), inline=inline)
        if not appended.kinds:
            raise Conflict("The steps are there already: finish the turn without them.")
        last, steps = drafts[-1].id, appended.answer.steps
        change = _ended(appended, last, outcome, stamp, error)
    answer = Finished(turn, outcome, _ending_with(last, steps), change.record.head, standing(change.record))
    return replace(change, answer=answer)


def stop(record: AgentRecord, stamp: Stamp) -> Change:
    """Ask the driver of the open turn to stop; without one nothing changes. Raises IllegalTransition."""
    if record.state in (State.IDLE, State.STOPPING):
        return record.unchanged(standing(record))
    return move(record, [Move(State.STOPPING, Trigger.STOP_REQUESTED)], stamp)


def transit(record: AgentRecord, to: State, trigger: Trigger, reason: str | None, stamp: Stamp, step: str) -> Change:
    """One transition by name. A turn that it ends is closed: finished by a result, else broken off with that step.

    An agent that failed or was stopped has no runner any more. Raises IllegalTransition.
    """
    one = Move(to, trigger, reason)
    if record.state in IN_TURN and to == State.IDLE:
        move(record, [one], stamp)  # refused before anything of the turn is looked at
        change = _ended(record, turn_of(record)[1], COMPLETED, stamp, reason)
        return replace(change, answer=standing(change.record))
    if to in OVER:
        change = broken_off(record, [one], stamp, step)
    else:
        change = move(record, [one], stamp, **({"turn": _unnamed(record, stamp)} if to == State.BUSY else {}))
    return replace(change, answer=standing(change.record))


def broken_off(record: AgentRecord, moves: Sequence[Move], stamp: Stamp, step: str, **fields: Any) -> Change:
    """Transitions that end the agent's run: its runner is gone, its fence goes on, an open turn is closed by a step.

    Raises IllegalTransition, NotAtHand.
    """
    left = {**unassigned(record), "turn": None, **fields}
    if moves[-1].to == State.FAILED and (record.runner or record.state in IN_TURN or _crashed(moves[-1])):
        left["failures"] = record.failures + 1  # one that nobody had begun to start has not failed at anything
    change = move(record, moves, stamp, **left)
    turn, _ = turn_of(record)
    if record.state in IN_TURN and turn != ROOT:
        reason = moves[-1].reason or moves[-1].trigger.value
        appended = tree.append(record, [_closing(record, turn, reason, step)], stamp)
        change = _marked(move_along(appended, moves, stamp, **left), step, INTERRUPTED, reason)
    return change if record.runner is None else widened(change, (RUNNER,), {}, told={"fence": record.fence + 1})


def _crashed(one: Move) -> bool:
    return one.trigger == Trigger.PROCESS_CRASHED


def unassigned(record: AgentRecord) -> dict[str, Any]:
    """The fields of an agent that loses its runner, or its turn's driver; whoever drove it is fenced out."""
    if record.runner is None and record.state not in IN_TURN:
        return {}
    return {
        "runner": None,
        "incarnation": None,
        "previous_runner": record.runner or record.previous_runner,
        "fence": record.fence + 1,
    }


def turn_of(record: AgentRecord) -> tuple[str, str]:
    """The open turn and its last step; `root` for both where there is no step yet."""
    if record.turn is not None and record.turn["id"] is not None:
        return record.turn["id"], record.turn["last"]
    return (ROOT, ROOT) if record.head == ROOT else (record.node(record.head).turn_id, record.head)


def _named(record: AgentRecord) -> str | None:
    """The id of the open turn, if it has one of its own."""
    return None if record.turn is None else record.turn["id"]


def _begun(record: AgentRecord, appended: Change) -> Begun:
    step = _first(appended)
    return Begun(step["turn_id"], step, step["version"], record.fence)


def _first(appended: Change) -> Step:
    answer: Appended = appended.answer
    return answer.steps[0]


def _way_to_busy(record: AgentRecord) -> list[Move]:
    prompted = Move(State.BUSY, Trigger.PROMPT_RECEIVED)
    if record.pool is not None or record.state == State.IDLE:
        return [prompted]
    return [*(_START[1:] if record.state == State.STARTING else _START), prompted]


def _require_open(record: AgentRecord, turn: str) -> None:
    if record.state in IN_TURN and turn_of(record)[0] == turn:
        return
    if not page_of(record, Window(None, turn), 1).steps:
        raise NotFound(f"There is no turn '{turn[:64]}'.")
    if record.state in IN_TURN:
        raise Conflict(f"The turn '{turn}' is over; '{turn_of(record)[0]}' is open.", turn_id=turn_of(record)[0])
    raise IllegalTransition(record.state, State.IDLE.value, Trigger.RESULT_RECEIVED.value)


def _require_room(record: AgentRecord, drafts: Sequence[Draft]) -> None:
    """Raise Conflict where a step would go on with a turn that had all the steps that it may have."""
    given = drafts[0].given
    if record.head == ROOT or given["role"] == "user":
        return
    ended = record.results.get(record.head, {}).get(END)
    if ended is not None and ended["outcome"] == MAX_STEPS:
        turn = record.node(record.head).turn_id
        if given.get("turn_id", turn) == turn:
            raise Conflict(f"The turn '{turn}' has had its max_steps: begin another.", turn_id=turn)


def _ended(of: AgentRecord | Change, last: str, outcome: str, stamp: Stamp, error: str | None = None) -> Change:
    """The turn is over: the agent is idle, and its last step says how it ended."""
    moves = [Move(State.IDLE, Trigger.RESULT_RECEIVED, outcome if error is None else f"{outcome}: {error}")]
    over = {"turn": None, "failures": 0}
    change = move(of, moves, stamp, **over) if isinstance(of, AgentRecord) else move_along(of, moves, stamp, **over)
    return change if last == ROOT else _marked(change, last, outcome, error)


def _ending_with(last: str, steps: Sequence[Step]) -> list[Step]:
    """The steps as they read once the turn is over."""
    return [{**step, "end": True} if step["id"] == last else step for step in steps]


def _marked(change: Change, step: str, outcome: str, error: str | None) -> Change:
    how = {"outcome": outcome} if error is None else {"outcome": outcome, "error": error}
    return _with(change, {f"results.{step}.{END}": how})


def _with(change: Change, put: Mapping[str, Any]) -> Change:
    return widened(change, (), {}, put=put)


def _unnamed(record: AgentRecord, stamp: Stamp) -> dict[str, Any]:
    """The turn of an agent that is made busy without a prompt: it goes on with what HEAD left open."""
    path = [] if record.head == ROOT else list(_steps_of_turn(record, record.node(record.head).turn_id))[::-1]
    return {"id": None, "last": record.head, "steps": 0, "begun_at": stamp.now, "calls": _open_calls([], path)}


def _closing(record: AgentRecord, turn: str, reason: str, step: str) -> Draft:
    """The step that ends a turn which nobody goes on with, and answers each tool call that was left open."""
    calls = [] if record.turn is None else record.turn["calls"]
    results = [{"id": call, "output": _UNANSWERED, "is_error": True} for call in calls]
    told = {"content": f"The turn was interrupted: {reason}.", "source": INTERRUPTED, "turn_id": turn}
    answered = {"role": "tool", "tool_results": results} if results else {"role": "system"}
    return Draft(step, {**answered, **told, "data": {"interrupted": reason}})


def _open_calls(calls: Sequence[str], steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tool calls that have no result after these steps. What is stored apart is taken as neither."""
    known = list(calls)
    for body in steps:
        known += [call["id"] for call in _listed(body.get("tool_calls"))]
        answered = {result["id"] for result in _listed(body.get("tool_results"))}
        known = [call for call in dict.fromkeys(known) if call not in answered]
    return known


def _listed(value: Any) -> Sequence[Mapping[str, Any]]:
    return value if isinstance(value, list) else ()


def _steps_of_turn(record: AgentRecord, turn: str) -> Iterator[Step]:
    for step in upwards(record, record.head):
        body = record.body(step)
        if body["turn_id"] != turn:
            return
        yield body
