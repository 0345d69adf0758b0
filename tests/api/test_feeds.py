"""An agent's feed: what happened since, where it stands, and everything that happens, in the order of commits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count, groupby, pairwise
from pathlib import Path
from typing import Any

import pytest

from app.api import feeds
from app.config import Settings
from app.runtime import create_replica, running
from models.tenant import Right
from tests.api.conftest import KeyMaker
from tests.api.driver import Api, Handle, Json, bearer, calling, lifespan, serving
from tests.api.feed_driver import Reader, Told, following
from tests.harness import STRONG

Steps = list[tuple[str, int]]


def plain(told: list[Told]) -> list[tuple[str, Json]]:
    """Kinds and data alone."""
    return [(one.kind, one.data) for one in told]


def kinds_of(told: list[Told]) -> list[str]:
    return [one.kind for one in told]


def steps_of(told: list[Told]) -> Steps:
    """Which steps were told, and of which versions."""
    return [(one.data["id"], one.data["version"]) for one in told if one.kind == "step"]


def ids_mark_the_ends_of_commits(told: list[Told]) -> None:
    """The last event of each version carries it as its id, and no other event carries one."""
    for version, group in groupby(told, key=lambda one: one.data["version"]):
        assert [one.id for one in group][::-1][0] == str(version)
    for one, after in pairwise(told):
        assert (one.id is None) == (one.data["version"] == after.data["version"]), (one, after)


async def told_of(reader: Reader, version: int) -> list[tuple[str, Json]]:
    """What is told up to a version, checked in form."""
    told = await reader.take_until(version)
    ids_mark_the_ends_of_commits(told)
    return plain(told)


async def test_snapshot_comes_first(api: Api) -> None:
    """Where the agent stands, with its version as id, as `text/event-stream`."""
    agent = await api.made()
    await agent.added("a")
    async with following(api, agent.id) as reader:
        (snapshot,) = await reader.take(1)
        assert snapshot.kind == "snapshot"
        assert snapshot.data == {"version": 2, "state": "pending", "head": "a", "branch": "main"}
        assert snapshot.id == "2"
        assert reader.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reader.headers["cache-control"] == "no-cache"
        assert "content-length" not in reader.headers
        assert reader.headers["x-request-id"]


@pytest.fixture(params=["the same replica", "the other replica"])
def listener(request: pytest.FixtureRequest, api: Api, other_replica: Api) -> Api:
    """Whom the reader asks, while writes go to the first."""
    return api if request.param == "the same replica" else other_replica


async def test_append_tells_step_and_head(api: Api, listener: Api) -> None:
    """The step as it is read, then HEAD; the commit's last event carries the id."""
    agent = await api.made()
    async with following(listener, agent.id) as reader:
        await reader.take(1)
        await agent.append({"id": "a", "role": "user", "content": "ä\u2028\n\r", "data": {"x.y": [1, None]}})
        assert await told_of(reader, 2) == [
            ("step", await agent.read("/steps/a")),
            ("head", {"version": 2, "head": "a", "branch": "main"}),
        ]


async def test_batch_tells_each_step_and_has_one_id(api: Api, listener: Api) -> None:
    """In the order of seq, however their ids sort."""
    agent = await api.made()
    async with following(listener, agent.id) as reader:
        await reader.take(1)
        await agent.append(*({"id": step, "role": "user"} for step in ("z", "a", "m")))
        told = await told_of(reader, 2)
    assert [data.get("id", data.get("head")) for _, data in told] == ["z", "a", "m", "m"]
    assert [kind for kind, _ in told] == ["step", "step", "step", "head"]


async def test_side_branch_tells_its_step_alone(api: Api, listener: Api) -> None:
    """HEAD did not move."""
    agent = await api.made()
    async with following(listener, agent.id) as reader:
        await reader.take(1)
        await agent.append({"id": "side", "role": "user"}, advance_head="false")
        assert [kind for kind, _ in await told_of(reader, 2)] == ["step"]


