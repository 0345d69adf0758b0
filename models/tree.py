"""The moves of the step tree: append, checkout, branches, revert and redo, clear, fork, comparison.

Each takes the agent as it is and returns a Change (or a plain value, when it only looks). Steps never change
once they are written; HEAD and branches are names for places in the tree.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

from models.agent import MAIN, AgentRecord
from models.blob import Blobs
from models.change import BRANCHES, CLEARED, HEAD, STEP, Change, Stamp
from models.errors import AgentBusy, Conflict, InvalidRequest, NotFound, StepExists
from models.execution import IN_TURN
from models.ids import ROOT, field_name, plain_name
from models.listing import Window, page_of
from models.packing import INLINE_BYTES, packed_step, reads_as
from models.path import Stretch, late, stretches, upwards
from models.results import workspace_at
from models.segment import INHERITED_VERSION, Descriptor, Step

ASSIGNED = ("seq", "version", "parent_id", "turn_id", "index", "created_at")
"""Fields of a stored step that the service fills in when the caller leaves them out."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A step to append: its id, whether the caller chose it, and the fields exactly as they were given."""

    id: str
    given: Step
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append answers; `repeated` when every step was there already, with the same content."""

    steps: list[Step]
    head: str
    version: int
    repeated: bool = False
    turn_ended: str | None = None
    """Why the turn that the steps belong to is over with them."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where HEAD is after a move of it, with the workspace that goes with it."""

    head: str
    branch: str | None
    version: int
    workspace: Any
    can_redo: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two places of the tree lie; ids in order from the root, and the workspaces there as they are stored."""

    merge_base: str
    only_from: list[str]
    only_to: list[str]
    workspaces: tuple[Any, Any]


def append(
    record: AgentRecord,
    drafts: Sequence[Draft],
    stamp: Stamp,
    *,
    advance_head: bool = True,
    turn: str | None = None,
    inline: int = INLINE_BYTES,
) -> Change:
    """Hang the steps one from another below the first one's parent (HEAD by default); all or nothing.

    With `advance_head` an explicit parent must be HEAD, and HEAD and the current branch move to the last step. Steps
    that name no turn are of `turn`; without it a user's step opens one, and any other goes on with its parent's.
    Raises NotFound (parent), Conflict (parent is not HEAD) and StepExists. A repeat of an append whose ids were
    all chosen changes nothing and answers as the first did. Values over `inline` bytes go out of line.
    """
    if repeated := _repeated(record, drafts, advance_head):
        return record.unchanged(repeated)
    parent = _parent_of(record, drafts[0], advance_head)
    added = _chained(record, drafts, parent, turn, stamp)
    blobs: Blobs = {}
    steps = {f"steps.{step}": body for step, body in _packed(record, added, inline, blobs).items()}
    counts = {"seq": record.seq + len(added), "step_count": record.step_count + len(added)}
    head = drafts[-1].id if advance_head else record.head
    answer = Appended([{"id": step, **body} for step, body in added.items()], head, record.version + 1)
    if not advance_head:
        return record.changed(stamp, (STEP,), counts, put=steps, answer=answer, blobs=blobs)
    moved = {"detached": head} if record.branch is None else {}
    fields = {**counts, **moved, **({"redo": []} if record.redo else {})}
    put = {**steps, **_branch_at(record.branch, head)}
    return record.changed(stamp, (STEP, HEAD), fields, put=put, answer=answer, blobs=blobs)


def checkout(record: AgentRecord, stamp: Stamp, *, step: str | None = None, branch: str | None = None) -> Change:
    """Move HEAD to a step (detached) or to a branch (attached); the redo stack is emptied.

    Raises AgentBusy inside a turn, and NotFound. A checkout of where HEAD is changes nothing, unless a redo waits.
    """
    _require_not_in_turn(record)
    target = record.require_step(step) if step is not None else _branch(record, branch or "")
    attached = field_name(branch) if branch is not None else None
    if target == record.head and attached in (None, record.branch) and not record.redo:
        return record.unchanged(position(record))
    return _moved(record, stamp, head=target, branch=attached, redo=[])


def set_branch(record: AgentRecord, name: str, step: str, stamp: Stamp) -> Change:
    """Let a named branch point at a step; the current branch moves only with HEAD (Conflict)."""
    record.require_step(step)
    field = field_name(name)
    if record.branches.get(field) == step:
        return record.unchanged()
    if field == record.branch:
        raise Conflict(f"'{name}' is the current branch: it moves with HEAD. Check out the step, then move it.")
    return record.changed(stamp, (BRANCHES,), put={f"branches.{field}": step})


def delete_branch(record: AgentRecord, name: str, stamp: Stamp) -> Change:
    """Forget a branch (its steps stay). Raises NotFound, and Conflict for the current branch."""
    _branch(record, name)
    field = field_name(name)
    if field == record.branch:
        raise Conflict(f"'{name}' is the current branch: check out another place first.")
    return record.changed(stamp, (BRANCHES,), drop=[f"branches.{field}"])


def revert(record: AgentRecord, turn: str, stamp: Stamp) -> Change:
    """Put HEAD before a turn on its path, and remember where it was for `redo`.

    Raises NotFound for an unknown turn, Conflict for one that is not on the path, AgentBusy inside a turn.
    """
    _require_not_in_turn(record)
    found = page_of(record, Window(record.head, turn), 1).steps
    if not found:
        if page_of(record, Window(None, turn), 1).steps:
            raise Conflict(f"The turn '{turn}' is not on the path of HEAD.", head=record.head)
        raise NotFound(f"There is no turn '{turn[:64]}'.")
    before = record.node(found[0]).parent_id
    return _moved(record, stamp, head=before, branch=record.branch, redo=[*record.redo, record.head])


def redo(record: AgentRecord, stamp: Stamp) -> Change:
    """Take the latest revert back. Raises Conflict when there is none, AgentBusy inside a turn."""
    _require_not_in_turn(record)
    if not record.redo:
        raise Conflict("There is nothing to redo: a revert was not made, or an append or checkout came after it.")
    return _moved(record, stamp, head=record.redo[-1], branch=record.branch, redo=record.redo[:-1])


def clear(record: AgentRecord, stamp: Stamp) -> Change:
    """Leave only the root: steps, results, branches and redo stack go; `seq` goes on. Raises AgentBusy in a turn."""
    _require_not_in_turn(record)
    empty: dict[str, Any] = {"steps": {}, "results": {}, "sealed": {}, "step_count": 0, "redo": []}
    empty |= {"detached": None, "branch": MAIN, "branches": {MAIN: ROOT}}
    if all(getattr(record, name) == value for name, value in empty.items()):
        return record.unchanged(position(record))
    return _positioned(record.changed(stamp, (CLEARED,), empty))


def fork(record: AgentRecord, key: str, at: str | None, name: str | None) -> AgentRecord:
    """The draft of a new agent that shares the path up to `at` (HEAD when None) and nothing beside it.

    Of segments it keeps descriptors that show this path alone. No side branches, no delegate, no runner. `seq` goes on
    from the last inherited step. Raises NotFound.
    """
    leaf = record.head if at is None else resolve(record, at)
    way = list(stretches(record, leaf))
    inherited = [_inherited(record, stretch) for stretch in way if stretch.home is not None]
    steps = {
        step: record.steps[step] for stretch in reversed(way) if stretch.home is None for step in stretch.ids(record)
    }
    return AgentRecord(
        id=key,
        tenant=record.tenant,
        name=record.name if name is None else name,
        **{field: getattr(record, field) for field in _INHERITED},
        branch=MAIN,
        branches={MAIN: leaf},
        seq=way[0].to_seq if way else 0,
        step_count=len(steps) + sum(one.count for one in inherited),
        steps=steps,
        results={step: record.results[step] for step in _kept_results(record, steps, way)},
        sealed={str(one.from_seq): one.stored() for one in inherited},
        forked_from={"agent": record.name_in_tenant, "step": leaf},
    )


def compare(record: AgentRecord, start: str, end: str) -> Comparison:
    """How two steps or branches of the tree lie to each other. Raises NotFound."""
    left, right = resolve(record, start), resolve(record, end)
    merge_base, only_left, only_right = _apart(record, left, right)
    return Comparison(merge_base, only_left, only_right, (workspace_at(record, left), workspace_at(record, right)))


def resolve(record: AgentRecord, ref: str) -> str:
    """The step that a step id, a branch's name or `HEAD` stands for. Raises NotFound."""
    if ref == ROOT or record.has(ref):
        return ref
    return record.head if ref == "HEAD" else _branch(record, ref)


