"""Late news of a runner's death, worked off when it lives again: nothing of its new life is touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from app.config import Settings
from app.lanes import Terms
from app.reads import Freshness
from app.runtime import Runtime, running
from models.command import Action
from models.errors import FencedOut, Forbidden, Unavailable
from models.execution import State, Trigger
from models.runner import RunnerRecord
from models.tenant import ANONYMOUS, DEFAULT_TENANT, Right, Scope

RUNNER = {"id": "phoenix", "pool": "p", "platform": "local", "capacity": 5}


@pytest_asyncio.fixture
async def runtime(mongo_uri: str, tmp_path: Path) -> AsyncIterator[Runtime]:
    settings = Settings(mongodb_database=f"test_{uuid4().hex[:12]}", data=tmp_path, runner_ttl_seconds=300)
    async with running(settings, mongo_uri) as made:
        yield made
        await made.mongo.client.drop_database(settings.mongodb_database)


async def test_death_of_an_earlier_incarnation_frees_nothing_of_the_next(runtime: Runtime) -> None:
    """Neither its agents nor what it acknowledged; those of the dead one it does free."""
    for agent in ("old", "new"):
        await runtime.agents.create(ANONYMOUS, {"id": agent, "pool": "p"}, Terms())
    await runtime.runners.register(ANONYMOUS, RUNNER)
    (claim, _) = await runtime.runners.claim(ANONYMOUS, "phoenix", 5, 0)
    dead = await _expire(runtime)
    await runtime.runners.register(ANONYMOUS, RUNNER)
    assert {one["attempt"] for one in await runtime.runners.claim(ANONYMOUS, "phoenix", 5, 0)} == {2}
    command = await runtime.commands.create(ANONYMOUS, claim["agent"], {"action": Action.CUSTOM}, Terms())
    await runtime.runners.commands(ANONYMOUS, "phoenix", 0)
    await runtime.commands.ack(ANONYMOUS, command.name)
    assert await runtime.orphans.free(dead) == ([], True)
    await runtime.commands.leave(dead)
    driven = (await runtime.runners.heartbeat(ANONYMOUS, "phoenix", None, None)).agents
    assert {one["id"] for one in driven} == {"old", "new"}
    assert (await runtime.commands.get(ANONYMOUS, command.name)).status == "acked"
    assert {one.agent for one in (await runtime.orphans.free(await _expire(runtime)))[0]} == {"old", "new"}


async def test_dry_run_says_what_would_be_changed_and_changes_nothing(runtime: Runtime) -> None:
    """The same agents that a real run changes then."""
    for agent in ("a", "b"):
        await runtime.agents.create(ANONYMOUS, {"id": agent, "pool": "p", "dormant": agent == "b"}, Terms())
    await runtime.runners.register(ANONYMOUS, RUNNER)
    await runtime.runners.claim(ANONYMOUS, "phoenix", 5, 0)
    await runtime.reconciler.stop()
    await _expire(runtime)
    foreseen = await runtime.reconciler.reconcile(None, dry_run=True)
    assert [(one.agent, one.state, one.to) for one in foreseen.changed] == [("a", "starting", "failed")]
    done = await runtime.reconciler.reconcile(None)
    assert [one.shown() for one in done.changed] == [one.shown() for one in foreseen.changed]
    assert (await runtime.reconciler.reconcile(None)).changed == []


async def test_settling_that_was_cut_off_is_done_again(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner counts as settled only when its commands were let go of, too."""
    await runtime.agents.create(ANONYMOUS, {"id": "a", "pool": "p"}, Terms())
    await runtime.runners.register(ANONYMOUS, RUNNER)
    await runtime.runners.claim(ANONYMOUS, "phoenix", 1, 0)
    command = await runtime.commands.create(ANONYMOUS, "a", {"action": Action.CUSTOM}, Terms())
    await runtime.runners.commands(ANONYMOUS, "phoenix", 0)
    await runtime.commands.ack(ANONYMOUS, command.name)
    await runtime.reconciler.stop()
    with monkeypatch.context() as patched:
        patched.setattr(runtime.commands, "leave", _away)
        await runtime.runners.register(ANONYMOUS, RUNNER)
    assert (await runtime.commands.get(ANONYMOUS, command.name)).status == "acked"
    await runtime.reconciler.settle()
    assert (await runtime.commands.get(ANONYMOUS, command.name)).status == "failed"
    assert await runtime.roster.unsettled() == []