async def test_detached_head_is_told_without_a_branch(api: Api, listener: Api) -> None:
    """Also by the append that moves it."""
    agent = await api.made()
    await agent.added("a", "b")
    await agent.checkout("a")
    async with following(listener, agent.id) as reader:
        assert (await reader.take(1))[0].data["branch"] is None
        await agent.added("c")
        assert (await told_of(reader, 5))[-1] == ("head", {"version": 5, "head": "c", "branch": None})


async def test_workspace_comes_with_head(api: Api, listener: Api) -> None:
    """By PUT, by an append that brings one, and by every move of HEAD: the one seen from there."""
    agent = await api.made(workspace={"at": "root"})
    async with following(listener, agent.id) as reader:
        await reader.take(1)
        await agent.append({"id": "a", "role": "user", "workspace": {"at": "a"}}, {"id": "b", "role": "user"})
        await agent.call("PUT", "/workspace", {"at": "b"})
        await agent.checkout("a")
        await agent.call("PUT", "/head", {"branch": "main"})
        await agent.call("POST", "/revert", {"turn_id": "a"})
        await agent.call("POST", "/redo")
        await agent.append({"id": "c", "role": "user", "workspace": None})
        heads = [data for kind, data in await told_of(reader, 8) if kind == "head"]
    assert heads == [
        {"version": 2, "head": "b", "branch": "main", "workspace": {"at": "a"}},
        {"version": 3, "head": "b", "branch": "main", "workspace": {"at": "b"}},
        {"version": 4, "head": "a", "branch": None, "workspace": {"at": "a"}},
        {"version": 5, "head": "b", "branch": "main", "workspace": {"at": "b"}},
        {"version": 6, "head": "root", "branch": "main", "workspace": {"at": "root"}},
        {"version": 7, "head": "b", "branch": "main", "workspace": {"at": "b"}},
        {"version": 8, "head": "c", "branch": "main", "workspace": None},
    ]


async def test_checkout_without_a_workspace_tells_null(api: Api, listener: Api) -> None:
    """As the answer of the checkout does."""
    agent = await api.made()
    await agent.added("a", "b")
    async with following(listener, agent.id) as reader:
        await reader.take(1)
        answer = await agent.checkout("a")
        (kind, data), *_ = await told_of(reader, 4)
    assert (kind, data["workspace"]) == ("head", answer["workspace"])


async def test_settings_results_and_profile_tell_what_changed(api: Api, listener: Api) -> None:
    """Each by an event of its own kind, with the version."""
    agent = await api.made(labels={"a": "1", "b": "2"}, model="m")
    await agent.added("s")
    async with following(listener, agent.id) as reader:
        await reader.take(1)
        settings = (await agent.call("PATCH", "/settings", {"max_steps": 7, "own.key": {"$x": 1}})).json()
        await agent.call("PUT", "/results/a.b$~c", {"step_id": "root", "result": {"$r": [1]}})
        await agent.call("PATCH", "", {"name": "Ada", "model": None, "labels": {"a": None}})
        await agent.call("PUT", "/branches/a.b", {"step_id": "root"})
        await agent.call("DELETE", "/branches/a.b")
        assert await told_of(reader, 7) == [
            ("settings", {"version": 3, "settings": settings}),
            ("results", {"version": 4, "results": {"a.b$~c": {"step_id": "root", "result": {"$r": [1]}}}}),
            ("agent", {"version": 5, "name": "Ada", "labels": {"b": "2"}, "model": None}),
            ("agent", {"version": 6, "branches": {"a.b": "root"}}),
            ("agent", {"version": 7, "branches": {"a.b": None}}),
        ]


async def test_delegate_is_told_and_its_token_never(api: Api, listener: Api) -> None:
    """`***` stands for it."""
    agent = await api.made()
    async with following(listener, agent.id) as reader:
        await reader.take(1)
        await agent.call("PUT", "/delegate", {"user": {"id": 1}, "token": "very-secret"})
        await agent.call("DELETE", "/delegate")
        assert await told_of(reader, 3) == [
            ("agent", {"version": 2, "delegate": {"user": {"id": 1}, "token": "***"}}),
            ("agent", {"version": 3, "delegate": None}),
        ]
        assert b"very-secret" not in reader.body


