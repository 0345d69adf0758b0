"""Distributed traces: W3C trace context in and out, spans to an OpenTelemetry collector when one is named.

Guarantees: a span holds ids, counts and status only, and a collector that is slow, broken or gone delays no request.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Self

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

STOP_SECONDS = 2.0
_COMPLAINT_SECONDS = 20.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_TRACEPARENT = re.compile(r"\A(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
_NO_SPAN: AbstractContextManager[None] = nullcontext()
_log = logging.getLogger(__name__)

_current: ContextVar[str | Span | None] = ContextVar("current_trace", default=None)
"""Where the work of this context belongs: a span of this replica, or the header that a caller sent."""


def valid_traceparent(text: str | None) -> str | None:
    """The text when it is a W3C traceparent that names a trace and a span, else None."""
    return text if text is not None and _TRACEPARENT.match(text) else None


def current_traceparent() -> str | None:
    """What to send along with work of the current request: its span's place, else the header as it came, if any."""
    here = _current.get()
    if here is None or isinstance(here, str):
        return here
    place = here.get_span_context()
    return f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"


class ServedRequest:
    """One request while it is served: within, the incoming traceparent is the current one."""

    __slots__ = ("_here", "_token")
    _token: Token[str | Span | None]

    def __init__(self, here: str | None) -> None:
        self._here = here

    def __enter__(self) -> Self:
        self._token = _current.set(self._here)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)

    def answered(self, route: str, status: int) -> None:
        """Tell how it ended; without a span nobody is told."""


class _RequestSpan(ServedRequest):
    """The same with a span of its own."""

    __slots__ = ("_method", "_work")

    def __init__(self, method: str, span: Span) -> None:
        super().__init__(None)
        self._method = method
        self._work = _Work(span)

    def __enter__(self) -> Self:
        self._work.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._work.__exit__(kind, error, trace)

    def answered(self, route: str, status: int) -> None:
        """Name the span after its route, and give it the status; 0 says that no answer was begun."""
        span = self._work.span
        span.update_name(f"{self._method} {route}")
        span.set_attribute("http.route", route)
        if status:
            span.set_attribute("http.response.status_code", status)
        if status >= 500:
            _fail(span, str(status))


class _Work:
    """A span that is the current one within, and ends with it. Of an error it keeps the type, never the text."""

    __slots__ = ("_token", "span")
    _token: Token[str | Span | None]

    def __init__(self, span: Span) -> None:
        self.span = span

    def __enter__(self) -> None:
        self._token = _current.set(self.span)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        if isinstance(error, Exception):
            _fail(self.span, type(error).__name__)
        self.span.end()


class Tracing:
    """The spans of one replica. Without an exporter it is off: then it costs next to nothing and makes none."""

    def __init__(self, exporter: SpanExporter | None) -> None:
        self._provider = None if exporter is None else _provider(exporter)
        self._tracer = None if self._provider is None else self._provider.get_tracer("holdfast")

    @classmethod
    def from_environment(cls) -> Tracing:
        """On when the standard variables name a collector and do not disable the SDK."""
        return cls(_collector() if _wanted(os.environ) else None)

    @property
    def on(self) -> bool:
        """Whether spans are made."""
        return self._tracer is not None

    def request(self, method: str, path: str, traceparent: str | None) -> ServedRequest:
        """A span around one request, in the caller's trace when the traceparent is valid; the query is left out."""
        parent = valid_traceparent(traceparent)
        if self._tracer is None:
            return ServedRequest(parent)
        attributes = {"http.request.method": method, "url.path": path.partition("?")[0]}
        span = self._tracer.start_span(method, _below(parent), SpanKind.SERVER, attributes)
        return _RequestSpan(method, span)

    def commit(self, agent: str) -> AbstractContextManager[None]:
        """A span around making a change durable, below the current one."""
        if self._tracer is None:
            return _NO_SPAN
        return _Work(self._tracer.start_span("commit", _below(_current.get()), attributes={"holdfast.agent": agent}))

    def told(self, traceparent: str | None, agent: str, version: int) -> AbstractContextManager[None]:
        """A span where a replica learns of a commit, in the trace of the commit; none for a commit without one."""
        if self._tracer is None or valid_traceparent(traceparent) is None:
            return _NO_SPAN
        attributes: dict[str, str | int] = {"holdfast.agent": agent, "holdfast.version": version}
        return _Work(self._tracer.start_span("change event", _below(traceparent), SpanKind.CONSUMER, attributes))

    def stop(self) -> None:
        """Send what is left, for `STOP_SECONDS` at most; blocks as long. Never raises."""
        if self._provider is None:
            return
        # The SDK would wait half a minute for a collector that doesn't answer, and takes no other bound.
        closing = Thread(target=_close, args=(self._provider,), name="tracing-stop", daemon=True)
        closing.start()
        closing.join(STOP_SECONDS)


class _Complaints(logging.Filter):
    """Lets an exporter complain now and then, and never louder than a warning: a lost span is no lost data."""

    def __init__(self) -> None:
        super().__init__()
        self._quiet_until = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is let through; it is made a warning at most."""
        if record.levelno < logging.WARNING:
            return True
        now = time.monotonic()
        if now < self._quiet_until:
            return False
        self._quiet_until = now + _COMPLAINT_SECONDS
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


_complaints = _Complaints()


def _wanted(environment: Mapping[str, str]) -> bool:
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not disabled and any(environment.get(name) for name in _ENDPOINTS)


def _collector() -> SpanExporter:
    # Exporter and SDK take 100 ms to import: only who wants spans pays for them.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    logging.getLogger(OTLPSpanExporter.__module__).addFilter(_complaints)
    return OTLPSpanExporter()


def _provider(exporter: SpanExporter) -> TracerProvider:
    # See _collector.
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    ours = Resource.create().merge(Resource({"service.name": "holdfast"}))
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _close(provider: TracerProvider) -> None:
    try:
        provider.shutdown()
    except Exception as error:  # noqa: BLE001 - an exporter may raise what it likes; nothing depends on it
        _log.warning("tracing did not stop cleanly", exc_info=error)


def _below(here: str | Span | None) -> Context:
    """The context of a child of this; a context of no span begins a trace."""
    if here is None:
        return Context()
    return set_span_in_context(_remote(here) if isinstance(here, str) else here, Context())


def _remote(traceparent: str) -> Span:
    _, trace, span, flags = traceparent.split("-")
    place = SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return NonRecordingSpan(place)


def _fail(span: Span, kind: str) -> None:
    span.set_status(StatusCode.ERROR)
    span.set_attribute("error.type", kind)
