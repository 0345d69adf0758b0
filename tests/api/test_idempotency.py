"""Idempotency-Key: the same request again gets the same answer, and has no second effect."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient

from app.clock import SystemClock
from app.config import Settings
from tests.api.conftest import KeyMaker
from tests.api.driver import Api, Handle, bearer, etag

Headers = dict[str, str]


@pytest.fixture
def key() -> Headers:
    return {"Idempotency-Key": f"key-{uuid4().hex}"}


POSTS: list[tuple[str, Any]] = [
    ("/steps", {"role": "user", "content": "hello"}),
    ("/revert", {"turn_id": "b"}),
    ("/redo", {}),
    ("/clear", None),
    ("/fork", {"name": "copy"}),
]


@pytest.mark.parametrize(("path", "body"), POSTS, ids=[path for path, _ in POSTS])
async def test_repeat_gives_the_same_answer_on_any_replica(
    api: Api, other_replica: Api, key: Headers, path: str, body: Any
) -> None:
    """Status, body, ETag and Location to the byte, once in effect, whatever happened in between."""
    agent = await api.made()
    await agent.added("a", "b", "c")
    await agent.call("POST", "/revert", {"turn_id": "c"})
    sent = () if body is None else (body,)
    first = await agent.call("POST", path, *sent, headers=key)
    version = await agent.version()
    repeats = [await caller.call("POST", path, *sent, headers=key) for caller in (agent, agent.by(other_replica))]
    await agent.call("PATCH", "", {"name": "meanwhile"})
    repeats.append(await agent.call("POST", path, *sent, headers=key))
    for repeat in repeats:
        assert (repeat.status_code, repeat.content) == (first.status_code, first.content)
        assert repeat.headers["etag"] == first.headers["etag"]
        assert repeat.headers.get("location") == first.headers.get("location")
    assert await agent.version() == version + 1


@pytest.mark.parametrize("path", ["/v1/agents", "/v1/agents/import"])
async def test_repeat_of_a_creation_makes_no_second_agent(
    api: Api, other_replica: Api, key: Headers, path: str
) -> None:
    """With an id made by the server as well as with a chosen one."""
    for chosen in (None, f"a{uuid4().hex}"):
        body = {"id": chosen, "pool": f"p{uuid4().hex}", **({"holdfast": 1} if "import" in path else {})}
        headers = {"Idempotency-Key": key["Idempotency-Key"] + str(chosen)}
        first = await api.call("POST", path, body, headers=headers, expect=201)
        second = await other_replica.call("POST", path, body, headers=headers, expect=201)
        assert second.content == first.content == (await api.call("GET", first.headers["location"])).content
        assert len((await api.call("GET", "/v1/agents", pool=body["pool"])).json()["items"]) == 1


async def test_other_body_query_under_the_same_key_is_a_mismatch(api: Api, key: Headers) -> None:
    """422, and no effect."""
    agent = await api.made()
    await agent.append("one", headers=key)
    await agent.append("two", headers=key, expect="idempotency-mismatch")
    await agent.append("one", headers=key, expect="idempotency-mismatch", advance_head="false")
    assert await agent.version() == 2


async def test_same_key_on_another_path_is_another_request(api: Api, key: Headers) -> None:
    """The key belongs to method and path."""
    agent, other = await api.made(), await api.made()
    await agent.append("one", headers=key)
    await other.append("one", headers=key, expect=201)
    await agent.call("POST", "/clear", headers=key, expect=200)
    assert await other.version() == 2


async def test_same_key_of_another_tenant_is_another_request(
    keyed: Api, new_key: KeyMaker, tenant: str, key: Headers
) -> None:
    """Neither sees the other's answer; nor do two owners of a tenant."""
    tokens = [await new_key(tenant), await new_key(f"{tenant}x"), *[await new_key(tenant, owner=who) for who in "ab"]]
    answers = [await keyed.call("POST", "/v1/agents", {}, headers={**key, **bearer(token)}) for token in tokens]
    assert len({answer.json()["id"] for answer in answers}) == 4


async def test_replay_comes_before_preconditions(api: Api, key: Headers) -> None:
    """The guard held the first time; that the version and fence moved since is no matter."""
    agent = await api.made()
    guarded = {**key, "If-Match": etag(1), "Fencing-Token": "0"}
    first = await agent.call("POST", "/steps", {"role": "user"}, headers=guarded)
    again = await agent.call("POST", "/steps", {"role": "user"}, headers={**guarded, "Fencing-Token": "9"})
    assert again.content == first.content
    await agent.call("POST", "/steps", {"role": "user"}, headers={"If-Match": etag(1)}, expect="version-conflict")


