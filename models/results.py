"""Results and the workspace: values bound to steps, of which the nearest ancestor's is seen.

One rule for both. The workspace is a result under a reserved field name that no caller's key can become.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.agent import AgentRecord
from models.blob import Blobs, packed
from models.change import RESULTS, Change, Stamp
from models.change import WORKSPACE as WORKSPACE_KIND
from models.ids import ROOT, field_name, plain_name
from models.packing import INLINE_BYTES, reads_as

WORKSPACE = "@workspace"
"""Field name of the workspace; `ids.field_name` writes `@` as `%40`, so it is out of reach."""


@dataclass(frozen=True, slots=True)
class Result:
    """A cached result of a tool or operator, and the step that it is bound to."""

    step_id: str
    result: Any


def put_result(
    record: AgentRecord, key: str, step: str | None, result: Any, stamp: Stamp, *, inline: int = INLINE_BYTES
) -> Change:
    """Bind a result to a step (HEAD when None); the same key and step overwrite. Raises NotFound."""
    bound = record.head if step is None else record.require_step(step)
    field = field_name(key)
    answer = Result(bound, result)
    if _has(record, bound, field, result):
        return record.unchanged(answer)
    blobs: Blobs = {}
    put = {f"results.{bound}.{field}": packed(result, inline, blobs)}
    return record.changed(stamp, (RESULTS,), put=put, answer=answer, blobs=blobs)


def put_workspace(record: AgentRecord, workspace: Any, stamp: Stamp, *, inline: int = INLINE_BYTES) -> Change:
    """Bind a workspace to HEAD."""
    if _has(record, record.head, WORKSPACE, workspace):
        return record.unchanged(workspace)
    blobs: Blobs = {}
    put = {f"results.{record.head}.{WORKSPACE}": packed(workspace, inline, blobs)}
    change = record.changed(stamp, (WORKSPACE_KIND,), put=put, answer=workspace, blobs=blobs)
    return replace(change, told={"head": record.head, "branch": record.branch})


def visible_results(record: AgentRecord) -> dict[str, Result]:
    """Every result seen from HEAD, by key: of several the one bound nearest."""
    seen: dict[str, Result] = {}
    for step in (ROOT, *record.path()):
        for field, result in record.results.get(step, {}).items():
            if field != WORKSPACE:
                seen[plain_name(field)] = Result(step, result)
    return seen


def workspace_at(record: AgentRecord, path: Sequence[str]) -> Any:
    """The workspace seen from the end of a path: one put there later goes before the step's own; None without any."""
    for step in (*reversed(path), ROOT):
        bound = record.results.get(step)
        if bound is not None and WORKSPACE in bound:
            return bound[WORKSPACE]
        body = record.steps.get(step)
        if body is not None and "workspace" in body:
            return body["workspace"]
    return None


def _has(record: AgentRecord, step: str, field: str, value: Any) -> bool:
    bound = record.results.get(step, {})
    return field in bound and reads_as(bound[field], value)
