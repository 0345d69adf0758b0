"""Runners and pools: registered, alive, given agents to drive, never too many, never two for one agent."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from pymongo import MongoClient

from app.config import Settings
from app.runtime import running
from tests.api.conftest import MORTAL_TTL, KeyMaker
from tests.api.driver import Api, Handle, Json, bearer, problem_of
from tests.contract.samples import OF_AN_AGENT, READERS, SAMPLES, Route, name_of, prepared, send


class Runner:
    """One runner, through one replica."""

    def __init__(self, api: Api, told: Json, headers: dict[str, str] | None = None) -> None:
        self.api = api
        self.id: str = told["id"]
        self.token = bearer(told["token"])
        self.headers = headers or {}

    @classmethod
    async def made(cls, api: Api, pool: str, capacity: int = 5, **fields: Any) -> Runner:
        headers = fields.pop("headers", {})
        body = {"pool": pool, "platform": "local", "capacity": capacity, **fields}
        return cls(api, (await api.call("POST", "/v1/runners", body, headers=headers)).json(), headers)

    async def call(self, method: str, path: str = "", *body: Any, **options: Any) -> Any:
        headers = {**self.headers, **options.pop("headers", {})}
        return await self.api.call(method, f"/v1/runners/{self.id}{path}", *body, headers=headers, **options)

    async def claim(self, most: int = 5, wait: float = 0, **options: Any) -> list[Json]:
        answer = await self.call("POST", "/claim", {"max": most, "wait_seconds": wait}, **options)
        claims: list[Json] = answer.json().get("claims", [])
        return claims

    async def beat(self, **body: Any) -> Json:
        told: Json = (await self.call("POST", "/heartbeat", body)).json()
        return told

    async def silent(self) -> None:
        """Wait until it is taken to be dead."""
        await until(lambda: self.call("GET"), lambda told: told["state"] == "dead")


async def until(
    ask: Callable[[], Awaitable[Any]], holds: Callable[[Json], bool], seconds: float = MORTAL_TTL + 20
) -> None:
    """Ask again until it holds of the answer."""
    over = asyncio.get_running_loop().time() + seconds
    while not holds((await ask()).json()):
        assert asyncio.get_running_loop().time() < over, "waited in vain"
        await asyncio.sleep(0.05)


async def idle(agent: Handle, claim: Json) -> dict[str, str]:
    """Let a claimed agent be connected; the header that its writes carry."""
    token = {"Fencing-Token": str(claim["fence"])}
    await agent.call("POST", "/transitions", {"to": "idle", "trigger": "connected"}, headers=token)
    return token


async def test_registered_runner_is_shown_and_can_register_again(replicas: tuple[Api, Api], pool: str) -> None:
    """201 at first, 200 with a new incarnation and token afterwards; it is there on the other replica."""
    api, other = replicas
    body = {"id": pool, "pool": pool, "platform": "docker", "region": "eu", "capacity": 3, "metadata": {"a": 1}}
    first = await api.call("POST", "/v1/runners", body, expect=201)
    second = await other.call("POST", "/v1/runners", body, expect=200)
    assert (first.json()["incarnation"], second.json()["incarnation"]) == (1, 2)
    assert first.json()["token"] != second.json()["token"]
    assert first.json()["heartbeat_seconds"] < first.json()["ttl_seconds"] / 3
    shown = (await other.call("GET", f"/v1/runners/{pool}")).json()
    assert {name: shown[name] for name in body} == body
    assert "token" not in shown
    listed = (await api.call("GET", "/v1/runners", pool=pool)).json()["items"]
    assert [one["id"] for one in listed] == [pool]


async def test_capacity_is_exact_under_concurrency(replicas: tuple[Api, Api], pool: str) -> None:
    """100 agents, four runners of 25, claims from two replicas at once: 25 each, none twice, and the 101st waits."""
    api, other = replicas
    for _ in range(101):
        await api.made(pool=pool)
    runners = [await Runner.made((api, other)[number % 2], pool, 25) for number in range(4)]
    taken: dict[str, list[str]] = {runner.id: [] for runner in runners}

    async def claiming(runner: Runner) -> None:
        while claims := await runner.claim(8):
            taken[runner.id] += [claim["agent"] for claim in claims]

    await asyncio.gather(*map(claiming, runners), *map(claiming, runners))
    assert [len(agents) for agents in taken.values()] == [25] * 4
    assert Counter(agent for some in taken.values() for agent in some).most_common(1)[0][1] == 1
    listed = (await api.call("GET", "/v1/pools")).json()["items"]
    (own,) = [one for one in listed if one["pool"] == pool]
    assert (own["capacity"], own["load"], own["agents"]) == (100, 100, {"starting": 100, "pending": 1})
    waiting = asyncio.create_task(runners[0].claim(5, 30))
    released = await runners[0].call("POST", "/release", {"agent": taken[runners[0].id][0]})
    assert released.json()["state"] == "failed"
    assert len(await waiting) == 1


async def test_claims_are_spread_by_load(replicas: tuple[Api, Api], pool: str) -> None:
    """Two runners that ask together for more than there is end up with as much as each other."""
    api, other = replicas
    runners = [await Runner.made(api, pool, 20), await Runner.made(other, pool, 20)]
    for _ in range(10):
        await api.made(pool=pool)
    found = await asyncio.gather(*(runner.claim(20) for runner in runners))
    assert [len(claims) for claims in found] == [5, 5]
    alone = await Runner.made(api, pool, 20)
    for _ in range(4):
        await api.made(pool=pool)
    assert len(await runners[0].claim(20)) == 4, "a share is no wall: what nobody else takes is given"
    assert await alone.claim(20) == []


async def test_claim_gives_what_the_runner_needs(replicas: tuple[Api, Api], pool: str) -> None:
    """The fence, the delegate with its token, what ran before; pending agents start, idle ones stay idle."""
    api, _ = replicas
    agent = await api.made(pool=pool, delegate={"user": {"id": 7}, "token": "secret"})
    one, two = await Runner.made(api, pool), await Runner.made(api, pool)
    (claim,) = await one.claim()
    assert claim == {
        "agent": agent.id,
        "fence": 1,
        "version": 2,
        "attempt": 1,
        "previous_runner": None,
        "resource_id": None,
        "state": "starting",
        "delegate": {"user": {"id": 7}, "token": "secret"},
    }
    token = await idle(agent, claim)
    await agent.call("PUT", "/resource", {"resource_id": "pod-1"}, headers=token)
    version = await agent.version()
    await one.call("POST", "/release", {"agent": agent.id})
    (again,) = await two.claim()
    assert (again["fence"], again["state"], again["previous_runner"], again["resource_id"]) == (
        3,
        "idle",
        one.id,
        "pod-1",
    )
    assert again["version"] == version + 2
    shown = await agent.read()
    assert (shown["runner"], shown["delegate"]["token"]) == (two.id, "***")
    kinds = [entry["kinds"] for entry in (await api.call("GET", "/v1/changes", agent=agent.id)).json()["items"]]
    assert [kind for kind in kinds if "handed" in kind] == [["state", "runner", "handed"], ["runner", "handed"]]


async def test_platform_region_pool_and_dormancy_are_respected(replicas: tuple[Api, Api], pool: str) -> None:
    """An agent that asks for a platform or a region gets only such a runner; a dormant one gets none."""
    api, _ = replicas
    wanted = await api.made(pool=pool, platform="docker", region="eu")
    await api.made(pool=pool, dormant=True)
    await api.made(pool=f"{pool}-other")
    assert await (await Runner.made(api, pool, platform="vm", region="eu")).claim() == []
    assert await (await Runner.made(api, pool, platform="docker", region="us")).claim() == []
    claims = await (await Runner.made(api, pool, platform="docker", region="eu")).claim()
    assert [claim["agent"] for claim in claims] == [wanted.id]


async def test_claim_waits_for_an_agent_on_the_other_replica(replicas: tuple[Api, Api], pool: str) -> None:
    """A long poll is answered when one is made anywhere, and with nothing when its time is over."""
    api, other = replicas
    runner = await Runner.made(api, pool)
    assert await runner.claim(1, 0.2) == []
    waiting = asyncio.create_task(runner.claim(1, 30))
    agent = await other.made(pool=pool)
    async with asyncio.timeout(5):
        assert [claim["agent"] for claim in await waiting] == [agent.id]


async def test_heartbeat_tells_what_is_driven_and_what_is_lost(replicas: tuple[Api, Api], pool: str) -> None:
    """Also agents whose claim was never heard of; it writes no agent."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    (claim,) = await runner.claim()
    version = await agent.version()
    told = await runner.beat(agents=["gone"])
    assert told["agents"] == [{"id": agent.id, "fence": claim["fence"], "state": "starting"}]
    assert (told["lost"], told["draining"], told["commands_waiting"]) == (["gone"], False, 0)
    assert await agent.version() == version


