"""The laboratory: a replica set, a database of our own in it, replicas as processes of their own. All of it goes."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from pymongo import AsyncMongoClient

from app.config import Settings
from app.mongo import Collection, open_client
from app.mongod import EmbeddedServer
from app.runtime import Runtime, running
from models.agent import Agent
from scripts.bench.http_client import Connection, connected
from scripts.bench.processes import Server, free_port, serving

_SERVE = ("-c", "from app.cli import main; main()", "serve", "--host", "127.0.0.1", "--port")
_BARE = ("-m", "scripts.bench.bare")


@dataclass(frozen=True)
class Lab:
    """Where a run measures."""

    uri: str
    database: str
    folder: Path
    server: str

    @property
    def settings(self) -> Settings:
        """The defaults, on this lab's database."""
        return Settings(mongodb_uri=self.uri, mongodb_database=self.database, data=self.folder)

    @asynccontextmanager
    async def runtime(self, **changed: int) -> AsyncIterator[Runtime]:
        """A replica's parts in this process; default settings but for those that are given."""
        async with running(self.settings.model_copy(update=changed), self.uri) as runtime:
            yield runtime

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[Collection]:
        """The agents collection as a user of the bare driver has it: its defaults, majority and journal asked for."""
        async with AsyncMongoClient[dict[str, Any]](self.uri, w="majority", journal=True) as client:
            yield client[self.database][Agent.Settings.name]

    @asynccontextmanager
    async def replica(self, **changed: int | str) -> AsyncIterator[Server]:
        """A replica as its own process, its log in the folder; default settings but for those that are given."""
        port = free_port()
        here = {"MONGODB_URI": self.uri, "MONGODB_DATABASE": self.database, "HOLDFAST_DATA": str(self.folder)}
        given = {f"HOLDFAST_{name.upper()}": str(value) for name, value in changed.items()}
        log = self.folder / f"replica-{port}.log"
        async with serving(port, (*_SERVE, str(port)), log, {**here, **given}) as server:
            yield server

    @asynccontextmanager
    async def connection(self, **changed: int | str) -> AsyncIterator[Connection]:
        """A connection to a replica of its own, as `replica` makes it."""
        async with self.replica(**changed) as server, connected(server.port) as connection:
            yield connection

    @asynccontextmanager
    async def bare(self, sizes: Sequence[int]) -> AsyncIterator[Server]:
        """The bare application of `scripts.bench.bare` as its own process, with answers of these sizes."""
        port = free_port()
        arguments = (*_BARE, str(port), *map(str, sizes))
        async with serving(port, arguments, self.folder / f"bare-{port}.log") as server:
            yield server

    @asynccontextmanager
    async def elsewhere(self) -> AsyncIterator[Lab]:
        """The same with another database, for what would change this one for good."""
        async with _database(self.uri) as database:
            yield replace(self, database=database)


@asynccontextmanager
async def laboratory(uri: str | None) -> AsyncIterator[Lab]:
    """A lab over the replica set at `uri`, or over an embedded one of its own."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        address = uri if uri is not None else await stack.enter_async_context(_embedded(folder))
        database = await stack.enter_async_context(_database(address))
        async with open_client(address) as client:
            server = (await client.server_info())["version"]
        yield Lab(address, database, folder, server)


@asynccontextmanager
async def _database(uri: str) -> AsyncIterator[str]:
    """The name of a database that is dropped in the end."""
    name = f"holdfast_bench_{uuid4().hex[:12]}"
    async with open_client(uri) as client:
        try:
            yield name
        finally:
            await client.drop_database(name)


@asynccontextmanager
async def _embedded(folder: Path) -> AsyncIterator[str]:
    server = EmbeddedServer(folder)
    try:
        yield await asyncio.to_thread(server.start)
    finally:
        await asyncio.to_thread(server.stop)
