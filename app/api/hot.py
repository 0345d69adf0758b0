"""The hot read: `GET /v1/agents/{id}` from memory, before the framework.

A thin layer around the application. It answers only the plain case (a copy in memory that may answer, a caller who is
known, no query, no unusual header) and leaves everything else to the handlers. Guarantee: what it answers is what they
would answer; a contract test compares both.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from litestar.enums import ScopeType

from app.api.edge import ACCESS_LOG, NEW_IDS, given_id
from app.api.security import Doorkeeper, token_of
from app.api.shown import Headers, Showcase, Shown
from app.cache import Cache, Entry
from app.filling import NotHeld
from app.telemetry import Metrics, get_logger
from app.tenancy import Admission, Keys
from app.tracing import Tracing, valid_traceparent
from models.errors import HoldfastError
from models.tenant import Right

if TYPE_CHECKING:
    from litestar.types import ASGIApp, Receive, Scope, Send

ROUTE = "/v1/agents/{agent_id}"
_PREFIX = "/v1/agents/"
_HTTP: Final = ScopeType.HTTP
_log = get_logger(__name__)
_READERS = frozenset({Right.READ, Right.RUNNER})
_UNUSUAL = frozenset({b"origin", b"cache-control"})
_READ_ONCE = frozenset({b"host", b"authorization", b"if-none-match", b"x-request-id", b"traceparent"})
_OF_ONE_REQUEST = frozenset({b"x-request-id", b"traceparent"})
_AGES = tuple(str(second).encode() for second in range(60))
_REMEMBERED = 4096
_REMEMBERED_BYTES = 2048

Sent = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Question:
    """A request understood: who asks for which agent, on what condition, and what of it the answer repeats."""

    agent: str
    admission: Admission
    owned: bool
    condition: bytes | None
    request_id: bytes | None
    repeated: Headers


class HotRead:
    """Wraps the application.

    Between two system calls of a busy server the processor's caches hold little of this, and every function and object
    that a request touches costs a multiple of what it does in a loop. So what a request means is remembered by its
    very bytes, and the way of a known one is straight (`make bench ARGS="--only cached_read"`).
    """

    def __init__(
        self,
        app: ASGIApp,
        cache: Cache,
        showcase: Showcase,
        keyring: Keys,
        doorkeeper: Doorkeeper,
        metrics: Metrics,
        tracing: Tracing,
    ) -> None:
        self._app = app
        self._cache = cache
        self._showcase = showcase
        self._tally = cache.tally
        self._keyring = keyring
        self._doorkeeper = doorkeeper
        self._questions: dict[tuple[Any, ...], _Question] = {}
        self._staleness = metrics.staleness
        self._seconds = {status: metrics.request_seconds.labels("GET", ROUTE, status) for status in (200, 304)}
        self._each_is_told = tracing.on or logging.getLogger(ACCESS_LOG).isEnabledFor(logging.DEBUG)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == _HTTP and scope["method"] == "GET" and not scope["query_string"]:
            began = time.monotonic()
            answer = self._answer(began, scope["path"], scope["headers"])
            if answer is not None:
                status, headers, body = answer
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body, "more_body": False})
                self._seconds[status].observe(time.monotonic() - began)
                return
        await self._app(scope, receive, send)

    def _answer(self, now: float, path: str, headers: Any) -> tuple[int, Headers, bytes] | None:
        """The answer, or None when this is not the plain case."""
        try:
            question = self._questions.get((path, *headers))
            if question is None or now >= question.admission.until:
                self._questions.pop((path, *headers), None)
                question = self._understood(path, headers)
            found = None if question is None else self._cache.glance(question.agent, now)
            if question is None or found is None:
                return None
            entry, age = found
            shown: Shown | None = entry.shown
            if shown is None or shown.version != entry.record.version or question.owned:
                shown = self._shown(entry, question)
            if shown is None:
                return None
            self._tally.hits += 1
            self._staleness.observe(age)
            told = [(b"x-request-id", question.request_id or next(NEW_IDS)), (b"age", _AGES[int(age)])]
            if question.condition == shown.etag:
                return 304, [*told, *question.repeated, *shown.unchanged], b""
            return 200, [*told, *question.repeated, *shown.headers], shown.body
        except NotHeld:
            return None
        except Exception:  # noqa: BLE001 - the outermost layer: what fails here is logged, and the handlers answer
            _log.exception("hot read failed")
            return None

    def _shown(self, entry: Entry, question: _Question) -> Shown | None:
        """The answer at the copy's version, if the caller may see the agent. Raises NotHeld."""
        return self._showcase.of(entry) if entry.record.is_visible(question.admission.scope) else None

    def _understood(self, path: str, headers: Any) -> _Question | None:
        """The request, if all in it is plain and the caller known; remembered where the same may come again."""
        if not path.startswith(_PREFIX) or self._each_is_told:
            return None
        sent = _plain(headers)
        admission = None if sent is None else self._admitted(sent)
        if sent is None or admission is None:
            return None
        question = _question(path[len(_PREFIX) :], sent, admission)
        if question is not None and _OF_ONE_REQUEST.isdisjoint(sent):
            self._remember((path, *headers), question)
        return question

    def _admitted(self, sent: Sent) -> Admission | None:
        """The caller's admission, if the database need not be asked and it is one to read with."""
        if not self._doorkeeper.knows(sent.get(b"host", b"")):
            return None
        authorization = sent.get(b"authorization")
        try:
            token = None if authorization is None else token_of(authorization.decode("latin-1"))
        except HoldfastError:
            return None
        admission = self._keyring.glance(token)
        return None if admission is None or _READERS.isdisjoint(admission.scope.rights) else admission

    def _remember(self, request: tuple[Any, ...], question: _Question) -> None:
        if len(request[0]) + sum(len(name) + len(value) for name, value in request[1:]) > _REMEMBERED_BYTES:
            return
        if len(self._questions) >= _REMEMBERED:
            self._questions.clear()
        self._questions[request] = question


def _question(agent: str, sent: Sent, admission: Admission) -> _Question | None:
    """The request in the words of this layer; None when only the handlers know how to take it."""
    trace, condition = sent.get(b"traceparent"), sent.get(b"if-none-match")
    if trace is not None and valid_traceparent(trace.decode("latin-1")) is None:
        return None
    if condition is not None and not _is_one_tag(condition := condition.strip()):
        return None
    given = given_id(sent.get(b"x-request-id", b"").decode("latin-1"))
    return _Question(
        f"{admission.scope.tenant}:{agent}",  # an id that is none is not in memory
        admission,
        admission.scope.owner is not None,
        condition,
        None if given is None else given.encode(),
        [] if trace is None else [(b"traceparent", trace)],
    )


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
