"""Results and the workspace: values bound to steps, of which the nearest ancestor's is seen.

One rule for both. The workspace is a result under a reserved field name that no caller's key can become.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from models.agent import AgentRecord
from models.blob import Blobs, packed
from models.change import RESULTS, Change, Stamp
from models.change import WORKSPACE as WORKSPACE_KIND
from models.ids import RESERVED, ROOT, WORKSPACE, field_name, plain_name
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


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of steps, and those of them, where it is sealed, to which something was bound afterwards."""

    stretch: Stretch
    late: AbstractSet[str]

    def ids(self, record: AgentRecord) -> Sequence[str]:
        """Its steps."""
        return self.stretch.ids(record)

    def bearing(self, record: AgentRecord, *, workspaces: bool = False) -> Sequence[str]:
        """Those of its steps that results (or workspaces) may be bound to."""
        home = self.stretch.home
        if home is None:
            return self.ids(record)
        sealed = home.workspaces if workspaces else home.results
        if not sealed and not self.late:
            return ()
        tree = record.tree(home)
        return [step for step in self.ids(record) if step in self.late or (sealed and tree[step].bound)]


AT_ROOT = Part(Stretch(None, (ROOT,), 0, 0), frozenset())
"""Where what was there before the first step is bound."""


def parts_of(record: AgentRecord, rows: Iterable[Stretch], field: str | None = None) -> Iterator[Part]:
    """Stretches with what was bound late in them (under this field name, if one is given)."""
    lately = late(record, field)
    for stretch in rows:
        yield Part(stretch, frozenset() if stretch.home is None else lately.get(stretch.home.id, frozenset()))


def results_up(record: AgentRecord) -> list[Part]:
    """The parts of the path to HEAD in which results are looked for, the last first."""
    return [*parts_of(record, stretches(record, record.head)), AT_ROOT]


def results_in(record: AgentRecord, part: Part) -> dict[str, Result]:
    """The results bound in a part of a path, by key: of several the last."""
    return {
        plain_name(field): Result(step, result)
        for step in part.bearing(record)
        for field, result in record.bound(step).items()
        if field not in RESERVED
    }


def workspace_at(record: AgentRecord, leaf: str) -> Any:
    """The workspace seen from a step: one put there later goes before the step's own; None without any."""
    step = _nearest(record, leaf, WORKSPACE)
    if step is None:
        return None
    bound = record.bound(step)
    return bound[WORKSPACE] if WORKSPACE in bound else record.body(step)["workspace"]


def _nearest(record: AgentRecord, leaf: str, field: str) -> str | None:
    """The step, nearest to the end of a path, that something is bound to under a field name, or that brought it."""
    for part in chain(parts_of(record, stretches(record, leaf), field), (AT_ROOT,)):
        for step in reversed(part.bearing(record, workspaces=field == WORKSPACE)):
            if _bears(record, step, field, sealed=part.stretch.home is not None):
                return step
    return None


def _bears(record: AgentRecord, step: str, field: str, *, sealed: bool) -> bool:
    if field in record.results.get(step, ()):
        return True
    if sealed:
        return field in record.node(step).bound
    return field == WORKSPACE and "workspace" in record.steps.get(step, ())


def _has(record: AgentRecord, step: str, field: str, value: Any) -> bool:
    bound = record.bound(step)
    return field in bound and reads_as(bound[field], value)
