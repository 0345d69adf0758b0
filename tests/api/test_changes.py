"""The change log: one entry for each version, in commit order, as pages and live, the same on every replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pymongo import MongoClient

from app.api import feeds
from app.changelog import ChangeLog
from app.clock import SystemClock
from app.config import Settings
from app.runtime import Runtime, application_of, create_replica
from tests.api.conftest import KeyMaker
from tests.api.driver import Api, Handle, Json, calling, lifespan, serving
from tests.api.feed_driver import Reader, reading

Entries = list[Json]
PATH = "/v1/changes"


async def page(api: Api, **query: Any) -> Json:
    found: Json = (await api.call("GET", PATH, **query)).json()
    return found


async def log(api: Api, limit: int = 200, **query: Any) -> Entries:
    """All entries of agents, page by page to the end."""
    items: Entries = []
    cursor: dict[str, str] = {}
    while True:
        found = await page(api, limit=limit, **query, **cursor)
        items += found["items"]
        if found["next_cursor"] is None:
            return [entry for entry in items if entry["agent"] is not None]
        assert len(found["items"]) == limit
        cursor = {"cursor": found["next_cursor"]}


async def complete(api: Api, count: int) -> Entries:
    """The same, once there are as many."""
    for _ in range(500):
        if len(entries := await log(api)) >= count:
            return entries
        await asyncio.sleep(0.02)
    raise AssertionError(f"waited in vain for {count} entries")


def live(api: Api, **options: Any) -> Any:
    """A reader of the log as it grows."""
    return reading(api, PATH, **options)


async def entries_of(reader: Reader, count: int) -> Entries:
    """The next entries, checked in form: each is an event of its own, with its cursor as id."""
    told = await reader.take(count)
    assert [one.kind for one in told] == ["change"] * count
    assert [one.id for one in told] == [one.data["cursor"] for one in told]
    return [one.data for one in told]


def versions(entries: Entries) -> list[tuple[str, int]]:
    return [(entry["agent"], entry["version"]) for entry in entries]


def key_of(token: str) -> str:
    """The id in a key."""
    return token.split("_")[1]


@dataclass(frozen=True)
class Callers:
    """One tenant of its own, through two replicas; `by` is its key's id."""

    here: Api
    there: Api
    by: str


@pytest_asyncio.fixture(loop_scope="session")
async def mine(keyed: Api, other_keyed: Api, new_key: KeyMaker, tenant: str) -> AsyncIterator[Callers]:
    token = await new_key(tenant)
    async with calling(keyed.app, token) as here, calling(other_keyed.app, token) as there:
        yield Callers(here, there, key_of(token))


async def test_every_version_has_one_entry(mine: Callers) -> None:
    """With what kind of change it was, when, by whom, and which steps came with it; nothing of what they hold."""
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    agent = await mine.here.made(pool="blue", delegate={"user": {}, "token": "secret"})
    await agent.append({"id": "z", "role": "user", "content": "hush"}, {"id": "a", "role": "agent"})
    await agent.append({"id": "side", "role": "user"}, advance_head="false")
    await agent.call("PATCH", "/settings", {"x": 1})
    await agent.call("PATCH", "/settings", {"x": 1})
    await agent.call("PUT", "/results/k", {"result": 1})
    await agent.call("PUT", "/workspace", {"w": 1})
    await agent.call("PATCH", "", {"name": "Ada"})
    await agent.checkout("z")
    await agent.call("PUT", "/branches/side", {"step_id": "side"})
    await agent.call("POST", "/clear")
    await agent.call("DELETE")
    after = datetime.now(UTC)
    entries = await log(mine.here)
    assert [(entry["kinds"], entry.get("steps")) for entry in entries] == [
        (["created"], None),
        (["step", "head"], ["z", "a"]),
        (["step"], ["side"]),
        (["settings"], None),
        (["results"], None),
        (["workspace"], None),
        (["agent"], None),
        (["head"], None),
        (["branches"], None),
        (["cleared"], None),
        (["deleted"], None),
    ]
    assert versions(entries) == [(agent.id, 1 + n) for n in range(11)]
    assert {entry["by"] for entry in entries} == {mine.by}
    assert {entry["pool"] for entry in entries} == {"blue"}
    times = [datetime.fromisoformat(entry["at"]) for entry in entries]
    assert before <= times[0] <= times[-1] <= after
    assert not {"hush", "secret", "Ada"} & set(str(entries).replace("'", " ").split())


