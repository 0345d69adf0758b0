"""Turns: begun, driven, finished, stopped, broken off; each with its states, in one commit."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from pymongo import MongoClient

from app.config import Settings
from tests.api.driver import Api, Handle, Json, serving
from tests.api.feed_driver import following


async def begun(agent: Handle, content: str = "do it", **options: Any) -> Json:
    answer = await agent.call("POST", "/turns", {"content": content}, expect=201, **options)
    told: Json = answer.json()
    return told


async def finished(agent: Handle, turn: str, outcome: str = "completed", **body: Any) -> Json:
    answer = await agent.call("POST", f"/turns/{turn}/finish", {"outcome": outcome, **body}, expect=200)
    told: Json = answer.json()
    return told


async def standing(agent: Handle) -> tuple[str, str, str]:
    shown = await agent.read(steps="none")
    return shown["state"], shown["status"], shown["activity"]


def call(name: str) -> Json:
    return {"id": name, "name": "run", "input": {}}


@pytest.mark.parametrize("before", ["pending", "failed", "stopped", "starting", "idle"])
async def test_begin_without_a_pool_is_one_commit_from_every_state(api: Api, before: str) -> None:
    """The user's step and the way to busy, through starting where that is needed; the fence goes on."""
    agent = await api.made()
    ways = {
        "pending": [],
        "failed": [("failed", "process_crashed")],
        "stopped": [("stopped", "user_terminated")],
        "starting": [("starting", "spawn")],
        "idle": [("starting", "spawn"), ("idle", "connected")],
    }
    for to, trigger in ways[before]:
        await agent.call("POST", "/transitions", {"to": to, "trigger": trigger})
    version, fence = await agent.version(), (await agent.read(steps="none"))["fence"]
    told = await begun(agent)
    assert (told["version"], told["fence"], told["turn_id"]) == (version + 1, fence + 1, told["step"]["id"])
    assert told["step"]["role"] == "user"
    assert told["step"]["begin"] is True
    assert await standing(agent) == ("busy", "running", "busy")
    history = (await agent.read("/transitions"))["items"]
    assert {entry["version"] for entry in history if entry["version"] > version} == {version + 1}
    assert history[0]["to"] == "busy"


async def test_second_prompt_is_agent_busy_on_either_replica(api: Api, other_replica: Api) -> None:
    """Of 20 at once one is taken; the others leave no step."""
    agent = await api.made()
    bodies = [
        replica.http.post(f"/v1/agents/{agent.id}/turns", json={"content": "x"})
        for replica in (api, other_replica)
        for _ in range(10)
    ]
    answers = await asyncio.gather(*bodies)
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 19}
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"agent-busy"}
    assert len(await agent.path()) == 1


async def test_turn_is_driven_and_finished(api: Api) -> None:
    """Steps belong to it, the last reads `end`, also one that came before the finish; the agent is idle again."""
    agent = await api.made()
    turn = (await begun(agent))["turn_id"]
    (step,) = (await agent.append({"role": "agent", "content": "thinking"}))["steps"]
    assert step["turn_id"] == turn
    assert "end" not in step
    told = await finished(agent, turn)
    assert (told["state"], told["outcome"], told["head"]) == ("idle", "completed", step["id"])
    assert (await agent.read(f"/steps/{step['id']}"))["end"] is True
    shown = (await agent.read())["steps"]
    assert [one.get("end") for one in shown] == [None, True]
    assert (await agent.read("/steps"))["items"] == shown
    assert (await agent.read("/export"))["steps"] == shown
    assert (await agent.read("/results"))["results"] == {}


async def test_finish_brings_the_last_steps(api: Api) -> None:
    """They are appended in the commit that ends the turn."""
    agent = await api.made()
    turn = (await begun(agent))["turn_id"]
    steps = [{"role": "agent", "tool_calls": [call("c")]}, {"role": "tool", "tool_results": [{"id": "c"}]}]
    told = await finished(agent, turn, steps=steps)
    assert [one.get("end") for one in told["steps"]] == [None, True]
    assert (await agent.read())["steps"][1:] == told["steps"]
    assert told["version"] == 3


