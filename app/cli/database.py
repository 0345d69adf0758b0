"""`holdfast db`: the embedded database, by hand."""

from __future__ import annotations

import typer

from app.cli.console import Failure, answer, say
from app.config import Settings
from app.mongod import EmbeddedServer

commands = typer.Typer(
    help="Start, stop and look at the embedded database of the data directory (HOLDFAST_DATA, ./.holdfast).\n\n"
    "Example: MONGODB_URI=$(holdfast db uri) my-program",
    no_args_is_help=True,
)


def _server() -> EmbeddedServer:
    settings = Settings()
    if settings.mongodb_uri:
        raise Failure("MONGODB_URI is set, so there is no embedded database here: unset it first.")
    return EmbeddedServer(settings.data)


@commands.command()
def start() -> None:
    """Start it, or find it running; returns when it can be written to. The last line is its URI."""
    answer(_server().start())


@commands.command()
def uri() -> None:
    """Print its URI, with credentials."""
    answer(_server().uri())


@commands.command()
def stop() -> None:
    """Stop it cleanly, whoever started it; running replicas wait for it to come back."""
    if _server().stop():
        say("The embedded database is stopped.")
    else:
        say("The embedded database was not running.")


@commands.command()
def status() -> None:
    """Say how it is; fails when it is not running."""
    found = _server().status()
    state = "running" if found.answers else "not answering" if found.listens else "stopped"
    answer(f"state: {state}")
    answer(f"data: {found.data}")
    if found.port is not None:
        answer(f"address: 127.0.0.1:{found.port}")
    if found.pid is not None and found.listens:
        answer(f"process: {found.pid}")
    if not found.answers:
        raise typer.Exit(1)
