"""The example runner as a process, against two replicas: what it drives, what it survives, what it leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.harness import STRONG, Database, Replica, deployment, wait_until

SECONDS = 60.0
TTL_SECONDS = 3
QUICK = ("--steps", "2", "--step-seconds", "0.05")
SLOW = ("--steps", "60", "--step-seconds", "0.5")
"""A turn that is certainly still open when something is done to its runner."""

Json = dict[str, Any]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, list[Replica]]]:
    """A database and two replicas that soon declare a silent runner dead."""
    with deployment(tmp_path_factory.mktemp("runner"), "a", "b", runner_ttl_seconds=TTL_SECONDS) as both:
        yield both


@pytest.fixture
def database(deployed: tuple[Database, list[Replica]]) -> Database:
    return deployed[0]


@pytest.fixture
def replicas(deployed: tuple[Database, list[Replica]]) -> list[Replica]:
    return deployed[1]


@pytest.fixture
def pool() -> str:
    """A pool of the test's own."""
    return f"pool-{uuid4().hex[:8]}"


class Runner:
    """One example runner as a process; what it tells is in a file."""

    def __init__(self, folder: Path, name: str, pool: str, urls: list[str], *words: str) -> None:
        self.name = name
        self._told = folder / f"{name}.jsonl"
        self._said = folder / f"{name}.err"
        where = [word for url in urls for word in ("--url", url)]
        command = [sys.executable, "-m", "scripts.example_runner", "--id", name, "--pool", pool, *where, *words]
        with self._told.open("a") as told, self._said.open("a") as said:
            self.process = subprocess.Popen(
                command, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, stdout=told, stderr=said
            )

    def events(self, kind: str, **what: object) -> list[Json]:
        """The events of a kind, and with these fields, that it told so far."""
        lines = self._told.read_text().split("\n")[:-1]
        found = (event for event in map(json.loads, lines) if event["event"] == kind)
        return [event for event in found if what.items() <= event.items()]

    def wait_for(self, kind: str, count: int = 1, **what: object) -> Json:
        """Wait until it told so many of these; the newest."""

        def told() -> list[Json]:
            found = self.events(kind, **what)
            assert self.process.poll() in (None, 0, -signal.SIGKILL), self.said()
            return found if len(found) >= count else []

        newest: Json = wait_until(told, SECONDS, f"'{self.name}' to tell '{kind}' {what} {count} times")[-1]
        return newest

    def ended(self) -> int:
        """Wait until it has ended by itself; its exit code."""
        return self.process.wait(SECONDS)

    def said(self) -> str:
        """What it had to say to people."""
        return self._said.read_text()


Running = Callable[..., Runner]


@pytest.fixture
def running(tmp_path: Path, pool: str, replicas: list[Replica]) -> Iterator[Running]:
    """Starts runners of the test's pool: `running("ann", *QUICK)`. All are killed in the end; none complained."""
    started: list[Runner] = []

    def start(name: str, *words: str, urls: list[str] | None = None) -> Runner:
        known = urls or [replica.url for replica in replicas]
        started.append(Runner(tmp_path, f"{name}-{pool}", pool, known, *words))
        return started[-1]

    yield start
    for runner in started:
        runner.process.kill()
        runner.process.wait()
    assert [runner.said() for runner in started] == [""] * len(started)


