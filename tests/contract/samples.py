"""One good request for every route of the application, found out by asking the application itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.api.application import create_litestar
from app.api.parts import Parts
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
RUNNERS = ("runner",)
ADMINS = ("admin",)

OF_A_RUNNER = {"runner_id": "r-{agent_id}"}
OF_A_COMMAND = {"command_id": "{command}"}
OF_AN_EPISODE = {"episode_id": "e-{agent_id}"}
A_RUNNER = {"platform": "local", "capacity": 2}
ERASE: Route = ("DELETE", "/v1/tenants/{tenant}")
"""What only a tenant of its own can be tried with: a test of its own does."""

DRIVEN = "<driven>"
"""Stands in a body for the agent beside the prepared one that a runner may claim."""

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
    ("POST", "/v1/agents/{agent_id}/transitions"): Sample(DRIVERS, {"to": "starting", "trigger": "spawn"}),
    ("GET", "/v1/agents/{agent_id}/transitions"): Sample(READERS),
    ("POST", "/v1/agents/{agent_id}/turns"): Sample(DRIVERS, {"content": "hello"}),
    ("POST", "/v1/agents/{agent_id}/turns/{turn_id}/finish"): Sample(
        DRIVERS, {"outcome": "completed"}, path={"turn_id": "turn"}
    ),
    ("POST", "/v1/agents/{agent_id}/stop"): Sample(DRIVERS),
    ("PUT", "/v1/agents/{agent_id}/resource"): Sample(DRIVERS, {"resource_id": "pod-1"}),
    ("POST", "/v1/agents/{agent_id}/commands"): Sample(WRITERS, {"action": "custom"}),
    ("POST", "/v1/reconcile"): Sample(ADMINS),
    ("POST", "/v1/runners"): Sample(RUNNERS, {"pool": "p", **A_RUNNER}),
    ("GET", "/v1/runners"): Sample(READERS),
    ("GET", "/v1/runners/{runner_id}"): Sample(READERS, path={"runner_id": "seen"}),
    ("DELETE", "/v1/runners/{runner_id}"): Sample(RUNNERS, path=OF_A_RUNNER),
    ("POST", "/v1/runners/{runner_id}/heartbeat"): Sample(RUNNERS, {"capacity": 2}, path=OF_A_RUNNER),
    ("POST", "/v1/runners/{runner_id}/claim"): Sample(RUNNERS, {"max": 1}, path=OF_A_RUNNER),
    ("POST", "/v1/runners/{runner_id}/release"): Sample(RUNNERS, {"agent": DRIVEN}, path=OF_A_RUNNER),
    ("POST", "/v1/runners/{runner_id}/drain"): Sample(RUNNERS, path=OF_A_RUNNER),
    ("GET", "/v1/runners/{runner_id}/commands"): Sample(RUNNERS, path=OF_A_RUNNER),
    ("GET", "/v1/commands/{command_id}"): Sample(READERS, path=OF_A_COMMAND),
    ("POST", "/v1/commands/{command_id}/ack"): Sample(RUNNERS, path=OF_A_COMMAND),
    ("POST", "/v1/commands/{command_id}/complete"): Sample(RUNNERS, {"result": 1}, path=OF_A_COMMAND),
    ("POST", "/v1/commands/{command_id}/fail"): Sample(RUNNERS, {"error": "no"}, path=OF_A_COMMAND),
    ("GET", "/v1/pools"): Sample(READERS),
    ("GET", "/v1/pools/{pool}"): Sample(READERS, path={"pool": "p"}),
    ("PUT", "/v1/pools/{pool}"): Sample(ADMINS, {"attempts": 2}, path={"pool": "p"}),
    ("GET", "/v1/agents/{agent_id}/events"): Sample(READERS),
    ("GET", "/v1/changes"): Sample(READERS),
    ("POST", "/v1/tickets"): Sample(READERS),
    ("POST", "/v1/episodes"): Sample(DRIVERS, {"task": "sort a list", "reward": 1}),
    ("GET", "/v1/episodes"): Sample(READERS),
    ("GET", "/v1/episodes/{episode_id}"): Sample(READERS, path=OF_AN_EPISODE),
    ("DELETE", "/v1/episodes/{episode_id}"): Sample(DRIVERS, path=OF_AN_EPISODE),
    ("POST", "/v1/episodes/search"): Sample(READERS, {"text": "sort"}),
    ("GET", "/v1/sync"): Sample(READERS),
    ("POST", "/v1/sync"): Sample(DRIVERS, {"episodes": [{"task": "sort a list"}]}),
    ("GET", "/v1/retention"): Sample(READERS),
    ("PUT", "/v1/retention"): Sample(ADMINS, {"max_age_days": 3650}),
    ("POST", "/v1/retention/apply"): Sample(ADMINS, {"dry_run": True}),
    ERASE: Sample(ADMINS, path={"tenant": "nobodys"}),
    ("GET", "/v1/presence"): Sample(READERS),
    ("GET", "/v1/stats"): Sample(READERS),
}
"""Every route that needs a key. A new route belongs in here; a test says so."""

COMMANDS: dict[str, str] = {}
"""A command to the runner of each prepared agent's neighbour."""

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
    known = {"tenant": "nobodys", "agent_id": agent, "command": COMMANDS.get(agent, "none")}
    return route[1].format_map(
        {**known, **{name: part.format_map(known) for name, part in SAMPLES[route].path.items()}}
    )


def name_of(route: Route) -> str:
    return " ".join(route)


async def send(api: Api, route: Route, agent: str, **options: Any) -> Any:
    """Make a route's sample request; for those of a runner, register the caller as one before, as far as it may."""
    sample = SAMPLES[route]
    if sample.path in (OF_A_RUNNER, OF_A_COMMAND):
        await _stage(api, agent, options.get("headers"))
    if route[1].endswith(("/stop", "/finish")):
        turn = {"id": "turn", "content": "hello"}
        await api.http.post(f"/v1/agents/{agent}/turns", json=turn, headers=options.get("headers"))
    body = () if sample.body is NOTHING else (sample.body,)
    if sample.body == {"agent": DRIVEN}:
        body = ({"agent": driven_of(agent)},)
        options["headers"] = {"Fencing-Token": "1", **(options.get("headers") or {})}
    return await api.call(route[0], path_of(route, agent), *body, **sample.query, **options)


async def _stage(api: Api, agent: str, headers: Any) -> None:
    """A runner that drives the agent beside the prepared one, and was sent its command; refusals are left alone."""
    runner = f"/v1/runners/r-{agent}"
    await api.http.post("/v1/runners", json={"id": f"r-{agent}", "pool": f"p-{agent}", **A_RUNNER}, headers=headers)
    await api.http.post(f"{runner}/claim", json={"max": 1}, headers=headers)
    await api.http.get(f"{runner}/commands", headers=headers)


def driven_of(agent: str) -> str:
    """The agent beside the prepared one."""
    return f"d-{agent}"


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
    await api.call("POST", path, {"id": driven_of(agent.id), "pool": f"p-{agent.id}"}, headers=headers)
    command = await api.call("POST", f"{path}/{driven_of(agent.id)}/commands", {"action": "custom"}, headers=headers)
    COMMANDS[agent.id] = command.json()["id"]
    await api.http.post("/v1/runners", json={"id": "seen", "pool": "p", **A_RUNNER}, headers=headers)
    await api.call("POST", "/v1/episodes", {"id": f"e-{agent.id}", "task": "sort"}, headers=headers)
    return agent