def branch_names(record: AgentRecord) -> dict[str, str]:
    """The branches by the names that callers gave them."""
    return {plain_name(field): step for field, step in record.branches.items()}


def position(record: AgentRecord) -> Position:
    """Where HEAD is now."""
    branch = None if record.branch is None else plain_name(record.branch)
    workspace = workspace_at(record, record.head)
    return Position(record.head, branch, record.version, workspace, bool(record.redo))


_INHERITED = (
    *("owner", "model", "settings", "labels", "label_terms"),
    *("pool", "platform", "region", "dormant", "ttl_seconds", "idle_seconds"),
)


def _inherited(record: AgentRecord, stretch: Stretch) -> Descriptor:
    """What a fork keeps of a segment that its path leads through."""
    assert stretch.home is not None  # noqa: S101 - said by the caller
    if stretch.steps is None:
        return replace(stretch.home, inherited=True, to_version=INHERITED_VERSION)
    steps = stretch.steps
    return replace(
        stretch.home,
        last=steps[-1],
        parent=record.node(steps[0]).parent_id,
        chain=True,
        part=True,
        inherited=True,
        count=len(steps),
        bytes=stretch.home.bytes * len(steps) // stretch.home.count,
        from_seq=stretch.from_seq,
        to_seq=stretch.to_seq,
        to_version=INHERITED_VERSION,
    )


