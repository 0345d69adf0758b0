"""How the program talks: sentences to stderr, answers to stdout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import typer
from rich.console import Console

from app.config import Settings
from app.mongo import check
from app.mongod import EmbeddedServer
from app.runtime import Runtime, running

T = TypeVar("T")

people = Console(stderr=True, highlight=False, soft_wrap=True)


class Failure(Exception):
    """What was asked can't be done; the message says why."""


def say(text: str) -> None:
    """A message for people."""
    people.print(f"holdfast: {text}", markup=False)


def answer(text: str) -> None:
    """A line of the answer."""
    typer.echo(text)


def database_uri(settings: Settings) -> str:
    """The database to use: MONGODB_URI, or the embedded one, started if need be. Raises EmbeddedError."""
    return settings.mongodb_uri or EmbeddedServer(settings.data).start()


def with_runtime(work: Callable[[Runtime], Coroutine[Any, Any, T]]) -> T:
    """Do some work on the database of the settings. Raises DatabaseProblem when it can't be used."""
    settings = Settings()
    uri = database_uri(settings)

    async def run() -> T:
        await check(uri)
        async with running(settings, uri) as runtime:
            return await work(runtime)

    return asyncio.run(run())