async def test_heartbeat_is_one_small_write(
    replicas: tuple[Api, Api], pool: str, mongo: MongoClient[dict[str, Any]]
) -> None:
    """Of the runner's own document; nothing else is written, however many agents it drives."""
    api, _ = replicas
    for _ in range(5):
        await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    await runner.claim()
    oplog = mongo["local"]["oplog.rs"]
    others = {f"default:{one['id']}" for one in (await api.call("GET", "/v1/runners", limit=200)).json()["items"]}
    others.discard(f"default:{runner.id}")
    (newest,) = oplog.find().sort("$natural", -1).limit(1)
    await runner.beat(capacity=7)
    entries = [
        entry
        for entry in oplog.find({"ts": {"$gt": newest["ts"]}, "op": {"$ne": "n"}})
        if not entry["ns"].endswith((".beats", ".changes")) and entry["o2"]["_id"] not in others
    ]
    assert [entry["ns"].split(".")[1] for entry in entries] == ["runners"]
    assert len(str(entries[0]["o"])) < 400


async def test_release_hands_off(replicas: tuple[Api, Api], pool: str) -> None:
    """To one by its id, which alone may claim it; to whichever has room; to nobody there is none."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    one, two, three = [await Runner.made(api, pool, 2) for _ in range(3)]
    (claim,) = await one.claim()
    await idle(agent, claim)
    await one.call("POST", "/release", {"agent": agent.id, "hand_off": two.id})
    assert await three.claim() == []
    assert await one.claim() == []
    assert [claim["agent"] for claim in await two.claim()] == [agent.id]
    await one.call("POST", "/release", {"agent": agent.id}, expect="conflict")
    await two.call("POST", "/release", {"agent": agent.id, "hand_off": "nobody"}, expect="conflict")
    await two.call("POST", "/release", {"agent": agent.id, "hand_off": True})
    assert await two.claim() == []
    for runner in (one, two, three):
        await runner.call("POST", "/drain")
    lonely = await api.made(pool=f"{pool}-2")
    only = await Runner.made(api, f"{pool}-2")
    await only.claim()
    await only.call("POST", "/release", {"agent": lonely.id, "hand_off": True}, expect="conflict")


async def test_handed_off_agent_is_free_when_its_taker_is_gone(replicas: tuple[Api, Api], pool: str) -> None:
    """Nobody waits for one who never comes."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    one, two, three = [await Runner.made(api, pool, 2) for _ in range(3)]
    await idle(agent, (await one.claim())[0])
    await one.call("POST", "/release", {"agent": agent.id, "hand_off": two.id})
    await two.call("DELETE", expect=204)
    assert [claim["agent"] for claim in await three.claim()] == [agent.id]


