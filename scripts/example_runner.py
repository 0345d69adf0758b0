"""A runner of your own: claims agents and drives their turns, here with a script in place of a model. Copy it.

It needs httpx and typer, and nothing of Holdfast but its HTTP interface. Six rules are enough to lose nothing and to
spoil nothing, whoever dies, hangs or comes back at whatever moment, this program, a replica or the database:

1. Heartbeats go their own way: no work ever delays one, and none waits for longer than until the next is due.
2. Every write for an agent carries the fence that came with its claim. One that is refused as `fenced-out` is never
   sent again: somebody else drives that agent by now. It is dropped at once, and its user is told nothing.
3. What may have been done is sent again as it was, to the next replica: steps under ids that were chosen before the
   first try, and the end of a turn until it is over.
4. Events wake, reads decide: what to do next follows from the agent as it stands, never from an event. So events may
   be lost, doubled or late; what they missed is in the answer to the next heartbeat.
5. A heartbeat that is refused as `fenced-out` means: declared dead. Everything is dropped, and life begins anew.
6. An agent is let go only as it was seen, idle at that version: a prompt that came meanwhile is driven first.

What tools do outside is fenced by nobody: give them the id of their call, so that they know it when it comes again.

Each event is a line of JSON on stdout. Try it: `python -m scripts.example_runner --pool demo`, and in another shell

    curl localhost:8700/v1/agents -H 'content-type: application/json' -d '{"id": "eve", "pool": "demo"}'
    curl localhost:8700/v1/agents/eve/turns -H 'content-type: application/json' -d '{"content": "Go."}'
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any
from uuid import uuid4

import httpx
import typer

Json = dict[str, Any]

ANSWER_SECONDS = 4.0
"""After so long another replica is asked."""

POLL_SECONDS = 5.0
"""How long a replica may let us wait for claims and commands."""

FEED_SECONDS = 40.0
"""A feed sends a sign of life every 15 s: after so much silence nobody is there."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
BUSY = ("busy", "stopping")


class Away(Exception):
    """A replica did not answer, or could not: nobody knows whether it did what it was asked."""


class Refused(Exception):
    """A replica said no; asking again would not help."""

    def __init__(self, status: int, problem: Json) -> None:
        super().__init__(f"{status} {problem.get('code')}: {problem.get('detail')}")
        self.status = status
        self.code = problem.get("code")
        self.problem = problem


class FencedOut(Refused):
    """Somebody else has our place by now."""


class Undone(Exception):
    """A command can't be carried out, and why."""


class Replicas:
    """The service behind several addresses: one is asked until it fails, then the next."""

    def __init__(self, urls: list[str]) -> None:
        limits = httpx.Limits(max_connections=None)
        self._replicas = [httpx.AsyncClient(base_url=url, limits=limits, trust_env=False) for url in urls]
        self._asked = 0
        self.token: str | None = None

    async def ask(self, method: str, path: str, *, seconds: float = ANSWER_SECONDS, **request: Any) -> Json:
        """One try. Raises Away, Refused."""
        number, timeout = self._asked, httpx.Timeout(seconds, connect=min(seconds, 1.0))
        try:
            answer = await self._replicas[number].request(method, path, timeout=timeout, **self._signed(request))
            _require_accepted(answer)
            return answer.json() if answer.content else {}
        except (httpx.HTTPError, ValueError, Away) as error:
            self._move_on(number, error)
            raise Away(str(error)) from error

    async def insist(self, method: str, path: str, **request: Any) -> Json:
        """Ask until there is an answer: for what may be done twice. Raises Refused."""
        pause = FIRST_PAUSE
        while True:
            try:
                return await self.ask(method, path, **request)
            except Away:
                await asyncio.sleep(random.uniform(pause / 2, pause))
                pause = min(pause * 2, LONGEST_PAUSE)

    async def follow(self, path: str, params: Mapping[str, str]) -> AsyncIterator[Json | None]:
        """A feed until it ends: None once it is open, then the data of its events. Raises Away, Refused."""
        number = self._asked
        request = self._signed({"params": params, "headers": {"Accept": "text/event-stream"}})
        try:
            async with self._replicas[number].stream("GET", path, timeout=FEED_SECONDS, **request) as answer:
                if not answer.is_success:
                    await answer.aread()
                _require_accepted(answer)
                yield None
                async for kind, data in _events(answer.aiter_bytes()):
                    if kind == "change":  # else it says why it ends
                        yield json.loads(data)
        except (httpx.HTTPError, ValueError, Away) as error:
            self._move_on(number, error)
            raise Away(str(error)) from error

    def _signed(self, request: Json) -> Json:
        own = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return {**request, "headers": {**own, **request.get("headers", {})}}

    def _move_on(self, number: int, error: Exception) -> None:
        """Let the next be asked, unless somebody saw to that already."""
        if self._asked == number and len(self._replicas) > 1:
            self._asked = (number + 1) % len(self._replicas)
            there = str(self._replicas[self._asked].base_url)
            say("fail-over", to=there, why=str(error) or type(error).__name__)


