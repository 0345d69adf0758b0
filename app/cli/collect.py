"""`holdfast collect`: removes what is stored apart and nothing refers to any more."""

from __future__ import annotations

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from app.cli.console import answer, people, with_runtime
from app.collector import Collected
from app.runtime import Runtime


def collect() -> None:
    """Remove segments and stored values that no agent refers to any more.

    Replicas do so by themselves (HOLDFAST_COLLECT_HOURS); this does it now. What is found is marked, and removed after
    HOLDFAST_COLLECT_WAIT_SECONDS if nothing came to refer to it. Safe while agents are written, and to interrupt.
    """

    async def work(runtime: Runtime) -> Collected:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=people, transient=True, disable=not people.is_terminal) as progress:
            task = progress.add_task("looking for what nothing refers to")

            def told(done: Collected) -> None:
                found = f"{done.looked_at} segments and values looked at, {done.marked} marked, {done.removed} removed"
                progress.update(task, description=found)

            return await runtime.collector.collect(told)

    done = with_runtime(work)
    answer(f"{done.looked_at} segments and values, {done.removed} removed, {done.bytes} bytes")
