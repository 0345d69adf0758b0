"""The laboratory: a replica set, a database of our own in it, replicas as processes of their own. All of it goes."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from app.config import Settings
from app.mongo import open_client
from app.runtime import Runtime, running
from scripts.bench.http_client import UnexpectedAnswer, connected, get

_STARTING_SECONDS = 30.0
_STOPPING_SECONDS = 15.0


@dataclass(frozen=True)
class Replica:
    """A running `holdfast serve`."""

    port: int
    pid: int


@dataclass(frozen=True)
class Lab:
    """Where a run measures."""

    uri: str
    database: str
    folder: Path
    server: str

    def settings(self, *, fold_limit: int | None = None, bulk_limit: int | None = None) -> Settings:
        """The service's settings, defaults but for what is given."""
        given = {"fold_limit": fold_limit, "bulk_limit": bulk_limit}
        return Settings(
            mongodb_uri=self.uri,
            mongodb_database=self.database,
            data=self.folder,
            **{name: value for name, value in given.items() if value is not None},
        )

    @asynccontextmanager
    async def runtime(self, *, fold_limit: int | None = None, bulk_limit: int | None = None) -> AsyncIterator[Runtime]:
        """A replica's parts in this process."""
        async with running(self.settings(fold_limit=fold_limit, bulk_limit=bulk_limit), self.uri) as runtime:
            yield runtime

    @asynccontextmanager
    async def replica(self) -> AsyncIterator[Replica]:
        """A replica as its own process, default settings, its log in the folder."""
        port = _free_port()
        here = {"MONGODB_URI": self.uri, "MONGODB_DATABASE": self.database, "HOLDFAST_DATA": str(self.folder)}
        with (self.folder / f"replica-{port}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "app.cli", "serve", "--host", "127.0.0.1", "--port", str(port)),
                env={**os.environ, **here},
                cwd=Path(__file__).parents[2],
                stdout=log,
                stderr=log,
            )
        try:
            await _until_ready(port, process)
            yield Replica(port, process.pid)
        finally:
            await _stop(process)


@asynccontextmanager
async def laboratory(uri: str | None) -> AsyncIterator[Lab]:
    """A lab over the replica set at `uri`, or over an embedded one of its own."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        address = uri or await stack.enter_async_context(_embedded(folder))
        database = f"holdfast_bench_{uuid4().hex[:12]}"
        client = open_client(address)
        stack.push_async_callback(client.close)
        stack.push_async_callback(client.drop_database, database)
        server = (await client.server_info())["version"]
        yield Lab(address, database, folder, server)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used; not a number where the system does not tell it (outside Linux)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def _embedded(folder: Path) -> AsyncIterator[str]:
    raise NotImplementedError
    yield ""


async def _until_ready(port: int, process: asyncio.subprocess.Process) -> None:
    until = time.monotonic() + _STARTING_SECONDS
    while time.monotonic() < until and process.returncode is None:
        try:
            async with connected(port) as connection:
                await connection.send(get("/health/ready"), expect=200)
                return
        except (OSError, asyncio.IncompleteReadError, UnexpectedAnswer):
            await asyncio.sleep(0.1)
    raise RuntimeError("The replica did not become ready.")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOPPING_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
