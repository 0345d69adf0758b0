"""Tracing: off it carries the caller's trace, on it makes one trace of a request, its commit and its change events."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from app import tracing as module
from app.tracing import Tracing, current_traceparent, valid_traceparent

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
SENT = f"00-{TRACE}-{CALLER}-01"
INVALID = (
    "",
    "rubbish",
    f"ff-{TRACE}-{CALLER}-01",
    f"00-{'0' * 32}-{CALLER}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE.upper()}-{CALLER}-01",
    f"{SENT}\n",
    f"{SENT}-00",
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_RESOURCE_ATTRIBUTES",
        "OTEL_SDK_DISABLED",
        "OTEL_SERVICE_NAME",
        "OTEL_TRACES_SAMPLER",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Where the spans arrive."""
    return InMemorySpanExporter()


@pytest.fixture
def silent_collector() -> Iterator[str]:
    """An endpoint that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_off_makes_no_spans_and_carries_the_incoming_trace() -> None:
    """What the caller sent is the current one within the request, and only there."""
    tracing = Tracing(None)
    assert not tracing.on
    with tracing.request("POST", "/v1/agents", SENT) as request:
        with tracing.commit("t:ada"), tracing.told(SENT, "t:ada", 2):
            assert current_traceparent() == SENT
        request.answered("/v1/agents", 201)
    assert current_traceparent() is None
    tracing.stop()


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("sent", [None, *INVALID])
def test_invalid_traceparent_is_ignored(sent: str | None, on: bool, exporter: InMemorySpanExporter) -> None:
    """It is neither passed on nor joined."""
    assert valid_traceparent(sent) is None
    tracing = Tracing(exporter if on else None)
    with tracing.request("GET", "/", sent):
        within = current_traceparent()
        with tracing.told(sent, "t:ada", 1):
            assert current_traceparent() == within
    tracing.stop()
    assert (within is None) is not on
    assert [span.parent for span in exporter.get_finished_spans()] == [None] * on


def test_request_is_a_child_of_the_callers_span(exporter: InMemorySpanExporter) -> None:
    """With its route, status and path, and nothing of the query."""
    tracing = Tracing(exporter)
    assert tracing.on
    with tracing.request("GET", "/v1/agents/ada?cursor=secret", SENT) as request:
        passed_on = current_traceparent()
        request.answered("/v1/agents/{agent_id}", 200)
    tracing.stop()
    (span,) = exporter.get_finished_spans()
    assert passed_on == f"00-{TRACE}-{_id(span)}-01"
    assert (span.name, span.kind, _parent(span)) == ("GET /v1/agents/{agent_id}", SpanKind.SERVER, CALLER)
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/v1/agents/{agent_id}",
        "http.response.status_code": 200,
        "url.path": "/v1/agents/ada",
    }


def test_only_failures_of_the_service_are_errors(exporter: InMemorySpanExporter) -> None:
    """A refusal is the caller's affair; 0 says that no answer was begun."""
    tracing = Tracing(exporter)
    for status in (409, 503, 0):
        with tracing.request("PUT", "/", None) as request:
            request.answered("/", status)
    tracing.stop()
    refused, failed, unanswered = exporter.get_finished_spans()
    assert [span.status.status_code for span in (refused, failed)] == [StatusCode.UNSET, StatusCode.ERROR]
    assert "http.response.status_code" not in (unanswered.attributes or {})


def test_error_leaves_its_type_and_none_of_its_text(exporter: InMemorySpanExporter) -> None:
    """What an exception says may be an agent's content."""
    tracing = Tracing(exporter)
    with pytest.raises(ValueError, match="secret"), tracing.request("PUT", "/", None), tracing.commit("t:ada"):
        raise ValueError("secret")
    assert current_traceparent() is None
    tracing.stop()
    for span in exporter.get_finished_spans():
        assert (span.attributes or {})["error.type"] == "ValueError"
        assert "secret" not in span.to_json()


