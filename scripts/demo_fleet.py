"""Runners in one terminal: agents outlive whoever drives them, whoever serves them, and a database that hangs.

Two replicas and three example runners look after some agents, which are prompted all the time. Then a runner is killed,
another is stopped and comes back as a zombie, a replica is killed, the database is paused, a runner is drained. What
happens is told as it happens; in the end it is proven, from the change log and from what each runner was acknowledged,
that nothing was lost. Everything is in a temporary data directory, on loopback; nothing is left behind, also after
Ctrl-C.

Usage: python -m scripts.demo_fleet. Exit code 0 only when every promise held.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

import httpx
from rich.table import Table
from rich.text import Text

from scripts.example_subscriber import events
from scripts.stage import (
    STOP_SECONDS,
    BrokenPromise,
    House,
    Replica,
    Story,
    finish_undisturbed,
    last_line,
    perform,
    wait_for,
)

TTL_SECONDS = 3.0
TAKE_OVER_SECONDS = TTL_SECONDS + 3.0
"""After so long at most the agents of a dead runner are free to be claimed."""

PAUSE_SECONDS = TTL_SECONDS + 2.0
"""How long the database hangs: longer than a runner may be silent."""

POOL = "fleet"
AGENTS = ("ash", "beech", "cedar", "elm", "fir", "hazel", "larch", "oak")
RUNNERS = ("ann", "bob", "cid")
STEPS, STEP_SECONDS = 4, 0.25
PROMPT_SECONDS = 0.1
SOON_SECONDS = 30.0

Json = dict[str, Any]

TOLD: Mapping[str, Callable[[Json], tuple[str, str]]] = {
    "registered": lambda event: ("registers", f"as incarnation {event['incarnation']}"),
    "claimed": lambda event: ("claims", f"{event['agent']} (fence {event['fence']})"),
    "adopted": lambda event: ("hears that it drives", f"{event['agent']} (fence {event['fence']})"),
    "lost": lambda event: ("drops", event["agent"]),
    "fenced-out": lambda event: ("is fenced out, and drops", f"{event['agent']} (fence {event['fence']})"),
    "crashed": lambda event: ("gives up", f"{event['agent']}: {event['why']}"),
    "dead": lambda event: ("hears that it was declared dead, and drops", ", ".join(event["agents"]) or "nothing"),
    "fail-over": lambda _: ("goes on with the other replica", ""),
    "draining": lambda _: ("drains", ""),
    "released": lambda event: ("hands over", event["agent"]),
    "left": lambda _: ("has left", ""),
}
"""What is shown of a runner's events, as what it does and what with."""


@dataclass(frozen=True)
class Moment:
    """Something that happened."""

    at: float
    who: str
    does: str
    what: str = ""


class Timeline:
    """Prints what happens, a moment later, so that what several tell comes in order, and like things in one line."""

    SETTLE_SECONDS = 0.4

    def __init__(self, story: Story) -> None:
        self._story = story
        self._began = time.time()
        self._waiting: list[Moment] = []
        self._lock = threading.Lock()
        self._last: dict[str, str] = {}

    def add(self, who: str, does: str, what: str = "", *, at: float | None = None) -> None:
        """Something happened, now or at that time."""
        with self._lock:
            self._waiting.append(Moment(time.time() if at is None else at, who, does, what))

    def act(self, does: str) -> None:
        """Something is done to the fleet by this program."""
        self.flush()
        self._last.clear()
        self.add("demo", does)
        self.flush()

    def flush(self, *, older: float = 0.0) -> None:
        """Print what is older than so many seconds."""
        until = time.time() - older
        with self._lock:
            due = sorted((one for one in self._waiting if one.at <= until), key=lambda one: one.at)
            self._waiting = [one for one in self._waiting if one.at > until]
        for (who, does), alike in groupby(_together(due), key=lambda one: (one.who, one.does)):
            moments = list(alike)
            what = dict.fromkeys(one.what for one in moments if one.what)
            if what or self._last.get(who) != does:
                self._print(moments[0].at, who, f"{does} {', '.join(what)}".strip())
            self._last[who] = does

    def keep_printing(self) -> None:
        """Print as it comes, for as long as the program runs."""
        while True:
            time.sleep(self.SETTLE_SECONDS / 2)
            self.flush(older=self.SETTLE_SECONDS)

    def _print(self, at: float, who: str, what: str) -> None:
        line = Table.grid(padding=(0, 2))
        line.add_column(width=8, justify="right")
        line.add_column(width=9)
        style = {"demo": "bold yellow", "holdfast": "magenta"}.get(who, "cyan")
        text = Text(what, style="bold yellow" if who == "demo" else "")
        line.add_row(Text(f"{at - self._began:.1f} s", style="dim"), Text(who, style=style), text)
        self._story.console.print(line)


