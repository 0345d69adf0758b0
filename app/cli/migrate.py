"""`holdfast migrate`: brings what earlier programs stored up to date."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.console import Failure, answer, following, progress, say, with_runtime
from app.clock import SystemClock, instant
from app.migrations import NAMED, MigrationProblem, Migrations, Standing, load
from app.runtime import Runtime


def migrate(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many documents each migration would change; write nothing.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Say how far each migration came; write nothing.")] = False,
) -> None:
    """Apply the migrations of scripts/migrations, in order, to every document that needs them; a line for each.

    Safe while replicas serve, also those of the release before: start the new ones first, then migrate, then stop the
    old ones. Safe to interrupt: the next run goes on where this one was. Safe to repeat: nothing changes. One run at a
    time; one that was killed is in nobody's way after a few seconds.
    """
    if dry_run and status:
        raise typer.BadParameter("goes without --status.", param_hint="--dry-run")
    try:
        work = _applied if not (dry_run or status) else _foreseen if dry_run else _told
        fine = with_runtime(work, reading_only=True)
    except MigrationProblem as problem:
        raise Failure(str(problem)) from problem
    if not fine:
        raise typer.Exit(1)


async def _told(runtime: Runtime) -> bool:
    """How far each migration came; False when a document can't be migrated."""
    migrations = _of(runtime)
    found = await migrations.status()
    for standing in found:
        answer(f"{_named(standing)}: {_progress(standing)}")
    if holder := await migrations.holder():
        say(f"{holder} is migrating, or was killed while it did.")
    return not any(standing.wrong for standing in found)


async def _foreseen(runtime: Runtime) -> bool:
    for standing in await _of(runtime).status():
        some = f", such as {', '.join(standing.some)}" if standing.some else ""
        answer(f"{_named(standing)}: would change {standing.left} documents{some}")
    return True


async def _applied(runtime: Runtime) -> bool:
    """Apply what is to be applied; False when a document can't be migrated."""
    migrations = _of(runtime)
    total = wrong = 0
    async with following(runtime):
        with progress() as bars:
            task = bars.add_task("looking")

            def told(standing: Standing) -> None:
                done = standing.changed_now + standing.wrong
                bars.update(task, description=_named(standing), completed=done, total=max(done, standing.left))

            async for standing in migrations.apply(told):
                answer(f"{_named(standing)}: changed {standing.changed_now} documents")
                _tell_wrong(standing)
                total, wrong = total + standing.changed_now, wrong + standing.wrong
    verdict = f"wrong  {wrong} documents can't be migrated" if wrong else "ok     all is up to date"
    answer(f"{verdict}, {total} changed")
    return not wrong


def _of(runtime: Runtime) -> Migrations:
    seconds = runtime.settings.call_seconds
    return Migrations(load(), runtime.mongo, runtime.store, SystemClock(), seconds=seconds)


def _named(standing: Standing) -> str:
    return f"{standing.migration.number:04} {standing.migration.title}"


def _progress(standing: Standing) -> str:
    if standing.started_at is None:
        return f"not yet; {standing.left} documents need it"
    if standing.finished_at is not None:
        came = f"; {standing.left} came since and need it" if standing.left else ""
        return f"applied {instant(standing.finished_at)}, {standing.changed} documents changed{came}"
    where = f" after {standing.after}" if standing.after else ""
    stuck = f", {standing.wrong} can't be migrated" if standing.wrong else ""
    begun = f"interrupted{where}, begun {instant(standing.started_at)}"
    return f"{begun}; {standing.changed} documents changed, {standing.left} need it{stuck}"


def _tell_wrong(standing: Standing) -> None:
    for reason in standing.reasons:
        answer(f"wrong  {reason}")
    if standing.wrong > NAMED:
        answer(f"wrong  {standing.wrong - NAMED} more")
