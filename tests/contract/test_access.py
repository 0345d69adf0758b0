"""Who may do what, for every route that there is: tenants never meet, rights hold, the latch stays closed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from app.config import Settings
from app.runtime import running
from models.tenant import Right
from tests.api.driver import Api, Handle, bearer, problem_of, serving
from tests.contract.samples import (
    ERASE,
    OF_AN_AGENT,
    PUBLIC,
    SAMPLES,
    Route,
    name_of,
    path_of,
    prepared,
    routes_of_the_application,
    send,
)

every_route = pytest.mark.parametrize("route", sorted(SAMPLES), ids=name_of)
every_route_of_an_agent = pytest.mark.parametrize("route", OF_AN_AGENT, ids=name_of)

UNKNOWN = "01900000000000000000000000000000"


@dataclass(frozen=True)
class Cast:
    """A replica that asks for keys, an agent of the tenant `mine` and owner `ann`, and keys of all kinds."""

    api: Api
    agent: Handle
    keys: dict[str, dict[str, str]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cast(new_database: Callable[[], str], data: Path, mongo_uri: str) -> AsyncIterator[Cast]:
    settings = Settings(mongodb_database=new_database(), data=data)
    async with serving(settings, mongo_uri) as api, running(settings, mongo_uri) as runtime:

        async def key(tenant: str, *rights: str, owner: str | None = None) -> dict[str, str]:
            _, token = await runtime.keys.create(tenant, map(Right, rights), owner=owner)
            return bearer(token)

        keys = {
            "mine": await key("mine", "read", "write", "runner", "admin"),
            "ann": await key("mine", "read", "write", owner="ann"),
            "other owner": await key("mine", "read", "write", owner="bob"),
            "other tenant": await key("other", "read", "write", "runner", "admin"),
            **{right: await key("mine", right) for right in Right},
        }
        record, token = await runtime.keys.create("mine", [Right.READ, Right.WRITE])
        await runtime.keys.revoke(record.id)
        keys["revoked"] = bearer(token)
        yield Cast(api, await prepared(api, **keys["ann"]), keys)


def test_every_route_has_a_sample() -> None:
    """A new route is tried here, too, or this fails; a sample of no route is a mistake as well."""
    assert routes_of_the_application() == SAMPLES.keys() | PUBLIC


@pytest.mark.parametrize("route", sorted(SAMPLES.keys() - {ERASE}), ids=name_of)
async def test_sample_is_accepted_from_its_own_tenant(cast: Cast, route: Route) -> None:
    """So that the refusals below are about the caller and nothing else; every right that opens the route does."""
    for right in SAMPLES[route].rights:
        agent = await prepared(cast.api, **cast.keys["mine"])
        assert (await send(cast.api, route, agent.id, headers=cast.keys[right])).is_success
    if {"read", "write"} & set(SAMPLES[route].rights) and "{runner_id}" not in route[1]:
        agent = await prepared(cast.api, **cast.keys["ann"])
        assert (await send(cast.api, route, agent.id, headers=cast.keys["ann"])).is_success


def shown(answer: httpx.Response, agent: str) -> tuple[int, str, dict[str, str]]:
    """All that a caller can learn from an answer, but for the id that it asked for."""
    headers = {name: value for name, value in answer.headers.items() if name != "x-request-id"}
    return answer.status_code, answer.text.replace(agent, "<id>"), headers


@pytest.mark.parametrize("stranger", ["other tenant", "other owner"])
@every_route_of_an_agent
async def test_stranger_hears_what_the_unknown_answers(cast: Cast, route: Route, stranger: str) -> None:
    """Byte for byte, so that not even the existence of an agent can be told; guards make no difference."""
    nobody = "0" * len(cast.agent.id)
    before = await cast.agent.read("/export", headers=cast.keys["mine"])
    for extra in ({}, {"If-Match": '"1"'}, {"Fencing-Token": "3"}, {"If-None-Match": "*"}, {"Idempotency-Key": "k"}):
        headers = {**cast.keys[stranger], **extra}
        theirs = await send(cast.api, route, cast.agent.id, headers=headers, expect="not-found")
        unknown = await send(cast.api, route, nobody, headers=headers, expect="not-found")
        assert shown(theirs, cast.agent.id) == shown(unknown, nobody)
    assert await cast.agent.read("/export", headers=cast.keys["mine"]) == before


@every_route
async def test_key_without_the_right_is_forbidden(cast: Cast, route: Route) -> None:
    """403, for an agent that is there and for one that is not."""
    for right in set(Right) - set(SAMPLES[route].rights):
        for agent in (cast.agent.id, UNKNOWN):
            await send(cast.api, route, agent, headers=cast.keys[right], expect="forbidden")


@every_route
async def test_without_a_good_key_nothing_is_answered(cast: Cast, route: Route) -> None:
    """401: none, a revoked one, an unknown one, and what is no key at all."""
    known = cast.keys["mine"]["Authorization"]
    wrong = [known[:-1] + ("A" if known[-1] != "A" else "B"), known[:-1], known + "x", known.replace("Bearer", "Basic")]
    wrong += [
        known.removeprefix("Bearer "),
        "Bearer",
        "Bearer ",
        "",
        "Bearer x",
        "Bearer null",
        "Bearer hf_" + "0" * 32,
    ]
    tried = [{}, cast.keys["revoked"], *({"Authorization": value} for value in wrong)]
    for headers in tried:
        answer = await send(cast.api, route, cast.agent.id, headers=headers, expect="unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("route", sorted(PUBLIC), ids=name_of)
async def test_public_route_needs_no_key_and_tells_nothing_of_tenants(cast: Cast, route: Route) -> None:
    """Liveness, readiness, metrics."""
    answer = await cast.api.call(*route)
    assert cast.agent.id not in answer.text
    assert "mine" not in answer.text


async def test_lists_end_at_tenant_and_owner(cast: Cast) -> None:
    """Nobody lists a stranger's agent; the tenant's own keys do."""
    seen = {}
    for who in ("mine", "ann", "other owner", "other tenant"):
        items = (await cast.api.call("GET", "/v1/agents", headers=cast.keys[who], limit=200)).json()["items"]
        seen[who] = cast.agent.id in [item["id"] for item in items]
    assert seen == {"mine": True, "ann": True, "other owner": False, "other tenant": False}


async def test_owners_key_makes_only_its_owners_agents(cast: Cast) -> None:
    """By itself, by name, by import and by fork; another's name is forbidden."""
    headers = cast.keys["ann"]
    for path, body in (("/v1/agents", {}), ("/v1/agents/import", {"holdfast": 1})):
        for given in ({}, {"owner": None}, {"owner": "ann"}):
            made = await cast.api.call("POST", path, {**body, **given}, headers=headers)
            assert made.json()["owner"] == "ann"
        await cast.api.call("POST", path, {**body, "owner": "bob"}, headers=headers, expect="forbidden")
    assert (await cast.agent.call("POST", "/fork", headers=headers)).json()["owner"] == "ann"