def _together(moments: Iterable[Moment]) -> list[Moment]:
    """The moments, those of the same kind beside the first of them."""
    first: dict[tuple[str, str], float] = {}
    for one in moments:
        first.setdefault((one.who, one.does), one.at)
    return sorted(moments, key=lambda one: (first[one.who, one.does], one.who, one.does))


class Worker:
    """One example runner as a process, and every line that it told."""

    def __init__(self, name: str, replicas: Sequence[Replica], folder: Path, timeline: Timeline) -> None:
        self.name = name
        self.events: list[Json] = []
        self._urls = [word for replica in replicas for word in ("--url", replica.url)]
        self._log = folder / f"runner-{name}.log"
        self._timeline = timeline
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        words = ["--pool", POOL, "--id", self.name, "--capacity", str(len(AGENTS)), *self._urls]
        pace = ["--steps", str(STEPS), "--step-seconds", str(STEP_SECONDS)]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scripts.example_runner", *words, *pace],
                cwd=Path(__file__).parents[1],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        threading.Thread(target=self._hear, args=(self._process.stdout,), daemon=True).start()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, whatever state it is in; harmless when it is dead."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS)

    def ended(self) -> int | None:
        """Its exit code once it has ended."""
        assert self._process is not None
        return self._process.poll()

    def told(self, *kinds: str, since: float = 0.0) -> list[Json]:
        """Its events of these kinds, from a time on."""
        return [event for event in list(self.events) if event["event"] in kinds and event["t"] >= since]

    def in_the_middle(self) -> bool:
        """Whether it drives a turn just now, in its present life, of which something is acknowledged."""
        newest: dict[str, str] = {}
        for event in list(self.events):
            if event["event"] == "registered":
                newest.clear()
            newest[event.get("agent", "")] = event["event"]
        return "step" in newest.values()

    def reason(self) -> str:
        """The last that it said when something went wrong."""
        return last_line(self._log.read_text(errors="replace"))

    def _hear(self, lines: Iterable[str]) -> None:
        for line in lines:
            with suppress(ValueError):  # one that was cut off by a kill
                event = json.loads(line)
                self.events.append(event)
                if event["event"] in TOLD:
                    self._timeline.add(self.name, *TOLD[event["event"]](event), at=event["t"])


class Either:
    """Both replicas, as callers use them: whichever answers."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._clients = [httpx.Client(base_url=one.url, timeout=3, trust_env=False) for one in replicas]

    def ask(self, method: str, path: str, *, seconds: float = SOON_SECONDS, **request: Any) -> httpx.Response:
        """An answer that is one, sent again until then: for what may be done twice. Raises BrokenPromise."""
        until = time.monotonic() + seconds
        for client in cycle(self._clients):
            with suppress(httpx.TransportError):
                answer = client.request(method, path, **request)
                if answer.status_code < 500:
                    return answer
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        raise BrokenPromise(f"No replica answered {method} {path} within {seconds:.0f} s.")

    def get(self, path: str, **query: str) -> Any:
        """What stands there now."""
        answer = self.ask("GET", path, params=query, headers={"Cache-Control": "no-cache"})
        if answer.status_code != 200:
            raise BrokenPromise(f"GET {path} was answered with {answer.status_code}: {answer.text[:200]}")
        return answer.json()

    def pages(self, path: str, **query: str) -> Iterator[Json]:
        """All items of a list."""
        cursor: str | None = ""
        while cursor is not None:
            page = self.get(path, limit="200", **query, **({"cursor": cursor} if cursor else {}))
            yield from page["items"]
            cursor = page["next_cursor"]


class Prompter:
    """Prompts the agents all the time, each under a turn's id of its own; what was accepted is remembered."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._either = Either(replicas)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self.turns: list[tuple[str, str]] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Prompt nobody any more; returns when what was under way is known."""
        self._over.set()
        self._thread.join()

    def prompt(self, agent: str, turn: str) -> bool:
        """Prompt an agent; False when it is busy, or not there yet."""
        body = {"id": turn, "content": "Read on, please."}
        answer = self._either.ask("POST", f"/v1/agents/{agent}/turns", json=body, seconds=60)
        if answer.is_success:
            self.turns.append((agent, turn))
        return answer.is_success

    def _go_on(self) -> None:
        for number, agent in enumerate(cycle(AGENTS), 1):
            if self._over.is_set():
                return
            with suppress(BrokenPromise):
                self.prompt(agent, f"prompt-{number}")
            time.sleep(PROMPT_SECONDS)


