"""The application: every route, and what all routes share. One that declares no rights is a mistake caught here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from litestar import Litestar
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ASGIApp

from app.api import operations, problems
from app.api.agents import AgentRoutes
from app.api.call import DEPENDENCIES
from app.api.edge import Edge
from app.api.execution import ExecutionRoutes
from app.api.feeds import FeedRoutes
from app.api.hot import HotRead
from app.api.memory import EpisodeRoutes, RetentionRoutes, SyncRoutes, presence, stats
from app.api.parts import Parts
from app.api.runners import CommandRoutes, PoolRoutes, RunnerRoutes, reconcile
from app.api.security import Doorkeeper, require_right
from app.api.sockets import Sockets
from app.api.steps import StepRoutes
from app.api.tenants import TenantRoutes
from models.errors import HoldfastError


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
    sockets = Sockets(create_litestar(parts, lifespan), parts, doorkeeper)
    app = Edge(sockets, doorkeeper, parts.metrics, parts.tracing)
    return HotRead(app, parts.cache, parts.showcase, parts.keyring, doorkeeper, parts.metrics, parts.tracing)


def create_litestar(
    parts: Parts, lifespan: Callable[[Litestar], AbstractAsyncContextManager[None]] | None = None
) -> Litestar:
    """The routes alone, without the edge around them."""
    app = Litestar(
        route_handlers=[
            *(AgentRoutes, StepRoutes, ExecutionRoutes, FeedRoutes),
            *(RunnerRoutes, CommandRoutes, PoolRoutes, reconcile),
            *(EpisodeRoutes, SyncRoutes, RetentionRoutes, TenantRoutes, presence, stats),
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
