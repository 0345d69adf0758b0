"""`holdfast doctor`: is everything there that a replica needs?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated

import typer

from app.cli.console import answer, progress, say, with_runtime
from app.config import Settings
from app.fsck import Counts, Found, Fsck, mend
from app.mongo import DatabaseProblem, check, transaction_seconds
from app.mongod import EmbeddedError, EmbeddedServer
from app.runtime import Runtime, left_half
from app.vault import KEY_FILE, SecretKeyProblem, configured_keys
from models.errors import HoldfastError

_TRANSACTION_SECONDS = 10
_PROBLEMS = (DatabaseProblem, EmbeddedError, SecretKeyProblem)


def examine(
    fsck: Annotated[
        bool, typer.Option("--fsck", help="Also prove that all that is stored is consistent; it only reads.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="With --fsck: mend what follows from the rest, by ordinary commits.")
    ] = False,
) -> None:
    """Check the settings, the database and the secret keys; fails when something is wrong, and says what to do.

    With --fsck every agent, every value stored apart and the change log are looked through, also while others write:
    a line for each flaw, and a summary. What can't be mended is yours to judge: a backup has what was lost.
    """
    if repair and not fsck:
        raise typer.BadParameter("goes with --fsck.", param_hint="--repair")
    settings = Settings()
    passed = [_passes("database", _database, settings), _passes("secret keys", _secret_keys, settings)]
    if passed[0]:
        passed.append(_passes("restores", _restores, settings))
    if all(passed) and fsck:
        passed.append(_consistent(repair=repair))
    if not all(passed):
        raise typer.Exit(1)
    say("All is well.")


def _consistent(*, repair: bool) -> bool:
    """Whether nothing is wrong with what is stored, or nothing any more."""

    async def work(runtime: Runtime) -> bool:
        with progress() as bars:
            tasks = {name: bars.add_task(name, total=None) for name in ("agents", "segments", "values")}

            def told(counts: Counts) -> None:
                for name, task in tasks.items():
                    done, of = getattr(counts, name), getattr(counts, f"of_{name}")
                    bars.update(task, completed=done, total=max(of, done))

            fsck = Fsck(runtime.mongo, told)
            wrong = mended = 0
            async for found in fsck.findings():
                if repair and await _mended(runtime, found):
                    mended += 1
                    answer(f"mended {found}")
                else:
                    wrong += 1
                    answer(f"wrong  {found}")
        counts = fsck.counts
        looked_at = f"{counts.agents} agents, {counts.segments} segments and {counts.values} values looked at"
        answer(f"{'wrong ' if wrong else 'ok    '} {looked_at}, {wrong} flaws, {mended} mended")
        return wrong == 0

    return with_runtime(work, reading_only=not repair)


async def _mended(runtime: Runtime, found: Found) -> bool:
    """Whether it could be mended; an agent that is gone, or can't be written now, stays as it was found."""
    try:
        return await mend(runtime.store, found)
    except HoldfastError as error:
        say(f"{found.key} can't be mended: {error.detail}")
        return False


def _passes(name: str, probe: Callable[[Settings], str], settings: Settings) -> bool:
    try:
        found = probe(settings)
    except _PROBLEMS as problem:
        answer(f"wrong  {name}: {problem}")
        return False
    answer(f"ok     {name}: {found}")
    return True


def _database(settings: Settings) -> str:
    if settings.mongodb_uri:
        asyncio.run(check(settings.mongodb_uri))
        return f"MONGODB_URI leads to a writable replica set{_advice(settings.mongodb_uri)}"
    server = EmbeddedServer(settings.data)
    if not server.status().answers:
        server.require_installed()
        return f"embedded, not running; 'holdfast serve' starts it in {settings.data}"
    asyncio.run(check(server.uri()))
    return f"embedded, running in {settings.data}"


def _restores(settings: Settings) -> str:
    server = None if settings.mongodb_uri else EmbeddedServer(settings.data)
    if server is not None and not server.status().answers:
        return "not known while the database is not running"
    half = asyncio.run(left_half(settings, settings.mongodb_uri or (server.uri() if server else "")))
    if half is not None:
        raise DatabaseProblem(f"{half}. If it is not under way, run the same restore again: it goes on to its end.")
    return "none is under way or was broken off"


def _advice(uri: str) -> str:
    seconds = asyncio.run(transaction_seconds(uri))
    if seconds is None or seconds <= _TRANSACTION_SECONDS:
        return ""
    return (
        f"; its transactionLifetimeLimitSeconds is {seconds}: set it to 3, or a replica that dies at the wrong moment "
        "keeps an agent from being written for that long"
    )


def _secret_keys(settings: Settings) -> str:
    found = configured_keys(settings.secret_keys, settings.data)
    if settings.secret_keys:
        return f"{found} from HOLDFAST_SECRET_KEYS"
    where = settings.data / KEY_FILE
    note = "; replicas elsewhere need the same one in HOLDFAST_SECRET_KEYS" if settings.mongodb_uri else ""
    return f"one in {where}{note}" if found else f"none yet; the first use makes one in {where}{note}"
