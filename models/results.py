"""Results and the workspace: values bound to steps, of which the nearest ancestor's is seen.

One rule for both. The workspace is a result under a reserved field name that no caller's key can become.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from models.agent import AgentRecord
from models.blob import Blobs, packed
from models.change import RESULTS, Change, Stamp
from models.change import WORKSPACE as WORKSPACE_KIND
from models.ids import ROOT, WORKSPACE, field_name, plain_name
from models.packing import INLINE_BYTES, reads_as
from models.path import Stretch, late, stretches


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


def result_of(record: AgentRecord, key: str) -> Result | None:
    """The result of a key that is seen from HEAD."""
    found = _nearest(record, record.head, field_name(key))
    return None if found is None else Result(found, record.bound(found)[field_name(key)])


def results_in(record: AgentRecord, stretch: Stretch) -> dict[str, Result]:
    """The results bound in a stretch of a path, by key: of several the last."""
    sealed = stretch.home is not None and stretch.home.results
    return {
        plain_name(field): Result(step, result)
        for step in _bearing(record, stretch, late(record), sealed=sealed)
        for field, result in record.bound(step).items()
        if field != WORKSPACE
    }


def workspace_at(record: AgentRecord, leaf: str) -> Any:
    """The workspace seen from a step: one put there later goes before the step's own; None without any."""
    step = _nearest(record, leaf, WORKSPACE)
    if step is None:
        return None
    bound = record.bound(step)
    return bound[WORKSPACE] if WORKSPACE in bound else record.body(step)["workspace"]


AT_ROOT = Stretch(None, (ROOT,), 0, 0)
"""Where what was there before the first step is bound."""


def _nearest(record: AgentRecord, leaf: str, field: str) -> str | None:
    """The step, nearest to the end of a path, that something is bound to under a field name, or that brought it."""
    lately = late(record, field)
    for stretch in (*stretches(record, leaf), AT_ROOT):
        home = stretch.home
        sealed = home is not None and (home.workspaces if field == WORKSPACE else home.results)
        for step in reversed(_bearing(record, stretch, lately, sealed=sealed)):
            if _bears(record, step, field, sealed=home is not None):
                return step
    return None


def _bears(record: AgentRecord, step: str, field: str, *, sealed: bool) -> bool:
    if field in record.results.get(step, ()):
        return True
    if sealed:
        return field in record.node(step).bound
    return field == WORKSPACE and "workspace" in record.steps.get(step, ())


def _bearing(
    record: AgentRecord, stretch: Stretch, lately: Mapping[str, AbstractSet[str]], *, sealed: bool
) -> Sequence[str]:
    """The steps of a stretch that something may be bound to; `sealed`: its segment holds such things."""
    if stretch.home is None:
        return stretch.ids(record)
    own = lately.get(stretch.home.id, frozenset())
    if not sealed and not own:
        return ()
    tree = record.tree(stretch.home)
    return [step for step in stretch.ids(record) if step in own or (sealed and tree[step].bound)]


def _has(record: AgentRecord, step: str, field: str, value: Any) -> bool:
    bound = record.bound(step)
    return field in bound and reads_as(bound[field], value)
