"""A living fleet, for demos and load: agents in pools with a past, and runners that drive them while you watch.

Everything goes over HTTP, so it works on any deployment. First agents are made: with labels, turns, tool calls, side
branches and results, some of them without a pool, in every state that there is. Then runners register, claim, beat, and
drive turns by a script until the time is over or Ctrl-C; in the end they take themselves off. What is made follows from
`--random-seed`; what is there already is left as it is, so it can be started again.

Try it: `python -m scripts.seed --agents 40 --runners 4 --seconds 60`.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Annotated, Any
from uuid import uuid4

import httpx
import typer

from app.cli.console import answer, progress, say

Json = dict[str, Any]

STATES = ("pending", "starting", "idle", "busy", "stopping", "stopped", "failed")
AT_ONCE = 16
PATIENCE_SECONDS = 15.0
"""How long a replica may be away before we give up."""

CLAIM_SECONDS = 2.0
"""How long a replica may let a runner wait for agents."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
_POOL_LESS = 4
"""Each so many agents one is in no pool, and driven by us in the place of its user."""

_NAMES = ("Ada", "Bela", "Chen", "Dara", "Edna", "Finn", "Gaia", "Hugo", "Ines", "Juno", "Kofi", "Lena")
_TEAMS = ("blue", "green", "red")
_TASKS = ("the failing test", "the slow query", "the flaky build", "the broken link", "the old dependency")
_TOOLS = ("search", "read_file", "run_tests", "edit")
_MODELS = ("small-1", "large-2")
_PLATFORMS = ("kubernetes", "docker", "vm", "cloud", "local")


class Refused(Exception):
    """A replica said no, and asking again would not help."""

    def __init__(self, status: int, problem: Json) -> None:
        super().__init__(f"it answers {status} {problem.get('code', '')}: {problem.get('detail', '')}")
        self.status = status


class NobodyAnswers(Exception):
    """No replica answered for a while."""


@dataclass(frozen=True)
class Plan:
    """What is to be made."""

    agents: int
    runners: int
    pools: Sequence[str]
    steps: int
    pace: float
    seed: int

    def chance(self, *of: object) -> Random:
        """Randomness that is always the same for the same thing."""
        return Random(":".join(map(str, (self.seed, *of))))


@dataclass
class Told:
    """What was done so far."""

    counts: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in self.counts.items())


