"""`holdfast import`: trace files become agents, each file wholly or not at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from app.cli.console import Failure, answer, progress, with_runtime
from app.lanes import Committed, Terms
from app.runtime import Runtime
from app.traces import Snapshot as TracedSnapshot
from app.traces import Trace, read
from models.snapshot import Snapshot
from models.step import StepInput
from models.tenant import DEFAULT_TENANT, Right, Scope


def take_in(
    files: Annotated[list[Path], typer.Argument(help="SWE-agent .traj, OpenAI-style messages, or Holdfast exports.")],
    tenant: Annotated[str, typer.Option(help="Whose agents they become.")] = DEFAULT_TENANT,
    owner: Annotated[str | None, typer.Option(help="The owner of the new agents.")] = None,
) -> None:
    """Make an agent from each trace in the files; prints `id name steps` for each.

    All files are read and judged before the first agent is made: a broken one stops everything. An id that is taken
    stops the import there; the agents printed before it are made, each of them whole.

    Example: holdfast import run.traj chat.json
    """
    with progress() as bars:
        reading = bars.add_task("reading", total=len(files))
        traces = []
        for file in files:
            traces += read(file)
            bars.advance(reading)

        async def work(runtime: Runtime) -> None:
            scope = Scope(tenant, frozenset(Right), owner, by="import")
            made = [_prepared(runtime, scope, trace) for trace in traces]
            importing = bars.add_task("importing", total=len(made))
            for make in made:
                record = (await make()).record
                answer(f"{record.name_in_tenant} {record.name} {record.step_count}")
                bars.advance(importing)

        with_runtime(work)


def _prepared(runtime: Runtime, scope: Scope, trace: Trace | TracedSnapshot) -> Callable[[], Awaitable[Committed]]:
    """What makes the agent, once everything about it has been judged but whether its id is free."""
    agents = runtime.agents
    if isinstance(trace, TracedSnapshot):
        snapshot = _snapshot(trace)
        agents.draft(scope, snapshot)
        return lambda: agents.take_in(scope, snapshot, Terms())
    spec = {"name": trace.name, "model": trace.model, "labels": dict(trace.labels)}
    steps = [StepInput.model_validate(step).given() for step in trace.steps]
    for step in steps:
        runtime.drafts.require_fitting(step)
    return lambda: agents.create(scope, spec, Terms(), steps=steps)


def _snapshot(trace: TracedSnapshot) -> Snapshot:
    try:
        return Snapshot.model_validate(trace.export)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise Failure(f"The export is not one of Holdfast's: {where}: {first['msg']}.") from error
