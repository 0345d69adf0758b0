"""Idempotency records: the answer that a keyed request got, kept for a day, written with what the request did."""

from __future__ import annotations

import asyncio
import zlib
from datetime import timedelta
from typing import Any

from pymongo.asynchronous.client_session import AsyncClientSession

from app.clock import Clock
from app.lanes import Once
from app.mongo import Mongo
from models.commit import Reply
from models.errors import Conflict, IdempotencyMismatch, TooLarge

KEPT_FOR = timedelta(hours=24)
"""How long an idempotency record answers."""

_REPLY_BYTES = 15 * 1024 * 1024
"""The longest answer that is kept for a repeated request, compressed."""


def still_running() -> Conflict:
    """What a repeated request is told before the first is answered."""
    return Conflict("The first request with this Idempotency-Key is still running: ask again.", retry_after=1)


class Idempotency:
    """The stored records. What fails raises PyMongoError."""

    def __init__(self, mongo: Mongo, clock: Clock) -> None:
        self._mongo = mongo
        self._clock = clock

    async def replay(self, once: Once, tenant: str) -> Reply | None:
        """The answer given before to this request; None when there is none (yet). Raises IdempotencyMismatch."""
        # unscoped: by the tenant
        found = await self._mongo.idempotency.find_one({"_id": once.id, "tenant": tenant})
        if found is None or found["expires_at"] <= self._clock.now():
            return None
        if found["digest"] != once.digest:
            raise IdempotencyMismatch("This Idempotency-Key was sent with another request: use a new one.")
        if "body" not in found:
            return None
        return Reply(found["status"], zlib.decompress(found["body"]), found["headers"])

    async def record(self, once: Once, tenant: str, reply: Reply, agent: str | None = None) -> dict[str, Any]:
        """The record of an answer, about an agent or none, to be written. Raises TooLarge for one that is too long."""
        body = await asyncio.to_thread(zlib.compress, reply.body, 1)
        if len(body) > _REPLY_BYTES:
            raise TooLarge("The answer, which an Idempotency-Key asks to keep,", _REPLY_BYTES, len(body))
        return {
            "_id": once.id,
            "tenant": tenant,
            "digest": once.digest,
            "status": reply.status,
            "headers": dict(reply.headers),
            "body": body,
            "expires_at": self._clock.now() + KEPT_FOR,
            **({} if agent is None else {"agent": agent}),
        }

    async def reserve(self, once: Once, tenant: str, time: timedelta) -> str:
        """Note for a time that the request is being answered; by what the note is ours.

        Raises DuplicateKeyError when it was noted before.
        """
        now = self._clock.now()
        ours = self._clock.new_id()
        reserved = {"_id": once.id, "tenant": tenant, "digest": once.digest, "expires_at": now + time, "ours": ours}
        # unscoped: the record's id is made from the tenant
        await self._mongo.idempotency.delete_one({"_id": once.id, "expires_at": {"$lte": now}})
        await self._mongo.idempotency.insert_one(reserved)
        return ours

    async def complete(self, record: dict[str, Any], ours: str) -> None:
        """Write the record of an answer over its reservation, if that is still ours."""
        noted = {"_id": record["_id"], "ours": ours}
        # unscoped: the record's id is made from the tenant
        await self._mongo.idempotency.update_one(noted, {"$set": record, "$unset": {"ours": ""}})

    async def cancel(self, once: Once, ours: str) -> None:
        """Let the request be carried out by the next who sends it, if the reservation is still ours."""
        # unscoped: the record's id is made from the tenant
        await self._mongo.idempotency.delete_one({"_id": once.id, "ours": ours})

    async def remember(self, record: dict[str, Any], session: AsyncClientSession) -> None:
        """Write a record in the transaction of what it is about. Of two with the same id at most one commits."""
        # unscoped: the record's id is made from the tenant
        await self._mongo.idempotency.delete_one(
            {"_id": record["_id"], "expires_at": {"$lte": self._clock.now()}}, session=session
        )
        await self._mongo.idempotency.insert_one(record, session=session)
