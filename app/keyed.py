"""Keyed answers of requests that write no agent: kept for a day, sealed, for they may hold a secret.

The record is written after the fact, not with it: a replica that dies between lets the repeated request be carried out
once more. So this is for what may be, such as a registration, whose second time only makes the first one's token stale.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pymongo.errors import DuplicateKeyError

from app.idempotency import Idempotency
from app.lanes import Once
from app.mongo import unavailable_when_failing
from app.vault import Vault
from models.commit import Reply


class KeyedAnswers:
    """Answers by Idempotency-Key. Raises Unavailable, IdempotencyMismatch, and what makes the answer raises."""

    def __init__(self, idempotency: Idempotency, vault: Vault, *, seconds: float) -> None:
        self._idempotency = idempotency
        self._vault = vault
        self._seconds = seconds

    async def answer(self, once: Once, tenant: str, make: Callable[[], Awaitable[Any]]) -> Reply:
        """The answer that was given before to the same request, else that of what is made now."""
        known = await self._known(once, tenant)
        if known is not None:
            return known
        made = await once.encode(await make())
        sealed = Reply(made.status, bytes(self._vault.seal(made.body.decode(), once.id)), made.headers)
        record = await self._idempotency.record(once, tenant, sealed)
        with unavailable_when_failing(self._seconds):
            try:
                await self._idempotency.keep(record)
            except DuplicateKeyError:  # the same request at the same time: whichever was kept is the answer
                return await self._known(once, tenant) or made
        return made

    async def _known(self, once: Once, tenant: str) -> Reply | None:
        with unavailable_when_failing(self._seconds):
            found = await self._idempotency.replay(once, tenant)
        if found is None:
            return None
        return Reply(found.status, self._vault.open(found.body, once.id).encode(), found.headers)
