"""Who takes part: makes an agent, lets it grow, and tells what each size costs. A peer is a process that is told so."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import orjson

from scripts.bench.peers.installation import MODULE

BYTES = "bytes stored"
STEP = "time per step"
STATE = "latest state"
HISTORY = "whole history"

_ROOT = Path(__file__).parents[3]
_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Taken:
    """One figure of one variant, the median of its measurements."""

    measure: str
    variant: str
    value: float
    note: str = ""

    @classmethod
    def of(cls, measure: str, variant: str, milliseconds: Sequence[float], note: str = "") -> Taken:
        return cls(measure, variant, median(milliseconds), note)


@dataclass(frozen=True, slots=True)
class Patience:
    """How often an agent is loaded in a turn, and how long at most."""

    calls: int
    seconds: float


class Contender(Protocol):
    """One that keeps an agent, a new one in each round."""

    @property
    def name(self) -> str:
        """What its rows are called."""

    async def begin(self, round_name: str) -> None:
        """Make an agent without steps in storage of its own."""

    async def measure(self, steps: int, state: Patience, history: Patience) -> list[Taken]:
        """Append until the agent has so many steps, then load it and look at what it takes."""

    async def end(self) -> None:
        """Remove the agent and its storage."""


class Peer:
    """A worker in the peers' environment."""

    def __init__(self, name: str, kind: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self._kind = kind
        self._process = process
        self._log = log
        self._milliseconds: list[float] = []

    async def begin(self, round_name: str) -> None:
        self._milliseconds = []
        await self._ask("begin", name=f"{self._kind}-{round_name}")

    async def measure(self, steps: int, state: Patience, history: Patience) -> list[Taken]:
        self._milliseconds += (await self._ask("grow", steps=steps))["milliseconds"]
        stored = await self._ask("stored")
        now = await self._ask("state", calls=state.calls, seconds=state.seconds)
        past = await self._ask("history", calls=history.calls, seconds=history.seconds)
        assert now["items"] == steps, (self.name, now["items"])
        return [
            Taken(BYTES, self.name, stored["bytes"], stored["note"]),
            Taken.of(STEP, self.name, self._milliseconds),
            Taken.of(STATE, self.name, now["milliseconds"]),
            Taken.of(HISTORY, self.name, past["milliseconds"], _told(past, steps)),
        ]

    async def end(self) -> None:
        if self._process.returncode is None:
            await self._ask("end")

    async def ready(self) -> None:
        """Wait until it has loaded its packages."""
        await self._answer()

    async def _ask(self, order: str, **given: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(orjson.dumps({"do": order, **given}) + b"\n")
        return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            await self._process.wait()
            raise RuntimeError(
                f"{self._kind} failed ({self._process.returncode}): {self._log.read_text(errors='replace')[-2000:]}"
            )
        answer: dict[str, Any] = orjson.loads(line)
        return answer


@asynccontextmanager
async def peer(
    python: Path, name: str, kind: str, place: Mapping[str, str | None], folder: Path
) -> AsyncIterator[Peer]:
    """A worker that is ready; its complaints go to a file in the folder."""
    log = folder / f"{kind}.log"
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(str(python), "-m", MODULE, kind, orjson.dumps(place).decode()),
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            limit=_LINE_BYTES,
        )
    try:
        found = Peer(name, kind, process, log)
        await found.ready()
        yield found
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _told(past: Mapping[str, Any], steps: int) -> str:
    if not past["whole"]:
        return f"stopped after {past['items']:,} states"
    return f"{past['items']:,} states" if past["items"] != steps else ""
