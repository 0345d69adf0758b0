"""The database: one client for each event loop, the collections with their indexes, and what makes it fit to use.

Nothing here knows what an agent means. Every write is majority-acknowledged and journaled, whatever the URI says:
the promises of the service rest on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import bson
import pymongo
from beanie import Document, init_beanie
from bson.codec_options import CodecOptions
from bson.dbref import DBRef
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pydantic import BaseModel
from pymongo import AsyncMongoClient, InsertOne, UpdateOne, WriteConcern
from pymongo.asynchronous.change_stream import AsyncChangeStream
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    AutoReconnect,
    CollectionInvalid,
    ConfigurationError,
    ConnectionFailure,
    InvalidURI,
    OperationFailure,
    PyMongoError,
)
from pymongo.read_concern import ReadConcern
from pymongo.uri_parser import parse_uri

from models.act import Act
from models.agent import Agent
from models.beat import Beat
from models.blob import Blob
from models.command import Command
from models.commit import IdempotencyRecord
from models.entry import LogEntry
from models.episode import Episode
from models.errors import InvalidRequest, TooLarge, Unavailable
from models.event import Time
from models.retention import Retention
from models.runner import Pool, Runner
from models.segment import StoredSegment
from models.tenant import Key, Ticket

Record = TypeVar("Record", bound=BaseModel)
Collection = AsyncCollection[dict[str, Any]]
RawCollection = AsyncCollection[RawBSONDocument]
Write = UpdateOne | InsertOne[dict[str, Any]]
"""What a bulk write is made of."""

CODEC: CodecOptions[Any] = CodecOptions(tz_aware=True, tzinfo=UTC)
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
_MAJORITY = ReadConcern("majority")
ZSTD = {"wiredTiger": {"configString": "block_compressor=zstd"}}
_DOCUMENTS: dict[str, type[Document]] = {
    document.Settings.name: document
    for document in (
        *(Agent, StoredSegment, Blob, Key, Ticket, IdempotencyRecord, LogEntry, Beat),
        *(Runner, Pool, Command, Episode, Retention, Act),
    )
}

_SAID = [f"fullDocument.{name}" for name in ("input", "output", "critique", "metadata")]
"""What an episode says at length, and no other document that is watched."""

_SERVER_SELECTION_MS = 2_000
_AWAIT_MS = 1_000
_CHECK_SECONDS = 5
_CLOCK_TRIES = 40
_CLOCK_PAUSE = 0.05
_HEARTBEAT_MS = 1_000
_AUTHENTICATION_CODES = (13, 18)
_NAMESPACE_EXISTS = 48


class DatabaseProblem(Exception):
    """The database can't be used; the message says why and what to do."""


def open_client(uri: str) -> AsyncMongoClient[dict[str, Any]]:
    """A client for the running event loop, connecting on first use. Raises DatabaseProblem for a URI that is none."""
    try:
        return AsyncMongoClient(
            uri,
            w="majority",
            journal=True,
            retryWrites=False,  # the store sends unknown writes again itself; the driver's way costs 150 bytes of oplog
            retryReads=True,
            readConcernLevel="majority",
            readPreference="primary",
            tz_aware=True,
            appname="holdfast",
            connectTimeoutMS=_SERVER_SELECTION_MS,
            serverSelectionTimeoutMS=_SERVER_SELECTION_MS,
            heartbeatFrequencyMS=_HEARTBEAT_MS,
        )
    except (InvalidURI, ConfigurationError, ValueError, OSError) as error:
        raise DatabaseProblem(f"MONGODB_URI is not a usable address: {error}.") from error


async def transaction_seconds(uri: str) -> int | None:
    """How long the server keeps the transaction of a client that died; None when it does not tell us."""
    client = open_client(uri)
    try:
        with pymongo.timeout(_CHECK_SECONDS):
            found = await client.admin.command("getParameter", 1, transactionLifetimeLimitSeconds=1)
    except PyMongoError:
        return None
    finally:
        await client.close()
    return int(found["transactionLifetimeLimitSeconds"])


