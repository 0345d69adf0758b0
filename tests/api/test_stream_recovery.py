"""What a replica does when its change stream brings what can't be told, and what its log does under odd readers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from app import changelog
from app.clock import SystemClock
from app.config import Settings
from app.runtime import Runtime, application_of, running
from app.scribe import Scribe
from app.tasks import end
from models.entry import entries_of, entry_key_of_episode, entry_of_episode
from models.event import Event, Time
from models.tenant import ANONYMOUS
from tests.api.driver import calling, lifespan
from tests.harness import wait_until_async


class Log:
    """Takes what a scribe writes."""

    def __init__(self) -> None:
        self.complete_to: Time = (0, 0)

    async def write(self, entries: object, complete_to: Time) -> None:
        """Written at once."""
        self.complete_to = max(self.complete_to, complete_to)


def event(version: int) -> Event:
    last = {"from": version - 1, "v": version, "kinds": ["agent"], "at": SystemClock().now(), "by": "k"}
    return Event("t:a", (1, version), {"last": last})


async def test_late_acknowledgement_keeps_no_reader_of_the_log_waiting() -> None:
    """An entry may be written before its commit is acknowledged to whoever made it."""
    scribe = Scribe(Log(), SystemClock())  # type: ignore[arg-type]
    scribe.start()
    early = event(1)
    scribe.add(entries_of(early), early.time)
    await wait_until_async(lambda: scribe.written == 1, 5, "the entry to be written")
    scribe.wrote(early.key, early.version)
    async with asyncio.timeout(1):
        await scribe.caught_up()
    await scribe.stop()


async def test_log_is_not_complete_in_the_middle_of_what_shares_a_time() -> None:
    """A server may give one cluster time to many documents: until a later one came, others of it may follow."""
    log = Log()
    scribe = Scribe(log, SystemClock())  # type: ignore[arg-type]
    scribe.start()
    time = (7, 7)
    for number in range(1, 701):
        document = {"_id": f"t:e{number}", "tenant": "t", "by": "k", "stored_at": SystemClock().now()}
        scribe.add([entry_of_episode(document, time)], time, shared=True)
        if number % 350 == 0:
            await wait_until_async(lambda: scribe.backlog == 0, 5, "the entries to be written")
            assert log.complete_to < time
    scribe.wrote(entry_key_of_episode(document))
    caught_up = asyncio.create_task(scribe.caught_up())
    await asyncio.sleep(0)
    assert not caught_up.done()
    scribe.reached((7, 8))
    await caught_up
    assert log.complete_to == (7, 8)
    await scribe.stop()


async def test_gap_tells_only_of_what_was_there_then(
    new_database: Callable[[], str], mongo_uri: str, data: Path
) -> None:
    """What was stored later has its place later, wherever its own event is: a reader may be past the gap's time."""
    settings = Settings(mongodb_database=new_database(), data=data, embedder="lexical")
    async with running(settings, mongo_uri) as runtime:
        await runtime.episodes.store(ANONYMOUS, [{"id": "early"}])
        await runtime.scribe.caught_up()
        await runtime.mongo.episodes.update_many({}, {"$unset": {"position": ""}})
        then = await runtime.mongo.now()
        late = {"_id": "default:late", "tenant": "default", "by": "k", "stored_at": SystemClock().now()}
        await runtime.watcher.stop()
        await runtime.mongo.episodes.insert_one(late)
        await runtime.changes._tell_beside(None, then)
        placed = {one["_id"]: "position" in one async for one in runtime.mongo.episodes.find({})}
        assert placed == {"default:early": True, "default:late": False}


async def test_replica_recovers_from_a_dropped_collection(
    new_database: Callable[[], str], mongo_uri: str, data: Path
) -> None:
    """It says that there is a gap, and is ready again; the log goes on."""
    runtime = Runtime(Settings(mongodb_database=new_database(), data=data), mongo_uri)
    app = application_of(runtime)
    async with lifespan(app), calling(app) as api:
        await api.made(id="before")
        await runtime.mongo.agents.drop()
        async with asyncio.timeout(30):
            while not (runtime.watcher.healthy and (await api.call("POST", "/v1/agents", {})).is_success):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await wait_until_async(lambda: runtime.watcher.healthy and runtime.feed.position, 20, "the stream to be back")
        agent = await api.made(id="after")
        entries = (await api.call("GET", "/v1/changes", agent=agent.id)).json()["items"]
        assert [entry["kinds"] for entry in entries] == [["created"]]


async def test_page_of_rare_kinds_looks_at_so_many_entries_and_goes_on(
    new_database: Callable[[], str], mongo_uri: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever follows next_cursor finds them all."""
    monkeypatch.setattr(changelog, "_LOOKED_AT", 3)
    app = application_of(Runtime(Settings(mongodb_database=new_database(), data=data), mongo_uri))
    async with lifespan(app), calling(app) as api:
        agent = await api.made()
        for number in range(10):
            await agent.append(str(number))
        await agent.call("PATCH", "/settings", {"max_steps": 7})
        found, pages, cursor = [], 0, ""
        while cursor is not None:
            page = (
                await api.call("GET", "/v1/changes", kinds="settings", **({"cursor": cursor} if cursor else {}))
            ).json()
            found += page["items"]
            cursor, pages = page["next_cursor"], pages + 1
        assert [entry["version"] for entry in found] == [12]
        assert pages > 3


async def test_cursor_of_the_future_is_refused(api, tenant: str) -> None:  # noqa: ANN001
    """It is another log's, or of before a restore; a feed from there would stay silent for ever."""
    await api.call("GET", "/v1/changes", cursor="f" * 28, expect="invalid-request")


async def test_task_that_swallows_a_cancellation_is_ended_all_the_same() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await end(task)
    assert task.done()