async def test_hand_off_goes_to_one_that_may_drive_the_agent(replicas: tuple[Api, Api], pool: str) -> None:
    """Not to the emptiest of the pool, if that is of another platform; by name neither."""
    api, _ = replicas
    agent = await api.made(pool=pool, platform="docker")
    one, two = [await Runner.made(api, pool, 2, platform="docker") for _ in range(2)]
    roomy = await Runner.made(api, pool, 50, platform="vm")
    await idle(agent, (await one.claim())[0])
    await one.call("POST", "/release", {"agent": agent.id, "hand_off": roomy.id}, expect="conflict")
    await one.call("POST", "/release", {"agent": agent.id, "hand_off": True})
    assert await one.claim() == []
    assert [claim["agent"] for claim in await two.claim()] == [agent.id]


async def test_handed_off_agent_is_free_when_its_taker_does_not_come(
    replicas: tuple[Api, Api], pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An offer holds for a while, not as long as the taker lives."""
    api, _ = replicas
    monkeypatch.setattr("app.runners._OFFER_SECONDS", 1.0)
    agent = await api.made(pool=pool)
    one, two, three = [await Runner.made(api, pool, 2) for _ in range(3)]
    await idle(agent, (await one.claim())[0])
    await one.call("POST", "/release", {"agent": agent.id, "hand_off": two.id})
    assert await three.claim() == []
    assert [claim["agent"] for claim in await three.claim(wait=10)] == [agent.id]


async def test_keyed_release_is_answered_as_at_first(replicas: tuple[Api, Api], pool: str) -> None:
    """Also when the taker is full by then, and when the runner has left."""
    api, other = replicas
    agent = await api.made(pool=pool)
    one, two = [await Runner.made(api, pool, 1) for _ in range(2)]
    await idle(agent, (await one.claim())[0])
    key = {"Idempotency-Key": f"release-{pool}"}
    body = {"agent": agent.id, "hand_off": True}
    first = await one.call("POST", "/release", body, headers=key)
    assert len(await two.claim()) == 1
    again = await one.call("POST", "/release", body, headers=key)
    await one.call("DELETE")
    later = await other.call("POST", f"/v1/runners/{one.id}/release", body, headers=key)
    assert first.content == again.content == later.content
    assert (await agent.read())["runner"] == two.id


async def test_draining_runner_claims_nothing_more(replicas: tuple[Api, Api], pool: str) -> None:
    """It keeps what it has, and is told."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    await runner.claim()
    drained = (await runner.call("POST", "/drain")).json()
    assert (drained["state"], drained["draining"], drained["load"]) == ("draining", True, 1)
    await api.made(pool=pool)
    assert await runner.claim() == []
    assert (await runner.beat())["draining"] is True
    assert (await agent.read())["runner"] == runner.id


@pytest.mark.parametrize("end", ["silent", "left", "registered anew"])
async def test_runner_that_is_gone_leaves_each_agent_in_a_defined_place(
    replicas: tuple[Api, Api], mortal: tuple[Api, Api], pool: str, end: str
) -> None:
    """Idle ones wait unseen; starting, busy and stopping ones failed, their turns closed; dormant ones are left."""
    api, other = mortal if end == "silent" else replicas
    agents = {name: await api.made(id=f"{name}-{pool[-6:]}-{end[:4]}", pool=pool) for name in STATES}
    runner = await Runner.made(api, pool, 10, id=f"{pool}-{end[:4]}")
    fences = {claim["agent"]: claim["fence"] for claim in await runner.claim(10)}
    for name, agent in agents.items():
        token = {"Fencing-Token": str(fences[agent.id])}
        for path, body in STATES[name]:
            await agent.call("POST", path, body, headers=token)
        await runner.beat()
    versions = {name: await agent.version() for name, agent in agents.items()}
    if end == "silent":
        await runner.silent()
    elif end == "left":
        await runner.call("DELETE")
    else:
        await Runner.made(other, pool, 10, id=runner.id)
    await until(lambda: api.call("GET", "/v1/agents", runner=runner.id), lambda told: not told["items"])
    found = {name: await agent.read(headers={"Cache-Control": "no-cache"}) for name, agent in agents.items()}
    assert {name: shown["state"] for name, shown in found.items()} == {
        "starting": "failed",
        "idle": "idle",
        "busy": "failed",
        "stopping": "failed",
    }
    for name, shown in found.items():
        assert (shown["version"], shown["runner"]) == (versions[name] + 1, None)
        assert shown["fence"] == fences[agents[name].id] + 1
    assert [found[name]["steps"][-1]["source"] for name in ("busy", "stopping")] == ["interrupted"] * 2
    await runner.call("POST", "/heartbeat", {}, headers=runner.token, expect="fenced-out")
    claims = await (await Runner.made(other, pool, 10)).claim(10)
    assert {claim["agent"]: claim["attempt"] for claim in claims} == {
        agent.id: 1 if name == "idle" else 2 for name, agent in agents.items()
    }


_CONNECTED = ("/transitions", {"to": "idle", "trigger": "connected"})
_PROMPTED = ("/turns", {"content": "go"})
STATES: dict[str, list[tuple[str, Any]]] = {
    "starting": [],
    "idle": [_CONNECTED],
    "busy": [_CONNECTED, _PROMPTED],
    "stopping": [_CONNECTED, _PROMPTED, ("/stop", {})],
}
"""What is done to a claimed agent until it is in a state."""


async def test_failed_agents_restart_by_the_pools_policy(replicas: tuple[Api, Api], pool: str) -> None:
    """Never; or so often in a row and no more; a finished turn counts anew."""
    api, _ = replicas
    await api.call("PUT", f"/v1/pools/{pool}", {"restart": "never"})
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    crash = {"to": "failed", "trigger": "process_crashed"}

    async def crashes(claim: Json) -> None:
        await agent.call("POST", "/transitions", crash, headers={"Fencing-Token": str(claim["fence"])})

    await crashes((await runner.claim())[0])
    assert await runner.claim() == []
    decided = await api.call("PUT", f"/v1/pools/{pool}", {"restart": "on_failure", "attempts": 2, "backoff_seconds": 0})
    assert decided.json() == {"pool": pool, "restart": "on_failure", "attempts": 2, "backoff_seconds": 0}
    for attempt in (2, 3):
        (claim,) = await runner.claim()
        assert claim["attempt"] == attempt
        await crashes(claim)
    assert await runner.claim() == []
    assert (await agent.read())["state"] == "failed"


async def test_restarts_are_spaced_out(replicas: tuple[Api, Api], pool: str) -> None:
    """The first at once, so that fail-over is fast; the next only after the pause that the pool asks for."""
    api, _ = replicas
    await api.call("PUT", f"/v1/pools/{pool}", {"backoff_seconds": 2})
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    for _ in range(2):
        (claim,) = await runner.claim()
        token = {"Fencing-Token": str(claim["fence"])}
        await agent.call("POST", "/transitions", {"to": "failed", "trigger": "process_crashed"}, headers=token)
    assert await runner.claim() == []
    began = asyncio.get_running_loop().time()
    assert [claim["attempt"] for claim in await runner.claim(1, 15)] == [3]
    assert asyncio.get_running_loop().time() - began > 1.5


async def test_prompt_between_two_runners_waits_for_the_next(replicas: tuple[Api, Api], pool: str) -> None:
    """An idle agent that lost its runner may be prompted: the next runner finds it busy, its turn untouched."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    one, two = await Runner.made(api, pool), await Runner.made(api, pool)
    await idle(agent, (await one.claim())[0])
    await one.call("DELETE")
    turn = (await agent.call("POST", "/turns", {"content": "anybody?"})).json()
    (claim,) = await two.claim()
    assert (claim["state"], claim["fence"]) == ("busy", turn["fence"] + 1)
    token = {"Fencing-Token": str(claim["fence"])}
    await agent.call("POST", f"/turns/{turn['turn_id']}/finish", {"outcome": "completed"}, headers=token)


async def test_reconcile_reports_and_is_idempotent(replicas: tuple[Api, Api], pool: str) -> None:
    """Agents of a pool that run without a runner fail; pending, dormant and pool-less ones are left alone."""
    api, other = replicas
    starting = await api.made(pool=pool)
    left = [await api.made(pool=pool), await api.made(pool=pool, dormant=True), await api.made()]
    for agent in (starting, *left[1:]):
        await agent.call("POST", "/transitions", {"to": "starting", "trigger": "spawn"})
    versions = [await agent.version() for agent in left]
    report = (await api.call("POST", "/v1/reconcile", expect=200)).json()
    mine = [one for one in report["changed"] if one["agent"] == starting.id]
    assert [(one["from"], one["to"]) for one in mine] == [("starting", "failed")]
    assert mine[0]["reason"]
    again = (await other.call("POST", "/v1/reconcile")).json()
    assert starting.id not in [one["agent"] for one in again["changed"]]
    assert [await agent.version() for agent in left] == versions


class Cast:
    """An agent driven by a runner of a keyed tenant, and keys of that tenant."""

    def __init__(self, agent: Handle, runner: Runner, claim: Json, keys: dict[str, dict[str, str]]) -> None:
        self.agent = agent
        self.runner = runner
        self.claim = claim
        self.keys = keys


@pytest_asyncio.fixture(loop_scope="session")
async def cast(keyed: Api, new_key: KeyMaker, tenant: str, pool: str) -> Cast:
    keys = {right: bearer(await new_key(tenant, right)) for right in ("runner", "admin", "write")}
    keys |= {"all": bearer(await new_key(tenant)), "other runner": bearer(await new_key(tenant, "runner"))}
    agent = await prepared(keyed, **keys["all"])
    await agent.call("PATCH", "", {"pool": pool}, headers=keys["all"])
    runner = await Runner.made(keyed, pool, headers=keys["runner"])
    (claim,) = await runner.claim()
    return Cast(agent, runner, claim, keys)


WRITES = [route for route in OF_AN_AGENT if route[0] != "GET" and SAMPLES[route].rights != READERS]
DRIVEN = [route for route in WRITES if "runner" in SAMPLES[route].rights]


@pytest.mark.parametrize("route", WRITES, ids=name_of)
async def test_stale_fence_is_fenced_out_by_every_write(cast: Cast, keyed: Api, route: Route) -> None:
    """Whoever sends it, by every route that writes an agent: the agent stays as it is."""
    stale = {"Fencing-Token": str(cast.claim["fence"] - 1)}
    before = await cast.agent.read("/export", headers=cast.keys["all"])
    senders = [cast.keys["all"]] + ([cast.keys["runner"], cast.runner.token] if route in DRIVEN else [])
    for sender in senders:
        await send(keyed, route, cast.agent.id, headers={**sender, **stale}, expect="fenced-out")
    assert await cast.agent.read("/export", headers=cast.keys["all"]) == before


@pytest.mark.parametrize("route", DRIVEN, ids=name_of)
async def test_runners_key_can_not_leave_the_fence_out(cast: Cast, keyed: Api, route: Route) -> None:
    """428, by every route that a runner may write an agent by."""
    before = await cast.agent.read("/export", headers=cast.keys["all"])
    for sender in (cast.keys["runner"], cast.runner.token):
        await send(keyed, route, cast.agent.id, headers=sender, expect="precondition-required")
    assert await cast.agent.read("/export", headers=cast.keys["all"]) == before


async def test_runner_is_its_keys_and_its_tokens(cast: Cast, keyed: Api) -> None:
    """Another key of the right is forbidden, an administrator is not; the token speaks for its runner alone."""
    other = await Runner.made(keyed, "elsewhere", headers=cast.keys["other runner"])
    runner = cast.runner
    for headers in (runner.token, cast.keys["runner"]):
        await keyed.call("POST", f"/v1/runners/{runner.id}/heartbeat", {}, headers=headers, expect=200)
        await keyed.call("POST", f"/v1/runners/{other.id}/heartbeat", {}, headers=headers, expect="forbidden")
    await keyed.call("POST", f"/v1/runners/{runner.id}/drain", headers=cast.keys["other runner"], expect="forbidden")
    await keyed.call("GET", "/v1/runners", headers=runner.token, expect=200)
    await keyed.call("POST", "/v1/agents", {}, headers=runner.token, expect="forbidden")
    same = {"id": runner.id, "pool": "p", "platform": "local", "capacity": 1}
    await keyed.call("POST", "/v1/runners", same, headers=cast.keys["other runner"], expect="conflict")


async def test_token_of_an_earlier_incarnation_is_fenced_out(cast: Cast, keyed: Api) -> None:
    """Not unknown: so a zombie learns what it is."""
    again = await Runner.made(keyed, "p", id=cast.runner.id, headers=cast.keys["runner"])
    path = f"/v1/runners/{again.id}"
    await keyed.call("POST", f"{path}/heartbeat", {}, headers=cast.runner.token, expect="fenced-out")
    await keyed.call("POST", f"{path}/claim", {"max": 1}, headers=cast.runner.token, expect="fenced-out")
    await keyed.call("POST", f"{path}/heartbeat", {}, headers=again.token, expect=200)


async def test_owners_runner_drives_its_owners_agents_only(
    keyed: Api, new_key: KeyMaker, tenant: str, pool: str
) -> None:
    """It neither claims nor sees another's."""
    everything = bearer(await new_key(tenant))
    ann = bearer(await new_key(tenant, owner="ann"))
    mine = await keyed.call("POST", "/v1/agents", {"pool": pool, "owner": "ann"}, headers=everything)
    await keyed.call("POST", "/v1/agents", {"pool": pool, "owner": "bob"}, headers=everything)
    runner = await Runner.made(keyed, pool, headers=ann)
    assert [claim["agent"] for claim in await runner.claim()] == [mine.json()["id"]]


async def test_tenants_pools_never_meet(keyed: Api, new_key: KeyMaker, tenant: str, pool: str) -> None:
    """The same pool's name in another tenant is another pool; its runners are not found."""
    mine, theirs = bearer(await new_key(tenant)), bearer(await new_key(f"{tenant}x"))
    await keyed.call("POST", "/v1/agents", {"pool": pool}, headers=mine)
    stranger = await Runner.made(keyed, pool, headers=theirs)
    assert await stranger.claim() == []
    await keyed.call("GET", f"/v1/runners/{stranger.id}", headers=mine, expect="not-found")
    pools = (await keyed.call("GET", "/v1/pools", headers=mine)).json()["items"]
    assert [(one["pool"], one["runners"]) for one in pools] == [(pool, {})]


async def test_token_registers_nobody_and_ends_with_its_key(
    keyed: Api, keyed_settings: Settings, mongo_uri: str, new_key: KeyMaker, tenant: str, pool: str
) -> None:
    """Whoever loses the key loses all that came of it."""
    key = await new_key(tenant, "runner")
    runner = await Runner.made(keyed, pool, headers=bearer(key))
    body = {"pool": pool, "platform": "local", "capacity": 1}
    for name in ({}, {"id": runner.id}):
        await keyed.call("POST", "/v1/runners", {**body, **name}, headers=runner.token, expect="forbidden")
    async with running(keyed_settings, mongo_uri) as runtime:
        await runtime.keys.revoke(key.split("_")[1])
    deadline = asyncio.get_running_loop().time() + 10
    path = f"/v1/runners/{runner.id}/heartbeat"
    while (await keyed.http.post(path, json={}, headers=runner.token)).status_code != 401:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.1)


