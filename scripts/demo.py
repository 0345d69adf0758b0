"""The main job in one terminal: an agent outlives the replica that serves it.

Imports a trace, lets replica A continue it, kills A in the middle of a write, and proves on replica B that whatever
was acknowledged is there. Everything happens in a temporary data directory, on loopback, through the program's own
command line and HTTP interface; nothing is left behind, also after Ctrl-C.

Usage: python -m scripts.demo [FILE]. Exit code 0 only when every promise held.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from app.traces import Snapshot, TraceError, read

EXAMPLE = Path(__file__).parents[1] / "examples" / "fix-the-clock.traj.json"
HOLDFAST = Path(sys.executable).with_name("holdfast")

RUN = secrets.token_hex(2)
"""In the id of each step, so that an agent that went through the demo before can go through it again."""

KILL_AFTER = 25
"""Acknowledged steps before A is killed."""

GO_ON = 25
"""Steps that B adds alone."""

NEVER = 20_000
"""Steps after which a killed replica that still answers is a fault of the demo."""

COMMAND_SECONDS = 60.0
READY_SECONDS = 30.0
ANSWER_SECONDS = 15.0
STOP_SECONDS = 15.0

ANYTHING = TypeVar("ANYTHING")


class BrokenPromise(Exception):
    """What did not come true, in a sentence for people."""


class Step(msgspec.Struct, frozen=True):
    """What the demo looks at in a step."""

    id: str
    parent_id: str
    content: str | None = None


class Agent(msgspec.Struct, frozen=True):
    """What the demo looks at in an agent."""

    version: int
    head: str
    step_count: int
    steps: list[Step]


class Story:
    """What is told in the terminal: chapters, what is done, what is proven."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.chapters = 0

    def chapter(self, title: str) -> None:
        self.chapters += 1
        self.console.print()
        self.console.print(Text.assemble((f"{self.chapters}  ", "cyan"), (title, "bold")))

    def command(self, *words: str) -> None:
        self._line("$ ", " ".join(words), "dim")

    def tell(self, sentence: str) -> None:
        self._line("  ", sentence, "")

    def promise(self, sentence: str, *, kept: bool, otherwise: str) -> None:
        """Tell that a promise was kept, or raise BrokenPromise."""
        if not kept:
            raise BrokenPromise(otherwise)
        self._line("✓ ", sentence, "green")

    def close(self, facts: Sequence[tuple[str, str]]) -> None:
        table = Table.grid(padding=(0, 3))
        for name, fact in facts:
            table.add_row(Text(name), Text(fact, style="bold"))
        self.console.print()
        self.console.rule(style="cyan")
        self.console.print(Padding(table, (0, 3), expand=False))
        self.console.rule(style="cyan")

    def _line(self, mark: str, sentence: str, style: str) -> None:
        line = Table.grid()
        line.add_row(Text(mark, style=style), Text(sentence, style=style))
        self.console.print(Padding(line, (0, 0, 0, 3), expand=False))


