"""Routes for those who run the service: liveness, readiness, metrics."""

from __future__ import annotations

from litestar import Response, get
from litestar.datastructures import State
from prometheus_client import generate_latest

from app.api import shapes
from app.api.answers import JSON, Answer, encode
from app.api.routes import PUBLIC
from models.errors import Unavailable

_PROMETHEUS = "text/plain; version=0.0.4"


@get("/health/live", **PUBLIC, tags=["operations"], summary="Whether the process runs")
async def live() -> Answer[shapes.Health]:
    return Answer(encode({"status": "live"}), media_type=JSON)


@get("/health/ready", **PUBLIC, tags=["operations"], summary="Whether requests can be served")
async def ready(state: State) -> Answer[shapes.Health]:
    if not await state.healthy():
        raise Unavailable(
            "The database does not answer, has no writable primary, or its change stream is silent.", retry_after=1
        )
    return Answer(encode({"status": "ready"}), media_type=JSON)


@get("/metrics", **PUBLIC, tags=["operations"], media_type=_PROMETHEUS, summary="Metrics for Prometheus")
async def metrics(state: State) -> Response[str]:
    return Response(generate_latest(state.metrics.registry).decode(), media_type=_PROMETHEUS)
