"""Commands: kept until they are done, given to one runner, in order, again until it says that it has them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pymongo import MongoClient

from tests.api.driver import Api, Handle, Json
from tests.api.test_runners import Runner, idle, until


async def asked(agent: Handle, action: str = "custom", **fields: Any) -> str:
    answer = await agent.call("POST", "/commands", {"action": action, **fields}, expect=201)
    assert answer.json()["status"] == "pending"
    ident: str = answer.json()["id"]
    return ident


async def got(runner: Runner, wait: float = 0) -> list[str]:
    answer = await runner.call("GET", "/commands", wait_seconds=wait)
    return [command["id"] for command in answer.json()["items"]]


async def status_of(api: Api, command: str) -> Json:
    told: Json = (await api.call("GET", f"/v1/commands/{command}")).json()
    return told


async def said(api: Api, command: str, verb: str, *body: Json, **options: Any) -> Json:
    told: Json = (await api.call("POST", f"/v1/commands/{command}/{verb}", *body, **options)).json()
    return told


async def test_command_goes_to_the_runner_and_through_its_life(replicas: tuple[Api, Api], pool: str) -> None:
    """pending, sent, acked, completed; each word said twice is answered the same, on any replica."""
    api, other = replicas
    agent = await api.made(pool=pool)
    runner, idler = await Runner.made(api, pool), await Runner.made(other, pool)
    await runner.claim()
    command = await asked(agent, payload={"deep": {"$a.b": None}})
    assert (await status_of(other, command))["runner"] == runner.id
    assert await got(idler) == []
    assert await got(runner) == [command]
    assert (await status_of(api, command))["payload"] == {"deep": {"$a.b": None}}
    for replica in (api, other):
        assert (await said(replica, command, "ack"))["status"] == "acked"
    assert await got(runner) == []
    done = await said(api, command, "complete", {"result": {"ok": 1}})
    assert (done["status"], done["result"]) == ("completed", {"ok": 1})
    assert await said(other, command, "complete", {"result": {"ok": 2}}) == done
    assert (await said(api, command, "ack"))["status"] == "completed"
    await said(api, command, "fail", {"error": "no"}, expect="conflict")


async def test_command_can_fail(replicas: tuple[Api, Api], pool: str) -> None:
    """Also without an acknowledgement before; said again it is the same."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    command = await asked(agent)
    await said(api, command, "ack", expect="conflict")
    await got(runner)
    failed = await said(api, command, "fail", {"error": "broke"})
    assert (failed["status"], failed["error"]) == ("failed", "broke")
    assert await said(api, command, "fail", {"error": "other"}) == failed
    await said(api, command, "complete", expect="conflict")


async def test_unacknowledged_command_is_sent_again_and_no_other_is(replicas: tuple[Api, Api], pool: str) -> None:
    """Until it is acknowledged; sends are counted."""
    api, other = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    first, second = await asked(agent), await asked(agent)
    assert await got(runner) == [first, second]
    assert await got(Runner(other, {"id": runner.id, "token": ""})) == [first, second]
    await said(api, first, "ack")
    assert await got(runner) == [second]
    assert (await status_of(api, second))["sends"] == 3


async def test_order_is_that_of_creation_whatever_was_lost(replicas: tuple[Api, Api], pool: str) -> None:
    """Created over two replicas; a new one comes after those that the runner did not acknowledge."""
    api, other = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    commands = [await asked(agent.by((api, other)[number % 2]), payload=number) for number in range(6)]
    assert await got(runner) == commands
    commands.append(await asked(agent))
    assert await got(runner, wait=5) == commands


