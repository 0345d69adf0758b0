"""The hot read: `GET /v1/agents/{id}` from memory, before the framework.

A thin layer around the application. It answers only the plain case (a copy in memory that may answer, a caller who is
known, no query, no unusual header) and leaves everything else to the handlers. Guarantee: what it answers is what they
would answer; a contract test compares both.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from litestar.enums import ScopeType

from app.api.edge import ACCESS_LOG, request_id
from app.api.security import Doorkeeper, token_of
from app.api.shown import Headers, Shown, show
from app.cache import Cache, Entry
from app.telemetry import Metrics, get_logger
from app.tenancy import Keys
from app.tracing import Tracing, valid_traceparent
from models.errors import HoldfastError
from models.tenant import Right

if TYPE_CHECKING:
    from litestar.types import ASGIApp, Receive, Scope, Send

ROUTE = "/v1/agents/{agent_id}"
_PREFIX = "/v1/agents/"
_log = get_logger(__name__)
_READERS = frozenset({Right.READ, Right.RUNNER})
_UNUSUAL = frozenset({b"origin", b"cache-control"})
_READ_ONCE = frozenset({b"host", b"authorization", b"if-none-match", b"x-request-id", b"traceparent"})
_AGES = tuple(str(second).encode() for second in range(60))

Answer = tuple[int, Headers, bytes]


class HotRead:
    """Wraps the application."""

    def __init__(
        self, app: ASGIApp, cache: Cache, keyring: Keys, doorkeeper: Doorkeeper, metrics: Metrics, tracing: Tracing
    ) -> None:
        self._app = app
        self._cache = cache
        self._keyring = keyring
        self._doorkeeper = doorkeeper
        self._staleness = metrics.staleness
        self._seconds = {status: metrics.request_seconds.labels("GET", ROUTE, status) for status in (200, 304)}
        self._each_is_told = tracing.on or logging.getLogger(ACCESS_LOG).isEnabledFor(logging.DEBUG)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and scope["method"] == "GET" and not scope["query_string"]:
            started = time.perf_counter()
            answer = self._answer_or_none(scope["path"], scope["headers"])
            if answer is not None:
                status, headers, body = answer
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body, "more_body": False})
                self._seconds[status].observe(time.perf_counter() - started)
                return
        await self._app(scope, receive, send)

    def _answer_or_none(self, path: str, headers: Any) -> Answer | None:
        try:
            return self._answer(path, headers)
        except Exception:  # noqa: BLE001 - the outermost layer: what fails here is logged, and the handlers answer
            _log.exception("hot read failed")
            return None

    def _answer(self, path: str, headers: Any) -> Answer | None:
        """The answer, or None when this is not the plain case."""
        if not path.startswith(_PREFIX) or self._each_is_told:
            return None
        sent = _plain(headers)
        entry = None if sent is None else self._readable(path[len(_PREFIX) :], sent)
        age = self._cache.age()
        if sent is None or entry is None or age is None:
            return None
        echoed = self._echoed(sent)
        return None if echoed is None else self._told(entry, sent.get(b"if-none-match"), age, echoed)

    def _readable(self, agent: str, sent: dict[bytes, bytes]) -> Entry | None:
        """The copy of the agent, if the caller is known and may see it."""
        if not self._doorkeeper.knows(sent.get(b"host", b"")):
            return None
        authorization = sent.get(b"authorization")
        try:
            token = None if authorization is None else token_of(authorization.decode("latin-1"))
            caller = self._keyring.glance(token)
        except HoldfastError:
            return None
        if caller is None or _READERS.isdisjoint(caller.rights):
            return None
        entry = self._cache.look(f"{caller.tenant}:{agent}")  # an id that is none is not in there
        return entry if entry is not None and entry.record.is_visible(caller) else None

    def _echoed(self, sent: dict[bytes, bytes]) -> Headers | None:
        given = sent.get(b"x-request-id")
        echoed = [
            (b"x-request-id", request_id("" if given is None else given.decode("latin-1")).encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        trace = sent.get(b"traceparent")
        if trace is not None:
            if valid_traceparent(trace.decode("latin-1")) is None:
                return None
            echoed.append((b"traceparent", trace))
        return echoed

    def _told(self, entry: Entry, condition: bytes | None, age: float, echoed: Headers) -> Answer | None:
        shown = self._shown(entry)
        told = [*echoed, (b"age", _AGES[int(age)])]
        if condition is not None:
            if condition.strip() == shown.etag:
                self._count(age)
                return 304, [*told, (b"etag", shown.etag)], b""
            if not _is_one_tag(condition):
                return None
        self._count(age)
        return 200, told + shown.headers, shown.body

    def _count(self, age: float) -> None:
        self._cache.tally.hits += 1
        self._staleness.observe(age)

    def _shown(self, entry: Entry) -> Shown:
        held = entry.shown
        if isinstance(held, Shown) and held.version == entry.record.version:
            return held
        shown = show(entry, held if isinstance(held, Shown) else None)
        self._cache.show(entry, shown, len(shown.body))
        return shown


def _plain(headers: Any) -> dict[bytes, bytes] | None:
    """The headers that matter; None when there is one that only the handlers know how to take."""
    sent: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _UNUSUAL:
            return None
        if name in _READ_ONCE:
            if name in sent:
                return None
            sent[name] = value
    return sent


def _is_one_tag(condition: bytes) -> bool:
    return condition[:1] == b'"' and condition[-1:] == b'"' and b"," not in condition