async def test_same_id_in_two_tenants_is_two_agents(cast: Cast) -> None:
    """An id is taken in its own tenant only."""
    mine, other = cast.keys["mine"], cast.keys["other tenant"]
    for headers, name in ((mine, "mine"), (other, "other")):
        await cast.api.call("POST", "/v1/agents", {"id": "same", "name": name}, headers=headers, expect=201)
    await cast.api.call("DELETE", "/v1/agents/same", headers=other)
    assert (await cast.api.call("GET", "/v1/agents/same", headers=mine)).json()["name"] == "mine"


async def test_tenant_comes_from_the_key_only(cast: Cast) -> None:
    """No field, header or id names another."""
    headers = {**cast.keys["mine"], "X-Tenant": "other", "Tenant": "other"}
    assert (await cast.api.call("POST", "/v1/agents", {}, headers=headers)).json()["tenant"] == "mine"
    await cast.api.call("POST", "/v1/agents", {"tenant": "other"}, headers=headers, expect="invalid-request")
    await cast.api.call("POST", "/v1/agents", {"id": "other:x"}, headers=headers, expect="invalid-request")
    await cast.api.call("GET", f"/v1/agents/mine:{cast.agent.id}", headers=headers, expect="not-found")


async def test_latch_stays_closed_when_all_keys_are_gone(
    new_database: Callable[[], str], data: Path, mongo_uri: str
) -> None:
    """Open before the first key, closed ever after, on a replica that ran all along and on a new one."""
    settings = Settings(mongodb_database=new_database(), data=data)
    async with serving(settings, mongo_uri) as old, running(settings, mongo_uri) as runtime:
        await old.call("GET", "/v1/agents", expect=200)
        record, _ = await runtime.keys.create("default", [Right.READ])
        await old.call("GET", "/v1/agents", expect="unauthenticated")
        await runtime.keys.revoke(record.id)
        async with serving(settings, mongo_uri) as new:
            for replica in (old, new):
                await replica.call("GET", "/v1/agents", expect="unauthenticated")
                await replica.call("POST", "/v1/agents", {}, expect="unauthenticated")


