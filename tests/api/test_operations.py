"""Health, metrics, and what the edge does for every request."""

from __future__ import annotations

import pytest

from tests.api.driver import Api

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_live_and_ready(api: Api) -> None:
    """200 while the database is there."""
    assert (await api.call("GET", "/health/live")).json() == {"status": "live"}
    assert (await api.call("GET", "/health/ready")).json() == {"status": "ready"}


async def test_metrics_are_prometheus_text(api: Api) -> None:
    """Requests by route, not by path: no id shows up in a label."""
    agent = await api.made()
    await agent.read()
    answer = await api.call("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'route="/v1/agents/{agent_id}"' in answer.text
    assert "holdfast_commits_total" in answer.text
    assert agent.id not in answer.text


async def test_request_id_and_trace_are_echoed(api: Api) -> None:
    """On success and on failure; an odd one is replaced, a missing one is made."""
    sent = {"X-Request-ID": "req-1", "traceparent": TRACE}
    for path in ("/health/live", "/v1/agents", "/v1/agents/nobody", "/nowhere"):
        answer = await api.http.get(path, headers=sent)
        assert {name: answer.headers[name] for name in sent} == sent
        made = (await api.http.get(path)).headers
        assert len(made["x-request-id"]) >= 16
        assert "traceparent" not in made
    odd = await api.http.get("/health/live", headers={"X-Request-ID": "a b" * 200, "traceparent": "00-xyz"})
    assert odd.headers["x-request-id"] != "a b" * 200
    assert "traceparent" not in odd.headers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/v1/agents"),
        ("PUT", "/v1/agents/x"),
        ("POST", "/v1/agents/x/head"),
        ("PATCH", "/health/live"),
        ("GET", "/v1/agents/x/fork"),
    ],
)
async def test_method_that_a_path_does_not_have(api: Api, method: str, path: str) -> None:
    """405, as a problem."""
    await api.call(method, path, expect="method-not-allowed")


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v2/agents", "/v1/agents/x/nothing", "/v1/agents/x/steps/y/z"],
)
async def test_path_that_is_none(api: Api, path: str) -> None:
    """404 as a problem."""
    await api.call("GET", path, expect="not-found")
