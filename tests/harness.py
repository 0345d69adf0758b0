"""Replicas and a database as processes of their own, to be killed, paused and started again; and a recorder of answers.

"Two replicas" are two processes here, "a crash" is kill -9, a hung database is SIGSTOP on a real mongod. Nothing
sleeps for a guessed time: `wait_until` polls a condition and fails loudly at its deadline.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from app.config import Settings
from app.mongod import EmbeddedServer
from app.runtime import create_replica

START_SECONDS = 60.0
STRONG = {"Cache-Control": "no-cache"}
"""Header of a linearizable read."""

_warm = multiprocessing.get_context("forkserver")
_warm.set_forkserver_preload(["app.cli", "app.runtime", "uvicorn", "tests.harness"])


def rounds(short: int) -> int:
    """How often to repeat: a few times, or as many times more as HOLDFAST_TEST_ROUNDS says."""
    return short * int(os.environ.get("HOLDFAST_TEST_ROUNDS", "1"))


def wait_until(holds: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of the condition; AssertionError when it does not come in time."""
    until = time.monotonic() + seconds
    while not (value := holds()):
        if time.monotonic() > until:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.02)
    return value


async def wait_until_async(holds: Callable[[], Any], seconds: float, what: str) -> Any:
    """`wait_until` for a condition that other tasks of this event loop bring about."""
    until = time.monotonic() + seconds
    while not (value := holds()):
        if time.monotonic() > until:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        await asyncio.sleep(0.01)
    return value


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Database:
    """The embedded server of a data directory, on a port that stays the same over restarts."""

    def __init__(self, data: Path) -> None:
        self._server = EmbeddedServer(data)
        self._pid: int | None = None
        self.uri = ""

    def start(self) -> Database:
        """Start it, and wait until it takes writes."""
        self.uri = self._server.start()
        self._pid = self._server.status().pid
        return self

    def kill9(self) -> None:
        """The crash: no time for a last word, and none for what was not journaled."""
        self._signal(signal.SIGKILL)
        wait_until(lambda: not self._server.status().listens, 10, "the database to be gone")

    def restart(self) -> None:
        """Start it again on the same files and port."""
        self.start()

    def pause(self) -> None:
        """Stop its threads where they are: connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        self._server.stop()

    def _signal(self, number: int) -> None:
        assert self._pid is not None, "the database was never started"
        os.kill(self._pid, number)


class Replica:
    """One replica of the service over a database: a process of its own, on a port that stays the same over restarts.

    It is forked from a process that has the program's modules loaded, so that restarting it is cheap. What `prepare`
    does (it is pickled) happens in that process before it serves, after each start.
    """

    def __init__(
        self, folder: Path, uri: str, name: str, prepare: Callable[[], object] | None = None, **settings: object
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / f"{name}.log"
        self._child: ForkServerProcess | None = None
        self._prepare = prepare
        self._env = {
            "MONGODB_URI": uri,
            "HOLDFAST_DATA": str(folder / "data"),
            "HOLDFAST_LOG_LEVEL": "warning",
            **{f"HOLDFAST_{key.upper()}": str(value) for key, value in settings.items()},
        }

    def start(self) -> Replica:
        """Start the process; `wait_ready` waits for it."""
        self._child = _warm.Process(target=_serve, args=(self.port, self._env, self._log, self._prepare))
        self._child.start()
        return self

    def restart(self) -> None:
        """Start again on the same port, and wait until it serves."""
        self.start().wait_ready()

    def kill9(self) -> None:
        """The crash: no time for a last word."""
        if self._child is not None:
            self._child.kill()
            self._child.join()

    def pause(self) -> None:
        """Stop its threads where they are: connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._child is not None and self._child.pid is not None, "the replica was never started"
        os.kill(self._child.pid, number)

    def stop(self) -> None:
        """End it in peace, or not."""
        if self._child is not None:
            self._child.terminate()
            self._child.join(20)
            self.kill9()

    def terminate(self) -> None:
        """Ask it to end, as an orchestrator does; `ended` waits for it."""
        assert self._child is not None, "the replica was never started"
        self._child.terminate()

    def ended(self, seconds: float) -> int:
        """Wait until the process is over; its exit code."""
        child = self._child
        assert child is not None, "the replica was never started"
        wait_until(lambda: not child.is_alive(), seconds, f"replica {self.name} to end")
        return int(child.exitcode or 0)

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._child is not None and self._child.is_alive()

    def resident_bytes(self) -> int:
        """What the process holds in memory (Linux)."""
        assert self._child is not None, "the replica was never started"
        pages = int(Path(f"/proc/{self._child.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def metric(self, name: str) -> float:
        """The value that /metrics tells, of a metric without labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def wait_ready(self, seconds: float = START_SECONDS) -> Replica:
        """Wait until /health/ready answers 200."""
        wait_until(self._ready, seconds, f"replica {self.name} to be ready")
        return self

    def readiness(self) -> int | None:
        """What /health/ready answers now; None when nobody answers."""
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code
        except httpx.TransportError:
            return None

    def _ready(self) -> bool:
        assert self._child is not None
        assert self._child.is_alive(), f"{self.name} ended:\n{self._log.read_text()[-4000:]}"
        return self.readiness() == 200

    def client(self, seconds: float = 60.0) -> httpx.AsyncClient:
        """A client of this replica alone, which never gives up before the replica does."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
        return httpx.AsyncClient(base_url=self.url, timeout=seconds, limits=limits)


def _serve(port: int, env: Mapping[str, str], log: Path, prepare: Callable[[], object] | None) -> None:
    """What a replica's process runs, with its output in a file."""
    with log.open("ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(env)
    if prepare is not None:
        prepare()
    if find_spec("app.cli") is None:
        asyncio.run(_serve_plainly(port))
    else:
        sys.argv = ["holdfast", "serve", "--port", str(port)]
        import_module("app.cli").main()


async def _serve_plainly(port: int) -> None:
    settings = Settings()
    assert settings.mongodb_uri is not None
    replica = create_replica(settings, settings.mongodb_uri)
    await uvicorn.Server(uvicorn.Config(replica, host="127.0.0.1", port=port, access_log=False)).serve()


@contextmanager
def deployment(
    folder: Path, *names: str, prepare: Mapping[str, Callable[[], object]] | None = None, **settings: object
) -> Iterator[tuple[Database, list[Replica]]]:
    """A database and replicas over it, ready; all gone in the end. `prepare` by a replica's name, see `Replica`."""
    prepared = prepare or {}
    database = Database(folder / "data")
    replicas: list[Replica] = []
    try:
        database.start()
        replicas = [Replica(folder, database.uri, name, prepared.get(name), **settings).start() for name in names]
        for replica in replicas:
            replica.wait_ready()
        yield database, replicas
    finally:
        for replica in replicas:
            replica.stop()
        database.stop()


@asynccontextmanager
async def clients_of(*replicas: Replica) -> AsyncIterator[list[httpx.AsyncClient]]:
    """A client of each replica."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(replica.client()) for replica in replicas]


@dataclass(frozen=True)
class Attempt:
    """One write that was sent, under a mark that makes its effect recognisable, and what was heard of it."""

    kind: str
    mark: str
    answer: httpx.Response | None
    """None: the connection broke."""
    seconds: float

    @property
    def acknowledged(self) -> bool:
        return self.answer is not None and self.answer.is_success

    @property
    def refused(self) -> bool:
        return self.answer is not None and 400 <= self.answer.status_code < 500

    @property
    def denied(self) -> bool:
        """Whether the service says that surely nothing was written."""
        return self._unavailable and self.answer is not None and self.answer.json().get("written") is False

    @property
    def unknown(self) -> bool:
        """Whether it may have been written or not, as far as was heard."""
        return self.answer is None or (self._unavailable and not self.denied)

    @property
    def accounted_for(self) -> bool:
        """Whether it ended in one of the ways that the contract knows."""
        return self.acknowledged or self.refused or self.denied or self.unknown

    @property
    def _unavailable(self) -> bool:
        return self.answer is not None and self.answer.status_code == 503

    def __str__(self) -> str:
        heard = "dropped" if self.answer is None else f"{self.answer.status_code} {self.answer.text[:300]}"
        return f"{self.kind} {self.mark}: {heard} after {self.seconds:.2f} s"


@dataclass
class Recorder:
    """Every write of a test with its answer, so that the agent can be held against what was acknowledged."""

    attempts: list[Attempt] = field(default_factory=list)

    async def send(
        self, client: httpx.AsyncClient, kind: str, mark: str, method: str, path: str, **request: Any
    ) -> Attempt:
        """Send a write and record how it ended, also when the replica dies meanwhile."""
        started = time.monotonic()
        answer: httpx.Response | None = None
        with suppress(httpx.TransportError):
            answer = await client.request(method, path, **request)
        attempt = Attempt(kind, mark, answer, time.monotonic() - started)
        self.attempts.append(attempt)
        return attempt

    def where(self, holds: Callable[[Attempt], bool]) -> list[Attempt]:
        return [attempt for attempt in self.attempts if holds(attempt)]

    def tally(self) -> dict[str, int]:
        """How many ended in which way."""
        ways = ("acknowledged", "refused", "denied", "unknown")
        return {way: sum(getattr(attempt, way) for attempt in self.attempts) for way in ways}


MIXED = ("append", "chosen", "keyed", "result", "setting")
"""The kinds of writes that `write` knows: steps with an id of the service's, with one of ours, under an
Idempotency-Key; a result; a setting. Each effect carries the mark, once."""


async def write(recorder: Recorder, client: httpx.AsyncClient, agent: str, kind: str, mark: str) -> Attempt:
    """One write of a kind that leaves the mark on the agent."""
    at = f"/v1/agents/{agent}"
    if kind == "result":
        return await recorder.send(client, kind, mark, "PUT", f"{at}/results/{mark}", json={"result": mark})
    if kind == "setting":
        return await recorder.send(client, kind, mark, "PATCH", f"{at}/settings", json={mark: mark})
    body = {"role": "user", "content": mark, **({"id": mark} if kind == "chosen" else {})}
    headers = {"Idempotency-Key": mark} if kind == "keyed" else {}
    return await recorder.send(client, kind, mark, "POST", f"{at}/steps", json=body, headers=headers)


class Writers:
    """Writers that go on one after another's answer until `leave`, each with marks `<name>-<number>`."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._over = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def add(self, client: httpx.AsyncClient, agent: str, kind: str, name: str) -> None:
        """One more writer, of one kind."""
        self._tasks[name] = asyncio.create_task(self._write(client, agent, kind, name))

    def leave(self) -> None:
        """Send nothing more; what is under way is waited for in the end."""
        self._over.set()

    async def served(self, seconds: float) -> None:
        """Wait until each writer was acknowledged something that it sent from now on."""
        since = {name: self._number(name) for name in self._tasks}
        await wait_until_async(lambda: self._all_served(since), seconds, "every writer to be served")

    async def finish(self) -> None:
        self.leave()
        await asyncio.gather(*self._tasks.values())

    def cancel(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    def _all_served(self, since: Mapping[str, int]) -> bool:
        for task in self._tasks.values():
            if task.done():
                task.result()
        waited = {name for name, number in since.items() if not self._acknowledged_after(name, number)}
        return not waited

    def _acknowledged_after(self, name: str, number: int) -> bool:
        own = (attempt for attempt in self._recorder.attempts if attempt.mark.rpartition("-")[0] == name)
        return any(attempt.acknowledged and int(attempt.mark.rpartition("-")[2]) > number for attempt in own)

    def _number(self, name: str) -> int:
        own = (attempt.mark.rpartition("-") for attempt in self._recorder.attempts)
        return max((int(number) for writer, _, number in own if writer == name), default=0) + 1

    async def _write(self, client: httpx.AsyncClient, agent: str, kind: str, name: str) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            attempt = await write(self._recorder, client, agent, kind, f"{name}-{number}")
            assert attempt.answer is not None, f"the replica broke the connection: {attempt}"
            assert attempt.accounted_for, str(attempt)


@asynccontextmanager
async def writing(recorder: Recorder) -> AsyncIterator[Writers]:
    """Writers, who have ended when this is left."""
    writers = Writers(recorder)
    try:
        yield writers
        await writers.finish()
    finally:
        writers.cancel()


async def settle(client: httpx.AsyncClient, agent: str) -> None:
    """Pass through the replica's queue for the agent once, so that all that it was still sending is decided."""
    answer = await client.patch(f"/v1/agents/{agent}", json={"name": "settled"})
    assert answer.status_code == 200, answer.text


@dataclass(frozen=True)
class Marks:
    """Where marks are found on an agent: steps in the order of seq, and keys of results and settings."""

    agent: dict[str, Any]
    steps: list[dict[str, Any]]
    results: frozenset[str]
    settings: frozenset[str]

    def count(self, mark: str) -> int:
        """How often a mark's write took effect; results and settings can't show a second time."""
        return sum(step["content"] == mark for step in self.steps) + (mark in self.results) + (mark in self.settings)


async def read_marks(client: httpx.AsyncClient, agent: str) -> Marks:
    """What the agent holds, by a linearizable read."""
    body = await _read_at_last(client, f"/v1/agents/{agent}?steps=all&steps_limit=10000")
    results = await _read_at_last(client, f"/v1/agents/{agent}/results")
    return Marks(body, body["steps"], frozenset(results["results"]), frozenset(body["settings"]))


async def _read_at_last(client: httpx.AsyncClient, path: str) -> Any:
    """What a linearizable read says, asked again while the database has not come back to itself."""
    until = time.monotonic() + 30
    answer = await client.get(path, headers=STRONG)
    while answer.status_code == 503 and time.monotonic() < until:
        await asyncio.sleep(float(answer.headers["Retry-After"]))
        answer = await client.get(path, headers=STRONG)
    assert answer.status_code == 200, answer.text[:300]
    return answer.json()


def assert_one_chain(steps: Iterable[Mapping[str, Any]]) -> None:
    """The steps, in the order of seq, are numbered 1…n without holes or doubles, and their versions grow."""
    steps = list(steps)
    assert [step["seq"] for step in steps] == list(range(1, len(steps) + 1))
    versions = [step["version"] for step in steps]
    assert all(earlier < later for earlier, later in pairwise(versions)), versions
    parents = ["root", *(step["id"] for step in steps)]
    assert [step["parent_id"] for step in steps] == parents[: len(steps)], "the steps are not one chain"


def assert_truthful(recorder: Recorder, marks: Marks) -> None:
    """The agent shows each acknowledged write once, none that was denied or refused, the unknown ones at most once."""
    assert not recorder.where(lambda attempt: not attempt.accounted_for), "an answer outside the contract"
    settled: dict[str, list[Attempt]] = {}
    for attempt in recorder.attempts:
        settled.setdefault(attempt.mark, []).append(attempt)
    for mark, attempts in settled.items():
        story = "; ".join(map(str, attempts))
        assert marks.count(mark) <= 1, f"applied twice: {story}"
        if any(attempt.acknowledged for attempt in attempts):
            assert marks.count(mark) == 1, f"acknowledged and lost: {story}"
            _assert_as_answered(attempts, marks)
        elif all(attempt.denied or attempt.refused for attempt in attempts):
            assert marks.count(mark) == 0, f"said not to be written, and it is: {story}"
    assert_one_chain(marks.steps)


def _assert_as_answered(attempts: Iterable[Attempt], marks: Marks) -> None:
    by_id = {step["id"]: step for step in marks.steps}
    for attempt in attempts:
        if attempt.acknowledged and attempt.kind in ("append", "chosen", "keyed"):
            assert attempt.answer is not None
            for step in attempt.answer.json()["steps"]:
                assert by_id.get(step["id"]) == step, f"not as it was acknowledged: {attempt}"