async def test_entries_carry_the_trace_of_their_request(mine: Callers) -> None:
    """Where the caller sent one."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    agent = await mine.here.made()
    await agent.append("traced", headers={"traceparent": trace})
    assert [entry.get("trace") for entry in await log(mine.here)] == [None, trace]


async def test_own_writes_are_in_the_page_at_once(mine: Callers) -> None:
    """On the replica that acknowledged them."""
    agent = await mine.here.made()
    for version in range(2, 30):
        await agent.append("x")
        assert versions(await log(mine.here))[-1] == (agent.id, version)


async def test_folded_versions_have_entries_of_their_own(mine: Callers) -> None:
    """Many kinds of writes at once: every version once, in order, with the steps that are its own."""
    agent = await mine.here.made()
    writes = [agent.append({"id": f"s{n}", "role": "user"}) for n in range(30)]
    settings = [agent.call("PATCH", "/settings", {f"k{n}": n}) for n in range(5)]
    results = [agent.call("PUT", f"/results/k{n}", {"step_id": "root", "result": n}) for n in range(5)]
    answers = (await asyncio.gather(*writes, *settings, *results))[:30]
    entries = await log(mine.here)
    assert versions(entries) == [(agent.id, 1 + n) for n in range(41)]
    stepped = {entry["version"]: entry["steps"] for entry in entries if "steps" in entry}
    assert stepped == {answer["version"]: [answer["steps"][0]["id"]] for answer in answers}
    assert sorted(entry["kinds"][0] for entry in entries) == sorted(
        ["created"] + ["step"] * 30 + ["settings"] * 5 + ["results"] * 5
    )


async def test_replicas_show_the_same_log(mine: Callers) -> None:
    """To the byte, in one order, whoever wrote."""
    agents = [await mine.here.made() for _ in range(3)]
    writers = [agent.by(api) for agent in agents for api in (mine.here, mine.there)]
    await asyncio.gather(*(writer.append(f"{n}") for n in range(5) for writer in writers))
    here = await complete(mine.here, 33)
    assert await complete(mine.there, 33) == here
    assert len({entry["cursor"] for entry in here}) == 33
    for agent in agents:
        assert [version for name, version in versions(here) if name == agent.id] == list(range(1, 12))


@pytest.mark.parametrize("limit", [1, 3, 12, 200])
async def test_pages_end_without_a_cursor(mine: Callers, limit: int) -> None:
    """Each goes on where the one before ended, also from any entry's own cursor."""
    agent = await mine.here.made()
    for _ in range(11):
        await agent.append("x")
    entries = await log(mine.here, limit=limit)
    assert versions(entries) == [(agent.id, 1 + n) for n in range(12)]
    rest = await page(mine.here, cursor=entries[4]["cursor"])
    assert rest == {"items": entries[5:], "next_cursor": None}
    assert await page(mine.here, cursor=entries[-1]["cursor"]) == {"items": [], "next_cursor": None}


async def test_limit_is_bounded(mine: Callers) -> None:
    """As in other lists."""
    for limit in (0, 201, -1, "x"):
        await mine.here.call("GET", PATH, limit=limit, expect="invalid-request")


