"""Keyed answers of requests that write no agent: kept for a day, sealed, for they may hold a secret.

The record is reserved before and completed after the fact, not with it: where a replica dies between, or takes longer
than the reservation lasts, the repeated request is carried out once more. So this is for what may be done again, such
as a registration.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from pymongo.errors import DuplicateKeyError

from app.idempotency import Idempotency, still_running
from app.lanes import Once
from app.mongo import unavailable_when_failing
from app.vault import Vault
from models.commit import Reply
from models.errors import Unavailable

_RESERVED_FOR = timedelta(seconds=30)
"""How long a request that is never answered keeps those from being carried out that repeat it."""


class KeyedAnswers:
    """Answers by Idempotency-Key. Raises Unavailable, IdempotencyMismatch, and what makes the answer raises."""

    def __init__(self, idempotency: Idempotency, vault: Vault, *, seconds: float) -> None:
        self._idempotency = idempotency
        self._vault = vault
        self._seconds = seconds

    async def answer(self, once: Once, tenant: str, make: Callable[[], Awaitable[Any]]) -> Reply:
        """The answer that was given before to the same request, else that of what is made now.

        Raises Conflict while it is made elsewhere.
        """
        ours = await self._reserved(once, tenant)
        if isinstance(ours, Reply):
            return ours
        try:
            made = await once.encode(await make())
            sealed = Reply(made.status, bytes(self._vault.seal(made.body.decode(), once.id)), made.headers)
            record = await self._idempotency.record(once, tenant, sealed)
        except BaseException:
            with suppress(Unavailable), unavailable_when_failing(self._seconds):
                await self._idempotency.cancel(once, ours)
            raise
        with unavailable_when_failing(self._seconds):
            await self._idempotency.complete(record, ours)
        return made

    async def _reserved(self, once: Once, tenant: str) -> Reply | str:
        """What was answered to the request; or it is ours to carry out, and this is what says so."""
        with unavailable_when_failing(self._seconds):
            try:
                return await self._idempotency.reserve(once, tenant, _RESERVED_FOR)
            except DuplicateKeyError:
                found = await self._idempotency.replay(once, tenant)
                if found is None:
                    raise still_running() from None
        return Reply(found.status, self._vault.open(found.body, once.id).encode(), found.headers)
