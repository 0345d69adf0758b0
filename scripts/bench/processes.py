"""Processes of their own: servers on a free port of the loopback, and what a process has used so far."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.http_client import UnexpectedAnswer, connected, get

_HERE = Path(__file__).parents[2]
_STARTING_SECONDS = 30.0
_STOPPING_SECONDS = 15.0


@dataclass(frozen=True)
class Server:
    """A server that runs and answers."""

    port: int
    pid: int


@asynccontextmanager
async def serving(
    port: int, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Server]:
    """Python with these arguments, as soon as it answers on the port; its output goes to the log."""
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *arguments),
            env={**os.environ, **(environment or {})},
            cwd=_HERE,
            stdout=sink,
            stderr=sink,
        )
    try:
        await _until_ready(port, process)
        yield Server(port, process.pid)
    finally:
        await _stop(process)


async def output(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> bytes:
    """What Python with these arguments prints. Raises RuntimeError when it fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        env={**os.environ, **(environment or {})},
        cwd=_HERE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complaints = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{arguments} failed: {complaints.decode(errors='replace')[-2000:]}")
    return printed


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used; not a number where the system does not tell it (outside Linux)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> float:
    """Memory that a process occupies; not a number where the system does not tell it (outside Linux)."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return math.nan
    return float(int(pages) * os.sysconf("SC_PAGE_SIZE"))


def own_and_mapped_bytes(pid: int) -> tuple[float, float]:
    """Resident memory of a process's own, and that of files it has mapped, which the system may take back."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return math.nan, math.nan
    told = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    own, mapped = (float(told[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return own, mapped


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _until_ready(port: int, process: asyncio.subprocess.Process) -> None:
    until = time.monotonic() + _STARTING_SECONDS
    while time.monotonic() < until and process.returncode is None:
        try:
            async with connected(port) as connection:
                await connection.send(get("/health/ready"), expect=200)
                return
        except (OSError, UnexpectedAnswer):
            await asyncio.sleep(0.1)
    raise RuntimeError("A server of the benchmark did not become ready.")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOPPING_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