class Deployment:
    """One replica, or what stands before several."""

    def __init__(self, url: str, key: str | None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(base_url=url, headers=headers, timeout=30, limits=limits, trust_env=False)
        self.url = url

    async def ask(self, method: str, path: str, body: Json | None = None, fence: int | None = None) -> Json:
        """The answer, asked for again while nobody gives one. Raises Refused, NobodyAnswers."""
        headers = {} if fence is None else {"Fencing-Token": str(fence)}
        until, pause = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE
        while True:
            with suppress(httpx.TransportError):
                found = await self._client.request(method, f"/v1{path}", json=body, headers=headers)
                if found.status_code != 503:
                    return _accepted(found)
            if time.monotonic() + pause > until:
                raise NobodyAnswers(self.url)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def require(self) -> None:
        """Raise NobodyAnswers, or Refused, unless we may work here. Does not wait."""
        try:
            _accepted(await self._client.get("/v1/agents", params={"limit": 1}))
        except httpx.HTTPError as error:
            raise NobodyAnswers(self.url) from error

    async def close(self) -> None:
        await self._client.aclose()


def _accepted(found: httpx.Response) -> Json:
    told: Json = {}
    if found.content:
        with suppress(ValueError):
            told = found.json()
    if not found.is_success:
        raise Refused(found.status_code, told)
    return told


class Maker:
    """Makes agents with a past. Their steps have chosen ids, so that nothing is doubled when it is sent again."""

    def __init__(self, deployment: Deployment, plan: Plan, told: Told) -> None:
        self._deployment = deployment
        self._plan = plan
        self._told = told

    async def make(self, number: int) -> None:
        """One agent, whole; or nothing, when it is there already."""
        chance = self._plan.chance("agent", number)
        agent = f"seed-{self._plan.seed}-{number:04}"
        state, pooled = _destiny(number)
        spec = _spec(agent, chance, chance.choice(self._plan.pools) if pooled else None)
        try:
            await self._deployment.ask("POST", "/agents", spec)
        except Refused as refusal:
            if refusal.status != 409:
                raise
            self._told.counts["agents were there"] += 1
            return
        await self._give_past(agent, chance)
        await (self._place(agent, state) if pooled else self._bring_to(agent, state))
        self._told.counts["agents made"] += 1

    async def _give_past(self, agent: str, chance: Random) -> None:
        """Turns with tool calls, a side branch, a result and a workspace."""
        steps = _history(chance, self._plan.steps)
        for batch in _batches(steps, 20):
            await self._deployment.ask("POST", f"/agents/{agent}/steps", {"steps": batch})
        self._told.counts["steps"] += len(steps)
        if not steps:
            return
        fork = chance.choice(steps)["id"]
        aside = {"id": "aside", "role": "agent", "content": "Or the other way round.", "parent_id": fork}
        await self._deployment.ask("POST", f"/agents/{agent}/steps?advance_head=false", aside)
        await self._deployment.ask("PUT", f"/agents/{agent}/branches/second-thought", {"step_id": "aside"})
        score = {"result": {"score": chance.randint(0, 100)}}
        await self._deployment.ask("PUT", f"/agents/{agent}/results/verdict", score)

    async def _place(self, agent: str, state: str) -> None:
        """An agent of a pool waits for a runner; some are over before."""
        if state == "stopped":
            await self._move(agent, "stopped", "user_terminated")
        elif state == "failed":
            await self._move(agent, "failed", "process_crashed")

    async def _bring_to(self, agent: str, state: str) -> None:
        """An agent without a pool is driven by its user: to the state that it is to be shown in."""
        if state == "starting":
            await self._move(agent, "starting", "spawn")
        if state in ("idle", "busy", "stopping", "failed"):
            turn = {"id": "shown", "content": "Show what you can."}
            begun = await self._deployment.ask("POST", f"/agents/{agent}/turns", turn)
            if state == "idle":
                await self._finish(agent, begun)
            elif state == "stopping":
                await self._deployment.ask("POST", f"/agents/{agent}/stop")
            elif state == "failed":
                await self._move(agent, "failed", "process_crashed")
        if state == "stopped":
            await self._move(agent, "stopped", "user_terminated")

    async def _finish(self, agent: str, begun: Json) -> None:
        done = {"outcome": "completed", "steps": [{"id": "done", "role": "agent", "content": "There."}]}
        await self._deployment.ask("POST", f"/agents/{agent}/turns/{begun['turn_id']}/finish", done, begun["fence"])

    async def _move(self, agent: str, to: str, trigger: str) -> None:
        await self._deployment.ask("POST", f"/agents/{agent}/transitions", {"to": to, "trigger": trigger})


class SeededRunner:
    """A runner that drives what it claims by a script. What it drives it learns from claims and heartbeats alone."""

    def __init__(self, deployment: Deployment, plan: Plan, number: int, told: Told) -> None:
        self._deployment = deployment
        self._plan = plan
        self._told = told
        self._chance = plan.chance("runner", number)
        self.name = f"seed-{plan.seed}-runner-{number}"
        self._pool = plan.pools[number % len(plan.pools)]
        self._driving: dict[str, asyncio.Task[None]] = {}

    async def run(self, over: asyncio.Event) -> None:
        """Drive until it is over, then leave: what was driven waits for others. Raises Refused, NobodyAnswers."""
        registered = await self._register()
        loops = [
            asyncio.create_task(self._beat(registered["heartbeat_seconds"])),
            asyncio.create_task(self._claim(registered["capacity"])),
        ]
        ended = asyncio.create_task(over.wait())
        try:
            await asyncio.wait([ended, *loops], return_when=asyncio.FIRST_COMPLETED)
            for loop in loops:
                if loop.done():
                    loop.result()
        finally:
            tasks = [ended, *loops, *self._driving.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(Refused, NobodyAnswers):
                await self._deployment.ask("DELETE", f"/runners/{self.name}")

    async def _register(self) -> Json:
        spec = {"id": self.name, "pool": self._pool, "platform": self._chance.choice(_PLATFORMS)}
        shape = {"capacity": self._chance.randint(2, 8), "region": self._chance.choice(("north", "south"))}
        return await self._deployment.ask("POST", "/runners", {**spec, **shape, "metadata": {"seeded": True}})

    async def _beat(self, seconds: float) -> None:
        while True:
            try:
                beaten = await self._deployment.ask("POST", f"/runners/{self.name}/heartbeat", {})
            except Refused as refusal:
                if refusal.status != 409:
                    raise
                await self._register()  # declared dead: life begins anew
            else:
                for own in beaten["agents"]:
                    self._drive(own["id"], own["fence"], own["state"])
            await asyncio.sleep(seconds)

    async def _claim(self, capacity: int) -> None:
        wanted = {"max": capacity, "wait_seconds": CLAIM_SECONDS}
        while True:
            try:
                claimed = await self._deployment.ask("POST", f"/runners/{self.name}/claim", wanted)
            except Refused as refusal:
                if refusal.status != 409:
                    raise
                claimed = {"claims": []}  # full, or declared dead: the next beat tells
                await asyncio.sleep(CLAIM_SECONDS)
            for claim in claimed["claims"]:
                self._told.counts["claims"] += 1
                self._drive(claim["agent"], claim["fence"], claim["state"])

    def _drive(self, agent: str, fence: int, state: str) -> None:
        if agent not in self._driving or self._driving[agent].done():
            self._driving[agent] = asyncio.create_task(self._take_turns(agent, fence, state))

    async def _take_turns(self, agent: str, fence: int, state: str) -> None:
        """Turn after turn, until somebody else has a say in the agent, or we let it go."""
        with suppress(Refused, NobodyAnswers):
            if state == "starting":
                await self._ask("POST", f"/agents/{agent}/transitions", {"to": "idle", "trigger": "connected"}, fence)
            elif state in ("busy", "stopping"):
                left = {"to": "idle", "trigger": "result_received", "reason": "left by another runner"}
                await self._ask("POST", f"/agents/{agent}/transitions", left, fence)
            while self._chance.random() > 0.05:
                await self._take_turn(agent, fence)
                await self._pause()
            await self._ask("POST", f"/runners/{self.name}/release", {"agent": agent}, fence)
            self._told.counts["releases"] += 1

    async def _take_turn(self, agent: str, fence: int) -> None:
        (prompt,) = _with_ids([{"content": _prompt(self._chance)}])
        begun = await self._ask("POST", f"/agents/{agent}/turns", prompt, fence)
        for number in range(self._chance.randint(0, 3)):
            await self._pause()
            steps = _with_ids(_tool_steps(self._chance, f"call-{number}"))
            await self._ask("POST", f"/agents/{agent}/steps", {"steps": steps}, fence)
            self._told.counts["steps"] += len(steps)
        await self._pause()
        outcome = "error" if self._chance.random() < 0.05 else "completed"
        last = _with_ids([{"role": "agent", "content": "Done.", "usage": {"tokens": self._chance.randint(10, 999)}}])
        done = {"outcome": outcome, "steps": last}
        await self._ask("POST", f"/agents/{agent}/turns/{begun['turn_id']}/finish", done, fence)
        self._told.counts["steps"] += 2
        self._told.counts["turns"] += 1

    async def _ask(self, method: str, path: str, body: Json, fence: int) -> Json:
        return await self._deployment.ask(method, path, body, fence)

    async def _pause(self) -> None:
        await asyncio.sleep(self._plan.pace * self._chance.uniform(0.5, 1.5))


def _destiny(number: int) -> tuple[str, bool]:
    """In which state an agent is left, and whether it is in a pool: so that there is soon one of each."""
    if number % _POOL_LESS == 0:
        return STATES[number // _POOL_LESS % len(STATES)], False
    return ("pending", "pending", "stopped", "pending", "failed")[number % 5], True


def _spec(agent: str, chance: Random, pool: str | None) -> Json:
    labels = {"team": chance.choice(_TEAMS), "seeded": "true"}
    spec = {"id": agent, "name": chance.choice(_NAMES), "model": chance.choice(_MODELS), "labels": labels}
    return {**spec, "workspace": {"todo": [chance.choice(_TASKS)]}, **({} if pool is None else {"pool": pool})}


def _history(chance: Random, most: int) -> list[Json]:
    """Whole turns, of about so many steps at most, with ids."""
    steps: list[Json] = []
    wanted = chance.randint(most // 2, most)
    while len(steps) < wanted:
        steps.append({"role": "user", "content": _prompt(chance)})
        for number in range(chance.randint(0, 2)):
            steps += _tool_steps(chance, f"call-{len(steps)}-{number}")
        steps.append({"role": "agent", "content": "Done.", "usage": {"tokens": chance.randint(10, 999)}})
    return [{"id": f"s{number}", **step} for number, step in enumerate(steps, start=1)]


def _prompt(chance: Random) -> str:
    return f"Look after {chance.choice(_TASKS)}, please."


def _tool_steps(chance: Random, call: str) -> list[Json]:
    tool = chance.choice(_TOOLS)
    made = {"id": call, "name": tool, "input": {"what": chance.choice(_TASKS)}}
    result = {"id": call, "output": f"{chance.randint(1, 99)} lines", "is_error": chance.random() < 0.1}
    return [
        {"role": "agent", "content": f"I'll use {tool}.", "tool_calls": [made]},
        {"role": "tool", "tool_results": [result]},
    ]


def _with_ids(steps: Sequence[Json]) -> list[Json]:
    """With ids that nobody had before, so that what is sent again is not doubled."""
    return [{"id": uuid4().hex, **step} for step in steps]


def _batches(steps: Sequence[Json], size: int) -> Iterator[Sequence[Json]]:
    for first in range(0, len(steps), size):
        yield steps[first : first + size]


async def make_agents(deployment: Deployment, plan: Plan, told: Told, over: asyncio.Event) -> None:
    """Make what is not there yet. Raises Refused, NobodyAnswers."""
    maker, limit = Maker(deployment, plan, told), asyncio.Semaphore(AT_ONCE)
    with progress() as bars:
        task = bars.add_task("agents", total=plan.agents)

        async def made(number: int) -> None:
            async with limit:
                if not over.is_set():
                    await maker.make(number)
                bars.advance(task)

        for failure in await asyncio.gather(*map(made, range(plan.agents)), return_exceptions=True):
            if failure is not None:
                raise failure


async def live(deployment: Deployment, plan: Plan, told: Told, over: asyncio.Event, seconds: float | None) -> None:
    """Let runners drive agents until it is over. Raises Refused, NobodyAnswers."""
    runners = [SeededRunner(deployment, plan, number, told).run(over) for number in range(plan.runners)]
    driving = asyncio.gather(*runners)
    began = time.monotonic()
    with progress() as bars:
        task = bars.add_task("driving", total=seconds)
        while not driving.done() and not over.is_set():
            passed = time.monotonic() - began
            bars.update(task, completed=round(passed, 1), description=str(told))
            if seconds is not None and passed >= seconds:
                over.set()
            await asyncio.wait([driving], timeout=0.2)
    over.set()
    await driving


async def _seed(url: str, key: str | None, plan: Plan, seconds: float | None) -> Told:
    deployment, told, over = Deployment(url, key), Told(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    try:
        await deployment.require()
        await make_agents(deployment, plan, told, over)
        if plan.runners and not over.is_set():
            await live(deployment, plan, told, over, seconds)
    finally:
        await deployment.close()
    return told


def main(
    url: Annotated[str, typer.Option(help="A replica, or what stands before several.")] = "http://127.0.0.1:8700",
    key: Annotated[
        str | None, typer.Option(envvar="HOLDFAST_KEY", help="A key with the rights read, write and runner.")
    ] = None,
    agents: Annotated[int, typer.Option(min=0, help="How many agents there are to be.")] = 40,
    runners: Annotated[int, typer.Option(min=0, help="How many runners drive them; 0: only make the agents.")] = 4,
    pools: Annotated[str, typer.Option(help="Names of pools, with commas between.")] = "alpha,beta",
    steps: Annotated[int, typer.Option(min=0, help="Steps that an agent has from the start, at most about.")] = 24,
    pace: Annotated[float, typer.Option(min=0, help="Seconds between steps, on average; 0: as fast as it goes.")] = 0.5,
    seconds: Annotated[float | None, typer.Option(min=0, help="How long to drive; without: until Ctrl-C.")] = None,
    random_seed: Annotated[int, typer.Option(min=0, help="What is made follows from it; ids hold it.")] = 1,
) -> None:
    """Make agents with a past in every state, then drive those of the pools with runners that register, claim and beat.

    What it did stands in the last line. Started again it makes what is missing and drives on; with another
    --random-seed it makes another fleet beside. All that it makes has the label seeded=true.

    Example, a demo for a minute: python -m scripts.seed --agents 40 --runners 4 --seconds 60

    Example, a load: python -m scripts.seed --agents 500 --runners 20 --pace 0 --random-seed 2
    """
    names = [name.strip() for name in pools.split(",") if name.strip()]
    if not names:
        raise typer.BadParameter("name at least one.", param_hint="--pools")
    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter("begins with http:// or https://", param_hint="--url")
    plan = Plan(agents, runners, names, steps, pace, random_seed)
    try:
        told = asyncio.run(_seed(url, key, plan, seconds))
    except NobodyAnswers as nobody:
        say(f"Nobody answers at {nobody}: start a replica there first, for instance with 'make serve'.")
        raise typer.Exit(1) from nobody
    except (Refused, httpx.InvalidURL) as refusal:
        say(f"{url} won't have it, {refusal}")
        raise typer.Exit(1) from refusal
    answer(str(told) or "nothing to do")


if __name__ == "__main__":
    typer.run(main)
