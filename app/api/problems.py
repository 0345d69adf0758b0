"""Every error as `application/problem+json` (RFC 9457): the one table from domain errors to HTTP.

Guarantee: no stack trace and no text of a driver reaches a caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from litestar import Request, Response
from litestar.exceptions import HTTPException, InternalServerException, ValidationException
from litestar.routes import HTTPRoute

from app.telemetry import get_logger
from models import errors
from models.errors import HoldfastError

MEDIA_TYPE = "application/problem+json"

STATUS: Mapping[type[HoldfastError], int] = {
    errors.InvalidRequest: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.IllegalTransition: 409,
    errors.FencedOut: 409,
    errors.AgentBusy: 409,
    errors.StepExists: 409,
    errors.AgentExpired: 410,
    errors.FeedGap: 410,
    errors.VersionConflict: 412,
    errors.TooLarge: 413,
    errors.IdempotencyMismatch: 422,
    errors.PreconditionRequired: 428,
    errors.TooMany: 429,
    errors.Unavailable: 503,
}

_CODE_OF_STATUS: Mapping[int, str] = {
    **{status: kind.code for kind, status in STATUS.items() if status != 409},
    405: "method-not-allowed",
    409: errors.Conflict.code,
    415: errors.InvalidRequest.code,
}
_HUNG_UP = "client disconnected prematurely"
_log = get_logger(__name__)

ProblemResponse = Response[bytes]


def problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    fields: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> ProblemResponse:
    """A problem answer."""
    body = {"type": f"/problems/{code}", "title": title, "status": status, "detail": detail, "code": code}
    return Response(
        orjson.dumps({**(fields or {}), **body}),
        status_code=status,
        media_type=MEDIA_TYPE,
        headers=dict(headers or {}),
    )


def error_of(error: HoldfastError) -> dict[str, Any]:
    """What is wrong with one item of a batch."""
    fields = {name: value for name, value in error.fields.items() if value is not None}
    return {"status": STATUS[type(error)], "error": {**fields, "code": error.code, "detail": error.detail}}


def of_domain(error: HoldfastError) -> ProblemResponse:
    """The answer for an error of the domain."""
    retry_after = error.fields.get("retry_after", getattr(error, "retry_after", None))
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    fields = {name: value for name, value in error.fields.items() if value is not None}
    return problem(STATUS[type(error)], error.code, error.title(), error.detail, fields=fields, headers=headers)


def on_domain_error(_: Request[Any, Any, Any], error: HoldfastError) -> ProblemResponse:
    """Litestar's handler for errors of the domain."""
    return of_domain(error)


def on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> ProblemResponse:
    """Litestar's own refusals (routing, parameters, body size) in the same form."""
    status = 400 if error.status_code == HTTPStatus.UNSUPPORTED_MEDIA_TYPE else error.status_code
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return of_domain(_body_too_large(request))
    if isinstance(error, InternalServerException) and error.detail == _HUNG_UP:
        return _plain(400, "The body ended before it was whole.", {})
    if status not in _CODE_OF_STATUS:
        return on_unexpected_error(request, error) if status >= 500 else _plain(400, error.detail, {})
    allow = {"Allow": ", ".join(sorted(_methods_at(request)))} if status == HTTPStatus.METHOD_NOT_ALLOWED else {}
    return _plain(status, _detail(error), allow)


def on_unexpected_error(request: Request[Any, Any, Any], error: Exception) -> ProblemResponse:
    """What no one foresaw: logged in full, told in one line."""
    _log.error("request failed", route=str(request.url.path), exc_info=error)
    return problem(500, "internal-error", "The service failed.", "The failure was logged under this X-Request-ID.")


def _plain(status: int, detail: str, headers: dict[str, str]) -> ProblemResponse:
    return problem(status, _CODE_OF_STATUS[status], HTTPStatus(status).phrase, detail, headers=headers)


def _detail(error: HTTPException) -> str:
    if not isinstance(error, ValidationException) or not isinstance(error.extra, list):
        return error.detail
    if any(item.get("key") == "data" for item in error.extra):
        return "Send a JSON body."
    reasons = [f"{item.get('key', item.get('source', 'request'))}: {item['message']}" for item in error.extra]
    return "; ".join(reasons).replace("in_state:", "state:") or error.detail


def _methods_at(request: Request[Any, Any, Any]) -> set[str]:
    """The methods that the path of the request has."""
    sent = request.url.path.strip("/").split("/")
    routes = (route for route in request.app.routes if isinstance(route, HTTPRoute))
    return {method for route in routes if _fits(route, sent) for method in route.methods}


def _fits(route: HTTPRoute, sent: list[str]) -> bool:
    parts = route.path_components
    return len(parts) == len(sent) and all(
        part == given or not isinstance(part, str) for part, given in zip(parts, sent, strict=True)
    )


def _body_too_large(request: Request[Any, Any, Any]) -> errors.TooLarge:
    limit = request.app.state.settings.body_limit_bytes
    length = request.headers.get("content-length", "")
    return errors.TooLarge("The body", limit, int(length) if length.isdecimal() else limit + 1)