def _kept_results(record: AgentRecord, steps: Mapping[str, Step], way: Sequence[Stretch]) -> Iterator[str]:
    """The steps of a path, and the root, that something in the document is bound to."""
    yield from (step for step in record.results if step == ROOT or step in steps)
    lately = late(record)
    for stretch in way:
        if stretch.home is not None and stretch.home.id in lately:
            yield from lately[stretch.home.id].intersection(stretch.ids(record))


def _apart(record: AgentRecord, left: str, right: str) -> tuple[str, list[str], list[str]]:
    """The last step that two paths share, and what each has alone. Along a path seq only grows."""
    paths = [chain(upwards(record, leaf), [ROOT]) for leaf in (left, right)]
    alone: tuple[list[str], list[str]] = [], []
    steps = [next(each) for each in paths]
    while steps[0] != steps[1]:
        seqs = [0 if step == ROOT else record.node(step).seq for step in steps]
        further = 0 if seqs[0] > seqs[1] else 1
        alone[further].append(steps[further])
        steps[further] = next(paths[further])
    return steps[0], alone[0][::-1], alone[1][::-1]


def _moved(record: AgentRecord, stamp: Stamp, *, head: str, branch: str | None, redo: list[str]) -> Change:
    fields = {"branch": branch, "detached": head if branch is None else None, "redo": redo}
    change = record.changed(stamp, (HEAD,), fields, put=_branch_at(branch, head))
    return _positioned(replace(change, told={"head": head, "branch": branch}))


def _branch_at(branch: str | None, head: str) -> dict[str, str]:
    return {} if branch is None else {f"branches.{branch}": head}


def _positioned(change: Change) -> Change:
    return replace(change, answer=position(change.record))


