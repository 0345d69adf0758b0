"""Give every agent an execution state.

Programs before the state machine knew only `status` (pending, running, stopped, failed) and `activity` (idle, busy).
The state follows from them; both stay, for those who read nothing else. What was written before agents had a version
becomes an agent here: its content is kept, and what every agent has is added to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.agent import MAIN, STORED, AgentRecord
from models.change import STATE
from models.execution import State, activity_of, status_of
from models.ids import ROOT, check_id
from models.profile import label_terms

KINDS = (STATE,)
ADOPTS = True

_STATES = [state.value for state in State]
_OF_A_COMMIT = ("tenant", "version", "created_at", "last", "ops")
_DEFAULTS = {
    name: default
    for name in STORED
    if name not in _OF_A_COMMIT
    and (default := AgentRecord.model_fields[name].get_default(call_default_factory=True)) is not None
}


def wanted() -> dict[str, Any]:
    """Agents without a state, or without what is derived from it; and all that never had a commit."""
    missing = [{name: None} for name in ("status", "activity", "last")]
    return {"$or": [{"state": {"$nin": _STATES}}, {"version": {"$in": [None, 0]}}, *missing]}


def assigned(document: Mapping[str, Any]) -> dict[str, Any]:
    """The state, what is derived from it, and every field that is missing. Raises ValueError."""
    state = _state_of(document)
    shown = {"state": state.value, "status": status_of(state), "activity": activity_of(state)}
    known = document if document.get("version") else {**document, **_tree_of(document)}
    labels = known.get("labels") or {}
    missing = {name: value for name, value in _DEFAULTS.items() if known.get(name) is None}
    terms = {"label_terms": label_terms(labels)} if "label_terms" in missing else {}
    changed = {name: value for name, value in known.items() if value is not document.get(name)}
    return {**missing, **changed, **terms, **shown}


def _state_of(document: Mapping[str, Any]) -> State:
    for name in (document.get("state"), document.get("status")):
        if name in _STATES:
            return State(name)
    if document.get("status") == "running":
        return State.BUSY if document.get("activity") == "busy" else State.IDLE
    return State.PENDING


def _tree_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The steps as an agent has them, with HEAD and the branches. Raises ValueError for what is no tree."""
    steps = _steps_of(document.get("steps") or {}, document["created_at"])
    last = next(reversed(steps), ROOT)
    head = document.get("head") or last
    branches = {MAIN: head, **(document.get("branches") or {})}
    detached = document.get("detached")
    branch = None if detached else document.get("branch") or MAIN
    lost = {detached or ROOT, *branches.values()} - steps.keys() - {ROOT}
    if lost or branch not in (None, *branches):
        raise ValueError(f"HEAD or a branch is at {', '.join(sorted(lost)) or branch}, which is not there")
    counts = {"step_count": len(steps), "seq": max((step["seq"] for step in steps.values()), default=0)}
    return {**counts, "steps": steps, "branches": branches, "branch": branch}


def _steps_of(stored: Any, at: Any) -> dict[str, dict[str, Any]]:
    """Steps by id, in the order of their seq. One that says nothing else hangs from the one before it."""
    listed = stored if isinstance(stored, Sequence) else [{"id": step, **body} for step, body in stored.items()]
    numbered = all(isinstance(body.get("seq"), int) and body["seq"] > 0 for body in listed)
    if numbered and len({body["seq"] for body in listed}) == len(listed):
        listed = sorted(listed, key=lambda body: body["seq"])
    else:
        listed = [{**body, "seq": number} for number, body in enumerate(listed, start=1)]
    steps: dict[str, dict[str, Any]] = {}
    for body in listed:
        step = check_id(str(body.get("id") or f"step-{body['seq']}"), "a step's id")
        steps[step] = _whole(step, body, steps, at)
    if len(steps) < len(listed):
        raise ValueError("two of its steps have one id")
    return steps


def _whole(step: str, body: Mapping[str, Any], earlier: dict[str, dict[str, Any]], at: Any) -> dict[str, Any]:
    """A step with all that a step has: a user's opens a turn, any other goes on with its parent's."""
    parent = body.get("parent_id") or next(reversed(earlier), ROOT)
    if parent != ROOT and parent not in earlier:
        raise ValueError(f"the step '{step}' hangs from '{parent}', which is not before it")
    role = body.get("role") or "user"
    above = earlier.get(parent)
    opens = above is None or role == "user"
    turn = body.get("turn_id") or (step if opens or above is None else above["turn_id"])
    index = above["index"] + 1 if above is not None and above["turn_id"] == turn else 0
    given = {name: value for name, value in body.items() if name != "id" and value is not None}
    made = {"parent_id": parent, "turn_id": turn, "role": role, "version": 1}
    return {"index": index, "created_at": at, **given, **made}