async def test_clear_is_told_and_the_feed_goes_on(api: Api, listener: Api) -> None:
    """Steps of the same ids may come after it."""
    agent = await api.made()
    await agent.added("a")
    async with following(listener, agent.id) as reader:
        await reader.take(1)
        await agent.call("POST", "/clear")
        await agent.added("a")
        told = await told_of(reader, 4)
    assert told[0] == ("cleared", {"version": 3, "head": "root", "branch": "main"})
    assert [kind for kind, _ in told] == ["cleared", "step", "head"]


async def test_deletion_is_told_and_ends_the_feed(api: Api, listener: Api) -> None:
    """The service closes it; an agent of the same id is another feed."""
    agent = await api.made()
    async with following(listener, agent.id) as reader:
        await reader.take(1)
        await agent.call("DELETE")
        (deleted,) = await reader.ended()
        assert (deleted.kind, deleted.data, deleted.id) == ("deleted", {"version": 2}, "2")
    async with following(api, agent.id, expect="not-found"):
        pass
    await api.call("POST", "/v1/agents", {"id": agent.id})
    async with following(api, agent.id) as reader:
        assert (await reader.take(1))[0].data["version"] == 3


async def test_what_changes_nothing_is_not_told(api: Api) -> None:
    """No version, no event."""
    agent = await api.made(name="Ada")
    async with following(api, agent.id) as reader:
        await reader.take(1)
        await agent.call("PATCH", "", {"name": "Ada"})
        await agent.call("PATCH", "", {"name": "Bob"})
        assert await told_of(reader, 2) == [("agent", {"version": 2, "name": "Bob"})]


async def whole(api: Api) -> Handle:
    """An agent with steps of versions 2 (two of them), 3 and 5, of which one is on a side branch."""
    agent = await api.made()
    await agent.append({"id": "z", "role": "user"}, {"id": "a", "role": "agent"})
    await agent.append({"id": "side", "role": "user", "parent_id": "z"}, advance_head="false")
    await agent.call("PATCH", "/settings", {"x": 1})
    await agent.added("b")
    return agent


AFTER: list[tuple[int, Steps]] = [
    (0, [("z", 2), ("a", 2), ("side", 3), ("b", 5)]),
    (1, [("z", 2), ("a", 2), ("side", 3), ("b", 5)]),
    (2, [("side", 3), ("b", 5)]),
    (4, [("b", 5)]),
    (5, []),
    (10**17, []),
]


@pytest.mark.parametrize(("since", "missed"), AFTER)
async def test_resumed_feed_tells_missed_steps_then_snapshot_then_live(
    api: Api, listener: Api, since: int, missed: Steps
) -> None:
    """Also when nothing is missing, and from a version that never was."""
    agent = await whole(api)
    async with following(listener, agent.id, since) as reader:
        past = await reader.take(len(missed) + 1)
        assert steps_of(past) == missed
        assert kinds_of(past) == ["step"] * len(missed) + ["snapshot"]
        assert (past[-1].data["version"], past[-1].id) == (5, "5")
        ids_mark_the_ends_of_commits([told for told in past if told.data["version"] < 5])
        await agent.added("live")
        assert [kind for kind, _ in await told_of(reader, 6)] == ["step", "head"]


async def test_step_is_told_the_same_live_and_later(api: Api) -> None:
    """To the byte."""
    agent = await api.made()
    async with following(api, agent.id) as live:
        await live.take(1)
        await agent.append({"id": "a", "role": "user", "data": {"b": 1, "a": [1.0, None]}, "workspace": {"w": "ü"}})
        await live.take_until(2)
        async with following(api, agent.id, 1) as later:
            await later.take(2)
            told = [line for line in live.body.split(b"\n") if b'"role"' in line]
            assert told == [line for line in later.body.split(b"\n") if b'"role"' in line]