def _require_not_in_turn(record: AgentRecord) -> None:
    if record.state in IN_TURN:
        raise AgentBusy(f"The agent is {record.state}: stop or finish the turn first.", state=record.state)


def _branch(record: AgentRecord, name: str) -> str:
    step = record.branches.get(field_name(name))
    if step is None:
        raise NotFound(f"There is no step or branch '{name[:64]}' on agent '{record.name_in_tenant}'.")
    return step


def _parent_of(record: AgentRecord, draft: Draft, advance_head: bool) -> str:
    parent = draft.given.get("parent_id")
    if parent is None:
        return record.head
    record.require_step(parent)
    if advance_head and parent != record.head:
        raise Conflict(
            "parent_id is not HEAD: leave it out to append at HEAD, or send advance_head=false.", head=record.head
        )
    return str(parent)


def _chained(
    record: AgentRecord, drafts: Sequence[Draft], parent: str, turn: str | None, stamp: Stamp
) -> dict[str, Step]:
    added: dict[str, Step] = {}
    before = None if parent == ROOT else record.body(parent)
    record.require_known([draft.id for draft in drafts if draft.chosen])
    for number, draft in enumerate(drafts, start=1):
        if draft.id in record.steps or (draft.chosen and record.has(draft.id)):
            raise StepExists(f"There is a step '{draft.id}' already, with other content or in another append.")
        if draft.id in added:
            raise InvalidRequest(f"Two steps of the batch have the id '{draft.id}'.")
        if number > 1 and draft.given.get("parent_id") not in (None, parent):
            raise InvalidRequest("In a batch each step hangs from the one before: leave parent_id out after the first.")
        named = draft.given.get("turn_id") or turn
        body = _written(draft, before, parent, named, record.seq + number, record.version + 1, stamp)
        added[draft.id] = before = body
        parent = draft.id
    return added


def _written(
    draft: Draft, before: Step | None, parent: str, named: str | None, seq: int, version: int, stamp: Stamp
) -> Step:
    """The step as it is stored: if no turn is named a user's step opens one, any other goes on with its parent's."""
    opens = before is None or draft.given["role"] == "user"
    turn = named or (draft.id if opens or before is None else before["turn_id"])
    follows = before is not None and before["turn_id"] == turn
    index = before["index"] + 1 if follows and before is not None else 0
    assigned = {"seq": seq, "version": version, "parent_id": parent, "turn_id": turn, "index": index}
    return {**assigned, "created_at": stamp.now, **draft.given, "parent_id": parent, "turn_id": turn}


def _packed(record: AgentRecord, added: Mapping[str, Step], inline: int, blobs: Blobs) -> dict[str, Step]:
    """The new steps as they are stored."""
    stored: dict[str, Step] = {}
    steps = ChainMap(stored, record.steps)
    for step, body in added.items():
        stored[step] = packed_step(body, steps, inline, blobs)
    return stored


def _repeated(record: AgentRecord, drafts: Sequence[Draft], advance_head: bool) -> Appended | None:
    if not all(draft.chosen for draft in drafts):
        return None
    record.require_known([draft.id for draft in drafts])
    if not all(record.has(draft.id) for draft in drafts):
        return None
    steps = [record.step(draft.id) for draft in drafts]
    chained = all(after["parent_id"] == before["id"] for before, after in pairwise(steps))
    if not chained or not all(_same_step(draft, record.body(draft.id)) for draft in drafts):
        return None
    head = drafts[-1].id if advance_head else record.head
    return Appended(steps, head, max(step["version"] for step in steps), repeated=True)


def _same_step(draft: Draft, step: Step) -> bool:
    """Whether the stored step holds what the draft gives, and nothing more that a caller would have given."""
    extra = step.keys() - draft.given.keys() - set(ASSIGNED)
    return not extra and all(name in step and reads_as(step[name], value) for name, value in draft.given.items())
