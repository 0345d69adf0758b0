"""How the program talks: sentences to stderr, answers to stdout."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.config import Settings
from app.mongo import check
from app.mongod import EmbeddedServer, Watchdog
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


@contextmanager
def database(settings: Settings, *, watched: bool = False) -> Iterator[str]:
    """The URI of the database to use: MONGODB_URI, or the embedded one.

    The embedded one is started if need be (and again, when `watched`), and stopped in the end if this was its last
    user and nobody started it by hand. Raises EmbeddedError.
    """
    if settings.mongodb_uri:
        yield settings.mongodb_uri
        return
    server = EmbeddedServer(settings.data)
    with ExitStack() as stack:
        stack.callback(server.leave)
        uri = server.join()
        if watched:
            watchdog = Watchdog(server)
            watchdog.start()
            stack.callback(watchdog.stop)
        yield uri


def with_runtime(
    work: Callable[[Runtime], Coroutine[Any, Any, T]], *, reading_only: bool = False, into: str | None = None
) -> T:
    """Do some work on the database of the settings, or on another one there. Raises DatabaseProblem if it is unfit.

    `reading_only`: nothing is started, so that nothing is written, not even a heartbeat.
    """
    settings = Settings() if into is None else Settings(mongodb_database=into)

    async def run(uri: str) -> T:
        await check(uri)
        if not reading_only:
            async with running(settings, uri) as runtime:
                return await work(runtime)
        runtime = Runtime(settings, uri)
        try:
            return await work(runtime)
        finally:
            await runtime.mongo.client.close()

    with database(settings) as uri:
        return asyncio.run(run(uri))


@asynccontextmanager
async def following(runtime: Runtime) -> AsyncIterator[None]:
    """Be a replica as far as writing takes it, so that the change log is written; but watch over no runner.

    Where no replica runs, runners are silent because nobody hears them.
    """
    await runtime.mongo.prepare()
    await runtime.watcher.start()
    try:
        yield
        await runtime.scribe.caught_up()
    finally:
        await runtime.store.stop()
        await runtime.watcher.stop()


def progress() -> Progress:
    """Bars for people, with counts and time; nothing where nobody looks."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=people, transient=True, disable=not people.is_terminal)
