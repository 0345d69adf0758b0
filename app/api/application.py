"""The application: every route, and what all routes share. One that declares no rights is a mistake caught here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from litestar import Litestar
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ASGIApp

from app.agents import Agents
from app.api import operations, problems
from app.api.agents import AgentRoutes
from app.api.call import DEPENDENCIES
from app.api.edge import Edge
from app.api.execution import ExecutionRoutes
from app.api.feeds import FeedRoutes
from app.api.hot import HotRead
from app.api.runners import CommandRoutes, PoolRoutes, RunnerRoutes, reconcile
from app.api.security import Doorkeeper, require_right
from app.api.shown import Showcase
from app.api.steps import StepRoutes
from app.cache import Cache
from app.commands import Commands
from app.config import Settings
from app.execution import Execution
from app.filling import Filling
from app.reconciler import Reconciler
from app.runners import Runners
from app.streams import Streams
from app.telemetry import Metrics
from app.tenancy import Keys
from app.tracing import Tracing
from models.errors import HoldfastError


@dataclass(frozen=True)
class Parts:
    """What the routes need, ready when `lifespan` has been entered."""

    settings: Settings
    agents: Agents
    execution: Execution
    runners: Runners
    commands: Commands
    reconciler: Reconciler
    streams: Streams
    cache: Cache
    filling: Filling
    showcase: Showcase
    keyring: Keys
    metrics: Metrics
    tracing: Tracing
    healthy: Callable[[], Awaitable[bool]]


def create_app(parts: Parts, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]) -> ASGIApp:
    """The ASGI application over the parts, which it starts with itself and stops in the end."""

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        await start()
        try:
            yield
        finally:
            await stop()

    doorkeeper = Doorkeeper(parts.settings)
    app = Edge(create_litestar(parts, lifespan), doorkeeper, parts.metrics, parts.tracing)
    return HotRead(app, parts.cache, parts.showcase, parts.keyring, doorkeeper, parts.metrics, parts.tracing)


def create_litestar(
    parts: Parts, lifespan: Callable[[Litestar], AbstractAsyncContextManager[None]] | None = None
) -> Litestar:
    """The routes alone, without the edge around them."""
    app = Litestar(
        route_handlers=[
            *(AgentRoutes, StepRoutes, ExecutionRoutes, FeedRoutes),
            *(RunnerRoutes, CommandRoutes, PoolRoutes, reconcile),
            *(operations.live, operations.ready, operations.metrics),
        ],
        dependencies=DEPENDENCIES,
        guards=[require_right],
        exception_handlers={
            HoldfastError: problems.on_domain_error,
            HTTPException: problems.on_http_error,
            Exception: problems.on_unexpected_error,
        },
        lifespan=[] if lifespan is None else [lifespan],
        openapi_config=_openapi(),
        request_max_body_size=parts.settings.body_limit_bytes,
        state=State({name: getattr(parts, name) for name in Parts.__dataclass_fields__}),
        logging_config=None,
        debug=False,
    )
    _require_declared_rights(app)
    return app


def _openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Holdfast",
        version="1",
        description="The place where AI agents live durably.",
        path="/schema",
        render_plugins=[JsonRenderPlugin()],
        components=Components(security_schemes={"key": SecurityScheme(type="http", scheme="bearer")}),
        security=[{"key": []}, {}],
    )


def _require_declared_rights(app: Litestar) -> None:
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            answers_options = handler.http_methods == {"OPTIONS"}
            if route.path.startswith("/v1") and not (answers_options or handler.opt.get("rights")):
                raise TypeError(f"{route.path} declares no rights: give it a kind of app.api.routes.")