@dataclass
class Fleet:
    """Everybody on stage, and what was done to them."""

    story: Story
    timeline: Timeline
    replicas: list[Replica]
    workers: list[Worker]
    mongod: int
    prompter: Prompter
    either: Either
    faults: list[Fault] = field(default_factory=list)
    take_overs: dict[str, float] = field(default_factory=dict)

    def told(self, *kinds: str, since: float = 0.0) -> list[Json]:
        """Events of all runners, each with its runner's name."""
        return [{**one, "by": worker.name} for worker in self.workers for one in worker.told(*kinds, since=since)]

    def held_by(self, worker: Worker) -> dict[str, int]:
        """The agents that a runner drives, as far as it told, with their fences."""
        newest: dict[str, Json] = {}
        for event in sorted(self.told("claimed", "adopted"), key=lambda event: event["fence"]):
            newest[event["agent"]] = event
        return {agent: event["fence"] for agent, event in newest.items() if event["by"] == worker.name}

    def busiest(self) -> Worker:
        """The runner with the most agents of those that are in the middle of a turn, once there is one."""
        _wait(lambda: any(worker.in_the_middle() for worker in self.workers), "No runner drove a turn.")
        return max(self.workers, key=lambda worker: (worker.in_the_middle(), len(self.held_by(worker))))

    def wait_for_work(self, what: str) -> None:
        """Wait until more steps and turns than just were under way are acknowledged."""
        since = time.time()
        _wait(
            lambda: len(self.told("step", since=since)) >= 10 and len(self.told("finished", since=since)) >= 2,
            f"No work went on {what}.",
        )

    def wait_for_taking_over(self, held: Mapping[str, int], worker: Worker, since: float) -> float:
        """Wait until other runners have claimed these agents; seconds until the last of them was."""

        def taken() -> dict[str, float]:
            claims = self.told("claimed", "adopted", since=since)
            own = [one for one in claims if one["by"] != worker.name and one["fence"] > held.get(one["agent"], 1 << 62)]
            return {one["agent"]: one["t"] for one in reversed(own)}

        _wait(lambda: taken().keys() == held.keys(), f"Agents of '{worker.name}' were never claimed.")
        return max(taken().values()) - since


@dataclass
class Fault:
    """While it lasted the service was right to take agents from this runner."""

    runner: str
    began: float
    ended: float


def main() -> int:
    """Tell the story; its exit code."""
    description = "Agents outlive whoever drives them, whoever serves them, and a database that hangs."
    argparse.ArgumentParser(prog="python -m scripts.demo_fleet", description=description).parse_args()
    return perform(_tell)


def _tell(story: Story) -> None:
    story.console.print(Text("Holdfast: agents outlive their runners", style="bold cyan"))
    with ExitStack() as closing:
        folder = Path(tempfile.mkdtemp(prefix="holdfast-fleet-"))
        closing.callback(shutil.rmtree, folder, ignore_errors=True)
        house = House(folder, story, runner_ttl_seconds=TTL_SECONDS, log_level="warning")
        story.chapter("A database, two replicas, three runners of one pool")
        closing.enter_context(house.database())
        fleet = _assemble(story, house, closing)
        closing.callback(finish_undisturbed)
        _play(fleet)
        facts = _prove(fleet)
        story.chapter("Everything is put away")
    story.close(facts)


def _assemble(story: Story, house: House, closing: ExitStack) -> Fleet:
    timeline = Timeline(story)
    replicas = [Replica(name, house) for name in "AB"]
    workers = [Worker(name, replicas, house.folder, timeline) for name in RUNNERS]
    mongod = _database_process(house)
    for end in (*(replica.close for replica in replicas), *(worker.kill for worker in workers)):
        closing.callback(end)
    closing.callback(os.kill, mongod, signal.SIGCONT)
    return Fleet(story, timeline, replicas, workers, mongod, Prompter(replicas), Either(replicas))