async def check(uri: str) -> None:
    """Raise DatabaseProblem unless the URI leads to a writable replica set (or sharded cluster) that lets us in."""
    client = open_client(uri)
    try:
        with pymongo.timeout(_CHECK_SECONDS):
            hello = await client.admin.command("hello")
            await client.admin.command("listDatabases", nameOnly=True)
    except OperationFailure as error:
        if error.code in _AUTHENTICATION_CODES:
            raise DatabaseProblem("The database refuses the user or password of MONGODB_URI.") from error
        raise DatabaseProblem(f"The database refuses to answer (code {error.code}).") from error
    except ConnectionFailure as error:
        raise DatabaseProblem(
            f"No writable MongoDB answers at {_hosts(uri)}: is it running and reachable, and is there a primary?"
        ) from error
    except ConfigurationError as error:
        raise DatabaseProblem(f"MONGODB_URI is not a usable address: {error}.") from error
    except PyMongoError as error:
        raise DatabaseProblem(f"The database can't be used: {type(error).__name__}.") from error
    finally:
        await client.close()
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        raise DatabaseProblem(
            "The database is a standalone server; Holdfast needs a replica set (one member is enough): "
            "start mongod with --replSet and run rs.initiate() once."
        )


@dataclass(frozen=True)
class Mongo:
    """The open database. `agents` reads and writes plain dicts, `agents_raw` reads bytes to measure and decode once."""

    client: AsyncMongoClient[dict[str, Any]]
    agents: Collection
    agents_raw: RawCollection
    segments: Collection
    blobs: Collection
    idempotency: Collection
    keys: Collection
    tickets: Collection
    changes: Collection
    beats: Collection
    runners: Collection
    pools: Collection
    commands: Collection
    episodes: Collection
    retention: Collection
    acts: Collection
    service: Collection

    @classmethod
    def of(cls, client: AsyncMongoClient[dict[str, Any]], name: str) -> Mongo:
        """The collections of the database `name`, with the concerns that the service's promises need."""
        database = client[name]
        agents = _collection(database, Agent.Settings.name)
        return cls(
            client=client,
            agents=agents,
            agents_raw=agents.with_options(codec_options=_RAW),
            segments=_collection(database, StoredSegment.Settings.name),
            blobs=_collection(database, Blob.Settings.name),
            idempotency=_collection(database, IdempotencyRecord.Settings.name),
            keys=_collection(database, Key.Settings.name),
            tickets=_collection(database, Ticket.Settings.name),
            changes=_collection(database, LogEntry.Settings.name),
            beats=_collection(database, Beat.Settings.name),
            runners=_collection(database, Runner.Settings.name),
            pools=_collection(database, Pool.Settings.name),
            commands=_collection(database, Command.Settings.name),
            episodes=_collection(database, Episode.Settings.name),
            retention=_collection(database, Retention.Settings.name),
            acts=_collection(database, Act.Settings.name),
            service=_collection(database, "service"),
        )

    @property
    def database(self) -> AsyncDatabase[dict[str, Any]]:
        """The database that all collections are in."""
        return self.agents.database

    async def prepare(self) -> None:
        """Create what is missing: collections (zstd-compressed) and indexes. Safe from many replicas at once."""
        present = set(await self.database.list_collection_names())
        for name in _DOCUMENTS.keys() - present:
            await self._create(name)
        await init_beanie(database=self.database, document_models=list(_DOCUMENTS.values()))

    @asynccontextmanager
    async def reading_after(self, time: Time) -> AsyncIterator[AsyncClientSession]:
        """A session whose reads show all that was committed up to a cluster time, whichever node answers."""
        async with self.client.start_session(causal_consistency=True) as session:
            session.advance_operation_time(Timestamp(*time))
            yield session

    async def beat(self, whose: str, nonce: int, at: datetime, session: AsyncClientSession | None = None) -> None:
        """Write a heartbeat over the one before it. Raises PyMongoError."""
        told = {"$set": {"nonce": nonce, "at": at}}
        # unscoped: a replica serves all tenants
        await self.beats.update_one({"_id": whose}, told, upsert=True, session=session)

    async def now(self) -> Time:
        """The cluster time of the newest write. Raises AutoReconnect while the server does not tell it."""
        for _ in range(_CLOCK_TRIES):  # a server that was just started has none yet
            reply = await self.client.admin.command("ping")
            if "operationTime" in reply:
                return reply["operationTime"].time, reply["operationTime"].inc
            await asyncio.sleep(_CLOCK_PAUSE)
        raise AutoReconnect("The server does not tell its cluster time.")

    async def as_of(
        self,
        time: Time | None,
        collection: Collection,
        query: Mapping[str, Any],
        fields: Sequence[str],
        *,
        limit: int,
    ) -> list[dict[str, Any]]:
        """Documents in the order of their ids, as they were at a cluster time some minutes ago at most; None: now."""
        then = {"level": "majority"} if time is None else {"level": "snapshot", "atClusterTime": Timestamp(*time)}
        reply = await self.database.command(
            "find",
            collection.name,
            filter=query,
            projection=dict.fromkeys(fields, 1),
            sort={"_id": 1},
            limit=limit,
            batchSize=limit,
            singleBatch=True,
            readConcern=then,
            codec_options=CODEC,
        )
        found: list[dict[str, Any]] = reply["cursor"]["firstBatch"]
        return found

    async def watch(
        self, beats_of: str, *, after: Mapping[str, Any] | None = None, since: Time | None = None
    ) -> AsyncChangeStream[RawBSONDocument]:
        """The change stream of agents, commands, episodes, acts, a replica's heartbeats: from a token, a time, or now.

        Plain events, without a look-up, and of episodes without what is said in them. Raises PyMongoError.
        """
        agents = {"ns.coll": self.agents.name}
        commands = {"ns.coll": self.commands.name, "operationType": "insert"}
        acts = {"ns.coll": self.acts.name, "operationType": "insert"}
        episodes = {"ns.coll": self.episodes.name, "operationType": {"$in": ["insert", "delete"]}}
        beats = {"ns.coll": self.beats.name, "documentKey._id": beats_of}
        database = self.database.with_options(codec_options=_RAW, read_concern=_MAJORITY)
        return await database.watch(
            [{"$match": {"$or": [agents, beats, commands, episodes, acts]}}, {"$unset": _SAID}],
            resume_after=after,
            start_at_operation_time=None if since is None else Timestamp(*since),
            max_await_time_ms=_AWAIT_MS,
        )

    async def clock(self) -> datetime:
        """What the server's clock says. Raises PyMongoError."""
        hello = await self.client.admin.command("hello")
        told: datetime = hello["localTime"]
        return told if told.tzinfo else told.replace(tzinfo=UTC)

    async def ping(self, seconds: float) -> bool:
        """Whether a writable primary answers within the time."""
        try:
            with pymongo.timeout(seconds):
                hello = await self.client.admin.command("hello")
        except PyMongoError:
            return False
        return bool(hello.get("isWritablePrimary"))

    async def _create(self, name: str) -> None:
        try:
            await self.database.create_collection(name, storageEngine=ZSTD)
        except CollectionInvalid:
            return
        except OperationFailure as error:
            if error.code != _NAMESPACE_EXISTS:
                raise