async def test_command_that_was_written_and_not_carried_out_is_carried_out_later(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is answered; what the command does to the agent is made up for, once."""
    await runtime.reconciler.stop()
    for agent, action in (("a", Action.START), ("b", Action.TERMINATE)):
        await runtime.agents.create(ANONYMOUS, {"id": agent, "pool": "p"}, Terms())
        if action is Action.START:
            await runtime.execution.transit(ANONYMOUS, agent, State.STOPPED, Trigger.USER_TERMINATED, None, Terms())
        with monkeypatch.context() as patched:
            patched.setattr(runtime.commands, "_commit", _away)
            await runtime.commands.create(ANONYMOUS, agent, {"action": action}, Terms())
    await runtime.commands.tidy()
    states = {}
    for agent in ("a", "b"):
        record = (await runtime.agents.get(ANONYMOUS, agent, Freshness(strong=True))).record
        states[agent] = record.state, record.version
    assert {agent: state for agent, (state, _) in states.items()} == {"a": "starting", "b": "stopped"}
    await runtime.commands.tidy()
    for agent, (_, version) in states.items():
        assert (await runtime.agents.get(ANONYMOUS, agent, Freshness(strong=True))).record.version == version


async def _expire(runtime: Runtime) -> RunnerRecord:
    (pulse,) = await runtime.roster.pulses()
    dead = await runtime.roster.expire(pulse)
    assert dead is not None
    return dead


async def _away(*_: object) -> None:
    raise Unavailable("The database does not answer; try again.")


async def test_heartbeats_that_a_slow_database_holds_up_are_signs_of_life(
    mongo_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as they arrive their runner is not taken to be dead; when they stop it is."""
    settings = Settings(mongodb_database=f"test_{uuid4().hex[:12]}", data=tmp_path, runner_ttl_seconds=1)
    async with running(settings, mongo_uri) as runtime:
        await runtime.runners.register(ANONYMOUS, RUNNER)
        with monkeypatch.context() as patched:
            patched.setattr(runtime.roster, "_changed", _away)
            for _ in range(20):
                with pytest.raises(Unavailable):
                    await runtime.roster.beat(ANONYMOUS, "phoenix", None)
                await asyncio.sleep(0.15)
        assert (await runtime.roster.get(ANONYMOUS, "phoenix")).present
        async with asyncio.timeout(20):
            while (await runtime.roster.get(ANONYMOUS, "phoenix")).present:  # noqa: ASYNC110 - another task's doing
                await asyncio.sleep(0.1)
        await runtime.mongo.client.drop_database(settings.mongodb_database)


async def test_heartbeats_that_are_refused_keep_no_runner_alive(mongo_uri: str, tmp_path: Path) -> None:
    """Neither those of its earlier incarnation nor those of another key, though they go on."""
    settings = Settings(mongodb_database=f"test_{uuid4().hex[:12]}", data=tmp_path, runner_ttl_seconds=1)
    mate = Scope(DEFAULT_TENANT, frozenset({Right.RUNNER}), by="mate")
    earlier = Scope(DEFAULT_TENANT, frozenset({Right.RUNNER}), by="phoenix", runner="phoenix", incarnation=1)
    async with running(settings, mongo_uri) as runtime:
        for _ in range(2):
            await runtime.runners.register(ANONYMOUS, RUNNER)
        async with asyncio.timeout(20):
            while (await runtime.roster.get(ANONYMOUS, "phoenix")).present:
                with pytest.raises(Forbidden):
                    await runtime.roster.beat(mate, "phoenix", None)
                with pytest.raises(FencedOut):
                    await runtime.roster.beat(earlier, "phoenix", None)
                await asyncio.sleep(0.15)
        await runtime.mongo.client.drop_database(settings.mongodb_database)