class Agent:
    """One agent of a pool, as its user sees it."""

    def __init__(self, client: httpx.Client, **fields: object) -> None:
        self._client = client
        self.id = f"agent-{uuid4().hex[:8]}"
        self._sent("POST", "/v1/agents", {"id": self.id, **fields})

    def call(self, method: str, path: str, body: object = None, **headers: str) -> httpx.Response:
        return self._client.request(method, f"/v1/agents/{self.id}{path}", json=body, headers=headers)

    def now(self) -> Any:
        """The agent as it stands, with its whole path."""
        answer = wait_until(self._read, SECONDS, f"{self.id} to be readable")
        return answer.json()

    def prompt(self) -> str:
        """Prompt it as soon as it takes one; the turn."""
        answer = wait_until(self._prompted, SECONDS, f"{self.id} to take a prompt")
        return str(answer.json()["turn_id"])

    def wait_until(self, what: str, holds: Callable[[Any], Any]) -> Any:
        """Wait until it stands so; the agent then."""

        def stands() -> Any:
            agent = self.now()
            return agent if holds(agent) else None

        return wait_until(stands, SECONDS, f"{self.id} to be {what}; it is {self.now()}")

    def answered(self, turn: str) -> list[Json]:
        """Wait until a turn is over; its steps."""
        agent = self.wait_until(f"done with {turn}", lambda agent: any(step.get("end") for step in of(agent, turn)))
        return of(agent, turn)

    def command(self, action: str, payload: object = None) -> Callable[[], Any]:
        """Create a command; what reads how far it came."""
        made = self._sent("POST", f"/v1/agents/{self.id}/commands", {"action": action, "payload": payload})
        return lambda: self._client.get(f"/v1/commands/{made['id']}").json()

    def runner(self, runner: Runner, verb: str, **body: object) -> Any:
        """A call about its runner, by the key that registered it."""
        return self._sent("POST", f"/v1/runners/{runner.name}/{verb}", body)

    def changes(self, kinds: str) -> list[Json]:
        """What the change log tells of it, of these kinds."""
        query = {"agent": self.id, "kinds": kinds, "limit": "200"}
        found: list[Json] = self._client.get("/v1/changes", params=query).json()["items"]
        return found

    def runner_now(self, runner: Runner) -> Any:
        return self._client.get(f"/v1/runners/{runner.name}").json()

    def _read(self) -> httpx.Response | None:
        answer = self.call("GET", "?steps=all&steps_limit=10000", **STRONG)
        assert answer.status_code in (200, 503), answer.text
        return answer if answer.status_code == 200 else None

    def _prompted(self) -> httpx.Response | None:
        answer = self.call("POST", "/turns", {"content": "Read on."})
        assert answer.status_code in (201, 409, 503), answer.text
        return answer if answer.status_code == 201 else None

    def _sent(self, method: str, path: str, body: object) -> Any:
        answer = self._client.request(method, path, json=body)
        assert answer.is_success, answer.text
        return answer.json()


Made = Callable[..., Agent]


@pytest.fixture
def made(replicas: list[Replica], pool: str) -> Iterator[Made]:
    """Makes agents of the test's pool, whose users ask one of the replicas: `made(1, labels={})`."""
    with ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=replica.url, timeout=20)) for replica in replicas]
        yield lambda replica=0, **fields: Agent(clients[replica], **{"pool": pool, **fields})


def of(agent: Json, turn: str) -> list[Json]:
    return [step for step in agent["steps"] if step["turn_id"] == turn]


def unanswered(steps: list[Json]) -> set[str]:
    """The tool calls that have no result."""
    calls = {call["id"] for step in steps for call in step.get("tool_calls", ())}
    return calls - {result["id"] for step in steps for result in step.get("tool_results", ())}


def finished(read: Callable[[], Any]) -> Any:
    """Wait until a command is completed or failed; how it ended."""

    def ended() -> Any:
        command = read()
        return command if command["status"] in ("completed", "failed") else None

    return wait_until(ended, SECONDS, "a command to be carried out")


def assert_all_there(agent: Agent, *runners: Runner) -> None:
    """Each step that was acknowledged to a runner is on the agent once, and what was said after a loss was refused."""
    found = [step["id"] for step in agent.now()["steps"]]
    acknowledged = [event["step"] for runner in runners for event in runner.events("step", agent=agent.id)]
    assert acknowledged
    assert all(found.count(step) == 1 for step in acknowledged)


def test_every_prompt_is_driven_to_its_end(running: Running, made: Made) -> None:
    agents = [made(number % 2) for number in range(4)]
    ann = running("ann", *QUICK)
    for _ in range(3):
        for agent, turn in [(agent, agent.prompt()) for agent in agents]:
            steps = agent.answered(turn)
            assert [step["role"] for step in steps] == ["user", "agent", "tool", "agent", "tool", "agent"]
            assert unanswered(steps) == set()
    for agent in agents:
        now = agent.now()
        assert (now["state"], now["runner"]) == ("idle", ann.name)
        assert now["resource_id"].startswith(ann.name)
        assert_all_there(agent, ann)


def test_capacity_is_kept_and_room_is_used(running: Running, made: Made) -> None:
    agents = [made() for _ in range(3)]
    ann = running("ann", "--capacity", "2", *QUICK)
    ann.wait_for("connected", 2)
    first = {event["agent"] for event in ann.events("claimed")}
    assert len(first) == 2
    (left,) = (agent for agent in agents if agent.id not in first)
    (taken, _) = (agent for agent in agents if agent.id in first)
    assert finished(taken.command("terminate"))["status"] == "completed"
    left.answered(left.prompt())


