"""The outermost layer: request ids, the check of Host and Origin, one log line and one observation a request.

Guarantee: nothing leaves here without `X-Request-ID`, and no exception leaves here at all.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog
from litestar.datastructures import Headers, MutableScopeHeaders
from litestar.enums import ScopeType

from app.api.problems import of_domain, problem
from app.api.security import Doorkeeper
from app.telemetry import Metrics, get_logger
from models.errors import HoldfastError

if TYPE_CHECKING:
    from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

_REQUEST_ID = re.compile(r"\A[\x21-\x7e]{1,128}\Z")
_TRACE_PARENT = re.compile(r"\A[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
_PROBES = ("/health/live", "/health/ready")
_log = get_logger("holdfast.access")


class Edge:
    """Wraps the application; what it adds is the same for every route."""

    def __init__(self, app: ASGIApp, doorkeeper: Doorkeeper, metrics: Metrics) -> None:
        self._app = app
        self._doorkeeper = doorkeeper
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            await self._serve(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        headers = Headers.from_scope(scope)
        echoed = _echoed(headers)
        structlog.contextvars.bind_contextvars(request_id=echoed["X-Request-ID"])
        started = time.perf_counter()
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                outgoing = MutableScopeHeaders.from_message(message)
                for name, value in echoed.items():
                    outgoing[name] = value
            await send(message)

        try:
            await self._enter(scope, headers, receive, send_marked)
        except Exception as error:  # noqa: BLE001 - the outermost layer: what reaches it is logged and answered
            _log.error("request failed", exc_info=error)
            if not status:
                failed = problem(500, "internal-error", "The service failed.", "It was logged under this X-Request-ID.")
                await _answer(failed, scope, receive, send_marked)
        finally:
            self._observe(scope, status, time.perf_counter() - started)
            structlog.contextvars.clear_contextvars()

    async def _enter(self, scope: HTTPScope, headers: Headers, receive: Receive, send: Send) -> None:
        try:
            if scope["path"] not in _PROBES:
                self._doorkeeper.check(headers.get("host"), headers.get("origin"))
        except HoldfastError as error:
            await _answer(of_domain(error), scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _observe(self, scope: HTTPScope, status: int, seconds: float) -> None:
        route = str(scope.get("path_template") or "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.request_seconds.labels(method, route, status).observe(seconds)
        _log.info("request", method=method, route=route, status=status, ms=round(seconds * 1000, 2))


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _echoed(headers: Headers) -> dict[str, str]:
    sent = headers.get("x-request-id", "")
    echoed = {
        "X-Request-ID": sent if _REQUEST_ID.match(sent) else uuid4().hex,
        "X-Content-Type-Options": "nosniff",
    }
    trace = headers.get("traceparent", "")
    if _TRACE_PARENT.match(trace):
        echoed["traceparent"] = trace
    return echoed


async def _answer(response: Any, scope: Scope, receive: Receive, send: Send) -> None:
    await response.to_asgi_response(app=None, request=None)(scope, receive, send)