@dataclass(frozen=True)
class Script:
    """What stands in place of a model: how many tools a turn uses, and how long each takes."""

    steps: int
    seconds: float


class Driver:
    """Drives one agent under one fence. Ends when the agent is let go, or is over. Raises Refused."""

    def __init__(self, replicas: Replicas, script: Script, runner: str, claim: Json) -> None:
        self.agent: str = claim["agent"]
        self.fence: int = claim["fence"]
        self.state: str = claim["state"]
        self.task: asyncio.Task[None] | None = None
        self._replicas = replicas
        self._script = script
        self._runner = runner
        self._woken = asyncio.Event()
        self._leaving = False
        self._last_word: Callable[[], Awaitable[object]] | None = None

    def wake(self) -> None:
        """Look how the agent stands, soon."""
        self._woken.set()

    def leave(self, last_word: Callable[[], Awaitable[object]] | None = None) -> None:
        """Let the agent go after the open turn; the last word comes right before."""
        self._leaving, self._last_word = True, last_word
        self.wake()

    async def rest(self, last_word: Callable[[], Awaitable[object]]) -> None:
        """The same, and wait for it. Raises Undone when the agent was taken from us first."""
        self.leave(last_word)
        assert self.task is not None
        await asyncio.wait({self.task})
        if self._last_word is not None:
            raise Undone("The agent is not driven here any more.")

    async def drive(self) -> None:
        await self._move_in()
        while True:
            self._woken.clear()
            agent = await self.read()
            if self.state == "starting":
                await self._connect()
            elif self.state in BUSY:
                await self._take_turn(agent)
            elif self.state != "idle":
                say("over", agent=self.agent, fence=self.fence, state=self.state)
                return
            elif not self._leaving:
                await self._woken.wait()
            elif await self._let_go(agent["version"]):
                return

    async def read(self) -> Json:
        """How the agent stands at this moment, with its newest step."""
        query, fresh = {"steps": "path", "steps_limit": "1"}, {"Cache-Control": "no-cache"}
        agent = await self._replicas.insist("GET", f"/v1/agents/{self.agent}", params=query, headers=fresh)
        self.state = agent["state"]
        return agent

    async def write(self, method: str, path: str, body: Json, **headers: str) -> Json:
        """A write that only who drives the agent may make."""
        fenced = {"Fencing-Token": str(self.fence), **headers}
        return await self._replicas.insist(method, f"/v1/agents/{self.agent}{path}", json=body, headers=fenced)

    async def crash(self, why: str) -> None:
        """Give up, so that the agent is started again, here or elsewhere; its user sees the reason."""
        with suppress(Refused):
            failed = {"to": "failed", "trigger": "process_crashed", "reason": why[:500]}
            await self.write("POST", "/transitions", failed)

    async def _move_in(self) -> None:
        """Where a process or a container of the agent would be started. What its last driver left is cleaned up."""
        left_behind = (await self.read())["resource_id"]
        if left_behind is not None:
            say("cleaned", agent=self.agent, fence=self.fence, resource=left_behind)
        await self.write("PUT", "/resource", {"resource_id": f"{self._runner}:{os.getpid()}:{self.fence}"})

    async def _connect(self) -> None:
        with over_already():
            await self.write("POST", "/transitions", {"to": "idle", "trigger": "connected"})
        say("connected", agent=self.agent, fence=self.fence)

    async def _take_turn(self, agent: Json) -> None:
        """Drive the open turn to its end."""
        turn = agent["steps"][-1]["turn_id"] if agent["steps"] else "root"
        if self.state == "stopping":
            await self._finish(turn, "stopped", {"role": "agent", "content": "Stopped before I began."})
            return
        say("turn", agent=self.agent, fence=self.fence, turn=turn)
        for number in range(1, self._script.steps + 1):
            call = {"id": f"call-{number}", "name": "read_page", "input": {"page": number}}
            thought = f"I read page {number} of {self._script.steps}."
            if await self._append(turn, {"role": "agent", "content": thought, "tool_calls": [call]}):
                return
            if await self._stopped_while_waiting():
                stopped = {"id": call["id"], "output": "stopped by the user", "is_error": True}
                await self._finish(turn, "stopped", {"role": "tool", "tool_results": [stopped]})
                return
            result = {"id": call["id"], "output": f"what stands on page {number}"}
            if await self._append(turn, {"role": "tool", "tool_results": [result]}):
                return
        await self._finish(turn, "completed", {"role": "agent", "content": "I have read it all."})

    async def _append(self, turn: str, step: Json) -> bool:
        """Append a step of the turn; whether it was the last that the turn may have."""
        step = {"id": uuid4().hex, "turn_id": turn, **step}
        done = await self.write("POST", "/steps", step)
        say("step", agent=self.agent, fence=self.fence, turn=turn, step=step["id"], version=done["version"])
        return "turn_ended" in done

    async def _finish(self, turn: str, outcome: str, step: Json) -> None:
        """End the turn with a last step, unless it is over already."""
        step = {"id": uuid4().hex, "turn_id": turn, **step}
        with over_already():
            await self.write("POST", f"/turns/{turn}/finish", {"outcome": outcome, "steps": [step]})
        say("finished", agent=self.agent, fence=self.fence, turn=turn, outcome=outcome)

    async def _stopped_while_waiting(self) -> bool:
        """Wait for the tool; whether the user wants the turn to stop meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._script.seconds):
                while await self._woken.wait():
                    self._woken.clear()
                    if (await self.read())["state"] != "busy":
                        return True
        return False

    async def _let_go(self, version: int) -> bool:
        """Hand the agent to another runner, or to whoever comes; False when it is not as it was seen any more."""
        if self._last_word is not None:
            speak, self._last_word = self._last_word, None
            await speak()
            return False
        try:
            if not await self._handed_over(version):
                await self._release(version, hand_off=False)
        except Refused as no:
            if no.status == 412:
                return False
            raise
        say("released", agent=self.agent, fence=self.fence)
        return True

    async def _handed_over(self, version: int) -> bool:
        """Hand the agent over; False when nobody else is there, or has room."""
        try:
            await self._release(version, hand_off=True)
        except Refused as no:
            if no.code == "conflict":
                return False
            raise
        return True

    async def _release(self, version: int, *, hand_off: bool) -> None:
        guards = {"Fencing-Token": str(self.fence), "If-Match": f'"{version}"'}
        body = {"agent": self.agent, **({"hand_off": True} if hand_off else {})}
        await self._replicas.insist("POST", f"/v1/runners/{self._runner}/release", json=body, headers=guards)


class Runner:
    """Registers, beats, claims, takes commands, and keeps a driver for each of its agents."""

    def __init__(self, replicas: Replicas, script: Script, key: str | None, spec: Json) -> None:
        self._replicas = replicas
        self._script = script
        self._key = key
        self._spec = spec
        self._name: str = spec["id"]
        self._beat_seconds = 1.0
        self._drivers: dict[str, Driver] = {}
        self._fences: dict[str, int] = {}
        self._listed: dict[str, int] = {}
        self._errands: set[asyncio.Task[None]] = set()
        self._orders: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._changed = asyncio.Event()
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Finish what is open, hand over the rest, and end."""
        self._leaving.set()

    async def run(self) -> None:
        """Live until told to leave, and again after each time that it is declared dead. Raises Refused."""
        while not self._leaving.is_set():
            if not await self._register():
                return
            try:
                await self._live()
            except* Refused as ended:
                say("dead", runner=self._name, agents=sorted(self._drivers), why=str(ended.exceptions[0]))
                await asyncio.sleep(random.uniform(FIRST_PAUSE, 10 * FIRST_PAUSE))
            for remembered in (self._drivers, self._fences, self._listed):
                remembered.clear()

    async def _register(self) -> bool:
        """Come (back) to life; False when told to leave first."""
        self._replicas.token = self._key
        asking = asyncio.create_task(self._replicas.insist("POST", "/v1/runners", json=self._spec))
        leaving = asyncio.create_task(self._leaving.wait())
        await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not asking.done():
            asking.cancel()
            return False
        registered = asking.result()
        self._replicas.token = registered["token"]
        self._beat_seconds = registered["heartbeat_seconds"]
        say("registered", runner=self._name, incarnation=registered["incarnation"], ttl=registered["ttl_seconds"])
        return True

    async def _live(self) -> None:
        """Everything at once, until it has left. A group of Refused means that it is dead: all of it was dropped."""
        async with asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(loop) for loop in (self._claim(tasks), self._obey(tasks))]
            signs = [tasks.create_task(loop) for loop in (self._beat(tasks), self._listen())]
            await self._leaving.wait()
            say("draining", runner=self._name, agents=sorted(self._drivers))
            await self._replicas.insist("POST", self._path("drain"))
            for loop in work:
                loop.cancel()
            await self._empty_hands(tasks)
            for loop in signs:
                loop.cancel()
            with suppress(FencedOut):  # an earlier try, whose answer was lost, did it
                await self._replicas.insist("DELETE", f"/v1/runners/{self._name}")
            say("left", runner=self._name)

    async def _beat(self, tasks: asyncio.TaskGroup) -> None:
        """Beat evenly. A beat that is not answered before the next is due is lost; the next goes elsewhere."""
        due = time.monotonic()
        while True:
            with suppress(Away):
                await self._beat_once(tasks)
            due = max(due + self._beat_seconds, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def _beat_once(self, tasks: asyncio.TaskGroup) -> None:
        """Say that we live, and hear what we drive: what was lost is dropped, what we never heard of is taken on.

        The latter only when it is said twice: the answer to its claim may be on its way, and tells more.
        """
        held = {agent: driver.fence for agent, driver in self._drivers.items()}
        body = {"agents": sorted(held), "capacity": self._spec["capacity"]}
        path = f"/v1/runners/{self._name}/heartbeat"
        answer = await self._replicas.ask("POST", path, json=body, seconds=self._beat_seconds * 0.9)
        for agent in answer["lost"]:
            driver = self._drivers.get(agent)
            if driver is not None and driver.fence == held[agent]:  # and not claimed again meanwhile
                self._drop(driver, "lost")
        for one in answer["agents"]:
            driver = self._drivers.get(one["id"])
            if driver is not None and driver.fence == one["fence"] and driver.state != one["state"]:
                driver.wake()
            if self._listed.get(one["id"]) == one["fence"]:
                self._take(tasks, "adopted", {**one, "agent": one["id"]})
        self._listed = {one["id"]: one["fence"] for one in answer["agents"]}
        if answer["draining"]:
            self.leave()

    async def _claim(self, tasks: asyncio.TaskGroup) -> None:
        """Claim while there is room."""
        while True:
            self._changed.clear()
            room = self._spec["capacity"] - len(self._drivers)
            if room <= 0:
                await self._changed.wait()
                continue
            body = {"max": room, "wait_seconds": POLL_SECONDS, "agents": sorted(self._drivers)}
            seconds = POLL_SECONDS + ANSWER_SECONDS
            answer = await self._replicas.insist("POST", self._path("claim"), json=body, seconds=seconds)
            for claim in answer["claims"]:
                self._take(tasks, "claimed", claim)

    async def _listen(self) -> None:
        """Wake drivers when something happens to their agents. What this misses, the next heartbeat tells."""
        while True:
            with suppress(Away):
                async for entry in self._replicas.follow("/v1/changes", {"pool": self._spec["pool"], "kinds": "state"}):
                    heard = self._drivers.values() if entry is None else [self._drivers.get(entry["agent"])]
                    for driver in heard:
                        if driver is not None:
                            driver.wake()
            await asyncio.sleep(random.uniform(FIRST_PAUSE, 10 * FIRST_PAUSE))

    async def _obey(self, tasks: asyncio.TaskGroup) -> None:
        """Take commands on; those of one agent are carried out in their order, those of different ones at once."""
        while True:
            query = {"wait_seconds": POLL_SECONDS}
            seconds = POLL_SECONDS + ANSWER_SECONDS
            answer = await self._replicas.insist("GET", self._path("commands"), params=query, seconds=seconds)
            for command in answer["items"]:
                if await self._report(command, "ack"):
                    errand = tasks.create_task(self._carry_out(command))
                    self._errands.add(errand)
                    errand.add_done_callback(self._errands.discard)

    async def _carry_out(self, command: Json) -> None:
        agent, action = command["agent"], command["action"]
        async with self._orders[agent]:
            driver = self._drivers.get(agent)
            try:
                if action == "hibernate" and driver is not None:
                    await driver.rest(partial(self._report, command, "complete"))
                    return
                result = await self._do(action, driver, command)
            except (Refused, Undone) as problem:
                await self._report(command, "fail", {"error": str(problem)[:500]})
            else:
                await self._report(command, "complete", {"result": result})
            if driver is not None:
                driver.wake()  # one that was terminated finds that its agent is over

    async def _do(self, action: str, driver: Driver | None, command: Json) -> Any:
        """Do what a command asks for. Raises Undone, Refused."""
        if action == "stop" and driver is not None:
            await driver.write("POST", "/stop", {})
        elif action == "terminate":
            await self._clean_up(command["agent"], driver)
        elif action == "custom":
            await asyncio.sleep(self._script.seconds)
            if isinstance(command.get("payload"), dict) and "fail" in command["payload"]:
                raise Undone(str(command["payload"]["fail"]))
            return {"echo": command.get("payload")}
        return {"driven": driver is not None}  # who is to start or to wake is claimed by itself

    async def _clean_up(self, agent: str, driver: Driver | None) -> None:
        """Where the agent's process, whoever started it, would be ended."""
        nothing = {"resource_id": None}
        if driver is not None:
            await driver.write("PUT", "/resource", nothing)
        else:
            await self._replicas.insist("PUT", f"/v1/agents/{agent}/resource", json=nothing)
        say("cleaned", agent=agent)

    async def _report(self, command: Json, verb: str, body: Json | None = None) -> bool:
        """Tell how far a command came; False when nobody waits for that any more. Raises FencedOut."""
        try:
            await self._replicas.insist("POST", f"/v1/commands/{command['id']}/{verb}", json=body or {})
        except FencedOut:
            raise
        except Refused as no:
            say("command", id=command["id"], agent=command["agent"], action=command["action"], refused=str(no))
            return False
        say("command", id=command["id"], agent=command["agent"], action=command["action"], did=verb)
        return True

    def _take(self, tasks: asyncio.TaskGroup, how: str, claim: Json) -> None:
        """Drive an agent from now on, unless it is an old story: each fence is driven once."""
        agent, fence = claim["agent"], claim["fence"]
        if fence <= self._fences.get(agent, 0):
            return
        self._fences[agent] = fence
        if (older := self._drivers.get(agent)) is not None:
            self._drop(older, "lost")
        told = {name: claim[name] for name in ("state", "version", "attempt", "previous_runner") if name in claim}
        say(how, agent=agent, fence=fence, **told)
        driver = self._drivers[agent] = Driver(self._replicas, self._script, self._name, claim)
        if self._leaving.is_set():
            driver.leave()
        driver.task = tasks.create_task(self._drive(driver))

    async def _drive(self, driver: Driver) -> None:
        """A driver's whole life. Whatever ends it, the agent waits for somebody in the end, never for us."""
        try:
            await driver.drive()
        except FencedOut:
            say("fenced-out", agent=driver.agent, fence=driver.fence)
        except Refused as no:
            say("crashed", agent=driver.agent, fence=driver.fence, why=str(no))
            await driver.crash(str(no))
        except Exception as error:  # noqa: BLE001 - one agent's trouble is no other's
            traceback.print_exc()
            say("crashed", agent=driver.agent, fence=driver.fence, why=repr(error))
            await driver.crash(repr(error))
        self._drop(driver)

    def _drop(self, driver: Driver, why: str = "") -> None:
        """Drive it no more. Without a word to anybody: whoever drives it now has the say."""
        if self._drivers.get(driver.agent) is driver:
            del self._drivers[driver.agent]
            self._changed.set()
            if why:
                say(why, agent=driver.agent, fence=driver.fence)
        if driver.task is not None and driver.task is not asyncio.current_task():
            driver.task.cancel()

    async def _empty_hands(self, tasks: asyncio.TaskGroup) -> None:
        """Finish every open turn, let all agents go, and carry out what was acknowledged."""
        for driver in self._drivers.values():
            driver.leave()
        await self._hear_of_all(tasks)
        while self._drivers:
            self._changed.clear()
            await self._changed.wait()
        if self._errands:
            await asyncio.wait(self._errands)

    async def _hear_of_all(self, tasks: asyncio.TaskGroup) -> None:
        """Take on what was claimed for us in an answer that we never got: wait until it would have been said twice."""
        heard = 0
        while heard < 2:
            with suppress(Away):
                await self._beat_once(tasks)
                heard += 1
            if heard < 2:
                await asyncio.sleep(self._beat_seconds)

    def _path(self, verb: str) -> str:
        return f"/v1/runners/{self._name}/{verb}"


@contextmanager
def over_already() -> Iterator[None]:
    """For a move that may have been made: by an earlier try whose answer was lost, by the turn's `max_steps`.

    By then the next turn may be open; the problem names it.
    """
    try:
        yield
    except Refused as no:
        if no.code != "illegal-transition" and "turn_id" not in no.problem:
            raise


def say(event: str, **what: Any) -> None:
    """Tell what happened, as a line of JSON."""
    print(json.dumps({"t": round(time.time(), 3), "event": event, **what}), flush=True)


def _require_accepted(answer: httpx.Response) -> None:
    """Raises Away for what may go better elsewhere, or later; Refused, FencedOut."""
    status = answer.status_code
    if status == 429 or status >= 500:
        raise Away(f"{status}")
    if not answer.is_success:
        problem = answer.json() if "json" in answer.headers.get("content-type", "") else {"detail": answer.text[:200]}
        raise (FencedOut if problem.get("code") == "fenced-out" else Refused)(status, problem)


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, str]]:
    """The events of a stream, as type and data; comments, which are its signs of life, are left out."""
    buffered = b""
    async for chunk in chunks:
        *blocks, buffered = (buffered + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(line.partition(": ")[::2] for line in block.decode().split("\n"))
            if "data" in fields:
                yield fields.get("event", "message"), fields["data"]


async def _run(runner: Runner) -> None:
    """Run until it leaves: after a first signal in peace, after a second at once."""
    loop, signals = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)

    def leave() -> None:
        runner.leave()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, leave)
    await runner.run()