def test_a_runner_killed_in_a_turn_is_replaced_and_nothing_acknowledged_is_lost(running: Running, made: Made) -> None:
    agent = made()
    ann = running("ann", *SLOW)
    ann.wait_for("connected")
    bob = running("bob", *QUICK)
    turn = agent.prompt()
    ann.wait_for("step", 3, turn=turn)
    resource = agent.now()["resource_id"]
    ann.process.kill()
    claim = bob.wait_for("claimed", agent=agent.id)
    assert claim["fence"] > ann.events("claimed")[0]["fence"]
    assert claim["previous_runner"] == ann.name
    bob.wait_for("cleaned", agent=agent.id, resource=resource)
    broken_off = agent.answered(turn)
    assert unanswered(broken_off) == set()
    assert "interrupted" in broken_off[-1]["data"]
    assert agent.answered(agent.prompt())[-1]["content"] == "I have read it all."
    assert_all_there(agent, ann, bob)


def test_a_runner_that_was_stopped_comes_back_knows_its_place_and_works_again(running: Running, made: Made) -> None:
    """A zombie: others drive its agent by now, and no write of its own is accepted any more."""
    agent = made()
    ann = running("ann", *SLOW)
    ann.wait_for("connected")
    bob = running("bob", *QUICK)
    turn = agent.prompt()
    ann.wait_for("step", 3, turn=turn)
    ann.process.send_signal(signal.SIGSTOP)
    claim = bob.wait_for("claimed", agent=agent.id)
    agent.answered(agent.prompt())
    ann.process.send_signal(signal.SIGCONT)
    assert ann.wait_for("dead")["agents"] in ([agent.id], [])
    assert ann.wait_for("registered", 2)["incarnation"] == 2
    assert all(step["version"] < claim["version"] for step in ann.events("step", agent=agent.id))
    assert ann.events("crashed") == []
    assert_all_there(agent, ann, bob)
    bob.process.kill()
    ann.wait_for("claimed", 2, agent=agent.id)
    ann.wait_for("step", agent=agent.id, turn=agent.prompt())


def test_a_runner_that_is_fenced_out_of_an_agent_drops_it_at_once_and_keeps_the_others(
    running: Running, made: Made
) -> None:
    agent, other = made(), made()
    ann = running("ann", *SLOW)
    ann.wait_for("connected", 2)
    turns = {one.id: one.prompt() for one in (agent, other)}
    for turn in turns.values():
        ann.wait_for("step", 2, turn=turn)
    fence = ann.events("claimed", agent=agent.id)[0]["fence"]
    agent.runner(ann, "release", agent=agent.id)
    again = ann.wait_for("claimed", 2, agent=agent.id)
    assert again["fence"] > fence
    own = [event["event"] for kind in ("fenced-out", "lost") for event in ann.events(kind, agent=agent.id, fence=fence)]
    assert len(own) == 1
    assert all(step["version"] < again["version"] for step in ann.events("step", agent=agent.id, fence=fence))
    assert ann.events("crashed") + ann.events("dead") == []
    ann.wait_for("step", len(ann.events("step", turn=turns[other.id])) + 2, turn=turns[other.id])
    assert of(agent.now(), turns[agent.id])[-1]["data"]["interrupted"]


def test_a_turn_goes_on_while_the_replica_is_killed_and_started_again(
    running: Running, made: Made, replicas: list[Replica]
) -> None:
    agent = made()
    ann = running("ann", "--steps", "40", "--step-seconds", "0.2")
    ann.wait_for("connected")
    turn = agent.prompt()
    ann.wait_for("step", 3, turn=turn)
    moved = ann.events("fail-over")
    asked = next(one for one in replicas if one.url == (moved[-1]["to"] if moved else replicas[0].url))
    try:
        asked.kill9()
        ann.wait_for("fail-over", len(moved) + 1)
        ann.wait_for("step", len(ann.events("step")) + 4, turn=turn)
    finally:
        asked.restart()
    assert len(agent.answered(turn)) == 82
    assert ann.events("dead") == []
    assert len(ann.events("claimed")) == 1
    assert_all_there(agent, ann)


@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_a_turn_goes_on_after_the_database_was_away_for_longer_than_a_runner_may_be_silent(
    running: Running, made: Made, database: Database, replicas: list[Replica], fault: str
) -> None:
    """Nobody grows older while nobody can tell, so the runner is not declared dead."""
    agent = made()
    ann = running("ann", "--steps", "20", "--step-seconds", "0.2")
    ann.wait_for("connected")
    turn = agent.prompt()
    ann.wait_for("step", 3, turn=turn)
    leave, come_back = (database.kill9, database.restart) if fault == "killed" else (database.pause, database.resume)
    leave()
    try:
        time.sleep(TTL_SECONDS + 1)  # this is what the fault is
    finally:
        come_back()
    for replica in replicas:
        replica.wait_ready()
    assert len(agent.answered(turn)) == 42
    assert ann.events("dead") + ann.events("lost") + ann.events("fenced-out") == []
    assert_all_there(agent, ann)