class House:
    """A data directory of its own and the program in it."""

    def __init__(self, folder: Path, story: Story) -> None:
        self.folder = folder
        self.story = story
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "MONGODB_"))}
        self.environment = {**ours, "HOLDFAST_DATA": str(folder / "data")}

    def run(self, *words: str) -> list[str]:
        """The lines that `holdfast <words>` answered; BrokenPromise with its last message when it failed."""
        self.story.command("holdfast", *words)
        try:
            done = subprocess.run(
                [HOLDFAST, *words],
                env=self.environment,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=COMMAND_SECONDS,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise BrokenPromise(f"`holdfast {words[0]}` was not done within {COMMAND_SECONDS:.0f} s.") from None
        if done.returncode:
            raise BrokenPromise(f"`holdfast {words[0]}` failed: {_last_line(done.stderr)}")
        return done.stdout.splitlines()

    @contextmanager
    def database(self) -> Iterator[None]:
        """The embedded database, stopped in the end whatever happened; what went wrong first is what is told."""
        try:
            self.run("db", "start")
            yield
        except BaseException:
            with suppress(BrokenPromise):
                self.run("db", "stop")
            raise
        self.run("db", "stop")


class Replica:
    """One `holdfast serve`, which can be killed and started again at the same address."""

    def __init__(self, name: str, house: House) -> None:
        self.name = name
        self.house = house
        self.port = _free_port()
        self.log = house.folder / f"replica-{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=ANSWER_SECONDS, trust_env=False)

    def start(self) -> None:
        """Return when the replica is ready to serve."""
        words = ("serve", "--host", "127.0.0.1", "--port", str(self.port))
        self.house.story.command("holdfast", *words, f"    (replica {self.name})")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [HOLDFAST, *words],
                env=self.house.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _wait(self._is_ready, READY_SECONDS, f"Replica {self.name} was not ready within {READY_SECONDS:.0f} s.")

    def kill(self) -> None:
        """SIGKILL: no goodbye, nothing is finished; harmless when it is dead."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)

    def close(self) -> None:
        """Stop it politely, and surely."""
        self.client.close()
        if self.process is None:
            return
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        self.kill()

    def agent(self, agent: str) -> tuple[Agent, Any]:
        """The agent as it is now, asked past every cache: what the demo looks at, and the whole answer."""
        answer = self.client.get(
            f"/v1/agents/{agent}",
            params={"steps": "path", "steps_limit": "10000"},
            headers={"Cache-Control": "no-cache"},
        )
        self._expect(answer, 200)
        return msgspec.json.decode(answer.content, type=Agent), json.loads(answer.content)

    def append(self, agent: str, step: dict[str, str]) -> bool:
        """Append a step under its own id; whether it was new (and not there already, with the same content)."""
        answer = self.client.post(f"/v1/agents/{agent}/steps", json=step)
        self._expect(answer, 200, 201)
        return answer.status_code == 201

    def _is_ready(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise BrokenPromise(
                f"Replica {self.name} did not start: {_last_line(self.log.read_text(errors='replace'))}"
            )
        with suppress(httpx.TransportError):
            return self.client.get("/health/ready").status_code == 200
        return False

    def _expect(self, answer: httpx.Response, *statuses: int) -> None:
        if answer.status_code not in statuses:
            raise BrokenPromise(
                f"Replica {self.name} answered {answer.request.method} {answer.request.url.path} "
                f"with {answer.status_code}: {answer.text[:200]}"
            )


@dataclass(frozen=True)
class Cut:
    """How the work with A ended: what it acknowledged, and the step that nobody knows about."""

    acknowledged: list[dict[str, str]]
    unknown: dict[str, str]
    at: float


def main() -> int:
    """Tell the story; 0 when every promise held, 130 after Ctrl-C, else 1."""
    options = argparse.ArgumentParser(prog="python -m scripts.demo", description="An agent outlives its replica.")
    options.add_argument("file", nargs="?", type=Path, default=EXAMPLE, help="a trace (default: the project's example)")
    file = options.parse_args().file
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    console = Console(highlight=False)
    try:
        _tell(Story(console), file)
    except (BrokenPromise, TraceError) as broken:
        return _give_up(console, str(broken), 1)
    except httpx.HTTPError as silence:
        return _give_up(console, f"A replica that should have answered did not ({type(silence).__name__}).", 1)
    except msgspec.MsgspecError as error:
        return _give_up(console, f"A replica answered what the contract does not allow: {error}.", 1)
    except (OSError, subprocess.SubprocessError) as error:
        return _give_up(console, f"This machine would not play along: {error}", 1)
    except KeyboardInterrupt:
        return _give_up(console, "Stopped by you; everything was cleaned up.", 130)
    return 0


def _tell(story: Story, file: Path) -> None:
    traces = read(file)
    first = traces[0]
    steps = first.export.get("steps", []) if isinstance(first, Snapshot) else first.steps
    if not HOLDFAST.exists():
        raise BrokenPromise(f"There is no `holdfast` beside {sys.executable}: run `make venv` first.")
    story.console.print(Text("Holdfast: an agent outlives the replica that serves it", style="bold cyan"))
    with ExitStack() as closing:
        folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
        closing.callback(shutil.rmtree, folder, ignore_errors=True)
        house = House(folder, story)
        story.chapter("A database of its own, in a temporary folder")
        closing.enter_context(house.database())
        replicas = [Replica(name, house) for name in "AB"]
        for replica in replicas:
            closing.callback(replica.close)
        closing.callback(_finish_undisturbed)
        facts = _play(story, house, replicas, file, len(steps))
        story.chapter("Everything is put away")
    story.close(facts)


def _play(story: Story, house: House, replicas: list[Replica], file: Path, steps: int) -> list[tuple[str, str]]:
    """Everything between the start of the database and its end; what the closing summary says."""
    a, b = replicas
    agent = _import(story, house, file, steps)
    story.chapter("Two replicas on the same database; neither owns the agent")
    a.start()
    b.start()
    cut = _kill_in_the_middle(story, a, agent)
    _prove_nothing_is_lost(story, b, agent, cut, steps)
    pause = _settle(story, b, agent, cut)
    written = [*cut.acknowledged, cut.unknown, *_go_on(story, b, agent, len(cut.acknowledged) + 2)]
    story.chapter("A is started again and compared with B")
    a.start()
    version = _compare(story, a, b, agent)
    _prove_order(story, a, agent, steps, [step["id"] for step in written])
    return [
        ("steps in the trace", f"{steps}"),
        ("acknowledged by A before it was killed", f"{len(cut.acknowledged)}"),
        ("in flight at that moment, settled on B", "1"),
        ("added by B alone", f"{GO_ON}"),
        ("found on both replicas", f"{steps + len(written)}, at version {version}"),
        ("lost or doubled", "0"),
        ("from the kill to B's next acknowledged step", f"{pause * 1000:.0f} ms"),
    ]


def _import(story: Story, house: House, file: Path, steps: int) -> str:
    story.chapter("An agent that began its work elsewhere is imported")
    agent, *name, counted = (house.run("import", str(file)) or [""])[0].split() or ["", ""]
    story.promise(
        f"{' '.join(name)} has all {steps} steps of {file.name}.",
        kept=counted == str(steps),
        otherwise=f"The file holds {steps} steps, but the import told of {counted or 'none'}.",
    )
    return agent


def _kill_in_the_middle(story: Story, a: Replica, agent: str) -> Cut:
    story.chapter("A continues the agent, step by step, and is killed in the middle of it")
    acknowledged: list[dict[str, str]] = []
    with ThreadPoolExecutor(1) as pool:
        try:
            work = pool.submit(_append_until_silence, a, agent, acknowledged)
            _wait(
                lambda: work.done() or len(acknowledged) >= KILL_AFTER,
                READY_SECONDS,
                f"A did not acknowledge {KILL_AFTER} steps within {READY_SECONDS:.0f} s.",
            )
            _fail_early(work)
            time.sleep(random.uniform(0, 0.005))  # so that the cut falls anywhere in a request
            at = time.monotonic()
        finally:
            a.kill()
        unknown = work.result(ANSWER_SECONDS * 2)
    story.tell(f"SIGKILL after {len(acknowledged)} acknowledged steps.")
    story.tell(f"One more, '{unknown['id']}', was under way: nobody can say yet whether it was written.")
    return Cut(acknowledged, unknown, at)


def _append_until_silence(a: Replica, agent: str, acknowledged: list[dict[str, str]]) -> dict[str, str]:
    """Append one step after the other, each under an id of ours; the first that gets no answer is returned."""
    for number in range(1, NEVER):
        step = _draft(number)
        try:
            a.append(agent, step)
        except httpx.TransportError:
            return step
        acknowledged.append(step)
    raise BrokenPromise("Replica A went on answering after it had been killed.")


def _prove_nothing_is_lost(story: Story, b: Replica, agent: str, cut: Cut, steps: int) -> None:
    story.chapter("B, which wrote none of this, is asked for the agent")
    found, _ = b.agent(agent)
    contents = {step.id: step.content for step in found.steps}
    present = [step for step in cut.acknowledged if contents.get(step["id"]) == step["content"]]
    story.promise(
        f"Acknowledged by A: {len(cut.acknowledged)}. Found on B, word for word: {len(present)}.",
        kept=len(present) == len(cut.acknowledged),
        otherwise=f"A acknowledged {len(cut.acknowledged)} steps, and B knows only {len(present)} of them.",
    )
    extra = found.step_count - steps - len(cut.acknowledged)
    told = cut.unknown["id"] in contents
    story.promise(
        f"Of the one in flight: {'it is there.' if told else 'no trace so far.'} Nothing else is there.",
        kept=extra == int(told),
        otherwise=f"B holds {extra} steps more than A acknowledged, and only one was under way.",
    )


def _settle(story: Story, b: Replica, agent: str, cut: Cut) -> float:
    """Send the unknown step again, to B; seconds since the kill."""
    story.tell("Its id was chosen by us, so it is simply sent again, now to B:")
    new = b.append(agent, cut.unknown)
    pause = time.monotonic() - cut.at
    if new:
        sentence = "B answers 201: A died before it was written; now it is."
    else:
        sentence = "B answers 200: A had written it and only its answer was lost; it is not written twice."
    story.promise(sentence, kept=True, otherwise="")
    return pause


def _go_on(story: Story, b: Replica, agent: str, first: int) -> list[dict[str, str]]:
    story.chapter("The work goes on, on B")
    more = [_draft(number) for number in range(first, first + GO_ON)]
    new = sum(b.append(agent, step) for step in more)
    story.promise(
        f"B acknowledged {new} further steps.",
        kept=new == len(more),
        otherwise=f"Only {new} of {len(more)} steps that were never sent before were new to B.",
    )
    return more


def _compare(story: Story, a: Replica, b: Replica, agent: str) -> int:
    """Demand the same agent of both; its version."""
    (seen, on_a), (_, on_b) = a.agent(agent), b.agent(agent)
    story.promise(
        f"A and B answer the same agent, field by field, at version {seen.version}.",
        kept=on_a == on_b,
        otherwise="A and B answer different agents.",
    )
    return seen.version


def _prove_order(story: Story, replica: Replica, agent: str, steps: int, sent: list[str]) -> None:
    """Demand that the path ends with what was sent, once each, and holds nothing else beyond the trace."""
    found, _ = replica.agent(agent)
    tail = found.steps[-len(sent) :]
    chained = all(step.parent_id == before.id for before, step in pairwise(tail))
    story.promise(
        f"All {len(sent)} appended steps are there once, in the order in which they were sent.",
        kept=[step.id for step in tail] == sent and chained and found.step_count == steps + len(sent),
        otherwise="The appended steps are not, once each and in order, the end of the agent's path.",
    )


def _draft(number: int) -> dict[str, str]:
    return {
        "id": f"demo-{RUN}-{number}",
        "role": "agent",
        "content": f"Entry {number} of my log: still at work, whoever serves me.",
    }


def _fail_early(work: Future[ANYTHING]) -> None:
    """Raise what the work raised, or say that it ended too soon."""
    if work.done():
        work.result()
        raise BrokenPromise("Replica A stopped answering before it was killed.")


def _wait(until: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise BrokenPromise(otherwise)
        time.sleep(0.005)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it gave no reason."


def _finish_undisturbed() -> None:
    """From here on everything has a deadline of its own: a second Ctrl-C must not leave processes behind."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _give_up(console: Console, sentence: str, code: int) -> int:
    console.print()
    console.print(Text(f"✗ {sentence}", style="bold red"))
    return code


if __name__ == "__main__":
    sys.exit(main())
