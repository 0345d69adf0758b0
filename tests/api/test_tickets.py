"""Tickets: what a browser shows once, in the address of a feed, instead of a key."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import MongoClient

from app.config import Settings
from app.runtime import running
from models.tenant import Right
from tests.api.conftest import KeyMaker
from tests.api.driver import Api, Handle, Json, bearer, calling, serving
from tests.api.feed_driver import following, reading

LOG = "/v1/changes"


async def ticket_of(api: Api, token: str | None = None) -> Json:
    headers = {} if token is None else bearer(token)
    made: Json = (await api.call("POST", "/v1/tickets", headers=headers, expect=201)).json()
    return made


async def agent_of(api: Api, token: str) -> Handle:
    async with calling(api.app, token) as caller:
        return (await caller.made()).by(api)


async def test_ticket_is_told_with_its_end(keyed: Api, new_key: KeyMaker, tenant: str) -> None:
    """Thirty seconds from now; no two are alike."""
    token = await new_key(tenant, "read")
    first, second = [await ticket_of(keyed, token) for _ in range(2)]
    assert first.keys() == {"ticket", "expires_at"}
    assert first["ticket"] != second["ticket"]
    left = datetime.fromisoformat(first["expires_at"]) - datetime.now(UTC)
    assert timedelta(seconds=25) < left <= timedelta(seconds=30)
    assert first["expires_at"].endswith("Z")


async def test_ticket_opens_a_feed_once(keyed: Api, new_key: KeyMaker, tenant: str) -> None:
    """Of an agent, or of the log; then it is as good as none."""
    token = await new_key(tenant, "read", "write")
    agent = await agent_of(keyed, token)
    ticket = (await ticket_of(keyed, token))["ticket"]
    async with following(keyed, agent.id, ticket=ticket) as reader:
        await reader.take(1)
        for path in (f"/v1/agents/{agent.id}/events", LOG):
            async with reading(keyed, path, ticket=ticket, expect="unauthenticated"):
                pass
    ticket = (await ticket_of(keyed, token))["ticket"]
    async with reading(keyed, LOG, ticket=ticket) as log:
        await agent.append("x", headers=bearer(token))
        assert (await log.take(1))[0].data["agent"] == agent.id
    ticket = (await ticket_of(keyed, token))["ticket"]
    assert (await keyed.call("GET", LOG, ticket=ticket)).json()["items"]
    await keyed.call("GET", LOG, ticket=ticket, expect="unauthenticated")


async def test_of_many_who_show_a_ticket_one_gets_in(
    keyed: Api, other_keyed: Api, new_key: KeyMaker, tenant: str
) -> None:
    """On whichever replica."""
    token = await new_key(tenant, "read")
    ticket = (await ticket_of(keyed, token))["ticket"]
    tried = [api.call("GET", LOG, ticket=ticket, expect=httpx.codes.OK) for api in (keyed, other_keyed) * 5]
    ended = await asyncio.gather(*tried, return_exceptions=True)
    assert sum(isinstance(end, httpx.Response) for end in ended) == 1


async def test_ticket_is_good_on_the_other_replica(
    keyed: Api, other_keyed: Api, new_key: KeyMaker, tenant: str
) -> None:
    """At once."""
    token = await new_key(tenant)
    agent = await agent_of(keyed, token)
    ticket = (await ticket_of(keyed, token))["ticket"]
    async with following(other_keyed, agent.id, ticket=ticket) as reader:
        assert (await reader.take(1))[0].kind == "snapshot"


async def test_ticket_opens_nothing_else(keyed: Api, new_key: KeyMaker, tenant: str) -> None:
    """Whatever it is sent to answers as if there were none, and it stays good."""
    token = await new_key(tenant)
    agent = await agent_of(keyed, token)
    ticket = (await ticket_of(keyed, token))["ticket"]
    path = f"/v1/agents/{agent.id}"
    calls: list[tuple[str, str, Any]] = [
        ("GET", "/v1/agents", ()),
        ("POST", "/v1/agents", ({},)),
        ("GET", path, ()),
        ("GET", f"{path}/settings", ()),
        ("POST", f"{path}/steps", ({"role": "user"},)),
        ("DELETE", path, ()),
        ("POST", "/v1/tickets", ()),
    ]
    for method, target, body in calls:
        await keyed.call(method, target, *body, ticket=ticket, expect="unauthenticated")
        await keyed.call(method, target, *body, headers=bearer(ticket), expect="unauthenticated")
    async with following(keyed, agent.id, ticket=ticket) as reader:
        await reader.take(1)


async def test_tickets_that_were_never_given_open_nothing(keyed: Api, new_key: KeyMaker, tenant: str) -> None:
    """Odd ones neither; a key in the header does not help where a ticket is shown."""
    token = await new_key(tenant)
    for odd in ("", "x", "$gt", "\0", "ä", "x" * 10_000, token, token.split("_", 2)[2]):
        await keyed.call("GET", LOG, ticket=odd, expect="unauthenticated")
    await keyed.call("GET", LOG, ticket="x", headers=bearer(token), expect="unauthenticated")
    async with reading(keyed, LOG, ticket="x", expect="unauthenticated") as refused:
        assert refused.headers["www-authenticate"] == "Bearer"


async def test_ticket_grows_old(
    keyed: Api, new_key: KeyMaker, tenant: str, mongo: MongoClient[dict[str, Any]], keyed_settings: Settings
) -> None:
    """Also while the database has not cleaned it up yet."""
    ticket = (await ticket_of(keyed, await new_key(tenant, "read")))["ticket"]
    tickets = mongo[keyed_settings.mongodb_database]["tickets"]
    past = datetime.now(UTC) - timedelta(milliseconds=1)
    assert tickets.update_one({"tenant": tenant}, {"$set": {"expires_at": past}}).matched_count == 1
    await keyed.call("GET", LOG, ticket=ticket, expect="unauthenticated")


async def test_ticket_is_stored_as_its_digest(
    keyed: Api, new_key: KeyMaker, tenant: str, mongo: MongoClient[dict[str, Any]], keyed_settings: Settings
) -> None:
    """Whoever reads the database can't show it."""
    ticket = (await ticket_of(keyed, await new_key(tenant, "read")))["ticket"]
    stored = mongo[keyed_settings.mongodb_database]["tickets"].find_one({"tenant": tenant})
    assert stored is not None
    assert stored["_id"] == hashlib.sha256(ticket.encode()).hexdigest()
    assert ticket not in str(stored)