async def test_pools_command_goes_to_one_runner_and_the_next_to_the_same(replicas: tuple[Api, Api], pool: str) -> None:
    """None is given to two, also when all ask at once; with the first in hand, the later ones wait for it."""
    api, other = replicas
    agents = [await api.made(pool=pool) for _ in range(5)]
    runners = [await Runner.made((api, other)[number % 2], pool) for number in range(4)]
    commands = {agent.id: [await asked(agent) for _ in range(3)] for agent in agents}
    given = await asyncio.gather(*(got(runner) for runner in runners))
    given = [first + await got(runner) for first, runner in zip(given, runners, strict=True)]
    takers = {
        agent: [number for number, ids in enumerate(given) if set(ids) & set(own)] for agent, own in commands.items()
    }
    assert all(len(numbers) == 1 for numbers in takers.values()), takers
    for agent, own in commands.items():
        ids = given[takers[agent][0]]
        assert [one for one in dict.fromkeys(ids) if one in own] == own


async def test_without_a_runner_a_command_waits(replicas: tuple[Api, Api], pool: str) -> None:
    """It is counted, and the first runner of the pool that comes gets it."""
    api, other = replicas
    agent = await api.made(pool=pool)
    command = await asked(agent)
    (counted,) = [one for one in (await api.call("GET", "/v1/pools")).json()["items"] if one["pool"] == pool]
    assert (counted["commands_waiting"], counted["commands_dead"]) == (1, 0)
    runner = await Runner.made(other, pool)
    assert (await runner.beat())["commands_waiting"] == 1
    assert await got(runner) == [command]


async def test_long_poll_is_answered_from_the_other_replica(replicas: tuple[Api, Api], pool: str) -> None:
    """As soon as a command is there."""
    api, other = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    waiting = asyncio.create_task(got(runner, wait=30))
    command = await asked(agent.by(other))
    async with asyncio.timeout(5):
        assert await waiting == [command]


async def test_commands_of_a_dead_runner_find_another(mortal: tuple[Api, Api], pool: str) -> None:
    """What it was sent goes to whoever claims the agent; what it had acknowledged fails, for nobody knows."""
    api, other = mortal
    agent, second = await api.made(pool=pool), await api.made(pool=pool)
    one = await Runner.made(api, pool)
    for claim in await one.claim():
        await idle(Handle(api, claim["agent"]), claim)
    sent, acked = await asked(agent), await asked(second)
    assert set(await got(one)) == {sent, acked}
    await said(api, acked, "ack")
    await one.silent()
    two = await Runner.made(other, pool)
    await until(lambda: api.call("GET", f"/v1/commands/{acked}"), lambda told: told["status"] == "failed")
    await two.claim()
    assert await got(two) == [sent]
    assert "gone" in (await status_of(api, acked))["error"]
    await said(api, sent, "ack", headers=one.token, expect="fenced-out")


async def test_commands_follow_their_agent(replicas: tuple[Api, Api], pool: str) -> None:
    """To the runner that it is handed to."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    one, two = await Runner.made(api, pool), await Runner.made(api, pool)
    await idle(agent, (await one.claim())[0])
    command = await asked(agent)
    await one.call("POST", "/release", {"agent": agent.id, "hand_off": two.id})
    await two.claim()
    assert await got(one) == []
    assert await got(two) == [command]


async def test_terminate_works_with_the_runner_gone(mortal: tuple[Api, Api], pool: str) -> None:
    """The agent is stopped at once; a resource that the platform holds is left for the pool to clean up."""
    api, other = mortal
    agent, held = await api.made(pool=pool), await api.made(pool=pool)
    one = await Runner.made(api, pool)
    claims = {claim["agent"]: claim for claim in await one.claim()}
    token = await idle(held, claims[held.id])
    await held.call("PUT", "/resource", {"resource_id": "pod"}, headers=token)
    await one.silent()
    plain, cleaning = await asked(agent, "terminate"), await asked(held, "terminate")
    for asked_to_end in (agent, held):
        assert (await asked_to_end.by(other).read(headers={"Cache-Control": "no-cache"}))["state"] == "stopped"
    assert (await status_of(api, plain))["status"] == "completed"
    two = await Runner.made(other, pool)
    assert await two.claim() == []
    assert await got(two) == [cleaning]
    await said(api, cleaning, "complete")


async def test_terminate_is_the_live_runners_matter(replicas: tuple[Api, Api], pool: str) -> None:
    """It is sent; when the runner says that it is done, the agent is stopped and has no runner."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    await runner.claim()
    command = await asked(agent, "terminate")
    assert (await agent.read())["state"] == "starting"
    assert await got(runner) == [command]
    await said(api, command, "complete")
    shown = await agent.read()
    assert (shown["state"], shown["runner"]) == ("stopped", None)