@pytest.mark.parametrize("asked", ["by signal", "by call"])
def test_draining_finishes_the_open_turn_and_leaves_nothing_assigned(running: Running, made: Made, asked: str) -> None:
    busy, idle = made(), made()
    ann = running("ann", "--steps", "4", "--step-seconds", "0.3")
    ann.wait_for("connected", 2)
    turn = busy.prompt()
    ann.wait_for("step", turn=turn)
    if asked == "by signal":
        ann.process.send_signal(signal.SIGTERM)
    else:
        busy.runner(ann, "drain")
    assert ann.ended() == 0
    assert ann.events("finished", turn=turn)[0]["outcome"] == "completed"
    assert busy.answered(turn)[-1]["content"] == "I have read it all."
    assert [(one.now()["state"], one.now()["runner"]) for one in (busy, idle)] == [("idle", None)] * 2
    left = busy.runner_now(ann)
    assert (left["state"], left["load"]) == ("left", 0)
    assert ann.events("dead") + ann.events("fenced-out") == []


def test_draining_hands_agents_over_to_another_runner(running: Running, made: Made) -> None:
    agent = made()
    ann = running("ann", *QUICK)
    ann.wait_for("connected")
    bob = running("bob", *QUICK)
    bob.wait_for("registered")
    ann.process.send_signal(signal.SIGTERM)
    assert bob.wait_for("claimed", agent=agent.id)["state"] == "idle"
    assert ann.ended() == 0
    agent.answered(agent.prompt())
    freed = [entry["by"] for entry in agent.changes("runner") if entry.get("runner") is None]
    assert freed == [f"runner:{ann.name}"]


def test_a_user_can_stop_a_turn(running: Running, made: Made) -> None:
    agent = made()
    ann = running("ann", *SLOW)
    turn = agent.prompt()
    ann.wait_for("step", turn=turn)
    assert agent.call("POST", "/stop").status_code == 200
    steps = agent.answered(turn)
    assert unanswered(steps) == set()
    assert len(steps) < 10
    assert ann.wait_for("finished", turn=turn)["outcome"] == "stopped"
    assert agent.now()["state"] == "idle"


def test_a_turn_ends_with_its_max_steps_and_the_next_one_begins(running: Running, made: Made) -> None:
    agent = made(settings={"max_steps": 3})
    ann = running("ann", *QUICK)
    for _ in range(2):
        assert len(agent.answered(agent.prompt())) == 4
    assert ann.events("crashed") == []


def test_commands_are_carried_out(running: Running, made: Made) -> None:
    agent = made()
    ann = running("ann", *SLOW)
    ann.wait_for("connected")
    assert finished(agent.command("custom", {"say": "hi"}))["result"] == {"echo": {"say": "hi"}}
    failed = finished(agent.command("custom", {"fail": "no such thing"}))
    assert (failed["status"], failed["error"]) == ("failed", "no such thing")
    turn = agent.prompt()
    ann.wait_for("step", turn=turn)
    assert finished(agent.command("stop"))["status"] == "completed"
    agent.answered(turn)
    assert finished(agent.command("hibernate"))["status"] == "completed"
    assert agent.wait_until("at rest", lambda agent: agent["runner"] is None)["dormant"] is True
    assert finished(agent.command("wake"))["status"] == "completed"
    agent.wait_until("driven again", lambda agent: agent["runner"] == ann.name)
    assert finished(agent.command("terminate"))["status"] == "completed"
    over = agent.now()
    assert (over["state"], over["runner"], over["resource_id"]) == ("stopped", None, None)
    assert finished(agent.command("start"))["status"] == "completed"
    agent.wait_until("started again", lambda agent: agent["state"] == "idle" and agent["runner"] == ann.name)
    assert ann.events("crashed") == []