async def test_ticket_of_a_revoked_key_opens_nothing(
    keyed_settings: Settings, mongo_uri: str, keyed: Api, tenant: str
) -> None:
    """On a replica that has not seen the key lately; elsewhere within the time that keys are remembered."""
    async with running(keyed_settings, mongo_uri) as runtime:
        record, token = await runtime.keys.create(tenant, [Right.READ])
        ticket = (await ticket_of(keyed, token))["ticket"]
        await runtime.keys.revoke(record.id)
    async with serving(keyed_settings, mongo_uri) as fresh:
        await fresh.call("GET", LOG, ticket=ticket, expect="unauthenticated")


async def test_ticket_sees_what_its_key_sees(keyed: Api, new_key: KeyMaker, tenant: str) -> None:
    """Its tenant, and of an owner's key the owner's agents."""
    agents = {who: await agent_of(keyed, await new_key(tenant, owner=who)) for who in ("ann", "bob")}
    token = await new_key(tenant, "read", owner="ann")
    ticket = (await ticket_of(keyed, token))["ticket"]
    items = (await keyed.call("GET", LOG, ticket=ticket)).json()["items"]
    assert [item["agent"] for item in items if item["kinds"] != ["ticket"]] == [agents["ann"].id]
    ticket = (await ticket_of(keyed, token))["ticket"]
    async with following(keyed, agents["bob"].id, ticket=ticket, expect="not-found"):
        pass


async def test_reading_keys_get_tickets(keyed: Api, new_key: KeyMaker, tenant: str) -> None:
    """No others do, and nobody without a key."""
    for right, status in (("read", 201), ("runner", 201), ("write", "forbidden"), ("admin", "forbidden")):
        await keyed.call("POST", "/v1/tickets", headers=bearer(await new_key(tenant, right)), expect=status)
    await keyed.call("POST", "/v1/tickets", expect="unauthenticated")
    await keyed.call("GET", "/v1/tickets", headers=bearer(await new_key(tenant)), expect="method-not-allowed")


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b"[1]", b'{"ttl": 9}', b"no JSON", b"\xff"])
async def test_body_of_the_call_is_not_looked_at(api: Api, body: bytes) -> None:
    """There is nothing to say in it."""
    for kind in ("application/json", "text/plain"):
        answer = await api.http.post("/v1/tickets", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 201


async def test_without_keys_tickets_open_until_the_first_key(
    new_database: Callable[[], str], data: Path, mongo_uri: str
) -> None:
    """Then those that were given to everybody are worth nothing."""
    settings = Settings(mongodb_database=new_database(), data=data)
    async with serving(settings, mongo_uri) as open_replica:
        agent = await open_replica.made()
        first, second = [(await ticket_of(open_replica))["ticket"] for _ in range(2)]
        async with following(open_replica, agent.id, ticket=first) as reader:
            await reader.take(1)
        async with running(settings, mongo_uri) as runtime:
            await runtime.keys.create("default", [Right.READ])
        await open_replica.call("GET", LOG, ticket=second, expect="unauthenticated")
