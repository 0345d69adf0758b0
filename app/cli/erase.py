"""`holdfast erase`: removes every trace of a tenant, or of one agent."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from app.cli.console import Failure, answer, people, say, with_runtime
from app.erasure import Erased, Told
from app.runtime import Runtime
from models.act import OPERATOR
from models.tenant import Right, Scope


def erase(
    tenant: Annotated[str, typer.Option(help="Whose data; never guessed.")],
    agent: Annotated[str | None, typer.Option(help="Only this agent.")] = None,
    keep_episodes: Annotated[
        bool, typer.Option("--keep-episodes", help="With --agent: what it learned stays with the tenant.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask whether you are sure.")] = False,
) -> None:
    """Erase a tenant, keys and all; or one agent, of which a tombstone without content stays. There is no way back.

    Of an agent its content, log, commands and episodes go; its forks are listed and stay whole, with what they share
    with it. Values that only it referred to go once no write that is under way may need them (some 20 s). Interrupted,
    it is to be run again. Backups that were taken before are yours to remove.
    """
    if keep_episodes and agent is None:
        raise typer.BadParameter("goes with --agent.", param_hint="--keep-episodes")
    scope = Scope(tenant, frozenset(Right), by=OPERATOR)

    def foresee(runtime: Runtime) -> Coroutine[Any, Any, Erased]:
        if agent is None:
            return runtime.erasure.foreseen(tenant)
        return runtime.erasure.agent_foreseen(scope, agent, episodes=not keep_episodes)

    async def carry_out(runtime: Runtime) -> Erased:
        with _progress() as told:
            if agent is None:
                return await runtime.erasure.tenant(tenant, told=told)
            return await runtime.erasure.agent(scope, agent, episodes=not keep_episodes, told=told)

    if dry_run:
        _show(with_runtime(foresee, reading_only=True), "would be removed")
        return
    if not yes:
        _ask(tenant if agent is None else f"{tenant}:{agent}")
    _show(with_runtime(carry_out), "removed")


def _ask(what: str) -> None:
    if not people.is_terminal:
        raise Failure("Nobody is there to be asked: add --yes, or look first with --dry-run.")
    if typer.prompt(f"Type '{what}' to erase it for good", err=True) != what:
        raise typer.Abort


@contextmanager
def _progress() -> Iterator[Told]:
    """Tells people how much is removed by now."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=people, transient=True, disable=not people.is_terminal) as bar:
        task = bar.add_task("erasing")
        yield lambda done: bar.update(task, description=f"{sum(done.removed.values())} documents removed")


def _show(found: Erased, how: str) -> None:
    for name, count in sorted(found.removed.items()):
        answer(f"{name}\t{count}")
    for fork in found.forks:
        answer(f"fork\t{fork}")
    if found.forks:
        say(f"{len(found.forks)} forks stay whole, with what they share with the agent.")
    answer(f"{sum(found.removed.values())} documents {how}")