def decoded(raw: bytes | memoryview) -> dict[str, Any]:
    """A document from its BSON bytes, as plain values.

    The driver takes an object with `$ref` and `$id` for a reference of its own; a caller's JSON stays what it is.
    """
    document: dict[str, Any] = bson.decode(raw, CODEC)
    return _plain(document) if b"$ref\0" in bytes(raw) else document


def parsed(kind: type[Record], document: Mapping[str, Any]) -> Record:
    """A record from a document as the driver gave it, with references of its own taken back as `decoded` does."""
    return kind.model_validate(_plain(document))


@contextmanager
def unavailable_when_failing(seconds: float) -> Iterator[None]:
    """Bound the calls inside, and say it in our own words when the database fails them."""
    try:
        with pymongo.timeout(seconds):
            yield
    except PyMongoError as error:
        raise Unavailable("The database does not answer; try again.") from error


NOTE_BYTES = 256 * 1024
"""What may be said beside agents: a command's payload and result, a runner's metadata; in BSON."""


def require_small(value: Any, what: str, limit: int = NOTE_BYTES) -> None:
    """Raise TooLarge, or InvalidRequest for what BSON has no form for, unless the value may be stored."""
    try:
        size = len(bson.encode({"": value}, codec_options=CODEC))
    except (bson.errors.BSONError, OverflowError) as error:
        raise InvalidRequest(f"{what} can't be stored as BSON.") from error
    if size > limit:
        raise TooLarge(what, limit, size)


def _plain(value: Any) -> Any:
    if isinstance(value, DBRef):
        value = value.as_doc()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _hosts(uri: str) -> str:
    """The hosts of a URI, without its user and password."""
    return ", ".join(f"{host}:{port}" for host, port in parse_uri(uri)["nodelist"])


def _collection(database: AsyncDatabase[dict[str, Any]], name: str) -> Collection:
    return database.get_collection(
        name, codec_options=CODEC, write_concern=WriteConcern(w="majority", j=True), read_concern=_MAJORITY
    )