def _play(fleet: Fleet) -> None:
    """Everything between the start of the replicas and the last answer."""
    for replica in fleet.replicas:
        replica.start()
    fleet.story.chapter(f"{len(AGENTS)} agents are driven, and prompted all along")
    threading.Thread(target=fleet.timeline.keep_printing, daemon=True).start()
    threading.Thread(target=_follow, args=(fleet.replicas, fleet.timeline), daemon=True).start()
    for agent in AGENTS:
        fleet.either.ask("POST", "/v1/agents", json={"id": agent, "pool": POOL})
    for worker in fleet.workers:
        worker.start()
    _wait(lambda: len(fleet.told("registered")) == len(RUNNERS), "The runners did not register.")
    fleet.prompter.start()
    fleet.wait_for_work("at first")
    _kill(fleet, fleet.busiest())
    _freeze(fleet, fleet.busiest())
    _kill_replica(fleet, fleet.replicas[0])
    _pause_database(fleet)
    _drain(fleet, fleet.busiest())
    _come_to_rest(fleet)


def _kill(fleet: Fleet, worker: Worker) -> None:
    """SIGKILL in the middle of a turn; somebody else takes over, and it may come back."""
    fleet.timeline.act(f"kill -9 {worker.name}, in the middle of a turn")
    at = time.time()
    worker.kill()
    fleet.take_overs["killed"] = fleet.wait_for_taking_over(fleet.held_by(worker), worker, at)
    fleet.timeline.act(f"starts {worker.name} again")
    again = time.time()
    worker.start()
    _wait(lambda: bool(worker.told("registered", since=again)), f"'{worker.name}' did not come back.")
    fleet.faults.append(Fault(worker.name, at, time.time()))
    fleet.wait_for_work("after a runner was killed")


def _freeze(fleet: Fleet, worker: Worker) -> None:
    """SIGSTOP in the middle of a turn, until others drive its agents; then it comes back and knows nothing of it."""
    fleet.timeline.act(f"SIGSTOP {worker.name}, in the middle of a turn")
    at = time.time()
    worker.signal(signal.SIGSTOP)
    held = fleet.held_by(worker)
    fleet.take_overs["stopped"] = fleet.wait_for_taking_over(held, worker, at)
    late = [f"{agent} (fence {fence}): {_write_late(fleet, agent, fence)[1]}" for agent, fence in held.items()]
    fleet.timeline.act(f"writes in its name, with its old fences: {', '.join(sorted(late))}")
    again = time.time()
    fleet.timeline.act(f"SIGCONT {worker.name}: a zombie that believes to drive them")
    worker.signal(signal.SIGCONT)
    _wait(lambda: bool(worker.told("registered", since=again)), f"'{worker.name}' did not come back.")
    fleet.faults.append(Fault(worker.name, at, time.time()))
    fleet.wait_for_work("after a runner was stopped")


def _kill_replica(fleet: Fleet, replica: Replica) -> None:
    fleet.timeline.act(f"kill -9 replica {replica.name}")
    replica.kill()
    fleet.wait_for_work("after a replica was killed")
    fleet.timeline.act(f"starts replica {replica.name} again")
    replica.start()


def _pause_database(fleet: Fleet) -> None:
    """The database hangs for longer than runners may be silent; nobody is declared dead for it."""
    fleet.timeline.act(f"pauses the database for {PAUSE_SECONDS:.0f} s; a runner may be silent for {TTL_SECONDS:.0f} s")
    os.kill(fleet.mongod, signal.SIGSTOP)
    try:
        time.sleep(PAUSE_SECONDS)
    finally:
        os.kill(fleet.mongod, signal.SIGCONT)
    fleet.timeline.act("lets the database go on")
    fleet.wait_for_work("after the database was paused")


def _drain(fleet: Fleet, worker: Worker) -> None:
    """SIGTERM: it finishes what is open, hands over the rest, and ends in peace."""
    fleet.timeline.act(f"SIGTERM {worker.name}: drain")
    at = time.time()
    worker.signal(signal.SIGTERM)
    _wait(lambda: worker.ended() is not None, f"'{worker.name}' did not drain.")
    if worker.ended() != 0:
        raise BrokenPromise(f"'{worker.name}' ended with {worker.ended()}: {worker.reason()}")
    fleet.take_overs["drained"] = time.time() - at
    fleet.wait_for_work("after a runner was drained")


def _come_to_rest(fleet: Fleet) -> None:
    """Prompt every agent a last time, and wait for the answers."""
    fleet.timeline.act("prompts every agent a last time")
    fleet.prompter.stop()
    for agent in AGENTS:
        _wait(partial(fleet.prompter.prompt, agent, f"last-{agent}"), f"The agent '{agent}' takes no prompt.")
    _wait(lambda: not _stuck(fleet), "Not every agent comes to rest.")
    fleet.timeline.flush()


