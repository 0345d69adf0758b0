"""One good request for every route of the application, found out by asking the application itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.api.application import Parts, create_litestar
from app.config import Settings
from app.telemetry import Metrics
from tests.api.driver import Api, Handle

Route = tuple[str, str]
Json = dict[str, Any]

NOTHING = object()
PUBLIC: frozenset[Route] = frozenset({("GET", "/health/live"), ("GET", "/health/ready"), ("GET", "/metrics")})
"""Routes that need no key."""


@dataclass(frozen=True)
class Sample:
    """A good request: the kinds of keys that may make it, its body, its query, and what stands in the path."""

    rights: tuple[str, ...]
    body: Any = NOTHING
    query: Mapping[str, str] = field(default_factory=dict)
    path: Mapping[str, str] = field(default_factory=dict)


READERS = ("read", "runner")
DRIVERS = ("write", "runner")
WRITERS = ("write",)

SAMPLES: dict[Route, Sample] = {
    ("GET", "/v1/agents"): Sample(READERS),
    ("POST", "/v1/agents"): Sample(WRITERS, {"name": "Ada"}),
    ("POST", "/v1/agents/import"): Sample(WRITERS, {"holdfast": 1}),
    ("GET", "/v1/agents/{agent_id}"): Sample(READERS),
    ("PATCH", "/v1/agents/{agent_id}"): Sample(DRIVERS, {"name": "Ada"}),
    ("DELETE", "/v1/agents/{agent_id}"): Sample(WRITERS),
    ("GET", "/v1/agents/{agent_id}/settings"): Sample(READERS),
    ("PATCH", "/v1/agents/{agent_id}/settings"): Sample(DRIVERS, {"max_steps": 3}),
    ("GET", "/v1/agents/{agent_id}/delegate"): Sample(READERS),
    ("PUT", "/v1/agents/{agent_id}/delegate"): Sample(WRITERS, {"user": {"id": 2}}),
    ("DELETE", "/v1/agents/{agent_id}/delegate"): Sample(WRITERS),
    ("GET", "/v1/agents/{agent_id}/workspace"): Sample(READERS),
    ("PUT", "/v1/agents/{agent_id}/workspace"): Sample(DRIVERS, {"files": []}),
    ("GET", "/v1/agents/{agent_id}/export"): Sample(READERS),
    ("POST", "/v1/agents/{agent_id}/fork"): Sample(WRITERS, {"at": "a"}),
    ("POST", "/v1/agents/{agent_id}/steps"): Sample(DRIVERS, {"role": "user", "content": "hello"}),
    ("GET", "/v1/agents/{agent_id}/steps"): Sample(READERS),
    ("GET", "/v1/agents/{agent_id}/steps/{step_id}"): Sample(READERS, path={"step_id": "a"}),
    ("PUT", "/v1/agents/{agent_id}/head"): Sample(DRIVERS, {"step_id": "root"}),
    ("GET", "/v1/agents/{agent_id}/branches"): Sample(READERS),
    ("PUT", "/v1/agents/{agent_id}/branches/{name}"): Sample(DRIVERS, {"step_id": "a"}, path={"name": "new"}),
    ("DELETE", "/v1/agents/{agent_id}/branches/{name}"): Sample(DRIVERS, path={"name": "side"}),
    ("GET", "/v1/agents/{agent_id}/diff"): Sample(READERS, query={"from": "root", "to": "a"}),
    ("POST", "/v1/agents/{agent_id}/revert"): Sample(DRIVERS, {"turn_id": "a"}),
    ("POST", "/v1/agents/{agent_id}/redo"): Sample(DRIVERS),
    ("POST", "/v1/agents/{agent_id}/clear"): Sample(DRIVERS),
    ("PUT", "/v1/agents/{agent_id}/results/{key}"): Sample(DRIVERS, {"result": 1}, path={"key": "other"}),
    ("GET", "/v1/agents/{agent_id}/results"): Sample(READERS),
    ("GET", "/v1/agents/{agent_id}/results/{key}"): Sample(READERS, path={"key": "k"}),
    ("GET", "/v1/agents/{agent_id}/events"): Sample(READERS),
    ("GET", "/v1/changes"): Sample(READERS),
    ("POST", "/v1/tickets"): Sample(READERS),
}
"""Every route that needs a key. A new route belongs in here; a test says so."""

OF_AN_AGENT = [route for route in SAMPLES if "{agent_id}" in route[1]]


def routes_of_the_application() -> set[Route]:
    """Method and path template of every route, without the OpenAPI document and Litestar's own OPTIONS."""
    left_out = dict.fromkeys(Parts.__dataclass_fields__)
    parts: Any = {**left_out, "settings": Settings(), "metrics": Metrics()}
    app = create_litestar(Parts(**parts))
    return {
        (method, route.path_format)
        for route in app.routes
        for handler in getattr(route, "route_handlers", ())
        for method in handler.http_methods - {"OPTIONS"}
        if not route.path.startswith("/schema")
    }


def path_of(route: Route, agent: str) -> str:
    """The path of a route's sample, for this agent."""
    return route[1].format_map({"agent_id": agent, **SAMPLES[route].path})


def name_of(route: Route) -> str:
    return " ".join(route)


async def send(api: Api, route: Route, agent: str, **options: Any) -> Any:
    """Make a route's sample request."""
    sample = SAMPLES[route]
    body = () if sample.body is NOTHING else (sample.body,)
    return await api.call(route[0], path_of(route, agent), *body, **sample.query, **options)


async def prepared(api: Api, **headers: str) -> Handle:
    """An agent at which every sample is accepted."""
    path = "/v1/agents"
    made = await api.call("POST", path, {"delegate": {"user": {}, "token": "t"}}, headers=headers)
    agent = Handle(api, made.json()["id"])
    steps = [{"role": "user", "id": "a"}, {"role": "user", "id": "b"}]
    await agent.call("POST", "/steps", {"steps": steps}, headers=headers)
    await agent.call("PUT", "/branches/side", {"step_id": "a"}, headers=headers)
    await agent.call("PUT", "/results/k", {"step_id": "a", "result": 1}, headers=headers)
    await agent.call("POST", "/revert", {"turn_id": "b"}, headers=headers)
    return agent
