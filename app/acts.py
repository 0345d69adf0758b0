"""Acts: writes down what is done to a tenant beside its agents, for the change log to tell: who, what, when.

An act is written down **before** it is done. So nothing is done that the log does not tell; where the service dies
between, or the database refuses what comes next, the log tells of an act that came to nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pymongo.errors import DuplicateKeyError

from app.clock import Clock
from app.mongo import Mongo
from models.act import ActRecord
from models.entry import entry_key_of_act
from models.tenant import SERVICE, Scope


class Acts:
    """Tells acts of all tenants. Raises PyMongoError. `acknowledged` hears what the log is to hold."""

    def __init__(self, mongo: Mongo, clock: Clock, acknowledged: Callable[[str], None] = lambda _: None) -> None:
        self._mongo = mongo
        self._clock = clock
        self._acknowledged = acknowledged

    async def tell(self, scope: Scope, kind: str, **what: Any) -> None:
        """What the caller is about to do."""
        await self._write(scope.tenant, self._clock.new_id(), kind, what, by=scope.by, owner=scope.owner)

    async def tell_of(self, tenant: str, kind: str, by: str, *, owner: str | None = None, **what: Any) -> None:
        """What is about to be done in a tenant by somebody who has no scope in it."""
        await self._write(tenant, self._clock.new_id(), kind, what, by=by, owner=owner)

    async def tell_once(self, tenant: str, kind: str, named: str, *, owner: str | None = None, **what: Any) -> None:
        """What the service is about to do by itself, on whichever replica: under one name it is told once."""
        name = hashlib.sha256(f"{kind}:{named}".encode()).hexdigest()[:32]
        with suppress(DuplicateKeyError):
            await self._write(tenant, name, kind, what, by=SERVICE, owner=owner)

    async def _write(
        self, tenant: str, name: str, kind: str, what: dict[str, Any], *, by: str, owner: str | None
    ) -> None:
        told = {field: value for field, value in what.items() if value is not None}
        act = ActRecord(
            id=f"{tenant}:{name}", tenant=tenant, owner=owner, at=self._clock.now(), by=by, kind=kind, what=told
        )
        await self._mongo.acts.insert_one(act.model_dump(by_alias=True, exclude_none=True))
        self._acknowledged(entry_key_of_act(act.id))
