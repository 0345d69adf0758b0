"""Retention, presence and counts: what a tenant keeps, who of it is alive, how much it has."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from app.clock import SystemClock
from app.config import Settings
from app.runtime import running
from models.tenant import ANONYMOUS
from tests.api.conftest import KeyMaker
from tests.api.driver import Api, bearer
from tests.api.test_episodes import found, learned
from tests.api.test_runners import Runner


@pytest_asyncio.fixture(loop_scope="session")
async def mine(keyed: Api, new_key: KeyMaker, tenant: str) -> Api:
    """A caller of a tenant that no other test uses."""
    return keyed.with_headers(bearer(await new_key(tenant)))


async def test_only_what_is_decided_is_removed(mine: Api) -> None:
    """Each for its first reason; a dry run counts the same and removes nothing; unjudged episodes are not poor."""
    old = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    over = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    await learned(mine, id="old", task="one", created_at=old, reward=0.1)
    await learned(mine, id="poor", task="one", reward=0.1)
    await learned(mine, id="over", task="one", reward=0.9, expires_at=over)
    await learned(mine, id="unjudged", task="one")
    await learned(mine, id="good", task="one", reward=0.5)
    assert (await mine.call("GET", "/v1/retention")).json() == {"max_age_days": None, "min_reward": None}
    decided = {"max_age_days": 2, "min_reward": 0.5}
    assert (await mine.call("PUT", "/v1/retention", decided)).json() == decided
    counts = {"expired": 1, "old": 1, "poor": 1}
    dry = (await mine.call("POST", "/v1/retention/apply", {"dry_run": True})).json()
    assert dry == {"dry_run": True, "removed": 3, "counts": counts}
    assert len((await mine.call("GET", "/v1/episodes")).json()["items"]) == 5
    done = (await mine.call("POST", "/v1/retention/apply")).json()
    assert done == {"dry_run": False, "removed": 3, "counts": counts}
    assert (await mine.call("POST", "/v1/retention/apply")).json()["removed"] == 0
    assert set(await found(mine, text="one")) == {"unjudged", "good"}
    assert (await mine.call("PUT", "/v1/retention", {})).json() == {"max_age_days": None, "min_reward": None}


async def test_expired_episode_is_found_no_more_before_it_is_removed(mine: Api) -> None:
    """Its own time counts, whatever the tenant decided."""
    over = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    await learned(mine, id="over", task="one", expires_at=over)
    await learned(mine, id="next", task="one two")
    assert await found(mine, text="one", k=1) == ["next"]


async def test_presence_names_the_living_and_stats_count(mine: Api, pool: str) -> None:
    """Runners that did not leave, ephemeral agents that did not end."""
    staying, going = await mine.made(ttl_seconds=60), await mine.made(idle_seconds=60)
    await mine.made()
    await going.call("POST", "/transitions", {"to": "stopped", "trigger": "user_terminated"})
    await staying.append("hello")
    here, gone = [await Runner.made(mine, pool) for _ in range(2)]
    await gone.call("DELETE")
    await learned(mine, task="one")
    told = (await mine.call("GET", "/v1/presence")).json()
    assert [one["id"] for one in told["runners"]] == [here.id]
    assert [one["id"] for one in told["agents"]] == [staying.id]
    counted = (await mine.call("GET", "/v1/stats")).json()
    assert counted["agents"] == {"pending": 2, "stopped": 1}
    assert (counted["steps"], counted["episodes"], counted["runners"]) == (1, 1, {"live": 1, "left": 1})


async def test_clock_that_is_set_ahead_removes_nothing(
    open_settings: Settings, new_database: Callable[[], str], mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept by age is judged by the clocks that never jump, not by what the machine's says now."""
    settings = open_settings.model_copy(update={"mongodb_database": new_database(), "embedder": "lexical"})
    async with running(settings, mongo_uri) as runtime:
        await runtime.episodes.store(ANONYMOUS, [{"task": "young"}])
        await runtime.retention.decide(ANONYMOUS, {"max_age_days": 30})
        ahead = SystemClock().now() + timedelta(days=365)
        monkeypatch.setattr(SystemClock, "now", staticmethod(lambda: ahead))
        assert (await runtime.retention.apply(ANONYMOUS.tenant)).removed == 0