async def test_existence_comes_before_replay(api: Api, key: Headers) -> None:
    """A deleted agent is not found, whatever was answered before."""
    agent = await api.made()
    await agent.append("one", headers=key)
    await agent.call("DELETE")
    await agent.append("one", headers=key, expect="not-found")


async def test_refusal_is_not_remembered(api: Api, key: Headers) -> None:
    """Only what was accepted is; the same request may succeed later."""
    agent = await api.made()
    step = {"role": "user", "parent_id": "a"}
    await agent.append(step, headers=key, expect="not-found")
    await agent.added("a")
    await agent.append(step, headers=key, expect=201)


async def test_concurrent_repeats_have_one_effect(api: Api, other_replica: Api, key: Headers) -> None:
    """On two replicas: each is answered alike, or told 409 conflict with Retry-After while the first runs."""
    agent = await api.made()
    callers = [agent, agent.by(other_replica)] * 5
    answers = await asyncio.gather(
        *(
            caller.api.http.post(f"/v1/agents/{agent.id}/steps", json={"role": "user"}, headers=key)
            for caller in callers
        )
    )
    accepted = [answer for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code != 201]
    assert accepted
    assert len({answer.content for answer in accepted}) == 1
    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert int(answer.headers["retry-after"]) >= 1
    assert await agent.version() == 2


async def test_second_request_while_the_first_runs_is_told_to_come_back(
    api: Api, key: Headers, mongo: MongoClient[dict[str, Any]], open_settings: Settings
) -> None:
    """The first waits for a lock that this test holds; the second hears 409 at once."""
    agent = await api.made()
    stored = mongo[open_settings.mongodb_database]["agents"]
    with mongo.start_session() as session, session.start_transaction():
        stored.update_one({"_id": f"default:{agent.id}"}, {"$set": {"held": True}}, session=session)
        path = f"/v1/agents/{agent.id}/steps"
        both = {asyncio.create_task(api.http.post(path, json={"role": "user"}, headers=key)) for _ in range(2)}
        done, waiting = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        session.abort_transaction()
    refused = done.pop().result()
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (409, "conflict", "1")
    assert (await waiting.pop()).status_code == 201


async def test_answer_is_kept_for_a_day(
    api: Api, key: Headers, mongo: MongoClient[dict[str, Any]], open_settings: Settings
) -> None:
    """An older record does not answer any more, whether it was cleaned up or not."""
    agent = await api.made()
    first = await agent.append("one", headers=key)
    records = mongo[open_settings.mongodb_database]["idempotency"]
    newest = max(records.find({}, {"expires_at": 1}), key=lambda record: record["expires_at"])
    left = newest["expires_at"] - SystemClock().now().replace(tzinfo=None)
    assert timedelta(hours=23, minutes=59) < left <= timedelta(hours=24)
    past = {"$set": {"expires_at": newest["expires_at"] - timedelta(hours=25)}}
    records.update_one({"_id": newest["_id"]}, past)
    again = await agent.append("one", headers=key)
    assert again["version"] == first["version"] + 1


@pytest.mark.parametrize("bad", ["", "a b", "x" * 256, "\x7f", "ä".encode().decode("latin-1")])
async def test_impossible_key_is_refused(api: Api, bad: str) -> None:
    """1 to 255 visible ASCII characters."""
    agent = await api.made()
    answer = await api.http.post(
        f"/v1/agents/{agent.id}/steps", json={"role": "user"}, headers={b"Idempotency-Key": bad.encode("latin-1")}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert await agent.version() == 1


async def test_other_methods_do_not_know_the_key(api: Api, key: Headers) -> None:
    """PATCH, PUT and DELETE are idempotent anyway."""
    agent = await api.made()
    for name in ("a", "b"):
        await agent.call("PATCH", "", {"name": name}, headers=key)
    assert (await agent.read())["name"] == "b"


async def test_append_without_effect_is_remembered_too(api: Api, key: Headers) -> None:
    """A repeat by step ids under a key answers as itself did."""
    agent = await api.made()
    await agent.append({"role": "user", "id": "a"})
    first = await agent.call("POST", "/steps", {"role": "user", "id": "a"}, headers=key, expect=200)
    assert (
        await Handle(api, agent.id).call("POST", "/steps", {"role": "user", "id": "a"}, headers=key)
    ).content == first.content
    await agent.call("POST", "/steps", {"role": "user", "id": "b"}, headers=key, expect="idempotency-mismatch")