async def test_hand_off_does_not_wait_for_one_that_drains(replicas: tuple[Api, Api], pool: str) -> None:
    """It claims nothing more, so others may; and one that is full is no taker."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    one, two, three = [await Runner.made(api, pool, 1) for _ in range(3)]
    await idle(agent, (await one.claim())[0])
    await one.call("POST", "/release", {"agent": agent.id, "hand_off": two.id})
    await two.call("POST", "/drain")
    assert [claim["agent"] for claim in await three.claim()] == [agent.id]
    other = await api.made(pool=pool)
    assert [claim["agent"] for claim in await one.claim()] == [other.id]
    await one.call("POST", "/release", {"agent": other.id, "hand_off": three.id}, expect="conflict")


async def test_reconciliation_ends_at_the_owner_of_the_key(
    keyed: Api, new_key: KeyMaker, tenant: str, pool: str
) -> None:
    """Who does not see an agent does not change it."""
    everything, ann = bearer(await new_key(tenant)), bearer(await new_key(tenant, owner="ann"))
    made = await keyed.call("POST", "/v1/agents", {"pool": pool, "owner": "bob", "dormant": False}, headers=everything)
    path = f"/v1/agents/{made.json()['id']}"
    runner = await Runner.made(keyed, pool, headers=everything)
    await runner.claim()
    await keyed.call("DELETE", f"/v1/runners/{runner.id}", headers=everything)
    report = await keyed.call("POST", "/v1/reconcile", headers=ann)
    assert report.json()["changed"] == []
    assert (await keyed.call("GET", path, headers=everything)).json()["state"] == "failed"


async def test_claim_that_was_not_heard_is_told_again(replicas: tuple[Api, Api], pool: str) -> None:
    """With the delegate's token, to the runner that says what it knows it drives."""
    api, _ = replicas
    agent = await api.made(pool=pool, delegate={"user": {}, "token": "secret"})
    runner = await Runner.made(api, pool)
    (first,) = await runner.claim()
    again = await runner.call("POST", "/claim", {"max": 5, "agents": []})
    assert [(one["agent"], one["fence"], one["delegate"]["token"]) for one in again.json()["claims"]] == [
        (agent.id, first["fence"], "secret")
    ]
    known = await runner.call("POST", "/claim", {"max": 5, "agents": [agent.id]})
    assert known.json()["claims"] == []