def test_commit_is_nested_in_its_request(exporter: InMemorySpanExporter) -> None:
    """And the request is the current one again after it."""
    tracing = Tracing(exporter)
    with tracing.request("POST", "/", None):
        before = current_traceparent()
        with tracing.commit("t:ada"):
            assert current_traceparent() != before
        assert current_traceparent() == before
    tracing.stop()
    commit, request = exporter.get_finished_spans()
    assert (commit.name, commit.kind, _parent(commit)) == ("commit", SpanKind.INTERNAL, _id(request))
    assert dict(commit.attributes or {}) == {"holdfast.agent": "t:ada"}
    assert request.parent is None


def test_change_event_on_another_replica_continues_the_trace() -> None:
    """The envelope's traceparent makes one trace of the caller, the writing replica and the one that is told."""
    here, there = InMemorySpanExporter(), InMemorySpanExporter()
    writing, told_of_it = Tracing(here), Tracing(there)
    with writing.request("POST", "/", SENT), writing.commit("t:ada"):
        envelope = current_traceparent()
    with told_of_it.told(envelope, "t:ada", 7):
        assert current_traceparent() != envelope
    writing.stop()
    told_of_it.stop()
    commit, request = here.get_finished_spans()
    (event,) = there.get_finished_spans()
    assert {span.context.trace_id for span in (request, commit, event) if span.context} == {int(TRACE, 16)}
    assert [_parent(span) for span in (request, commit, event)] == [CALLER, _id(request), _id(commit)]
    assert (event.name, event.kind) == ("change event", SpanKind.CONSUMER)
    assert dict(event.attributes or {}) == {"holdfast.agent": "t:ada", "holdfast.version": 7}


def test_callers_choice_not_to_sample_is_kept(exporter: InMemorySpanExporter) -> None:
    """No span is sent, and whoever is told of the commit learns of the choice."""
    tracing = Tracing(exporter)
    with tracing.request("GET", "/", f"00-{TRACE}-{CALLER}-00"):
        passed_on = current_traceparent()
    with tracing.told(passed_on, "t:ada", 1):
        pass
    tracing.stop()
    assert passed_on is not None and passed_on.startswith(f"00-{TRACE}-") and passed_on.endswith("-00")
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_environment_switches_it_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By naming a collector, unless the SDK is disabled."""
    assert not Tracing.from_environment().on
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    tracing = Tracing.from_environment()
    assert tracing.on
    tracing.stop()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "TRUE")
    assert not Tracing.from_environment().on


@pytest.mark.parametrize(("named", "shown"), [(None, "holdfast"), ("holdfast-eu", "holdfast-eu")])
def test_service_has_a_name(
    named: str | None, shown: str, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours, or the operator's."""
    if named is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", named)
    tracing = Tracing(exporter)
    with tracing.commit("t:ada"):
        pass
    tracing.stop()
    (span,) = exporter.get_finished_spans()
    assert span.resource.attributes["service.name"] == shown


def test_stop_does_not_wait_for_a_silent_collector(silent_collector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a request."""
    monkeypatch.setattr(module, "STOP_SECONDS", 0.2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", silent_collector)
    tracing = Tracing.from_environment()
    started = time.monotonic()
    with tracing.request("GET", "/", None) as request:
        request.answered("/", 200)
    tracing.stop()
    tracing.stop()
    assert time.monotonic() - started < 1


def test_stop_survives_an_exporter_that_raises() -> None:
    """Whatever it raises."""
    tracing = Tracing(_Broken())
    with tracing.commit("t:ada"):
        pass
    tracing.stop()


def test_exporter_complains_seldom_and_as_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collector that is gone fills no log and wakes nobody."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    Tracing.from_environment().stop()
    assert module._complaints in logging.getLogger(OTLPSpanExporter.__module__).filters
    # A logger of its own: what an earlier test's exporter still says is not counted.
    logger = logging.getLogger("tests.exporter")
    logger.addFilter(module._Complaints())
    for _ in range(3):
        logger.error("no collector")
    lines = [(line.levelname, line.message) for line in caplog.records if line.name == logger.name]
    assert lines == [("WARNING", "no collector")]


class _Broken(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise OSError("no export")

    def shutdown(self) -> None:
        raise OSError("no shutdown")


def _parent(span: ReadableSpan) -> str | None:
    return f"{span.parent.span_id:016x}" if span.parent else None


def _id(span: ReadableSpan) -> str:
    assert span.context
    return f"{span.context.span_id:016x}"