async def test_start_makes_a_stopped_agent_claimable(replicas: tuple[Api, Api], pool: str) -> None:
    """And comes to whoever claims it; hibernate lets it sleep, wake wakes it."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    await agent.call("POST", "/transitions", {"to": "stopped", "trigger": "user_terminated"})
    runner = await Runner.made(api, pool)
    assert await runner.claim() == []
    start = await asked(agent, "start")
    (claim,) = await runner.claim()
    assert await got(runner) == [start]
    await said(api, start, "complete")
    await idle(agent, claim)
    await asked(agent, "hibernate")
    (hibernate,) = await got(runner)
    await said(api, hibernate, "complete")
    await runner.call("POST", "/release", {"agent": agent.id})
    assert (await agent.read())["dormant"] is True
    assert await runner.claim() == []
    await asked(agent, "wake")
    assert [claim["agent"] for claim in await runner.claim()] == [agent.id]


@pytest.mark.parametrize(
    ("before", "after", "state"), [("hibernate", "wake", "idle"), ("terminate", "start", "starting")]
)
async def test_start_and_wake_come_after_what_was_asked_before(
    replicas: tuple[Api, Api], pool: str, before: str, after: str, state: str
) -> None:
    """An agent that is yet to sleep is awake in the end, and one that is yet to be stopped is started."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    await idle(agent, (await runner.claim())[0])
    commands = [await asked(agent, before), await asked(agent, after)]
    assert await got(runner) == commands
    for command in commands:
        await said(api, command, "complete")
    shown = await agent.read()
    assert (shown["state"], shown["dormant"]) == (state, False)


async def test_start_is_carried_out_when_what_came_before_was_not(replicas: tuple[Api, Api], pool: str) -> None:
    """What it waited for is over, however that ended."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    claim = await idle(agent, (await runner.claim())[0])
    terminate = await asked(agent, "terminate")
    assert await got(runner) == [terminate]
    start = await asked(agent, "start")
    await agent.call("POST", "/transitions", {"to": "stopped", "trigger": "user_terminated"}, headers=claim)
    await said(api, terminate, "fail", {"error": "no"})
    await until(lambda: agent.call("GET"), lambda shown: shown["state"] == "starting")
    assert (await status_of(api, start))["status"] == "pending"


async def test_terminate_goes_on_when_the_runner_leaves(replicas: tuple[Api, Api], pool: str) -> None:
    """Also one that let the agent go first, as a runner does that is told to end."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    await idle(agent, (await runner.claim())[0])
    command = await asked(agent, "terminate")
    await runner.call("POST", "/release", {"agent": agent.id})
    await runner.call("DELETE")
    await until(lambda: agent.call("GET"), lambda shown: shown["state"] == "stopped")
    await until(lambda: api.call("GET", f"/v1/commands/{command}"), lambda told: told["status"] == "completed")


async def test_command_for_one_that_does_not_drive_the_agent_finds_its_driver(
    replicas: tuple[Api, Api], pool: str, mongo: MongoClient[dict[str, Any]]
) -> None:
    """As a claim leaves it whose replica was killed before it could say so."""
    api, other = replicas
    agent = await api.made(pool=pool)
    one, two = await Runner.made(api, pool), await Runner.made(other, pool)
    await two.claim()
    command = await asked(agent)
    for database in mongo.list_database_names():
        mongo[database]["commands"].update_one({"_id": f"default:{command}"}, {"$set": {"runner": one.id}})
    assert await got(two) == []
    assert await got(two, wait=15) == [command]