async def test_end_of_a_turn_is_seen_from_memory_and_by_imports(api: Api, other_replica: Api) -> None:
    """A copy in memory shows it as the database does, on both replicas; an export carries it into a new agent."""
    agent = await api.made()
    turn = (await begun(agent))["turn_id"]
    await agent.append({"role": "agent", "content": "a"})
    for replica in (api, other_replica):
        assert (await agent.by(replica).read(min_version=3))["steps"][-1].get("end") is None
    await finished(agent, turn)
    for replica in (api, other_replica):
        held = await agent.by(replica).read(min_version=4)
        strong = await agent.by(replica).read(headers={"Cache-Control": "no-cache"})
        assert held == strong
        assert held["steps"][-1]["end"] is True
    export = await agent.read("/export")
    del export["id"]
    copy = (await api.call("POST", "/v1/agents/import", export)).json()
    assert copy["steps"][-1]["end"] is True


async def test_finish_of_another_turn_is_refused(api: Api) -> None:
    """An unknown one is not found; one that is over can't be finished again; nor can another than the open one."""
    agent = await api.made()
    first = (await begun(agent))["turn_id"]
    done = {"outcome": "completed"}
    await agent.call("POST", "/turns/nowhere/finish", done, expect="not-found")
    await finished(agent, first)
    problem = await agent.call("POST", f"/turns/{first}/finish", done, expect="illegal-transition")
    assert (problem.json()["state"], problem.json()["to"]) == ("idle", "idle")
    second = (await begun(agent))["turn_id"]
    await agent.call("POST", f"/turns/{first}/finish", done, expect="conflict")
    await finished(agent, second, "error", error="it broke")
    assert (await agent.read("/transitions"))["items"][0]["reason"] == "error: it broke"


async def test_repeated_begin_and_finish_are_answered_as_at_first(api: Api, other_replica: Api) -> None:
    """By a chosen id the begin; by an Idempotency-Key both, on another replica, also when it is over."""
    agent = await api.made()
    body = {"id": "mine", "content": "x"}
    first = await agent.call("POST", "/turns", body, expect=201)
    assert (await agent.call("POST", "/turns", body)).json() == first.json()
    await agent.call("POST", "/turns", {**body, "content": "y"}, expect="step-exists")
    key = {"Idempotency-Key": "end"}
    done = await agent.call("POST", "/turns/mine/finish", {"outcome": "completed"}, headers=key)
    again = await agent.by(other_replica).call("POST", "/turns/mine/finish", {"outcome": "completed"}, headers=key)
    assert again.json() == done.json()
    await agent.call("POST", "/turns", body, expect="conflict")


async def test_stop_is_asked_for_and_answered(api: Api) -> None:
    """Busy: stopping, and then idle by the driver's result; idle: nothing changes; pending: no."""
    agent = await api.made()
    await agent.call("POST", "/stop", expect="illegal-transition")
    turn = (await begun(agent))["turn_id"]
    stopping = (await agent.call("POST", "/stop", expect=200)).json()
    assert (stopping["state"], stopping["version"]) == ("stopping", 3)
    assert (await agent.call("POST", "/stop", expect=200)).json()["version"] == 3
    assert (await finished(agent, turn, "stopped"))["state"] == "idle"
    assert (await agent.call("POST", "/stop", expect=200)).json()["version"] == 4


async def test_checkout_waits_for_the_turn_to_end(api: Api) -> None:
    """Nobody moves HEAD, clears or reverts under a driver."""
    agent = await api.made()
    turn = (await begun(agent))["turn_id"]
    await agent.call("PUT", "/head", {"step_id": "root"}, expect="agent-busy")
    await agent.call("POST", "/clear", expect="agent-busy")
    await agent.call("POST", "/revert", {"turn_id": turn}, expect="agent-busy")