@pytest.mark.parametrize("odd", ["x", "-1", "1.5", "1 ", "0x1", "9" * 19, "*", "\xff"])
async def test_odd_last_event_id_is_refused(api: Api, odd: str) -> None:
    """It is one that this feed never gave."""
    async with following(api, (await api.made()).id, odd, expect="invalid-request"):
        pass


async def test_empty_last_event_id_says_nothing(api: Api) -> None:
    """As the standard has it: no event came with an id yet."""
    agent = await whole(api)
    async with following(api, agent.id, "") as reader:
        assert kinds_of(await reader.take(1)) == ["snapshot"]


async def test_feed_of_the_unknown_is_not_found(api: Api) -> None:
    """Whatever stands for the id, also when it resumes."""
    for agent in ("nobody", "a.b", "root", "default:x"):
        for since in (None, 3):
            async with following(api, agent, since, expect="not-found"):
                pass


async def test_strangers_feed_is_unknown(keyed: Api, new_key: KeyMaker, tenant: str) -> None:
    """Another tenant's and another owner's; the owner and the tenant's own keys hear it, a write key may not."""
    ann = await new_key(tenant, "read", "write", owner="ann")
    async with calling(keyed.app, ann) as caller:
        agent = await caller.made()
        stranger = await new_key(f"{tenant}x")
        for token in (await new_key(tenant, "read", owner="bob"), stranger):
            async with following(keyed, agent.id, headers=bearer(token), expect="not-found"):
                pass
        for token in (ann, await new_key(tenant, "read"), await new_key(tenant, "runner")):
            async with following(keyed, agent.id, headers=bearer(token)) as reader:
                await reader.take(1)
        async with following(keyed, agent.id, headers=bearer(await new_key(tenant, "write")), expect="forbidden"):
            pass
        async with following(keyed, agent.id, expect="unauthenticated"):
            pass


async def folded(api: Api) -> float:
    """How many requests shared another's update so far."""
    text = (await api.call("GET", "/metrics")).text
    (line,) = [line for line in text.splitlines() if line.startswith("holdfast_folded_requests_total")]
    return float(line.split()[1])


async def test_folded_appends_are_told_one_by_one(api: Api, other_replica: Api) -> None:
    """Fifty at once: each step once, with its own version, in the order of versions, whoever listens."""
    agent = await api.made()
    before = await folded(api)
    async with following(api, agent.id) as here, following(other_replica, agent.id) as there:
        await asyncio.gather(here.take(1), there.take(1))
        answers = await asyncio.gather(*(agent.append({"id": f"s{n}", "role": "user"}) for n in range(50)))
        assert await folded(api) > before
        wanted = sorted((answer["version"], answer["steps"][0]["id"]) for answer in answers)
        for reader in (here, there):
            told = await reader.take_until(51)
            ids_mark_the_ends_of_commits(told)
            assert [(version, step) for step, version in steps_of(told)] == wanted
            heads = [(one.data["version"], one.data["head"]) for one in told if one.kind == "head"]
            assert heads == wanted
            assert [one.id for one in told if one.id] == [str(version) for version, _ in wanted]


async def test_all_readers_on_all_replicas_are_told_the_same(api: Api, other_replica: Api) -> None:
    """In the same order, while both replicas write the same agent."""
    agent = await api.made()
    async with following(api, agent.id) as here, following(other_replica, agent.id) as there:
        await asyncio.gather(here.take(1), there.take(1))
        writes = [agent.by(api if n % 2 else other_replica).append(f"{n}") for n in range(20)]
        writes += [agent.by(other_replica).call("PATCH", "/settings", {f"k{n}": n}) for n in range(10)]
        await asyncio.gather(*writes)
        told = [await reader.take_until(31) for reader in (here, there)]
    assert plain(told[0]) == plain(told[1])
    assert [one.id for one in told[0]] == [one.id for one in told[1]]
    versions = [one.data["version"] for one in told[0]]
    assert versions == sorted(versions)
    assert set(versions) == set(range(2, 32))


