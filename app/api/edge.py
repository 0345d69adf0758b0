"""The outermost layer: request ids, traces, the check of Host and Origin, one log line and one observation a request.

Guarantee: nothing leaves here without `X-Request-ID`, and no exception leaves here at all. HEAD is answered wherever
GET is: as GET would be, without the body.
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

import structlog
from litestar.datastructures import Headers, MutableScopeHeaders
from litestar.enums import HttpMethod, ScopeType

from app.api.problems import of_domain, problem
from app.api.security import Doorkeeper
from app.telemetry import Metrics, get_logger
from app.tracing import Tracing, valid_traceparent
from models.errors import HoldfastError

if TYPE_CHECKING:
    from litestar.types import (
        ASGIApp,
        HTTPReceiveMessage,
        HTTPScope,
        Message,
        Receive,
        Scope,
        Send,
        WebSocketReceiveMessage,
    )

_REQUEST_ID = re.compile(r"\A[\x21-\x7e]{1,128}\Z")
NEW_IDS = map(str.encode, map((secrets.token_hex(10) + "{:012x}").format, itertools.count(1)))
"""Ids for requests whose caller gave none."""

_PROBES = ("/health/live", "/health/ready")
ACCESS_LOG = "holdfast.access"
_log = get_logger(ACCESS_LOG)


class Edge:
    """Wraps the application; what it adds is the same for every route."""

    def __init__(self, app: ASGIApp, doorkeeper: Doorkeeper, metrics: Metrics, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing
        self._doorkeeper = doorkeeper
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            await self._serve(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        headers = Headers.from_scope(scope)
        echoed = echoed_headers(headers)
        method = scope["method"]
        if method == "HEAD":  # of a copy: the server looks at its own, to leave the body out
            scope = {**scope, "method": HttpMethod.GET}
        structlog.contextvars.bind_contextvars(request_id=echoed["X-Request-ID"])
        answer = _AnswerOf(method, echoed, receive, send)
        with self._tracing.request(method, scope["path"], headers.get("traceparent")) as served:
            try:
                await self._enter(scope, headers, answer.receive, answer.send)
            except Exception as error:  # noqa: BLE001 - the outermost layer: what reaches it is logged and answered
                _log.error("request failed", exc_info=error)
                if not answer.status:
                    failed = problem(500, "internal-error", "The service failed.", "It was logged: X-Request-ID.")
                    await _answer(failed, scope, answer.receive, answer.send)
            finally:
                self._observe(scope, answer)
                served.answered(_route(scope), answer.status)
                structlog.contextvars.clear_contextvars()

    async def _enter(self, scope: HTTPScope, headers: Headers, receive: Receive, send: Send) -> None:
        try:
            if scope["path"] not in _PROBES:
                self._doorkeeper.check(headers.get("host"), headers.get("origin"))
        except HoldfastError as error:
            await _answer(of_domain(error), scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _observe(self, scope: HTTPScope, answer: _AnswerOf) -> None:
        method = answer.method if answer.method in _METHODS else "other"
        route = _route(scope)
        seconds = answer.seconds()
        self._metrics.request_seconds.labels(method, route, answer.status).observe(seconds)
        _log.info("request", method=method, route=route, status=answer.status, ms=round(seconds * 1000, 2))


class _AnswerOf:
    """An answer on its way out: what every one carries is put on, and the body left out where HEAD was asked for."""

    def __init__(self, method: str, echoed: dict[str, str], receive: Receive, send: Send) -> None:
        self.method = method
        self.status = 0
        self._echoed = echoed
        self._receive = receive
        self._send = send
        self._started = time.perf_counter()
        self._streamed_after: float | None = None

    def seconds(self) -> float:
        """How long it took; of a stream, until it began."""
        return self._streamed_after or time.perf_counter() - self._started

    async def receive(self) -> HTTPReceiveMessage | WebSocketReceiveMessage:
        """What the caller sends; one who asked for HEAD has what they wanted and is taken as gone."""
        if self.method == "HEAD" and self.status:
            return {"type": "http.disconnect"}
        return await self._receive()

    async def send(self, message: Message) -> None:
        """Send on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            outgoing = MutableScopeHeaders.from_message(message)
            for name, value in self._echoed.items():
                outgoing[name] = value
            if outgoing.get("content-type", "").startswith("text/event-stream"):
                self._streamed_after = time.perf_counter() - self._started
        elif message["type"] == "http.response.body" and self.method == "HEAD":
            message = {**message, "body": b""}
        await self._send(message)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def given_id(sent: str) -> str | None:
    """The id that the caller gave the request, when it is one."""
    return sent if _REQUEST_ID.match(sent) else None


def echoed_headers(headers: Headers) -> dict[str, str]:
    """What every answer carries: the request's id, made where none was given, and its trace."""
    own_id = given_id(headers.get("x-request-id", "")) or next(NEW_IDS).decode()
    echoed = {"X-Request-ID": own_id, "X-Content-Type-Options": "nosniff"}
    trace = valid_traceparent(headers.get("traceparent"))
    return echoed if trace is None else {**echoed, "traceparent": trace}


def _route(scope: HTTPScope) -> str:
    return str(scope.get("path_template") or "unmatched")


async def _answer(response: Any, scope: Scope, receive: Receive, send: Send) -> None:
    await response.to_asgi_response(app=None, request=None)(scope, receive, send)