@pytest.mark.parametrize(("to", "trigger"), [("failed", "process_crashed"), ("stopped", "user_terminated")])
async def test_broken_turn_is_closed_in_the_commit_that_ends_it(api: Api, to: str, trigger: str) -> None:
    """Acknowledged steps stay; an `interrupted` step answers each tool call that has no result, and nothing else."""
    agent = await api.made()
    fence = (await begun(agent))["fence"]
    await agent.append({"role": "agent", "tool_calls": [call("a"), call("b"), call("c")]})
    await agent.append({"role": "tool", "tool_results": [{"id": "b", "output": 1}]})
    told = await agent.call("POST", "/transitions", {"to": to, "trigger": trigger, "reason": "power cut"})
    assert told.json()["version"] == 5
    shown = await agent.read()
    last = shown["steps"][-1]
    assert (shown["version"], shown["state"], shown["fence"]) == (5, to, fence + 1)
    assert (last["source"], last["end"], last["version"], last["data"]) == (
        *("interrupted", True, 5),
        {"interrupted": "power cut"},
    )
    assert [(one["id"], one["is_error"]) for one in last["tool_results"]] == [("a", True), ("c", True)]
    assert [one.get("end") for one in shown["steps"]] == [None, None, None, True]


async def test_broken_turn_without_open_calls_gets_a_step_without_results(api: Api) -> None:
    """It only says what happened."""
    agent = await api.made()
    await begun(agent)
    await agent.call("POST", "/transitions", {"to": "failed", "trigger": "process_crashed"})
    last = (await agent.read())["steps"][-1]
    assert last["role"] == "system"
    assert "tool_results" not in last


async def test_agent_made_busy_by_a_bare_transition_is_closed_the_same_way(api: Api) -> None:
    """Its turn is the one that HEAD is in; calls from before and after are answered."""
    agent = await api.made()
    await agent.append("go", {"role": "agent", "tool_calls": [call("before")]})
    for to, trigger in (("starting", "spawn"), ("idle", "connected"), ("busy", "prompt_received")):
        await agent.call("POST", "/transitions", {"to": to, "trigger": trigger})
    await agent.append({"role": "agent", "tool_calls": [call("after")]})
    await agent.call("POST", "/transitions", {"to": "failed", "trigger": "process_crashed"})
    last = (await agent.read())["steps"][-1]
    assert [one["id"] for one in last["tool_results"]] == ["before", "after"]


async def test_max_steps_ends_a_turn(api: Api) -> None:
    """The step that reaches it is kept and ends the turn in its commit; one more is refused; a new turn is not."""
    agent = await api.made(settings={"max_steps": 2})
    turn = (await begun(agent))["turn_id"]
    one = await agent.append({"role": "agent", "content": "1"})
    assert "turn_ended" not in one
    two = await agent.append({"role": "agent", "content": "2"})
    assert two["turn_ended"] == "max_steps"
    assert two["steps"] == (await agent.read())["steps"][-1:]
    assert await standing(agent) == ("idle", "running", "idle")
    assert (await agent.read())["steps"][-1]["end"] is True
    await agent.append({"role": "agent", "content": "3"}, expect="conflict")
    await agent.call("POST", f"/turns/{turn}/finish", {"outcome": "completed"}, expect="illegal-transition")
    await begun(agent, "again")
    await agent.append({"role": "agent", "content": "1"})


async def test_user_step_within_a_turn_belongs_to_it(api: Api) -> None:
    """It counts, it may answer a tool call, and the turn ends with whatever is last; afterwards one opens its own."""
    agent = await api.made(settings={"max_steps": 4})
    turn = (await begun(agent))["turn_id"]
    await agent.append({"role": "agent", "tool_calls": [call("c1"), call("c2")]})
    result = {"id": "said", "role": "user", "tool_results": [{"id": "c1", "output": "1"}]}
    for status in (201, 200):
        (told,) = (await agent.append(result, expect=status))["steps"]
        assert told["turn_id"] == turn
    await agent.call("POST", "/transitions", {"to": "failed", "trigger": "process_crashed"})
    last = (await agent.read())["steps"][-1]
    assert [one["id"] for one in last["tool_results"]] == ["c2"]
    turn = (await begun(agent))["turn_id"]
    for number in range(4):
        assert (await agent.append("more")).get("turn_ended") == ("max_steps" if number == 3 else None)
    assert (await agent.read())["state"] == "idle"
    (own,) = (await agent.append("next"))["steps"]
    assert own["turn_id"] == own["id"]