async def test_references_in_what_is_said_come_back_as_they_were(replicas: tuple[Api, Api], pool: str) -> None:
    """`$ref` and `$id` are keys like any other, in payloads, results and metadata."""
    api, _ = replicas
    value = {"$ref": "a", "$id": "b", "deep": [{"$ref": "c", "$id": 1}]}
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool, metadata=value)
    assert (await runner.call("GET")).json()["metadata"] == value
    await runner.beat()
    assert len(await runner.claim()) == 1
    command = await asked(agent, payload=value)
    assert await got(runner) == [command]
    done = await said(api, command, "complete", {"result": value})
    assert (done["payload"], done["result"]) == (value, value)
    await runner.call("POST", "/drain")


async def test_command_dies_at_its_deadline(replicas: tuple[Api, Api], pool: str) -> None:
    """Nothing waits for ever; the dead are counted, and the next of the agent goes on."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    command = await asked(agent, deadline_seconds=0.2)
    await until(lambda: api.call("GET", f"/v1/commands/{command}"), lambda told: told["dead"], 20)
    told = await status_of(api, command)
    assert (told["status"], told["error"]) == ("failed", "Its deadline passed.")
    (counted,) = [one for one in (await api.call("GET", "/v1/pools")).json()["items"] if one["pool"] == pool]
    assert (counted["commands_waiting"], counted["commands_dead"]) == (0, 1)
    runner = await Runner.made(api, pool)
    follower = await asked(agent)
    assert await got(runner) == [follower]


async def test_keyed_command_is_made_once(replicas: tuple[Api, Api], pool: str) -> None:
    """Repeated on the other replica, and eight times at once; another body is a mistake."""
    api, other = replicas
    agent = await api.made(pool=pool)
    key = {"Idempotency-Key": "k"}
    body = {"action": "custom", "payload": 1}
    first = await agent.call("POST", "/commands", body, headers=key)
    again = await asyncio.gather(
        *(agent.by((api, other)[n % 2]).call("POST", "/commands", body, headers=key) for n in range(8))
    )
    assert {answer.text for answer in again} == {first.text}
    await agent.call("POST", "/commands", {**body, "payload": 2}, headers=key, expect="idempotency-mismatch")
    runner = await Runner.made(api, pool)
    assert await got(runner) == [first.json()["id"]]


async def test_command_of_an_unknown_agent_is_not_found(replicas: tuple[Api, Api]) -> None:
    """And nothing waits for it."""
    api, _ = replicas
    await Handle(api, "nobody").call("POST", "/commands", {"action": "stop"}, expect="not-found")
    await api.call("GET", "/v1/commands/nobody", expect="not-found")


async def test_word_that_comes_again_changes_nothing_more(replicas: tuple[Api, Api], pool: str) -> None:
    """A terminated agent that was started again is not ended by the same word said twice."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    await runner.claim()
    command = await asked(agent, "terminate")
    await got(runner)
    done = await said(api, command, "complete")
    await asked(agent, "start")
    await runner.claim()
    assert (await agent.read())["state"] == "starting"
    assert await said(api, command, "complete") == done
    assert (await agent.read())["state"] == "starting"


async def test_start_waits_for_a_runner_whatever_the_pools_policy(mortal: tuple[Api, Api], pool: str) -> None:
    """An agent that nobody began to start has not failed, also where failed ones are never started again."""
    api, _ = mortal
    await api.call("PUT", f"/v1/pools/{pool}", {"restart": "never"})
    agent = await api.made(pool=pool)
    await agent.call("POST", "/transitions", {"to": "stopped", "trigger": "user_terminated"})
    await asked(agent, "start")
    await until(lambda: agent.call("GET"), lambda shown: shown["state"] == "failed", 30)
    runner = await Runner.made(api, pool)
    assert [claim["agent"] for claim in await runner.claim()] == [agent.id]


