"""The export of an agent: one JSON object from which an equal agent can be made.

Guarantee: importing an export gives an agent whose export is equal but for id, versions and times.
Delegate tokens, execution state and placement on a runner are never in it.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from models.agent import MAIN, AgentRecord
from models.blob import Blobs, packed
from models.errors import InvalidRequest
from models.ids import RESERVED, ROOT, WORKSPACE, check_branch, check_id, check_name, field_name, plain_name
from models.listing import steps_of
from models.packing import INLINE_BYTES, packed_step
from models.path import whole
from models.profile import label_terms
from models.results import AT_ROOT, Part, parts_of
from models.settings import check_settings, with_defaults
from models.step import MAX_COUNT, Body, Id, Instant, SnapshotStep
from models.tree import branch_names

FORMAT = 1

Seconds = Annotated[int | float, Field(gt=0)]

COPIED = (
    *("name", "owner", "model", "labels", "pool", "platform", "region", "dormant"),
    *("ttl_seconds", "idle_seconds", "forked_from", "redo", "seq"),
)
"""Fields that stand in a snapshot as they stand in the record."""


class SnapshotResult(Body):
    """A result and the step that it is bound to."""

    step_id: str
    key: str
    result: Any


class SnapshotWorkspace(Body):
    """A workspace that was put at a step (or at `root`)."""

    step_id: str
    workspace: Any


class ForkedFrom(Body):
    """Where a fork came from."""

    agent: str
    step: str


class Snapshot(Body):
    """One agent with all its steps, format 1."""

    holdfast: Annotated[int, Field(ge=FORMAT, le=FORMAT, description="The number of the format.")]
    id: Id | None = None
    exported_at: Instant | None = None
    created_at: Instant | None = None
    version: int | None = None
    name: str = "Bob"
    owner: str | None = None
    model: str | None = None
    settings: dict[str, Any] = Field(default_factory=lambda: with_defaults({}))
    delegate: dict[str, Any] | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    pool: str | None = None
    platform: str | None = None
    region: str | None = None
    dormant: bool = False
    ttl_seconds: Seconds | None = None
    idle_seconds: Seconds | None = None
    forked_from: ForkedFrom | None = None
    head: str | None = None
    branch: str | None = MAIN
    branches: dict[str, str] | None = None
    redo: list[str] = Field(default_factory=list)
    seq: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    steps: list[SnapshotStep] = Field(default_factory=list)
    results: list[SnapshotResult] = Field(default_factory=list)
    workspaces: list[SnapshotWorkspace] = Field(default_factory=list)


def frame_of(record: AgentRecord) -> dict[str, Any]:
    """The agent's export as JSON values (times still as datetimes), but for steps, results and workspaces."""
    return {
        "holdfast": FORMAT,
        "id": record.name_in_tenant,
        "version": record.version,
        "created_at": record.created_at,
        **{field: getattr(record, field) for field in COPIED},
        "settings": record.settings,
        "delegate": _without_token(record.delegate),
        "head": record.head,
        "branch": None if record.branch is None else plain_name(record.branch),
        "branches": branch_names(record),
    }


def parts(record: AgentRecord) -> list[Part]:
    """The parts that the rest of an export is made of; the steps in them are by seq."""
    return [AT_ROOT, *parts_of(record, whole(record))]


def steps_in(record: AgentRecord, part: Part) -> list[dict[str, Any]]:
    """The steps of a part."""
    return [] if part is AT_ROOT else steps_of(record, part.stretch)


def bound_in(record: AgentRecord, part: Part) -> list[dict[str, Any]]:
    """What is bound to the steps of a part, but for workspaces."""
    return [
        {"step_id": step, "key": plain_name(field), "result": value}
        for step in part.bearing(record)
        for field, value in sorted(record.bound(step).items())
        if field not in RESERVED
    ]


def workspaces_in(record: AgentRecord, part: Part) -> list[dict[str, Any]]:
    """The workspaces that were put at the steps of a part."""
    bound = ((step, record.bound(step)) for step in part.bearing(record, workspaces=True))
    return [{"step_id": step, "workspace": values[WORKSPACE]} for step, values in bound if WORKSPACE in values]


def draft_of(snapshot: Snapshot, key: str, tenant: str, blobs: Blobs, *, inline: int = INLINE_BYTES) -> AgentRecord:
    """The draft of an agent from its export; values over `inline` bytes go to `blobs`.

    Raises InvalidRequest where the snapshot contradicts itself.
    """
    check_settings(snapshot.settings)
    given = _steps(snapshot)
    steps: dict[str, dict[str, Any]] = {}
    for step, body in given.items():
        steps[step] = packed_step(body, steps, inline, blobs)
    last = snapshot.steps[-1].id if snapshot.steps else ROOT
    head = _known(steps, last if snapshot.head is None else snapshot.head, "head")
    branches = {MAIN: head} if snapshot.branches is None else snapshot.branches
    fields = {field_name(check_branch(name)): step for name, step in branches.items()}
    for name, step in branches.items():
        _known(steps, step, f"branches.{name}")
    if snapshot.branch is not None and branches.get(snapshot.branch) != head:
        raise InvalidRequest(f"branch '{snapshot.branch}' must be one of branches and point at head.")
    highest = max((body["seq"] for body in steps.values()), default=0)
    copied = {field: getattr(snapshot, field) for field in COPIED}
    return AgentRecord(
        id=key,
        tenant=tenant,
        **{
            **copied,
            "detached": head if snapshot.branch is None else None,
            "seq": max(snapshot.seq or 0, highest),
            "redo": [_known(steps, step, "redo") for step in snapshot.redo],
            "forked_from": snapshot.forked_from and snapshot.forked_from.given(),
        },
        settings=snapshot.settings,
        delegate=_without_token(snapshot.delegate),
        label_terms=label_terms(snapshot.labels),
        branch=None if snapshot.branch is None else field_name(snapshot.branch),
        branches=fields,
        steps=steps,
        step_count=len(steps),
        results=_results(snapshot, steps, inline, blobs),
    )


def _steps(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    steps: dict[str, dict[str, Any]] = {}
    seq = 0
    for step in snapshot.steps:
        check_id(step.id, "a step's id")
        if step.id in steps:
            raise InvalidRequest(f"Two steps have the id '{step.id}'.")
        if step.seq <= seq:
            raise InvalidRequest(f"steps must be in the order of their seq: '{step.id}' is not.")
        _known(steps, step.parent_id, f"the parent of '{step.id}'")
        seq = step.seq
        steps[step.id] = {name: value for name, value in step.given().items() if name not in ("id", "version")}
    return steps


def _results(snapshot: Snapshot, steps: dict[str, Any], inline: int, blobs: Blobs) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    for item in snapshot.results:
        field = field_name(check_name(item.key, "a result's key"))
        results.setdefault(_known(steps, item.step_id, "results"), {})[field] = packed(item.result, inline, blobs)
    for bound in snapshot.workspaces:
        step = _known(steps, bound.step_id, "workspaces")
        results.setdefault(step, {})[WORKSPACE] = packed(bound.workspace, inline, blobs)
    return results


def _known(steps: dict[str, Any], step: str, where: str) -> str:
    if step != ROOT and step not in steps:
        raise InvalidRequest(f"{where} names the step '{step[:64]}', which the snapshot does not hold before it.")
    return step


def _without_token(delegate: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if delegate is None else {key: value for key, value in delegate.items() if key != "token"}
