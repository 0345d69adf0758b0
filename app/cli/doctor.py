"""`holdfast doctor`: is everything there that a replica needs?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import typer

from app.cli.console import answer, say
from app.config import Settings
from app.mongo import DatabaseProblem, check, transaction_seconds
from app.mongod import EmbeddedError, EmbeddedServer
from app.vault import KEY_FILE, SecretKeyProblem, configured_keys

_TRANSACTION_SECONDS = 10
_PROBLEMS = (DatabaseProblem, EmbeddedError, SecretKeyProblem)


def examine() -> None:
    """Check the settings, the database and the secret keys; fails when something is wrong, and says what to do."""
    settings = Settings()
    checks: tuple[tuple[str, Callable[[Settings], str]], ...] = (
        ("database", _database),
        ("secret keys", _secret_keys),
    )
    passed = [_passes(name, probe, settings) for name, probe in checks]
    if not all(passed):
        raise typer.Exit(1)
    say("All is well.")


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