async def varied(api: Api) -> tuple[Handle, Handle]:
    """Two agents in two pools, with changes of some kinds."""
    blue, red = await api.made(pool="blue"), await api.made(pool="red")
    for agent in (blue, red):
        await agent.append("x")
        await agent.call("PATCH", "/settings", {"x": 1})
        await agent.call("PUT", "/results/k", {"result": 1})
    return blue, red


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({}, "1b 1r 2b 3b 4b 2r 3r 4r"),
    ({"agent": "{blue}"}, "1b 2b 3b 4b"),
    ({"agent": "nobody"}, ""),
    ({"pool": "red"}, "1r 2r 3r 4r"),
    ({"pool": "none"}, ""),
    ({"kinds": "step"}, "2b 2r"),
    ({"kinds": "head"}, "2b 2r"),
    ({"kinds": "step,settings"}, "2b 3b 2r 3r"),
    ({"kinds": ["step", "settings"]}, "2b 3b 2r 3r"),
    ({"kinds": ["step,created", "settings"]}, "1b 1r 2b 3b 2r 3r"),
    ({"kinds": "nothing"}, ""),
    ({"kinds": "results", "pool": "blue"}, "4b"),
    ({"kinds": "created,results", "agent": "{red}", "pool": "red"}, "1r 4r"),
    ({"agent": "{red}", "pool": "blue"}, ""),
]


@pytest.mark.parametrize(("chosen", "wanted"), FILTERS, ids=str)
async def test_filters_choose_the_same_stored_and_live(mine: Callers, chosen: Json, wanted: str) -> None:
    """By agent, pool, and kinds (separated by commas, or repeated)."""
    async with live(mine.here) as everything:
        blue, red = await varied(mine.here)
        names = {blue.id: "b", red.id: "r"}
        query = {
            name: value.format(blue=blue.id, red=red.id) if isinstance(value, str) else value
            for name, value in chosen.items()
        }

        def shown(entries: Entries) -> str:
            return " ".join(f"{entry['version']}{names[entry['agent']]}" for entry in entries)

        assert shown(await log(mine.here, **query)) == wanted
        assert shown(await entries_of(everything, 8)) == FILTERS[0][1]
        begin = everything.events[0].data["cursor"][:16]
        if wanted:
            async with live(mine.here, cursor=f"{begin}{0:012x}", **query) as reader:
                assert shown(await entries_of(reader, len(wanted.split()))) == wanted


async def test_filtered_feed_tells_only_what_it_was_asked_for(mine: Callers) -> None:
    """While it happens."""
    agent = await mine.here.made(pool="blue")
    async with live(mine.here, kinds="settings", agent=agent.id) as reader:
        await (await mine.here.made()).call("PATCH", "/settings", {"x": 1})
        await agent.append("x")
        await agent.call("PATCH", "/settings", {"x": 1})
        (entry,) = await entries_of(reader, 1)
    assert versions([entry]) == [(agent.id, 3)]