async def test_null_takes_the_limit_of_steps_away(api: Api) -> None:
    """As any setting that is null."""
    agent = await api.made(settings={"max_steps": None})
    await begun(agent)
    for _ in range(3):
        await agent.append({"role": "agent"})
    assert (await standing(agent))[0] == "busy"


async def test_fence_of_a_turn_guards_its_writes(api: Api) -> None:
    """A driver whose turn is over is fenced out by the next turn, and never by itself."""
    agent = await api.made()
    first = await begun(agent)
    token = {"Fencing-Token": str(first["fence"])}
    await agent.append({"role": "agent"}, headers=token)
    await agent.call("POST", f"/turns/{first['turn_id']}/finish", {"outcome": "completed"}, headers=token)
    second = await begun(agent)
    assert second["fence"] == first["fence"] + 1
    problem = await agent.append({"role": "agent"}, headers=token, expect="fenced-out")
    assert (problem["fence"], problem["actual"]) == (first["fence"], second["fence"])


async def test_fence_goes_on_over_delete_and_creation(api: Api) -> None:
    """Whoever drove the deleted agent is a stranger to the new one."""
    agent = await api.made(id="phoenix")
    fence = (await begun(agent))["fence"]
    await agent.call("DELETE")
    again = await api.made(id="phoenix")
    assert (await again.read())["fence"] > fence
    await again.append("x", headers={"Fencing-Token": str(fence)}, expect="fenced-out")


async def test_feed_tells_a_turn_step_by_step(api: Api) -> None:
    """The begin: step, head and state of one version; the end: one state."""
    agent = await api.made()
    async with following(api, agent.id) as feed:
        await feed.take(1)
        turn = (await begun(agent))["turn_id"]
        assert [one.kind for one in await feed.take_until(2)] == ["step", "head", "state"]
        await finished(agent, turn)
        (told,) = await feed.take_until(3)
        assert (told.kind, told.data["state"], told.data["trigger"]) == ("state", "idle", "result_received")


async def test_turn_without_a_pool_ends_when_its_lease_does(api: Api) -> None:
    """Its writes renew the lease; after the last one the turn is broken off, and the next prompt is taken."""
    agent = await api.made(settings={"execution_timeout_seconds": 1.5})
    fence = (await begun(agent))["fence"]
    for _ in range(4):
        await asyncio.sleep(0.6)  # what is tested is that time passes and the lease does not end
        await agent.append({"role": "agent"})
    assert (await standing(agent))[0] == "busy"
    async with following(api, agent.id) as feed:
        await feed.wait(lambda: any(one.data.get("state") == "failed" for one in feed.events), 15)
    shown = await agent.read()
    assert (shown["state"], shown["fence"]) == ("failed", fence + 1)
    assert shown["steps"][-1]["source"] == "interrupted"
    assert (await agent.read("/transitions"))["items"][0]["trigger"] == "reconciliation"
    await begun(agent)


async def test_end_of_a_turn_whose_steps_were_sealed_meanwhile(open_settings: Settings, mongo_uri: str) -> None:
    """The mark is found wherever its step lies: in the document, sealed with it, or bound to it when it was sealed."""
    aside = {"role": "user", "content": "x" * 200}
    async with serving(open_settings.model_copy(update={"seal_bytes": 1024}), mongo_uri) as sealing:
        agent = await sealing.made()
        ended = []
        for number in range(4):
            turn = (await begun(agent))["turn_id"]
            (own,) = (await agent.append({"role": "agent", "tool_calls": [call(f"c{number}")]}))["steps"]
            ended.append(own["id"])
            if number % 2:
                await finished(agent, turn)
            for _ in range(8):  # others write beside it, so that the turn's last step is sealed
                await agent.append(aside, advance_head=False)
            if not number % 2:
                await finished(agent, turn)
        shown = (await agent.read("/steps", limit=200))["items"]
        assert [step["id"] for step in shown if step.get("end")] == ended
        for step in ended:
            assert (await agent.read(f"/steps/{step}"))["end"] is True
        fork = Handle(sealing, (await agent.call("POST", "/fork", {})).json()["id"])
        for each in (agent, fork):
            assert [step["id"] for step in (await each.read())["steps"] if step.get("end")] == ended
            assert [step["id"] for step in (await each.read("/export"))["steps"] if step.get("end")] == ended
            assert (await each.read("/results"))["results"] == {}
        turn = (await begun(agent))["turn_id"]
        await agent.append({"role": "agent", "tool_calls": [call("open")]})
        for _ in range(8):
            await agent.append(aside, advance_head=False)
        await agent.call("POST", "/transitions", {"to": "failed", "trigger": "process_crashed"})
        last = (await agent.read())["steps"][-1]
        assert ([one["id"] for one in last["tool_results"]], last["turn_id"]) == (["open"], turn)


