"""The composition root: builds every part of a replica, starts them in order, stops them in reverse."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

from litestar.types import ASGIApp

from app.agents import Agents
from app.api import create_app
from app.api.application import Parts
from app.clock import SystemClock
from app.config import Settings
from app.mongo import Mongo, open_client
from app.store import Store
from app.telemetry import Metrics, get_logger
from app.tenancy import Keys
from app.vault import open_vault

READY_SECONDS = 2.0
_log = get_logger(__name__)


class Runtime:
    """One replica's parts. Build it inside the event loop that it is to live in; use it between `start` and `stop`."""

    def __init__(self, settings: Settings, uri: str) -> None:
        clock = SystemClock()
        self.settings = settings
        self.metrics = Metrics()
        self.mongo = Mongo.of(open_client(uri), settings.mongodb_database)
        self.store = Store(self.mongo, settings, clock, self.metrics)
        self.keys = Keys(self.mongo, clock, seconds=settings.call_seconds)
        self.agents = Agents(self.store, open_vault(settings.secret_keys, settings.data), settings, clock)

    async def start(self) -> None:
        """Make the database fit to use."""
        await self.mongo.prepare()
        _log.info("replica started", database=self.settings.mongodb_database)

    async def stop(self) -> None:
        """Settle what was sent, then let go of the database."""
        await self.store.stop()
        await self.mongo.client.close()
        _log.info("replica stopped")

    async def healthy(self) -> bool:
        """Whether a writable primary answers now."""
        return await self.mongo.ping(READY_SECONDS)

    async def unsafe_bind_reason(self, host: str) -> str | None:
        """Why the service must not listen on this address, or None when it may."""
        if is_loopback(host) or await self.keys.required():
            return None
        return (
            f"Without keys everybody who reaches {host} could do everything, so only loopback is served. "
            "Create a key first: holdfast keys create --tenant default --right read --right write"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def create_replica(settings: Settings, uri: str) -> ASGIApp:
    """The ASGI application of one replica; call it inside the event loop that serves it."""
    runtime = Runtime(settings, uri)
    parts = Parts(settings, runtime.agents, runtime.keys, runtime.metrics, runtime.healthy)
    return create_app(parts, runtime.start, runtime.stop)


@asynccontextmanager
async def running(settings: Settings, uri: str) -> AsyncIterator[Runtime]:
    """A replica's parts without the HTTP edge, for the command line and scripts."""
    runtime = Runtime(settings, uri)
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.stop()
