"""`holdfast backup` and `holdfast restore`: a file that holds a database, a tenant or an agent, and the way back."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from app.archive import Contents
from app.backup import Backup
from app.cli.console import Failure, answer, following, progress, say, with_runtime
from app.clock import SystemClock, instant
from app.migrations import load
from app.restore import Restore, Told, verified
from app.runtime import Runtime
from app.vault import known_keys
from models.act import COPIED, OPERATOR
from models.archive import KEPT, End, Extent, Header
from models.ids import check_id
from models.tenant import DEFAULT_TENANT


def backup(
    path: Annotated[Path, typer.Argument(help="The file to write; nothing may be there yet.")],
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only this agent, of --tenant or of the tenant default.")] = None,
) -> None:
    """Write the whole database, one tenant or one agent into a file, as it is at one moment; others may go on writing.

    A line for each collection, and a summary. The file is compressed, and every byte of it is covered by a digest. It
    holds keys as hashes and tokens of delegates as they are sealed; the secret keys that open those are NOT in it: keep
    HOLDFAST_SECRET_KEYS, or secret.key of the data directory, somewhere else. Safe to interrupt: no file is left then.

    Example: holdfast backup /backups/monday.holdfast
    """
    extent = _extent(tenant, agent)

    async def work(runtime: Runtime) -> tuple[Header, End]:
        with progress() as bars:
            tasks = {name: bars.add_task(name, total=None, visible=False) for name in KEPT}

            def told(name: str, done: int, of: int) -> None:
                bars.update(tasks[name], completed=done, total=of, visible=True)

            announce = partial(_tell, runtime, extent, "backed up")
            made = Backup(runtime.mongo, runtime.scribe, SystemClock(), told, announce)
            await made.require_something(extent)
            async with following(runtime):
                return await made.write(path, extent)

    _end_as_by_ctrl_c()
    header, end = with_runtime(work, reading_only=True)
    _list(end)
    size = path.stat().st_size
    answer(f"ok     {extent} as of {instant(header.made_at)}: {end.documents} documents, {size} bytes in {path}")


def restore(
    path: Annotated[Path, typer.Argument(help="A backup.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the backup, and say what it holds and whether there is room.")
    ] = False,
    into: Annotated[str | None, typer.Option(help="The database to restore into; without: MONGODB_DATABASE.")] = None,
) -> None:
    """Restore a backup: all of it or, when that fails, nothing. Every byte is checked before the first write.

    It refuses a database that holds anything of what the backup holds, and a file that is damaged in any way. A restore
    that was killed is gone on with by the same call; until then no replica is ready on a database that is not whole. An
    agent that was deleted comes back with the next version after that.

    A dry run fails only for a file that can't be restored.

    Example: holdfast restore /backups/monday.holdfast --dry-run
    """
    _end_as_by_ctrl_c()
    contents = _verified(path)
    try:
        work = _foreseen if dry_run else _restored
        with_runtime(lambda runtime: work(runtime, contents), reading_only=True, into=into)
    except ValidationError as error:
        if into is None:
            raise
        raise Failure(f"'{into}' can't be the name of a database: letters, digits, - and _, 38 at most.") from error


def _extent(tenant: str | None, agent: str | None) -> Extent:
    if agent is None and tenant is None:
        return Extent()
    extent = Extent(check_id(tenant or DEFAULT_TENANT, "--tenant"), agent)
    if agent is not None:
        check_id(agent, "--agent")
    return extent


def _verified(path: Path) -> Contents:
    with progress() as bars:
        task = bars.add_task("checking", total=None)

        def told(position: int, size: int) -> None:
            bars.update(task, completed=position, total=size)

        return asyncio.run(verified(path, told))


async def _foreseen(runtime: Runtime, contents: Contents) -> None:
    restore = _of(runtime, contents)
    _list(contents.end)
    _tell_of_secret_keys(runtime, contents)
    header = contents.header
    made = f"{header.extent} of '{header.database}' as of {instant(header.made_at)}"
    answer(f"ok     {contents.path} is whole: {made}, {contents.end.documents} documents")
    begun = await restore.begun()
    taken = None if begun else await restore.in_the_way()
    room = "it was begun there, and would be gone on with" if begun else taken or "there is room"
    answer(f"{'taken ' if taken else 'ok    '} {runtime.settings.mongodb_database}: {room}")


async def _restored(runtime: Runtime, contents: Contents) -> None:
    with progress() as bars:
        task = bars.add_task("restoring", total=contents.end.documents)
        restore = _of(runtime, contents, lambda done: bars.update(task, completed=done))
        await restore.require_room()
        _require_known_migrations(contents)
        _tell_of_secret_keys(runtime, contents)
        try:
            if contents.header.extent.agent is None:
                await restore.run()
            else:  # its commit is to come into the log, also where no replica runs
                async with following(runtime):
                    await restore.run()
        finally:
            if restore.undone:
                say("The restore was broken off; what it wrote was taken away again.")
    _list(contents.end)
    what = f"{contents.header.extent} as of {instant(contents.header.made_at)}"
    answer(f"ok     {what}: {contents.end.documents} documents in the database '{runtime.settings.mongodb_database}'")


async def _tell(runtime: Runtime, extent: Extent, did: str) -> None:
    """Tell the logs of the tenants that it is about; of a whole database of those that have a key or an agent."""
    tenants = {extent.tenant}
    if extent.tenant is None:
        # unscoped: of the whole database
        tenants = {*await runtime.mongo.keys.distinct("tenant"), *await runtime.mongo.agents.distinct("tenant")}
    for tenant in sorted(filter(None, tenants)):
        await runtime.acts.tell_of(tenant, COPIED, OPERATOR, did=did, agent=extent.agent)


def _of(runtime: Runtime, contents: Contents, told: Told = lambda _: None) -> Restore:
    seconds = runtime.settings.call_seconds
    announce = partial(_tell, runtime, contents.header.extent, "restored")
    parts = (runtime.mongo, runtime.store, runtime.changes, SystemClock())
    return Restore(contents, *parts, seconds=seconds, told=told, announce=announce)


def _list(end: End) -> None:
    for name in KEPT:
        if name in end.collections:
            totals = end.collections[name]
            answer(f"{name}: {totals.documents} documents, {totals.bytes} bytes")


def _require_known_migrations(contents: Contents) -> None:
    """Raise Failure for a backup of a database that a newer program has changed the form of."""
    known = {migration.key for migration in load()}
    unknown = sorted(set(contents.header.migrations) - known)
    if unknown:
        raise Failure(
            f"The backup is of a newer Holdfast, with {', '.join(unknown)} applied: restore it with that one."
        )


def _tell_of_secret_keys(runtime: Runtime, contents: Contents) -> None:
    missing = set(contents.end.secret_keys) - known_keys(runtime.settings.secret_keys, runtime.settings.data)
    if missing:
        say(
            f"Tokens in the backup are sealed with keys that are not here ({', '.join(sorted(missing))}): add them to "
            "HOLDFAST_SECRET_KEYS, or nobody can open those tokens."
        )


def _end_as_by_ctrl_c() -> None:
    """SIGTERM goes through everything that is to be undone."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