async def test_full_agent_can_still_be_driven_to_an_end(open_settings: Settings, mongo_uri: str) -> None:
    """What a claim or a transition stores is not refused for a size that callers filled."""
    small = open_settings.model_copy(update={"agent_limit_bytes": 64 * 1024})
    async with serving(small, mongo_uri) as tight:
        agent = await tight.made()
        turn = (await begun(agent))["turn_id"]
        for number in range(100):
            filled = await tight.http.patch(f"/v1/agents/{agent.id}", json={"labels": {f"l{number}": "x" * 900}})
            if not filled.is_success:
                break
        assert filled.status_code == 413
        await agent.call("POST", "/stop")
        await finished(agent, turn, "stopped")
        await begun(agent, "again")
        await agent.call("POST", "/transitions", {"to": "failed", "trigger": "process_crashed"})


async def test_prompt_of_any_role_opens_a_turn_of_its_own(api: Api) -> None:
    """Also one that is no user's, after a turn that is over."""
    agent = await api.made()
    first = (await begun(agent))["turn_id"]
    await finished(agent, first)
    second = await agent.call("POST", "/turns", {"role": "system", "content": "wake up", "id": "s"})
    assert second.json()["turn_id"] == "s"
    assert (
        await agent.call("POST", "/turns", {"role": "system", "content": "wake up", "id": "s"})
    ).json() == second.json()
    await finished(agent, "s")
    await agent.call("POST", "/revert", {"turn_id": "s"})
    assert await agent.path() == [first]


async def test_state_is_judged_before_the_parent(api: Api) -> None:
    """As the contract orders it."""
    agent = await api.made(pool="nobody's")
    body = {"content": "x", "parent_id": "nowhere"}
    await agent.call("POST", "/turns", body, expect="illegal-transition")


async def test_live_step_that_ends_a_turn_says_so(api: Api) -> None:
    """As every other reading of it does."""
    agent = await api.made()
    turn = (await begun(agent))["turn_id"]
    async with following(api, agent.id) as feed:
        await feed.take(1)
        done = await finished(agent, turn, steps=[{"role": "agent", "content": "done"}])
        told = await feed.take_until(done["version"])
        assert [one.data for one in told if one.kind == "step"] == done["steps"]


async def test_lease_goes_on_for_others_where_one_setting_is_odd(
    open_settings: Settings, mongo_uri: str, mongo: MongoClient[dict[str, Any]]
) -> None:
    """What an earlier program left unchecked is taken as the default, and stops nobody's reconciliation."""
    async with serving(open_settings, mongo_uri) as own:
        odd = await own.made()
        await begun(odd)
        await own.call("PATCH", f"/v1/agents/{odd.id}", {"name": "odd"})
        agents = mongo[open_settings.mongodb_database]["agents"]
        agents.update_one({"_id": f"default:{odd.id}"}, {"$set": {"settings.execution_timeout_seconds": "4m"}})
        other = await own.made(settings={"execution_timeout_seconds": 1})
        await begun(other)
        async with following(own, other.id) as feed:
            await feed.wait(lambda: any(one.data.get("state") == "failed" for one in feed.events), 15)
        await odd.call("DELETE")
