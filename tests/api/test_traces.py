"""Traces over two replicas: a request and its commit on one, the change event on both, as one trace."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.config import Settings
from app.tracing import Tracing
from tests.api.driver import Handle, serving

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def names_in_the_trace(kept: InMemorySpanExporter) -> list[str]:
    spans = kept.get_finished_spans()
    return [span.name for span in spans if span.context is not None and span.context.trace_id == int(TRACE, 16)]


@pytest.fixture
def of_a_and_b(monkeypatch: pytest.MonkeyPatch) -> list[InMemorySpanExporter]:
    """What the two replicas that are started next send to their collectors."""
    kept = [InMemorySpanExporter(), InMemorySpanExporter()]
    waiting = list(kept)
    monkeypatch.setattr(Tracing, "from_environment", lambda: Tracing(waiting.pop(0)))
    return kept


async def shown(agent: Handle, version: int) -> None:
    """Wait until the replica's own copy is at the version: its change stream has brought the event then."""
    async with asyncio.timeout(10):
        while await agent.version() < version:  # noqa: ASYNC110 - another replica brings it about
            await asyncio.sleep(0.01)


async def test_a_commit_on_one_replica_and_its_event_on_the_other_are_one_trace(
    open_settings: Settings, mongo_uri: str, of_a_and_b: list[InMemorySpanExporter]
) -> None:
    async with serving(open_settings, mongo_uri) as a, serving(open_settings, mongo_uri) as b:
        agent = await a.made()
        await shown(agent.by(b), 1)
        answer = await agent.call("POST", "/steps", {"role": "user"}, headers={"traceparent": PARENT})
        assert answer.headers["traceparent"] == PARENT
        entries = (await a.call("GET", "/v1/changes", agent=agent.id)).json()["items"]
        assert entries[-1]["trace"].split("-")[1] == TRACE
        await shown(agent.by(b), 2)
    of_a, of_b = map(names_in_the_trace, of_a_and_b)
    assert sorted(of_a) == ["POST /v1/agents/{agent_id}/steps", "change event", "commit"]
    assert of_b == ["change event"]


async def test_without_a_collector_the_callers_trace_still_stands_in_the_change_log(
    open_settings: Settings, mongo_uri: str
) -> None:
    async with serving(open_settings, mongo_uri) as a:
        agent = await a.made()
        await agent.call("POST", "/steps", {"role": "user"}, headers={"traceparent": PARENT})
        entries = (await a.call("GET", "/v1/changes", agent=agent.id)).json()["items"]
        assert [entry.get("trace") for entry in entries] == [None, PARENT]
