"""`holdfast serve`: one replica, on the database of the settings."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Annotated

import typer
import uvicorn
from litestar.types import ASGIApp

from app.cli.console import Failure, database, say
from app.config import Settings
from app.mongo import check
from app.runtime import Runtime, application_of, left_half, unsafe_bind_reason
from app.telemetry import configure_logging

if sys.platform != "win32":
    import resource

_BACKLOG = 2048
_STUCK_MS = 90_000
"""A connection whose other end takes nothing for so long is cut by the system; no one else would."""

_FILES = 65_536
"""Connections that one replica may hold open, feeds above all, if the system lets it."""


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
    _allow_many_connections()
    with _listening(settings) as listener, database(settings, watched=True) as uri:
        asyncio.run(_refuse_unfit(settings, uri))
        _run(settings, uri, listener)


def _allow_many_connections() -> None:
    """Raise the soft limit of open files, which is meant for programs with a handful of them."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STUCK_MS)
        yield listener


async def _refuse_unfit(settings: Settings, uri: str) -> None:
    await check(uri)
    reason = await unsafe_bind_reason(settings, uri)
    if reason is not None:
        raise Failure(reason)
    half = await left_half(settings, uri)
    if half is not None and half.whole:
        raise Failure(f"{half}: the database is not whole. Wait for it, or run the same restore again.")
    if half is not None:
        say(f"{half}: run the same restore again if it is not under way.")


def _is_news(record: logging.LogRecord) -> bool:
    """Whether the server's line says anything: a refused WebSocket, which was answered, reads there as an error."""
    return "without completing handshake" not in record.getMessage()


class _Server(uvicorn.Server):
    """Tells people when it is ready, and ends the feeds first: it would wait for them to end by themselves."""

    def __init__(self, settings: Settings, uri: str) -> None:
        self._settings = settings
        self._uri = uri
        self._runtime: Runtime | None = None
        config = uvicorn.Config(
            self._application,
            factory=True,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(settings.shutdown_seconds),
            ws="websockets-sansio",
            ws_max_size=2 * settings.body_limit_bytes,  # a little over the limit is answered, not cut off
        )
        logging.getLogger("uvicorn.error").addFilter(_is_news)
        super().__init__(config)

    def _application(self) -> ASGIApp:
        self._runtime = Runtime(self._settings, self._uri)
        return application_of(self._runtime)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            where = "MONGODB_URI" if self._settings.mongodb_uri else f"embedded database in {self._settings.data}"
            say(f"serving http://{shown}:{port} ({where}; Ctrl-C stops)")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._runtime is not None:
            self._runtime.hang_up()
        await super().shutdown(sockets)


def _run(settings: Settings, uri: str, listener: socket.socket) -> None:
    server = _Server(settings, uri)
    server.run(sockets=[listener])
    if not server.started:
        raise Failure("The replica did not start; the log above says why.")