async def test_sleeping_agents_take_no_room(replicas: tuple[Api, Api], pool: str) -> None:
    """One that was left with an earlier incarnation does not count for the next."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool, 1, id=f"sleeper-{pool[-8:]}")
    await idle(agent, (await runner.claim())[0])
    await agent.call("POST", "/commands", {"action": "hibernate"})
    (command,) = (await runner.call("GET", "/commands")).json()["items"]
    await api.call("POST", f"/v1/commands/{command['id']}/complete")
    again = await Runner.made(api, pool, 1, id=runner.id)
    other = await api.made(pool=pool)
    assert [claim["agent"] for claim in await again.claim()] == [other.id]


async def test_hand_off_to_one_that_got_full_is_free_for_others(replicas: tuple[Api, Api], pool: str) -> None:
    """Nobody waits for room that does not come."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    one, two = [await Runner.made(api, pool, 1) for _ in range(2)]
    await idle(agent, (await one.claim())[0])
    await one.call("POST", "/release", {"agent": agent.id, "hand_off": two.id})
    await api.made(pool=pool)
    assert await one.claim(1) != []
    await one.call("DELETE")
    (claim,) = await two.claim(1)
    three = await Runner.made(api, pool, 5)
    rest = await three.claim(5)
    assert agent.id in {claim["agent"], *(one["agent"] for one in rest)}


