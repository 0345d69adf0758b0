"""Storing apart: documents that never change, put beside the agents that refer to them before these are written.

Guarantee: storing one again takes its mark off, so a collector that is about to remove it does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pymongo
from pymongo import UpdateOne

from app.mongo import Collection
from models.blob import Damaged

_CALL_BYTES = 4 * 1024 * 1024
_CALL_DOCUMENTS = 1_000


@dataclass(frozen=True, slots=True)
class Apart:
    """A document to be stored under a key; without content, one that has to be there. `size`: about its bytes."""

    key: str
    content: Mapping[str, Any] | None
    size: int = 0


async def store(collection: Collection, documents: Iterable[Apart], *, seconds: float) -> None:
    """Make the documents durable, and take the marks off those that are there; each call may take so many seconds.

    Raises PyMongoError; Damaged when one is missing.
    """
    for part in _parts(documents):
        with pymongo.timeout(seconds):
            done = await collection.bulk_write([_write(document) for document in part], ordered=False)
        if done.matched_count + done.upserted_count != len(part):
            raise Damaged(f"Of {len(part)} documents in '{collection.name}', not all that are referred to are there.")


def _parts(documents: Iterable[Apart]) -> Iterator[list[Apart]]:
    """The documents in parts that one call may take."""
    part: list[Apart] = []
    size = 0
    for document in documents:
        part.append(document)
        size += document.size
        if size >= _CALL_BYTES or len(part) == _CALL_DOCUMENTS:
            yield part
            part, size = [], 0
    if part:
        yield part


def _write(document: Apart) -> UpdateOne:
    unmarked = {"$unset": {"mark": ""}}
    if document.content is None:
        return UpdateOne({"_id": document.key}, unmarked)
    return UpdateOne({"_id": document.key}, {"$setOnInsert": document.content, **unmarked}, upsert=True)