async def test_feed_that_lets_nothing_pass_is_told_that_it_lives(
    mine: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much happens that it did not ask for."""
    monkeypatch.setattr(feeds, "HEARTBEAT_SECONDS", 0.2)
    agent = await mine.here.made()
    async with live(mine.here, kinds="nothing") as reader, asyncio.timeout(5):
        while len(reader.comments) < 2:
            await agent.append("x")
        assert reader.events == []


@pytest.mark.parametrize(
    "odd", ["x", "0", "g" * 28, "0" * 27, "0" * 28 + "/", "0" * 28 + "x" * 65, "A" * 28, "$gt", "0" * 28 + "\n", "ä"]
)
async def test_odd_cursor_is_refused(mine: Callers, odd: str) -> None:
    """In a page and in a feed, as a parameter and as Last-Event-ID."""
    await mine.here.call("GET", PATH, cursor=odd, expect="invalid-request")
    async with live(mine.here, cursor=odd, expect="invalid-request"):
        pass
    async with live(mine.here, headers={"Last-Event-ID": odd}, expect="invalid-request"):
        pass


async def test_odd_filter_is_refused(mine: Callers) -> None:
    """An id that can't be one."""
    for odd in ("a b", "", "$gt", "x" * 65):
        await mine.here.call("GET", PATH, agent=odd, expect="invalid-request")


async def test_owners_see_only_what_is_theirs(keyed: Api, new_key: KeyMaker, tenant: str) -> None:
    """To the end, the deletion included; the tenant's own key sees all; other tenants nothing."""
    tokens = {
        "ann": await new_key(tenant, "read", "write", owner="ann"),
        "bob": await new_key(tenant, "read", "write", owner="bob"),
        "all": await new_key(tenant, "read", "write"),
        "stranger": await new_key(f"{tenant}x", "read", "write"),
    }
    async with AsyncExitStack() as stack:
        callers = {name: await stack.enter_async_context(calling(keyed.app, tokens[name])) for name in tokens}
        readers = {name: await stack.enter_async_context(live(callers[name])) for name in tokens}
        agents = {name: await callers[name].made() for name in ("ann", "bob", "all")}
        for agent in agents.values():
            await agent.append("x")
        await agents["ann"].call("DELETE")
        ann, bob, nobody = ([(agents[name].id, n) for n in (1, 2)] for name in ("ann", "bob", "all"))
        gone = [(agents["ann"].id, 3)]
        wanted = {"ann": ann + gone, "bob": bob, "all": sorted(ann + bob + nobody + gone), "stranger": []}
        for name, caller in callers.items():
            assert sorted(versions(await log(caller))) == wanted[name], name
            told = versions(await entries_of(readers[name], len(wanted[name])))
            assert sorted(told) == wanted[name], name
        assert {entry["by"] for entry in await log(callers["ann"])} == {key_of(tokens["ann"])}
        for name in ("bob", "stranger"):
            assert await log(callers[name], agent=agents["ann"].id) == []
        await readers["ann"].wait(lambda: True)
        assert len(readers["ann"].events) == 3


async def test_rights_open_the_log(keyed: Api, new_key: KeyMaker, tenant: str) -> None:
    """Reading ones, and no other."""
    for right, status in (("read", 200), ("runner", 200), ("write", "forbidden"), ("admin", "forbidden")):
        async with calling(keyed.app, await new_key(tenant, right)) as caller:
            await caller.call("GET", PATH, expect=status)
    await keyed.call("GET", PATH, expect="unauthenticated")


async def test_live_feed_begins_now(mine: Callers) -> None:
    """Without a cursor nothing of the past is told."""
    agent = await mine.here.made()
    await agent.append("past")
    await log(mine.here)
    async with live(mine.here) as reader:
        assert reader.headers["content-type"] == "text/event-stream; charset=utf-8"
        await agent.append("now")
        assert versions(await entries_of(reader, 1)) == [(agent.id, 3)]
        assert reader.events[0].data == (await log(mine.here))[2]


async def test_live_feed_goes_on_from_a_cursor(mine: Callers) -> None:
    """Of a page or of an event; Last-Event-ID goes before the parameter, which an EventSource keeps sending."""
    agent = await mine.here.made()
    for _ in range(5):
        await agent.append("x")
    entries = await log(mine.here)
    early, late = entries[1]["cursor"], entries[3]["cursor"]
    for options, since in (
        ({"cursor": early}, 2),
        ({"headers": {"Last-Event-ID": early}}, 2),
        ({"cursor": early, "headers": {"Last-Event-ID": late}}, 4),
        ({"cursor": entries[-1]["cursor"]}, 6),
    ):
        async with live(mine.here, **options) as reader:
            assert await entries_of(reader, 6 - since) == entries[since:]


async def test_log_of_many_pages_is_told_whole(mine: Callers) -> None:
    """From its beginning over more than one look into the database, then live."""
    agent = await mine.here.made()
    for _ in range(5):
        await asyncio.gather(*(agent.append("x") for _ in range(50)))
    entries = await log(mine.here)
    async with live(mine.here, cursor="0" * 28) as reader:
        of_its_key, *told = await entries_of(reader, 252)
        assert (of_its_key["kinds"], told) == (["key"], entries)
        await agent.append("live")
        assert versions(await entries_of(reader, 1)) == [(agent.id, 252)]


async def test_live_feed_resumed_elsewhere_loses_and_doubles_nothing(mine: Callers) -> None:
    """Cut again and again while both replicas write: all its pieces together are the log."""
    agents = [await mine.here.made() for _ in range(3)]
    begin = (await log(mine.here))[-1]["cursor"]
    replicas = [mine.here, mine.there]
    enough = asyncio.Event()

    async def write(agent: Handle) -> None:
        while not enough.is_set():
            await asyncio.gather(*(agent.by(api).append("x") for api in replicas))

    told: Entries = []
    async with asyncio.TaskGroup() as group:
        for agent in agents:
            group.create_task(write(agent))
        for cut in range(30):
            last = told[-1]["cursor"] if told else begin
            async with live(replicas[cut % 2], headers={"Last-Event-ID": last}) as reader:
                told += await entries_of(reader, cut % 9 + 1)
        enough.set()
    entries = (await log(mine.here))[3:]
    async with live(mine.there, cursor=told[-1]["cursor"]) as reader:
        told += await entries_of(reader, len(entries) - len(told))
    assert told == entries
    assert len(entries) == sum([await agent.version() - 1 for agent in agents])


@dataclass(frozen=True)
class Alone:
    """A replica with a database of its own, and its parts."""

    api: Api
    runtime: Runtime


Replicas = Callable[[], Any]


@pytest.fixture
def replica(new_database: Callable[[], str], data: Path, mongo_uri: str) -> Replicas:
    """Makes replicas, one after another, over one fresh database."""
    settings = Settings(mongodb_database=new_database(), data=data)

    @asynccontextmanager
    async def make() -> AsyncIterator[Alone]:
        runtime = Runtime(settings, mongo_uri)
        app = application_of(runtime)
        async with lifespan(app), calling(app) as api:
            yield Alone(api, runtime)

    return make


async def test_what_happens_while_the_past_is_read_is_told_once(
    replica: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither twice, for it is in the past and heard as well, nor not at all."""
    async with replica() as alone:
        agent = await alone.api.made()
        begin = (await log(alone.api))[0]["cursor"]
        read = alone.runtime.changes.page
        reads = iter(range(100))

        async def late(*query: Any, **where: Any) -> Any:
            if next(reads) == 0:
                await agent.append("in both")
                await alone.runtime.scribe.caught_up()
            found = await read(*query, **where)
            await agent.append("heard alone")
            return found

        monkeypatch.setattr(alone.runtime.changes, "page", late)
        async with live(alone.api, cursor=begin) as reader:
            await reader.take(1)
            monkeypatch.undo()
            await agent.append("live")
            version = await agent.version()
            await reader.wait(lambda: reader.events[-1].data["version"] == version)
            assert versions([told.data for told in reader.events]) == [(agent.id, 2 + n) for n in range(version - 1)]


async def swept(alone: Alone, kept: timedelta) -> int:
    """Sweep the log as if it were kept for so long."""
    return await ChangeLog(alone.runtime.mongo, SystemClock(), seconds=5, kept=kept).sweep()


async def test_swept_cursor_is_a_gap(replica: Replicas) -> None:
    """410 for whoever stands before what is kept, in pages and feeds; the rest of the log is there."""
    async with replica() as alone:
        agent = await alone.api.made()
        await agent.append("old")
        old = await log(alone.api)
        assert await swept(alone, timedelta(hours=1)) == 0
        assert await log(alone.api) == old
        assert await swept(alone, timedelta(seconds=-2)) == 2
        assert await log(alone.api) == []
        newest = old.pop()["cursor"]
        assert (await alone.api.call("GET", PATH, cursor=newest)).json()["items"] == []  # nothing after it was removed
        for entry in old:
            await alone.api.call("GET", PATH, cursor=entry["cursor"], expect="feed-gap")
            async with live(alone.api, headers={"Last-Event-ID": entry["cursor"]}, expect="feed-gap"):
                pass
        async with live(alone.api) as reader:
            await agent.append("new")
            assert versions(await entries_of(reader, 1)) == [(agent.id, 3)]


async def test_log_that_begins_late_has_a_gap_for_every_agent(
    replica: Replicas, mongo: MongoClient[dict[str, Any]]
) -> None:
    """With where it stands now, so that a reader can go on from there; filters of kinds let it pass."""
    async with replica() as alone:
        agent, gone = await alone.api.made(pool="blue"), await alone.api.made()
        await agent.added("a", "b")
        await agent.checkout("a")
        await gone.call("DELETE")
        database = mongo[alone.runtime.settings.mongodb_database]
    database["changes"].delete_many({})
    async with replica() as alone:
        entries = await log(alone.api)
        assert sorted(versions(entries)) == sorted([(agent.id, 4), (gone.id, 2)])
        assert {tuple(entry["kinds"]) for entry in entries} == {("gap",)}
        assert {entry["agent"] for entry in entries if entry["snapshot"].get("deleted")} == {gone.id}
        (found,) = await log(alone.api, agent=agent.id, kinds="settings")
        assert found["snapshot"] == {"version": 4, "state": "pending", "head": "a", "branch": None}
        assert (found["by"], found["pool"]) == ("holdfast", "blue")
        await agent.by(alone.api).append("on")
        assert versions(await log(alone.api, agent=agent.id)) == [(agent.id, 4), (agent.id, 5)]


async def test_lost_history_gives_gaps_for_what_changed_meanwhile(replica: Replicas) -> None:
    """Agents whose newest version is in the log need none; the log goes on after them."""
    async with replica() as alone:
        known, changed = await alone.api.made(), await alone.api.made()
        before = await log(alone.api)
        agents = alone.runtime.mongo.agents.with_options()
        await alone.runtime.watcher.stop()  # nobody writes the log meanwhile
        await changed.append("unheard")
        await changed.append("unheard")
        await alone.runtime.changes.record_gap()
        assert await agents.count_documents({}) == 2
        entries = await log(alone.api)
        assert entries[:2] == before
        assert [(entry["kinds"], entry["agent"], entry["version"]) for entry in entries[2:]] == [
            (["gap"], changed.id, 3)
        ]
        assert known.id in [entry["agent"] for entry in before]


async def test_log_goes_on_where_the_last_replica_left_it(replica: Replicas) -> None:
    """What was written while nobody watched is told by the next one, once."""
    async with replica() as alone:
        agent = await alone.api.made()
        await log(alone.api)
        await alone.runtime.watcher.stop()
        for _ in range(5):
            await agent.append("unheard")
    async with replica() as alone:
        entries = await complete(alone.api, 6)
        assert versions(entries) == [(agent.id, 1 + n) for n in range(6)]
        assert not any("gap" in entry["kinds"] for entry in entries)


async def test_feeds_are_told_when_history_is_lost(replica: Replicas) -> None:
    """Each ends with a gap: what was missed can't be had."""
    async with replica() as alone:
        agent = await alone.api.made()
        await log(alone.api)
        path = f"/v1/agents/{agent.id}/events"
        async with live(alone.api) as entries, reading(alone.api, path) as events:
            await events.take(1)
            await alone.runtime.mongo.agents.drop()
            for reader in (entries, events):
                (gap,) = await reader.ended()
                assert (gap.kind, gap.data["code"]) == ("gap", "feed-gap")


async def test_live_log_ends_when_the_replica_stops(
    new_database: Callable[[], str], data: Path, mongo_uri: str
) -> None:
    """At once and without a gap."""
    app = create_replica(Settings(mongodb_database=new_database(), data=data), mongo_uri)
    async with calling(app) as api, AsyncExitStack() as stack:
        await stack.enter_async_context(lifespan(app))
        async with live(api) as reader:
            await stack.aclose()
            assert await reader.ended(2) == []


async def test_slow_reader_of_the_log_is_told_of_the_gap(open_settings: Settings, mongo_uri: str) -> None:
    """After what was kept for it; from there it goes on without loss."""
    async with serving(open_settings.model_copy(update={"feed_items": 4}), mongo_uri) as api:
        agent = await api.made()
        await log(api, agent=agent.id)  # which waits until the stream has brought the creation
        async with live(api, agent=agent.id) as slow, live(api, agent=agent.id) as quick:
            slow.pause()
            for _ in range(15):
                await agent.append("x")
                await entries_of(quick, 1)
            slow.go_on()
            *kept, gap = await slow.ended()
        assert gap.kind == "gap"
        told = [one.data for one in kept]
        assert versions(told) == [(agent.id, 2 + n) for n in range(len(told))]
        assert len(told) < 15
        async with live(api, agent=agent.id, headers={"Last-Event-ID": gap.last_id}) as resumed:
            told += await entries_of(resumed, 15 - len(told))
        assert versions(told) == [(agent.id, 2 + n) for n in range(15)]
