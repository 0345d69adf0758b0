"""What demonstrations have in common: a story told in the terminal, and the program's processes in a folder of theirs.

Nothing here knows what is demonstrated.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import msgspec
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

HOLDFAST = Path(sys.executable).with_name("holdfast")

COMMAND_SECONDS = 60.0
READY_SECONDS = 30.0
ANSWER_SECONDS = 15.0
STOP_SECONDS = 15.0


class BrokenPromise(Exception):
    """What did not come true, in a sentence for people."""


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
    """A data directory of its own and the program in it, with these settings beside the defaults."""

    def __init__(self, folder: Path, story: Story, **settings: object) -> None:
        self.folder = folder
        self.story = story
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "MONGODB_"))}
        chosen = {f"HOLDFAST_{name.upper()}": str(value) for name, value in settings.items()}
        self.environment = {**ours, "HOLDFAST_DATA": str(folder / "data"), **chosen}

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
            raise BrokenPromise(f"`holdfast {words[0]}` failed: {last_line(done.stderr)}")
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
        self.port = free_port()
        self.log = house.folder / f"replica-{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=ANSWER_SECONDS, trust_env=False)

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
        wait_for(self._is_ready, READY_SECONDS, f"Replica {self.name} was not ready within {READY_SECONDS:.0f} s.")

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

    def expect(self, answer: httpx.Response, *statuses: int) -> None:
        """Raise BrokenPromise for an answer with another status."""
        if answer.status_code not in statuses:
            raise BrokenPromise(
                f"Replica {self.name} answered {answer.request.method} {answer.request.url.path} "
                f"with {answer.status_code}: {answer.text[:200]}"
            )

    def _is_ready(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise BrokenPromise(f"Replica {self.name} did not start: {last_line(self.log.read_text(errors='replace'))}")
        with suppress(httpx.TransportError):
            return self.client.get("/health/ready").status_code == 200
        return False


def perform(play: Callable[[Story], None]) -> int:
    """Let a story be told; 0 when every promise held, 130 after Ctrl-C, else 1."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    console = Console(highlight=False)
    try:
        if not HOLDFAST.exists():
            raise BrokenPromise(f"There is no `holdfast` beside {sys.executable}: run `make venv` first.")
        play(Story(console))
    except BrokenPromise as broken:
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


def wait_for(until: Callable[[], bool], seconds: float, otherwise: str, *, every: float = 0.005) -> None:
    """Wait until it holds; BrokenPromise with that sentence when it does not in time."""
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise BrokenPromise(otherwise)
        time.sleep(every)


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def last_line(text: str) -> str:
    """The last thing that was said, for a sentence."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it gave no reason."


def finish_undisturbed() -> None:
    """From here on everything has a deadline of its own: a second Ctrl-C must not leave processes behind."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _give_up(console: Console, sentence: str, code: int) -> int:
    console.print()
    console.print(Text(f"✗ {sentence}", style="bold red"))
    return code
