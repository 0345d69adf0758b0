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
from typing import Any
from uuid import uuid4

from pymongo import AsyncMongoClient

from app.config import Settings
from app.mongo import Collection, open_client
from app.mongod import EmbeddedServer
from app.runtime import Runtime, running
from models.agent import Agent
from scripts.bench.http_client import UnexpectedAnswer, connected, get

_SERVE = "from app.cli import main; main()"
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

    @asynccontextmanager
    async def runtime(self, **changed: int) -> AsyncIterator[Runtime]:
        """A replica's parts in this process; default settings but for those that are given."""
        settings = Settings(mongodb_uri=self.uri, mongodb_database=self.database, data=self.folder)
        async with running(settings.model_copy(update=changed), self.uri) as runtime:
            yield runtime

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[Collection]:
        """The agents collection as a user of the bare driver has it: its defaults, majority and journal asked for."""
        async with AsyncMongoClient[dict[str, Any]](self.uri, w="majority", journal=True) as client:
            yield client[self.database][Agent.Settings.name]

    @asynccontextmanager
    async def replica(self) -> AsyncIterator[Replica]:
        """A replica as its own process, default settings, its log in the folder."""
        port = _free_port()
        here = {"MONGODB_URI": self.uri, "MONGODB_DATABASE": self.database, "HOLDFAST_DATA": str(self.folder)}
        with (self.folder / f"replica-{port}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _SERVE, "serve", "--host", "127.0.0.1", "--port", str(port)),
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
        address = uri if uri is not None else await stack.enter_async_context(_embedded(folder))
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
    server = EmbeddedServer(folder)
    try:
        yield await asyncio.to_thread(server.start)
    finally:
        await asyncio.to_thread(server.stop)


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