async def test_one_agents_trouble_keeps_no_other_from_being_claimed(
    replicas: tuple[Api, Api], pool: str, mongo: MongoClient[dict[str, Any]]
) -> None:
    """An agent that can't be written is passed over."""
    api, _ = replicas
    agents = [await api.made(pool=pool) for _ in range(4)]
    (name,) = [
        each
        for each in mongo.list_database_names()
        if mongo[each]["agents"].find_one({"_id": f"default:{agents[0].id}"})
    ]
    mongo[name]["agents"].update_one({"_id": f"default:{agents[0].id}"}, {"$set": {"model": "x" * 15_900_000}})
    runner = await Runner.made(api, pool)
    claims = {claim["agent"] for claim in await runner.claim(5)}
    assert claims >= {agent.id for agent in agents[1:]}


async def test_keyed_registration_is_answered_as_at_first(
    replicas: tuple[Api, Api], pool: str, mongo: MongoClient[dict[str, Any]]
) -> None:
    """The same runner and token, on another replica; another body is a mistake; the kept token is sealed."""
    api, other = replicas
    body = {"pool": pool, "platform": "local", "capacity": 1}
    key = {"Idempotency-Key": f"register-{pool}"}
    first = await api.call("POST", "/v1/runners", body, headers=key, expect=201)
    again = await other.call("POST", "/v1/runners", body, headers=key, expect=201)
    assert (again.json(), again.headers["location"]) == (first.json(), first.headers["location"])
    await api.call("POST", "/v1/runners", {**body, "capacity": 2}, headers=key, expect="idempotency-mismatch")
    listed = (await api.call("GET", "/v1/runners", pool=pool)).json()["items"]
    assert [(one["id"], one["incarnation"]) for one in listed] == [(first.json()["id"], 1)]
    token = first.json()["token"].encode()
    for name in mongo.list_database_names():
        if name.startswith("test_"):
            assert not any(token in bytes(one["body"]) for one in mongo[name]["idempotency"].find())