async def test_feed_resumed_elsewhere_loses_nothing(api: Api, other_replica: Api) -> None:
    """Cut again and again while writes go on, resumed at the other replica: every step, repeated at most."""
    agent = await api.made()
    replicas = [api, other_replica]

    seen: dict[str, int] = {}
    last: str | None = "1"
    enough = asyncio.Event()

    async def write() -> None:
        for number in count():
            writer = agent.by(replicas[number % 2])
            await writer.append(*({"id": f"s{number}-{n}", "role": "user"} for n in range(3)))
            if enough.is_set():
                return

    def saw(told: list[Told]) -> None:
        for step, version in steps_of(told):
            assert seen.setdefault(step, version) == version

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        for cut in range(30):
            async with following(replicas[cut % 2], agent.id, last) as reader:
                told = await reader.take(cut % 7 + 1)
                saw(told)
                last = told[-1].last_id or last
        enough.set()
    final = (await agent.read(steps="none", headers=STRONG))["version"]
    everything = await all_steps(agent, min_version=final)
    async with following(api, agent.id, last) as reader:
        saw(await reader.take_until(final))
    assert seen == {step["id"]: step["version"] for step in everything}


async def all_steps(agent: Handle, **options: Any) -> list[Json]:
    """Page by page."""
    items: list[Json] = []
    cursor: dict[str, str] = {"view": "all"}
    while cursor:
        page = await agent.read("/steps", limit=200, **cursor, **options)
        items += page["items"]
        cursor = {} if page["next_cursor"] is None else {"cursor": page["next_cursor"]}
    return items