def _wait(until: Callable[[], bool], otherwise: str) -> None:
    wait_for(until, SOON_SECONDS, otherwise, every=0.05)


def _stuck(fleet: Fleet) -> list[str]:
    """The agents that are not idle in the hands of a live runner."""
    live = {runner["id"] for runner in fleet.either.pages("/v1/runners", pool=POOL, state="live")}
    agents = fleet.either.pages("/v1/agents", pool=POOL)
    return [agent["id"] for agent in agents if agent["state"] != "idle" or agent["runner"] not in live]


def _database_process(house: House) -> int:
    for line in house.run("db", "status"):
        name, _, value = line.partition(": ")
        if name == "process":
            return int(value)
    raise BrokenPromise("`holdfast db status` names no process.")


def _follow(replicas: Sequence[Replica], timeline: Timeline) -> None:
    """Tell what the service does by itself, from the live change log, on whichever replica answers."""
    cursor = ""
    for replica in cycle(replicas):
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": cursor} if cursor else {})}
        timeout = httpx.Timeout(3, read=40)
        url = f"{replica.url}/v1/changes"
        with suppress(httpx.TransportError), httpx.stream("GET", url, headers=headers, timeout=timeout) as answer:
            for kind, data in events(answer.iter_bytes()):
                if kind == "change":
                    entry = json.loads(data)
                    cursor = entry["cursor"]
                    _show(entry, timeline)
        time.sleep(0.1)


def _show(entry: Json, timeline: Timeline) -> None:
    if entry["by"] == "holdfast" and "runner" in entry["kinds"]:
        broken_off = " (its open turn is broken off)" if "step" in entry["kinds"] else ""
        timeline.add("holdfast", "frees", f"{entry['agent']}{broken_off}", at=_time(entry))


def _time(entry: Json) -> float:
    return datetime.fromisoformat(entry["at"]).timestamp()


def _prove(fleet: Fleet) -> list[tuple[str, str]]:
    """Hold what was acknowledged against what is there; what the closing summary says."""
    fleet.story.chapter("What each promise came to")
    steps = {agent: list(fleet.either.pages(f"/v1/agents/{agent}/steps", view="all")) for agent in AGENTS}
    log = list(fleet.either.pages("/v1/changes", pool=POOL))
    acknowledged = fleet.told("step")
    _prove_nothing_is_stuck(fleet, steps)
    _prove_nothing_is_lost(fleet, acknowledged, steps)
    refused = _prove_fences(fleet, acknowledged, log)
    _prove_live_runners_are_left_alone(fleet, log)
    _prove_take_over(fleet, log)
    outcomes = Counter(event["outcome"] for event in fleet.told("finished"))
    broken = sum("interrupted" in step.get("data", {}) for some in steps.values() for step in some)
    return [
        ("steps acknowledged", f"{len(acknowledged)}"),
        ("turns finished, broken off by a fault", f"{outcomes.total()}, {broken}"),
        ("late writes tried with an old fence, refused", f"{refused}"),
        ("from kill -9 to the last of its agents claimed", f"{fleet.take_overs['killed']:.1f} s"),
        ("from SIGSTOP to the same", f"{fleet.take_overs['stopped']:.1f} s"),
        ("from SIGTERM to the end of the drained runner", f"{fleet.take_overs['drained']:.1f} s"),
    ]


def _prove_nothing_is_stuck(fleet: Fleet, steps: Mapping[str, list[Json]]) -> None:
    over = {step["turn_id"] for some in steps.values() for step in some if step.get("end")}
    open_turns = [turn for _, turn in fleet.prompter.turns if turn not in over]
    stuck = _stuck(fleet)
    fleet.story.promise(
        f"Agents stuck: 0. All {len(fleet.prompter.turns)} accepted prompts came to an end.",
        kept=not stuck and not open_turns,
        otherwise=f"Stuck are the agents {stuck} and the turns {open_turns}.",
    )


def _prove_nothing_is_lost(fleet: Fleet, acknowledged: Sequence[Json], steps: Mapping[str, list[Json]]) -> None:
    found = Counter(step["id"] for some in steps.values() for step in some)
    lost = [event["step"] for event in acknowledged if found[event["step"]] != 1]
    fleet.story.promise(
        f"Acknowledged steps lost: 0 of {len(acknowledged)}, each is there once.",
        kept=not lost,
        otherwise=f"Of {len(acknowledged)} acknowledged steps these are not there once: {lost}.",
    )