HOSTS = {
    "127.0.0.1": 200,
    "127.0.0.1:8700": 200,
    "localhost:1": 200,
    "LocalHost": 200,
    "[::1]:8700": 200,
    "evil.example": 403,
    "localhost.evil.example": 403,
    "127.0.0.1.evil.example": 403,
    "localhost@evil.example": 403,
    "evil.example:127": 403,
    "10.0.0.1": 403,
    "": 400,
    "[": 400,
}
ORIGINS = {
    "http://127.0.0.1": 200,
    "http://127.0.0.1:9999": 403,
    "http://localhost": 403,
    "http://evil.example": 403,
    "http://127.0.0.1.evil.example": 403,
    "null": 403,
    "": 403,
    "http://[": 403,
}


@pytest.mark.parametrize(("host", "status"), HOSTS.items())
async def test_only_known_hosts_are_served(api: Api, host: str, status: int) -> None:
    """A name that leads to loopback is not enough (DNS rebinding); probes are answered all the same."""
    answer = await api.http.get("/v1/agents", headers={"Host": host})
    assert answer.status_code == status
    if status != 200:
        problem_of(answer)
    assert (await api.http.get("/health/live", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(("origin", "status"), ORIGINS.items())
async def test_pages_of_other_origins_are_refused(api: Api, origin: str, status: int) -> None:
    """The service's own origin is served, for reads and writes alike."""
    for method in ("GET", "POST"):
        answer = await api.http.request(
            method, "/v1/agents", headers={"Origin": origin}, json=None if method == "GET" else {}
        )
        assert answer.status_code == (201 if status == 200 and method == "POST" else status)
        if status != 200:
            problem_of(answer)


async def test_allowed_hosts_and_origins_can_be_named(open_settings: Settings, mongo_uri: str) -> None:
    """Each by its own setting; `*` lets every host pass and no origin."""
    named = {"allowed_hosts": ("holdfast.example",), "allowed_origins": ("https://console.example",)}
    async with serving(open_settings.model_copy(update=named), mongo_uri) as api:
        headers = {"Host": "holdfast.example", "Origin": "https://console.example"}
        await api.call("GET", "/v1/agents", headers=headers, expect=200)
        await api.call("GET", "/v1/agents", headers={**headers, "Host": "other.example"}, expect="forbidden")
        await api.call("GET", "/v1/agents", headers={**headers, "Origin": "https://other.example"}, expect="forbidden")
    async with serving(open_settings.model_copy(update={"allowed_hosts": ("*",)}), mongo_uri) as api:
        await api.call("GET", "/v1/agents", headers={"Host": "any.example"}, expect=200)
        await api.call(
            "GET", "/v1/agents", headers={"Host": "a.example", "Origin": "http://b.example"}, expect="forbidden"
        )


def test_paths_of_samples_fill_every_place() -> None:
    """No sample asks for a template."""
    assert not any("{" in path_of(route, UNKNOWN) for route in SAMPLES)