async def test_quiet_feed_is_told_that_it_lives(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment, which no reader takes for an event."""
    monkeypatch.setattr(feeds, "HEARTBEAT_SECONDS", 0.05)
    agent = await api.made()
    async with following(api, agent.id) as reader:
        await reader.take(1)
        await reader.wait(lambda: len(reader.comments) >= 3)
        assert len(reader.events) == 1


async def test_feed_ends_with_its_key(
    keyed: Api, keyed_settings: Settings, mongo_uri: str, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a heartbeat after the revocation has come through, also where events come all the time."""
    monkeypatch.setattr(feeds, "HEARTBEAT_SECONDS", 0.2)
    async with running(keyed_settings, mongo_uri) as runtime, AsyncExitStack() as stack:
        record, token = await runtime.keys.create(tenant, [Right.READ])
        _, writer = await runtime.keys.create(tenant, [Right.READ, Right.WRITE])
        caller = await stack.enter_async_context(calling(keyed.app, writer))
        quiet, busy = await caller.made(), await caller.made()
        readers = [
            await stack.enter_async_context(following(keyed, agent.id, headers=bearer(token)))
            for agent in (quiet, busy)
        ]
        await asyncio.gather(*(reader.take(1) for reader in readers))
        await runtime.keys.revoke(record.id)
        async with asyncio.timeout(8):
            while not all(reader.over for reader in readers):
                await busy.append("on and on")
        assert kinds_of(await readers[0].ended()) == []


async def test_feed_without_a_key_ends_with_the_first_key(
    new_database: Callable[[], str], data: Path, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on nobody is answered without one."""
    monkeypatch.setattr(feeds, "HEARTBEAT_SECONDS", 0.2)
    settings = Settings(mongodb_database=new_database(), data=data)
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(serving(settings, mongo_uri))
        runtime = await stack.enter_async_context(running(settings, mongo_uri))
        reader = await stack.enter_async_context(following(api, (await api.made()).id))
        await reader.wait(lambda: len(reader.comments) > 1)
        await runtime.keys.create("default", [Right.READ])
        assert kinds_of(await reader.ended(5)) == ["snapshot"]


async def test_feed_ends_when_the_replica_stops(new_database: Callable[[], str], data: Path, mongo_uri: str) -> None:
    """At once and without a gap: its reader resumes elsewhere."""
    app = create_replica(Settings(mongodb_database=new_database(), data=data), mongo_uri)
    async with calling(app) as api, AsyncExitStack() as stack:
        await stack.enter_async_context(lifespan(app))
        agent = await api.made()
        async with following(api, agent.id) as reader:
            await reader.take(1)
            await stack.aclose()
            assert await reader.ended(2) == []


@asynccontextmanager
async def narrow(settings: Settings, uri: str, **limits: int) -> AsyncIterator[Api]:
    """A replica with small limits for feeds."""
    async with serving(settings.model_copy(update=limits), uri) as api:
        yield api


@pytest.mark.parametrize("limit", [{"feed_items": 5}, {"feed_bytes": 4096}])
async def test_slow_reader_is_told_of_the_gap_at_the_end(
    open_settings: Settings, mongo_uri: str, limit: dict[str, int]
) -> None:
    """After all that was kept for it, in order; a reader who keeps up notices nothing, and it can resume."""
    async with narrow(open_settings, mongo_uri, **limit) as api:
        agent = await api.made()
        async with following(api, agent.id) as slow, following(api, agent.id) as quick:
            await asyncio.gather(slow.take(1), quick.take(1))
            slow.pause()
            for number in range(20):
                await agent.append({"id": f"s{number}", "role": "user", "content": "x" * 500})
                await quick.take_until(number + 2)
            slow.go_on()
            *kept, gap = await slow.ended()
        assert gap.kind == "gap"
        assert gap.id is None
        assert gap.data["code"] == "feed-gap"
        versions = [version for _, version in steps_of(kept)]
        assert versions == list(range(2, 2 + len(versions)))
        assert 1 <= len(versions) <= 12
        assert gap.last_id == str(versions[-1])
        async with following(api, agent.id, gap.last_id) as resumed:
            rest = steps_of(await resumed.take_until(21))
        assert [version for _, version in rest] == list(range(versions[-1] + 1, 22))


async def test_single_event_over_the_limit_comes_through(open_settings: Settings, mongo_uri: str) -> None:
    """It alone is no reason for a gap."""
    async with narrow(open_settings, mongo_uri, feed_bytes=1024) as api:
        agent = await api.made()
        async with following(api, agent.id) as reader:
            await reader.take(1)
            await agent.append("x" * 100_000)
            assert kinds_of(await reader.take_until(2)) == ["step", "head"]


async def test_feeds_are_capped_for_a_tenant_and_in_all(
    keyed_settings: Settings, mongo_uri: str, new_key: KeyMaker, tenant: str
) -> None:
    """429 with Retry-After, for both kinds of feeds; whoever leaves makes room."""
    keys = [await new_key(tenant, "read", "write"), await new_key(f"{tenant}x", "read", "write")]
    limits = {"feeds": 3, "feeds_of_a_tenant": 2}
    async with narrow(keyed_settings, mongo_uri, **limits) as api, AsyncExitStack() as stack:
        mine, other = [await stack.enter_async_context(calling(api.app, key)) for key in keys]
        agents = {caller: (await caller.made()).id for caller in (mine, other)}

        def feed(caller: Api, **options: Any) -> Any:
            return following(caller, agents[caller], **options)

        async with feed(mine), feed(mine) as second:
            async with feed(mine, expect="too-many") as refused:
                assert int(refused.headers["retry-after"]) >= 1
            async with feed(other):
                async with feed(other, expect="too-many") as refused:
                    assert int(refused.headers["retry-after"]) >= 1
                second.leave()
                await second.ended()
                async with feed(other), feed(mine, expect="too-many"):
                    pass
        async with feed(mine), feed(mine), feed(other):
            pass


async def test_feed_that_is_refused_takes_no_room(open_settings: Settings, mongo_uri: str) -> None:
    """The unknown, asked for again and again, does not use the feeds up."""
    async with narrow(open_settings, mongo_uri, feeds=1) as api:
        for _ in range(3):
            async with following(api, "nobody", expect="not-found"):
                pass
        async with following(api, (await api.made()).id) as reader:
            await reader.take(1)


async def test_head_of_a_feed_is_answered_and_over(api: Api) -> None:
    """As GET would be, without the body."""
    agent = await api.made()
    answer = await agent.call("HEAD", "/events", expect=200)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.content == b""