def _prove_fences(fleet: Fleet, acknowledged: Sequence[Json], log: Sequence[Json]) -> int:
    """Demand that no write with an old fence was accepted, and try one with each; how many were refused."""
    fences = {(entry["agent"], entry["version"]): hold.fence for entry, hold in _held(log)}
    late = [event["step"] for event in acknowledged if fences[event["agent"], event["version"]] != event["fence"]]
    late += [f"{entry['agent']}@{entry['version']}" for entry, hold in _held(log) if _is_foreign(entry, hold)]
    answers = [_write_late(fleet, agent, fence) for agent, fence in _old_fences(fleet)]
    fleet.story.promise(
        f"Writes accepted with an old fence: 0. {len(answers)} more that were tried just now are refused.",
        kept=not late and all(answer == (409, "fenced-out") for answer in answers),
        otherwise=f"Accepted with an old fence: {late}; and what was tried now was answered with {set(answers)}.",
    )
    return len(answers) + len(fleet.told("fenced-out"))


def _old_fences(fleet: Fleet) -> list[tuple[str, int]]:
    """Every fence that a runner once had and nobody has any more, with its agent."""
    fences = {(one["agent"], one["fence"]) for one in fleet.told("claimed", "adopted")}
    newest = dict(sorted(fences))
    return sorted((agent, fence) for agent, fence in fences if fence < newest[agent])


def _write_late(fleet: Fleet, agent: str, fence: int) -> tuple[int, str]:
    headers = {"Fencing-Token": str(fence)}
    answer = fleet.either.ask("POST", f"/v1/agents/{agent}/steps", json={"role": "agent"}, headers=headers)
    return answer.status_code, answer.json().get("code", "")


@dataclass(frozen=True)
class Hold:
    """Who drives an agent, if anybody does, and by which fence."""

    runner: str | None = None
    fence: int = 0


def _held(log: Iterable[Json]) -> Iterator[tuple[Json, Hold]]:
    """Every entry of the log, with who held its agent before it."""
    holds: dict[str, Hold] = {}
    for entry in log:
        yield entry, holds.get(entry["agent"], Hold())
        if "runner" in entry["kinds"]:
            holds[entry["agent"]] = Hold(entry.get("runner"), entry["fence"])


def _is_foreign(entry: Json, hold: Hold) -> bool:
    """Whether a runner wrote to an agent that it did not hold, or claimed one that was not free."""
    kind, _, runner = entry["by"].partition(":")
    claims = "runner" in entry["kinds"] and hold.runner is None and entry.get("runner") == runner
    return kind == "runner" and runner != hold.runner and not claims


def _was_taken(entry: Json, hold: Hold) -> bool:
    """Whether the service took the agent from the runner that held it."""
    return hold.runner is not None and entry["by"] == "holdfast" and "runner" in entry["kinds"]


def _excuses(fault: Fault, entry: Json, hold: Hold) -> bool:
    return fault.runner == hold.runner and fault.began <= _time(entry) <= fault.ended


def _prove_live_runners_are_left_alone(fleet: Fleet, log: Sequence[Json]) -> None:
    taken = [
        f"{entry['agent']} of {hold.runner}"
        for entry, hold in _held(log)
        if _was_taken(entry, hold) and not any(_excuses(fault, entry, hold) for fault in fleet.faults)
    ]
    fleet.story.promise(
        "Live runners' agents taken: 0, also while the database hung.",
        kept=not taken,
        otherwise=f"Taken from runners that lived: {taken}.",
    )


def _prove_take_over(fleet: Fleet, log: Sequence[Json]) -> None:
    """Demand that the agents of runners that were dead were free in time, by the service's own log."""
    slowest = max(
        _time(entry) - fault.began
        for entry, hold in _held(log)
        for fault in fleet.faults
        if _was_taken(entry, hold) and _excuses(fault, entry, hold)
    )
    fleet.story.promise(
        f"The agents of a dead runner are free within {slowest:.1f} s; promised are {TAKE_OVER_SECONDS:.0f} s.",
        kept=slowest <= TAKE_OVER_SECONDS,
        otherwise=f"A dead runner's agents were free after {slowest:.1f} s; promised are {TAKE_OVER_SECONDS:.0f} s.",
    )


if __name__ == "__main__":
    sys.exit(main())
