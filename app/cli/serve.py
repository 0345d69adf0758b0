"""`holdfast serve`: one replica, on the database of the settings."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from typing import Annotated

import typer
import uvicorn

from app.cli.console import Failure, database, say
from app.config import Settings
from app.mongo import check
from app.runtime import Runtime, create_replica
from app.telemetry import configure_logging

_BACKLOG = 2048


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; beyond loopback only with keys.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = None,
) -> None:
    """Serve one replica; Ctrl-C stops it. A second one joins the same database: holdfast serve --port 8701.

    Without MONGODB_URI an embedded database is started in HOLDFAST_DATA, or joined when it runs already.
    """
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = Settings().model_copy(update=given)
    configure_logging(settings.log_level, settings.log_format)
    signal.signal(signal.SIGTERM, _end)
    with _listening(settings) as listener, database(settings, watched=True) as uri:
        asyncio.run(_refuse_unfit(settings, uri))
        _run(settings, uri, listener)


def _end(*_: object) -> None:
    """SIGTERM ends the program as Ctrl-C does: through everything that is to be undone. It was asked for: code 0."""
    raise SystemExit(0)


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """The port, taken before anything is started, so that a refused start leaves nothing running."""
    try:
        address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[4][:2], family=address[0], backlog=_BACKLOG)
    except OSError as error:
        raise Failure(
            f"Can't listen on {settings.host}:{settings.port}: {error.strerror}. Choose another with --port."
        ) from error
    with listener:
        yield listener


async def _refuse_unfit(settings: Settings, uri: str) -> None:
    await check(uri)
    runtime = Runtime(settings, uri)
    try:
        reason = await runtime.unsafe_bind_reason(settings.host)
    finally:
        await runtime.mongo.client.close()
    if reason is not None:
        raise Failure(reason)


class _Server(uvicorn.Server):
    """Tells people when it is ready."""

    def __init__(self, config: uvicorn.Config, database: str) -> None:
        super().__init__(config)
        self._database = database

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            say(f"serving http://{shown}:{port} ({self._database}; Ctrl-C stops)")


def _run(settings: Settings, uri: str, listener: socket.socket) -> None:
    config = uvicorn.Config(
        lambda: create_replica(settings, uri),
        factory=True,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(settings.shutdown_seconds),
    )
    server = _Server(config, "MONGODB_URI" if settings.mongodb_uri else f"embedded database in {settings.data}")
    server.run(sockets=[listener])
    if not server.started:
        raise Failure("The replica did not start; the log above says why.")
