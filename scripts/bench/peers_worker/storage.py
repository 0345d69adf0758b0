"""Storage of one agent's own, for each kind of database: opened empty, measured, removed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import psycopg
from pymongo import MongoClient
from pymongo.database import Database

from scripts.bench.peers_worker.store import Place, Stored

_TABLES = "FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
_SIZES = f"SELECT sum(pg_total_relation_size(oid))::bigint, sum(pg_indexes_size(oid))::bigint {_TABLES}"


class MongoStorage:
    """A database in the replica set that all share; majority and journal are asked for."""

    def __init__(self, place: Place, name: str) -> None:
        self.client: MongoClient[dict[str, Any]] = MongoClient(place.mongodb, w="majority", journal=True)
        self.name = f"peers_{name}"

    def stored(self) -> Stored:
        """BSON of all documents; what the files take after a checkpoint is noted."""
        database = self.client[self.name]
        self.client.admin.command("fsync")
        logical = sum(_logical(database, name) for name in database.list_collection_names())
        return Stored(logical, f"{_on_disk(database):,} bytes of files")

    def remove(self) -> None:
        """Drop the database."""
        self.client.drop_database(self.name)
        self.client.close()


class SqliteStorage:
    """A file."""

    def __init__(self, place: Place, name: str) -> None:
        self.file = Path(place.folder) / f"{name}.sqlite"

    def stored(self) -> Stored:
        """The file, after its log was brought into it."""
        with sqlite3.connect(self.file) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return Stored(self.file.stat().st_size, "the file")

    def remove(self) -> None:
        """Delete the file and what stands beside it."""
        for file in self.file.parent.glob(f"{self.file.name}*"):
            file.unlink()


class PostgresStorage:
    """A database in the cluster of the benchmark."""

    def __init__(self, place: Place, name: str) -> None:
        assert place.postgres is not None
        self._server = place.postgres
        self._name = f"peers_{name}".replace("-", "_")
        self._run(f"CREATE DATABASE {self._name}")
        self.address = f"{self._server} dbname={self._name}"

    def stored(self) -> Stored:
        """All tables with their indexes and what is kept out of line, after a checkpoint."""
        with psycopg.connect(self.address, autocommit=True) as connection:
            connection.execute("CHECKPOINT")
            found = connection.execute(_SIZES).fetchone()
        assert found is not None
        return Stored(found[0], f"tables, with indexes of {found[1]:,} bytes")

    def remove(self) -> None:
        """Drop the database."""
        self._run(f"DROP DATABASE {self._name}")

    def _run(self, statement: str) -> None:
        with psycopg.connect(f"{self._server} dbname=postgres", autocommit=True) as connection:
            connection.execute(statement)


def _logical(database: Database[dict[str, Any]], name: str) -> int:
    sizes = database[name].aggregate([{"$group": {"_id": None, "bytes": {"$sum": {"$bsonSize": "$$ROOT"}}}}])
    return sum(group["bytes"] for group in sizes)


def _on_disk(database: Database[dict[str, Any]]) -> int:
    found = (database.command("collStats", name) for name in database.list_collection_names())
    return sum(stats["storageSize"] + stats["totalIndexSize"] for stats in found)