async def test_keyed_registrations_at_once_are_one(replicas: tuple[Api, Api], pool: str) -> None:
    """Of many, on two replicas, one is carried out; the others wait for its answer and get it, and its token works."""
    body = {"pool": pool, "platform": "local", "capacity": 1}
    key = {"Idempotency-Key": f"register-{pool}"}

    async def registered(api: Api) -> bytes:
        while True:
            answer = await api.http.post("/v1/runners", json=body, headers=key)
            if answer.status_code == 201:
                return answer.content
            assert (problem_of(answer)["code"], answer.headers["retry-after"]) == ("conflict", "1")
            await asyncio.sleep(0.1)

    (told,) = set(await asyncio.gather(*(registered(api) for api in replicas * 5)))
    runner = Runner(replicas[0], json.loads(told))
    assert (await runner.call("POST", "/heartbeat", {}, headers=runner.token)).is_success


async def test_keyed_registrations_of_two_keys_are_two(keyed: Api, new_key: KeyMaker, tenant: str, pool: str) -> None:
    """Nobody gets the token of another key's runner by guessing what it sent."""
    body = {"pool": pool, "platform": "local", "capacity": 1}
    keys = [{**bearer(await new_key(tenant, "runner")), "Idempotency-Key": "boot"} for _ in range(2)]
    made = [(await keyed.call("POST", "/v1/runners", body, headers=key, expect=201)).json() for key in keys]
    assert len({one["id"] for one in made}) == len({one["token"] for one in made}) == 2


