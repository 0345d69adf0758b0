"""`holdfast reconcile`: brings agents whose runner is gone to where they wait for the next one."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from app.cli.console import answer, progress, with_runtime
from app.orphans import Reconciled
from app.reconciler import Reconciler, Report
from app.runtime import Runtime
from app.sightings import LOOK_SECONDS

_SLACK_SECONDS = 1.0


def reconcile(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be changed, as runners are judged by now.")
    ] = False,
) -> None:
    """Free the agents of runners that are gone, in all tenants: a line for each, and a summary.

    Replicas do so by themselves, all the time; this is for when none runs, or to be sure. It first watches the runners
    that are taken to live for as long as their lease is (HOLDFAST_RUNNER_TTL_SECONDS), and declares dead who is silent
    all that time. Safe beside replicas, and to run again: what is done already changes nothing.
    """

    async def work(runtime: Runtime) -> Report:
        if dry_run:
            return await runtime.reconciler.reconcile(None, dry_run=True)
        await _watch(runtime.reconciler, runtime.settings.runner_ttl_seconds + _SLACK_SECONDS)
        freed = await runtime.reconciler.settle()
        report = await runtime.reconciler.reconcile(None)
        return Report(report.examined + len(freed), [*freed, *report.changed])

    report = with_runtime(work, reading_only=True)  # nothing of a replica's own is started for it
    for one in report.changed:
        answer(_line(one, "would change" if dry_run else "changed"))
    told = "would be changed" if dry_run else "changed"
    answer(f"{report.examined} agents examined, {len(report.changed)} {told}")


async def _watch(reconciler: Reconciler, seconds: float) -> None:
    """Look at the runners for so long, as a replica does."""
    looks = round(seconds / LOOK_SECONDS) + 1
    with progress() as bars:
        task = bars.add_task("watching runners", total=looks)
        for _ in range(looks):
            if not await reconciler.watch_runners():
                return
            bars.advance(task)
            await asyncio.sleep(LOOK_SECONDS)


def _line(one: Reconciled, did: str) -> str:
    return f"{did} {one.tenant}:{one.agent} {one.state} -> {one.to}: {one.reason}"
