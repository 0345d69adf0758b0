"""Ephemeral agents: they live for as long as was asked, refuse writes then, and leave what they learned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.config import Settings
from tests.api.driver import Api, Handle, serving
from tests.api.test_episodes import found, learned
from tests.api.test_runners import Runner, until


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def over(agent: Handle) -> None:
    """Wait until it was put away."""
    await until(lambda: agent.call("GET"), lambda shown: bool(shown["archived"]), 20)


async def gone(api: Api, agent: Handle) -> None:
    """Wait until it was removed."""
    await until(lambda: api.http.get(f"/v1/agents/{agent.id}"), lambda shown: shown.get("code") == "not-found", 20)


async def test_life_is_counted_from_the_creation_or_from_the_last_write(api: Api) -> None:
    """Whichever ends first is shown; a life can be made longer, or endless."""
    agent = await api.made(ttl_seconds=60, idle_seconds=30)
    born = instant((await agent.read())["created_at"])
    assert instant((await agent.read())["expires_at"]) == born + timedelta(seconds=30)
    await asyncio.sleep(0.05)
    await agent.append("hello")
    shown = await agent.read()
    assert abs((instant(shown["expires_at"]) - instant(shown["updated_at"])).total_seconds() - 30) < 0.05
    await agent.call("PATCH", "", {"idle_seconds": None})
    assert instant((await agent.read())["expires_at"]) == born + timedelta(seconds=60)
    await agent.call("PATCH", "", {"ttl_seconds": None})
    assert (await agent.read())["expires_at"] is None
    await agent.call("PATCH", "", {"ttl_seconds": 5})
    assert instant((await agent.read())["expires_at"]) == born + timedelta(seconds=5)


async def test_expired_agent_refuses_writes_and_can_be_read(api: Api, other_replica: Api) -> None:
    """On either replica, from the moment on when its life is over; then it is stopped and put away."""
    agent = await api.made(ttl_seconds=1)
    await agent.append("hello")
    await asyncio.sleep(1.1)
    for replica in (api, other_replica):
        there = agent.by(replica)
        await there.append("late", expect="agent-expired")
        await there.call("PATCH", "", {"name": "late"}, expect="agent-expired")
        await there.call("DELETE", expect="agent-expired")
        await there.call("POST", "/turns", {"content": "late"}, expect="agent-expired")
        assert [step["content"] for step in (await there.read())["steps"]] == ["hello"]
    await over(agent)
    shown = await agent.read()
    assert (shown["state"], shown["archived"]) == ("stopped", True)
    assert agent.id not in [one["id"] for one in (await api.call("GET", "/v1/agents", limit=200)).json()["items"]]
    history = await agent.read("/transitions")
    assert history["items"][0]["reason"] == "its life is over"


async def test_no_command_brings_an_expired_agent_back(api: Api) -> None:
    """410, as for every write; it stays stopped."""
    agent = await api.made(ttl_seconds=0.5, pool="none")
    await over(agent)
    for action in ("start", "wake", "custom", "terminate"):
        await agent.call("POST", "/commands", {"action": action}, expect="agent-expired")
    assert (await agent.read())["state"] == "stopped"


async def test_write_keeps_an_idle_agent_alive(api: Api) -> None:
    """As long as they go on; what the service does by itself does not count."""
    agent = await api.made(idle_seconds=1)
    for _ in range(4):
        await asyncio.sleep(0.5)
        await agent.append("on")
    await over(agent)
    await agent.append("late", expect="agent-expired")


async def test_agent_that_is_over_is_closed_like_any_that_ends(replicas: tuple[Api, Api], pool: str) -> None:
    """Its turn is broken off, its runner loses it, nobody claims it any more."""
    api, _ = replicas
    agent = await api.made(pool=pool, ttl_seconds=2)
    runner = await Runner.made(api, pool)
    (claim,) = await runner.claim()
    token = {"Fencing-Token": str(claim["fence"])}
    await agent.call("POST", "/transitions", {"to": "idle", "trigger": "connected"}, headers=token)
    await agent.call("POST", "/turns", {"content": "go"}, headers=token)
    await over(agent)
    shown = await agent.read()
    assert (shown["runner"], shown["steps"][-1]["source"]) == (None, "interrupted")
    assert (await runner.beat(agents=[agent.id]))["lost"] == [agent.id]
    assert await runner.claim() == []
    await agent.append("late", expect="agent-expired", headers=token)


async def test_what_it_learned_stays(api: Api) -> None:
    """When the agent is archived, its episodes are found as before."""
    agent = await api.made(ttl_seconds=1)
    told = await learned(api, agent_id=agent.id, task="one of a short life")
    await over(agent)
    assert await found(api, text="short life", agent=agent.id) == [told["id"]]


async def test_agent_that_was_put_away_for_long_enough_is_removed(
    open_settings: Settings, new_database: Callable[[], str], mongo_uri: str
) -> None:
    """By the service itself, also one whose time was over while no replica ran; what it learned is found on."""
    update = {"mongodb_database": new_database(), "expired_kept_seconds": 0, "embedder": "lexical"}
    settings = open_settings.model_copy(update=update)
    async with serving(settings, mongo_uri) as first:
        early, late = await first.made(ttl_seconds=0.5), await first.made(ttl_seconds=3)
        told = await learned(first, agent_id=early.id, task="one of a short life")
        await gone(first, early)
    await asyncio.sleep(3)  # the life of the other
    async with serving(settings, mongo_uri) as second:
        refused = await second.http.post(f"/v1/agents/{late.id}/steps", json={"role": "user", "content": "late"})
        assert refused.status_code in (404, 410)
        await gone(second, late)
        assert await found(second, text="short life", agent=early.id) == [told["id"]]
        kinds = [entry["kinds"] for entry in (await second.call("GET", "/v1/changes", agent=late.id)).json()["items"]]
        assert kinds[-1] == ["deleted"]
        assert any("agent" in kind or "state" in kind for kind in kinds)


async def test_fork_and_import_begin_a_life_of_their_own(api: Api) -> None:
    """Counted from their own creation."""
    agent = await api.made(ttl_seconds=60)
    await asyncio.sleep(0.05)
    export = await agent.read("/export")
    made = [
        await agent.call("POST", "/fork", {}),
        await api.call("POST", "/v1/agents/import", {**export, "id": f"{agent.id}x"}),
    ]
    for answer in made:
        shown: dict[str, Any] = answer.json()
        assert instant(shown["expires_at"]) == instant(shown["created_at"]) + timedelta(seconds=60)
        assert shown["expires_at"] > (await agent.read())["expires_at"]


@pytest.mark.parametrize("field", ["ttl_seconds", "idle_seconds"])
@pytest.mark.parametrize("seconds", [0, -1, 1e12, "5", True])
async def test_lives_that_make_no_sense_are_refused(api: Api, field: str, seconds: Any) -> None:
    """None is made."""
    await api.call("POST", "/v1/agents", {field: seconds}, expect="invalid-request")


def test_clock_of_a_life_never_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine's clock is set to, and however far the database's lies off."""
    from app import clock as clocks  # noqa: PLC0415 - patched

    at = datetime(2026, 1, 1, tzinfo=UTC)
    machine = [at]

    class Machine(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return machine[0].astimezone(tz)

    elapsed = [100.0]
    monkeypatch.setattr(clocks, "datetime", Machine)
    monkeypatch.setattr(clocks.time, "monotonic", lambda: elapsed[0])
    clock = clocks.SystemClock()
    clock.told(at + timedelta(hours=1))
    machine[0] += timedelta(days=7)
    elapsed[0] += 10
    clock.told(at - timedelta(days=7))
    assert clock.earliest() == at + timedelta(seconds=10)
    assert clock.latest() == at + timedelta(hours=1, seconds=10)