async def test_keyed_words_of_runners_are_answered_as_at_first(replicas: tuple[Api, Api], pool: str) -> None:
    """Another body under the same key is a mistake; what failed may be tried again."""
    api, other = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool)
    await runner.claim()
    command = (await agent.call("POST", "/commands", {"action": "custom"})).json()["id"]
    key = {"Idempotency-Key": "done"}
    done = f"/v1/commands/{command}/complete"
    await api.call("POST", done, {"result": 1}, headers=key, expect="conflict")
    await runner.call("GET", "/commands")
    first = await api.call("POST", done, {"result": 1}, headers=key)
    assert (await other.call("POST", done, {"result": 1}, headers=key)).content == first.content
    await other.call("POST", done, {"result": 2}, headers=key, expect="idempotency-mismatch")
    draining = await runner.call("POST", "/drain", headers=key)
    await runner.call("DELETE")
    assert (await runner.call("POST", "/drain", headers=key)).content == draining.content
    report = await api.call("POST", "/v1/reconcile", headers=key)
    assert (await other.call("POST", "/v1/reconcile", headers=key)).content == report.content


@pytest.mark.parametrize("name", ["a/b", "a\nb", "", "x" * 257])
async def test_pools_name_is_one_that_its_path_can_hold(api: Api, name: str) -> None:
    """Wherever a pool is named, the same names are refused."""
    await api.call("POST", "/v1/agents", {"pool": name}, expect="invalid-request")
    await api.call("POST", "/v1/runners", {"pool": name, "platform": "vm", "capacity": 1}, expect="invalid-request")
    agent = await api.made()
    await agent.call("PATCH", "", {"pool": name}, expect="invalid-request")


async def test_odd_name_of_a_pool_is_one_everywhere(api: Api) -> None:
    """Spaces and letters of any script are fine."""
    await api.made(pool="ein \u00a0 Becken %")
    decided = {"restart": "never"}
    await api.call("PUT", "/v1/pools/ein%20%C2%A0%20Becken%20%25", decided)
    shown = (await api.call("GET", "/v1/pools")).json()["items"]
    assert "ein \u00a0 Becken %" in [one["pool"] for one in shown]


async def test_release_of_a_runner_that_is_gone_is_fenced_out_whatever_its_terms(
    replicas: tuple[Api, Api], pool: str
) -> None:
    """Not told that a prompt came meanwhile, which it would go on to drive."""
    api, _ = replicas
    agent = await api.made(pool=pool)
    runner = await Runner.made(api, pool, id=f"gone-{pool[-8:]}")
    (claim,) = await runner.claim()
    await Runner.made(api, pool, id=runner.id)
    headers = {**runner.token, "If-Match": f'"{claim["version"]}"'}
    await runner.call("POST", "/release", {"agent": agent.id}, headers=headers, expect="fenced-out")
