"""The state machine over HTTP, on two replicas: the whole table and nothing beside it, once, and told as it is."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise, product

import pytest

from models.execution import TRANSITIONS, State, Trigger, activity_of, status_of
from tests.api.driver import Api, Handle
from tests.api.feed_driver import following

WAYS: dict[State, list[tuple[State, Trigger]]] = {
    State.PENDING: [],
    State.STARTING: [(State.STARTING, Trigger.SPAWN)],
    State.IDLE: [(State.STARTING, Trigger.SPAWN), (State.IDLE, Trigger.CONNECTED)],
    State.STOPPED: [(State.STOPPED, Trigger.USER_TERMINATED)],
    State.FAILED: [(State.FAILED, Trigger.PROCESS_CRASHED)],
}
WAYS[State.BUSY] = [*WAYS[State.IDLE], (State.BUSY, Trigger.PROMPT_RECEIVED)]
WAYS[State.STOPPING] = [*WAYS[State.BUSY], (State.STOPPING, Trigger.STOP_REQUESTED)]
"""How a new agent is brought to each state."""

CONTRACT = {
    ("pending", "starting"): {"spawn"},
    ("starting", "idle"): {"connected"},
    ("idle", "busy"): {"prompt_received"},
    ("busy", "idle"): {"result_received"},
    ("busy", "stopping"): {"stop_requested"},
    ("stopping", "idle"): {"result_received"},
    ("failed", "starting"): {"spawn"},
    ("failed", "stopped"): {"user_terminated"},
    ("stopped", "starting"): {"spawn"},
    **{
        (state, "failed"): {"process_crashed", "reconciliation"}
        for state in ("pending", "starting", "idle", "busy", "stopping")
    },
    **{(state, "stopped"): {"user_terminated"} for state in ("pending", "starting", "idle", "busy", "stopping")},
}
"""The contract's table, written out a second time, so that a change of the program's is noticed."""


async def moved(agent: Handle, to: str, trigger: str, **options: object) -> dict[str, object]:
    answer = await agent.call("POST", "/transitions", {"to": to, "trigger": trigger}, **options)
    told: dict[str, object] = answer.json()
    return told


async def brought_to(api: Api, state: State) -> Handle:
    agent = await api.made()
    for to, trigger in WAYS[state]:
        await moved(agent, to, trigger)
    return agent


def test_table_is_the_contracts() -> None:
    """Each pair of states with its triggers, and no other."""
    table = {
        (state.value, to.value): {trigger.value for trigger in triggers}
        for state, ways in TRANSITIONS.items()
        for to, triggers in ways.items()
    }
    assert table == CONTRACT


@pytest.mark.parametrize("state", State)
async def test_every_transition_is_made_or_refused_as_the_table_says(
    api: Api, other_replica: Api, state: State
) -> None:
    """All states times all triggers, each by one of the two replicas in turn; a refusal leaves the version."""
    agent = await brought_to(api, state)
    version = await agent.version()
    for number, (to, trigger) in enumerate(product(State, Trigger)):
        asked = agent.by((api, other_replica)[number % 2])
        if trigger not in CONTRACT.get((state.value, to.value), ()):
            problem = await moved(asked, to, trigger, expect="illegal-transition")
            assert (problem["state"], problem["to"], problem["trigger"]) == (state.value, to.value, trigger.value)
            assert await agent.version() == version
            continue
        told = await moved(asked, to, trigger, expect=200)
        assert (told["state"], told["version"], told["trigger"]) == (to.value, version + 1, trigger.value)
        assert (told["status"], told["activity"]) == (status_of(to), activity_of(to))
        shown = await asked.read(steps="none")
        assert {name: shown[name] for name in ("state", "status", "activity", "version")} == {
            name: told[name] for name in ("state", "status", "activity", "version")
        }
        agent = await brought_to(api, state)


async def test_of_simultaneous_prompts_one_wins(api: Api, other_replica: Api) -> None:
    """20 at once over two replicas: one busy agent, one history entry, the others are told how it stands."""
    agent = await brought_to(api, State.IDLE)
    body = {"to": "busy", "trigger": "prompt_received"}
    answers = await asyncio.gather(
        *(
            replica.http.post(f"/v1/agents/{agent.id}/transitions", json=body)
            for replica in (api, other_replica)
            for _ in range(10)
        )
    )
    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 19}
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"illegal-transition"}
    history = (await agent.read("/transitions"))["items"]
    assert [entry["to"] for entry in history] == ["busy", "idle", "starting"]


async def test_history_is_newest_first_paged_and_bounded(api: Api) -> None:
    """The newest 64 are kept, in order, whole over pages; creation is none of them; the change log has them all."""
    agent = await brought_to(api, State.IDLE)
    for _ in range(40):
        await moved(agent, "busy", "prompt_received")
        await moved(agent, "idle", "result_received")
    seen, cursor = [], None
    while True:
        page = await agent.read("/transitions", limit=7, **({"cursor": cursor} if cursor else {}))
        seen += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == 64
    assert [entry["version"] for entry in seen] == list(range(83, 83 - 64, -1))
    assert all(later["from"] == earlier["to"] for later, earlier in pairwise(seen))
    assert {"from", "to", "trigger", "at", "version", "by"} <= seen[0].keys()
    logged = await api.call("GET", "/v1/changes", agent=agent.id, kinds="state", limit=200)
    assert [entry["trigger"] for entry in logged.json()["items"]][:3] == ["spawn", "connected", "prompt_received"]
    assert len(logged.json()["items"]) == 82


async def test_reason_is_kept(api: Api) -> None:
    """Why a transition was made is in the history."""
    agent = await brought_to(api, State.IDLE)
    await agent.call("POST", "/transitions", {"to": "failed", "trigger": "process_crashed", "reason": "out of memory"})
    assert (await agent.read("/transitions"))["items"][0]["reason"] == "out of memory"


async def test_feed_tells_a_transition_once_also_what_did_not_change_with_it(api: Api, other_replica: Api) -> None:
    """Each commit one `state` event, on the replica that wrote and on another; status and activity are always there."""
    agent = await brought_to(api, State.IDLE)
    wanted = [
        ("busy", "running", "busy", "prompt_received"),
        ("stopping", "running", "busy", "stop_requested"),
        ("idle", "running", "idle", "result_received"),
    ]
    async with following(api, agent.id) as here, following(other_replica, agent.id) as there:
        for feed in (here, there):
            assert [one.kind for one in await feed.take(1)] == ["snapshot"]
        for to, _, _, trigger in wanted:
            await moved(agent, to, trigger)
        for feed in (here, there):
            told = await feed.take(len(wanted))
            assert [one.kind for one in told] == ["state"] * 3
            assert [tuple(one.data[name] for name in ("state", "status", "activity", "trigger")) for one in told] == (
                wanted
            )