class Unreliable:
    """What is between the runner and a replica: answers nothing to every second request of these, and has no feeds.

    What else is to happen before a request is passed on is done by `before`, which is given its method, path and body.
    """

    def __init__(
        self, replica: Replica, *cut: tuple[str, str], before: Callable[[str, str, bytes], object] = lambda *_: None
    ) -> None:
        self.cuts: dict[tuple[str, str], int] = dict.fromkeys(cut, 0)
        self._client = client = httpx.Client(base_url=replica.url, timeout=30)
        lock, unreliable = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _relay(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.path.startswith("/v1/changes"):
                    self._answer(503, b"{}")
                    return
                before(self.command, self.path, body)
                answer = client.request(self.command, self.path, content=body, headers=dict(self.headers))
                kind = next((one for one in cut if one[0] == self.command and self.path.endswith(one[1])), None)
                with lock:
                    unreliable.cuts |= {} if kind is None else {kind: unreliable.cuts[kind] + 1}
                if kind is not None and unreliable.cuts[kind] % 2:
                    self.close_connection = True
                    return
                self._answer(answer.status_code, answer.content)

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = _relay  # noqa: N815 - as the server calls them

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # the runner hung up
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def between(self) -> Iterator[str]:
        """Its address while it is there."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self.url
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()
            self._client.close()


def test_lost_answers_and_no_events_at_all_cost_nothing_but_time(
    running: Running, made: Made, replicas: list[Replica]
) -> None:
    """Claims whose answer was lost are told again, such writes are made once, heartbeats tell the rest."""
    writes = (("POST", "/steps"), ("POST", "/finish"), ("POST", "/transitions"), ("PUT", "/resource"))
    others = (("POST", "/claim"), ("POST", "/ack"), ("POST", "/complete"), ("POST", "/runners"), ("DELETE", ""))
    unreliable = Unreliable(replicas[0], *writes, *others)
    agents = [made(1, settings={"max_steps": most}) for most in (3, 100)]
    with unreliable.between() as url:
        ann = running("ann", *QUICK, urls=[url])
        for _ in range(2):
            lengths = [len(agent.answered(turn)) for agent, turn in [(each, each.prompt()) for each in agents]]
            assert lengths == [4, 6]
        assert finished(agents[0].command("custom", "hi"))["result"] == {"echo": "hi"}
        ann.process.send_signal(signal.SIGTERM)
        assert ann.ended() == 0
    assert all(count >= 2 for count in unreliable.cuts.values()), unreliable.cuts
    assert {one["agent"] for one in ann.events("claimed") + ann.events("adopted")} == {agent.id for agent in agents}
    assert ann.events("crashed") + ann.events("dead") == []
    for agent in agents:
        assert_all_there(agent, ann)
        assert agent.now()["runner"] is None


def test_a_prompt_that_comes_while_its_agent_is_let_go_is_driven_first(
    running: Running, replicas: list[Replica], made: Made
) -> None:
    agent = made()
    turns: list[str] = []

    def prompt_once(_: str, path: str, __: bytes) -> None:
        if path.endswith("/release") and not turns:
            turns.append(agent.prompt())

    with Unreliable(replicas[0], before=prompt_once).between() as url:
        ann = running("ann", *QUICK, urls=[url])
        ann.wait_for("connected")
        ann.process.send_signal(signal.SIGTERM)
        assert ann.ended() == 0
    assert [ann.events("finished", turn=turn)[0]["outcome"] for turn in turns] == ["completed"]
    assert (agent.now()["state"], agent.now()["runner"]) == ("idle", None)


def test_a_write_that_is_fenced_out_is_never_sent_again(running: Running, replicas: list[Replica], made: Made) -> None:
    agent = made()
    steps: list[bytes] = []

    def take_away(_: str, path: str, body: bytes) -> None:
        if path.endswith("/steps"):
            steps.append(body)
            if len(steps) == 3:
                agent.runner(ann, "release", agent=agent.id)

    with Unreliable(replicas[0], before=take_away).between() as url:
        ann = running("ann", "--steps", "3", "--step-seconds", "0.05", urls=[url])
        ann.wait_for("connected")
        agent.prompt()
        again = ann.wait_for("claimed", 2, agent=agent.id)
        ann.wait_for("connected", 2)
        agent.answered(agent.prompt())
    assert again["attempt"] == 2
    assert len(ann.events("fenced-out") + ann.events("lost")) == 1
    assert steps[2] not in steps[3:]
    assert ann.events("crashed") == []


def test_a_last_step_whose_answer_was_lost_is_answered_again(made: Made) -> None:
    """Also that it was the last that the turn may have, so that its driver knows."""
    agent = made(pool=None, settings={"max_steps": 1})
    agent.prompt()
    answers = [agent.call("POST", "/steps", {"id": "last", "role": "agent"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert [answer.json()["turn_ended"] for answer in answers] == ["max_steps"] * 2
    assert agent.call("POST", "/steps", {"id": "more", "role": "agent"}).json()["code"] == "conflict"


def test_what_the_service_refuses_is_told_in_a_sentence(replicas: list[Replica], tmp_path: Path, pool: str) -> None:
    runner = Runner(tmp_path, "ann", pool, [replicas[0].url], "--platform", "moon")
    assert runner.ended() == 1
    assert "invalid-request" in runner.said()
    assert "Traceback" not in runner.said()