def main(
    pool: Annotated[str, typer.Option(help="Whose agents to drive.")],
    url: Annotated[list[str] | None, typer.Option(help="A replica; give it several times for several.")] = None,
    key: Annotated[str | None, typer.Option(envvar="HOLDFAST_KEY", help="A key with the right `runner`.")] = None,
    platform: Annotated[str, typer.Option(help="kubernetes, docker, vm, cloud or local.")] = "local",
    region: Annotated[str | None, typer.Option(help="Agents of other regions are left alone.")] = None,
    capacity: Annotated[int, typer.Option(min=1, help="How many agents to drive at once.")] = 4,
    name: Annotated[str | None, typer.Option("--id", help="Its name in the pool; by default a new one.")] = None,
    steps: Annotated[int, typer.Option(min=0, help="Tools that a turn uses.")] = 3,
    step_seconds: Annotated[float, typer.Option(min=0, help="How long each tool takes.")] = 1.0,
) -> None:
    """Drive the agents of a pool, with a script in place of a model. SIGTERM: finish what is open, hand over the rest.

    Example: python -m scripts.example_runner --url http://127.0.0.1:8700 --pool demo
    """
    urls = url or ["http://127.0.0.1:8700"]
    if not all(one.startswith(("http://", "https://")) for one in urls):
        raise typer.BadParameter("a replica's address begins with http:// or https://", param_hint="--url")
    about = {"id": name or f"runner-{uuid4().hex[:8]}", "pool": pool, "platform": platform, "capacity": capacity}
    spec = {**about, **({} if region is None else {"region": region})}
    try:
        asyncio.run(_run(Runner(Replicas(urls), Script(steps, step_seconds), key, spec)))
    except Refused as no:
        print(f"The service refuses: {no}", file=sys.stderr)
        raise typer.Exit(1) from no


if __name__ == "__main__":
    typer.run(main)