async def test_too_much_said_beside_an_agent_is_refused(replicas: tuple[Api, Api], pool: str) -> None:
    """What takes little as JSON may take much as it is stored: payload, result, metadata."""
    api, _ = replicas
    many = [1] * 1_600_000
    agent = await api.made(pool=pool)
    await agent.call("POST", "/commands", {"action": "custom", "payload": many}, expect="too-large")
    body = {"pool": pool, "platform": "local", "capacity": 1}
    await api.call("POST", "/v1/runners", {**body, "metadata": {"many": many}}, expect="too-large")
    runner = await Runner.made(api, pool)
    command = await asked(agent)
    await got(runner)
    await said(api, command, "complete", {"result": many}, expect="too-large")
    assert (await status_of(api, command))["status"] == "sent"


async def test_word_about_an_agent_that_is_gone_does_nothing_to_the_next_of_its_id(
    replicas: tuple[Api, Api], pool: str
) -> None:
    """A terminate that comes true after the agent was deleted and made again leaves the new one alone."""
    api, _ = replicas
    agent = await api.made(id=f"again-{pool[-8:]}", pool=pool)
    runner = await Runner.made(api, pool)
    await runner.claim()
    command = await asked(agent, "terminate")
    await got(runner)
    await agent.call("DELETE")
    await api.made(id=agent.id, pool=pool)
    await runner.claim()
    await said(api, command, "complete")
    assert (await agent.read())["state"] == "starting"


async def test_wake_does_not_wait_for_a_hibernate_that_nobody_gets(replicas: tuple[Api, Api], pool: str) -> None:
    """A sleeping agent still names its last runner; once that is gone, nobody is asked any more."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    await idle(agent, (await runner.claim())[0])
    hibernate = await asked(agent, "hibernate")
    assert await got(runner) == [hibernate]
    await said(api, hibernate, "complete")
    await runner.call("DELETE")
    await asked(agent, "hibernate")
    await asked(agent, "wake")
    await until(lambda: agent.call("GET"), lambda shown: not shown["dormant"])
    other = await Runner.made(api, pool)
    await until(lambda: other.call("POST", "/claim", {"max": 1}), lambda told: bool(told["claims"]))


async def test_terminate_that_was_taken_on_is_the_runners_to_finish(replicas: tuple[Api, Api], pool: str) -> None:
    """Also when it has stopped the agent, or let it go, before it says so: its result is kept."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    await idle(agent, (await runner.claim())[0])
    command = await asked(agent, "terminate")
    await got(runner)
    await said(api, command, "ack")
    await runner.call("POST", "/release", {"agent": agent.id})
    await asyncio.sleep(6)
    assert (await status_of(api, command))["status"] == "acked"
    done = await said(api, command, "complete", {"result": "cleaned"})
    assert (done["result"], (await agent.read())["state"]) == ("cleaned", "stopped")


async def test_hibernate_that_is_done_late_lets_a_woken_agent_be(replicas: tuple[Api, Api], pool: str) -> None:
    """What was asked last holds, whichever the runner does first."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    await idle(agent, (await runner.claim())[0])
    hibernate, wake = await asked(agent, "hibernate"), await asked(agent, "wake")
    assert await got(runner) == [hibernate, wake]
    for command in (wake, hibernate):
        await said(api, command, "complete")
    assert (await agent.read())["dormant"] is False


async def test_start_does_not_wait_for_what_was_asked_of_an_earlier_agent(replicas: tuple[Api, Api], pool: str) -> None:
    """One that was made under its id is another."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    claim = await idle(agent, (await runner.claim())[0])
    await agent.call("PUT", "/resource", {"resource_id": "pod"}, headers=claim)
    await runner.call("DELETE")
    terminate = await asked(agent, "terminate")
    await agent.call("DELETE")
    await api.made(id=agent.id, pool=pool)
    await agent.call("POST", "/transitions", {"to": "stopped", "trigger": "user_terminated"})
    assert (await status_of(api, terminate))["status"] == "pending"
    await asked(agent, "start")
    assert (await agent.read())["state"] == "starting"
