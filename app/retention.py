"""Retention: removes the episodes that a tenant does not want to keep, some at a time, on any replica."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.acts import Acts
from app.clock import Clock
from app.mongo import Mongo, parsed, unavailable_when_failing
from app.telemetry import get_logger
from models.act import FORGOTTEN, RETENTION
from models.errors import HoldfastError
from models.retention import RetentionRecord
from models.tenant import SERVICE, Scope

_BATCH = 1_000
_PAUSE_SECONDS = 0.05
_SPREAD = random.SystemRandom()
_log = get_logger(__name__)


@dataclass(slots=True)
class Retained:
    """What a run came to so far, of one tenant: episodes removed, or to be removed, by the reason."""

    tenant: str
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def removed(self) -> int:
        """All of them; one that is old and poor counts once."""
        return sum(self.counts.values())


class Retention:
    """What tenants decided, and its application. What fails raises Unavailable."""

    def __init__(self, mongo: Mongo, acts: Acts, clock: Clock, *, seconds: float) -> None:
        self._mongo = mongo
        self._acts = acts
        self._clock = clock
        self._seconds = seconds

    async def decided(self, tenant: str) -> RetentionRecord:
        """What a tenant decided; nothing where it never did."""
        with unavailable_when_failing(self._seconds):
            # unscoped: the tenant's own
            found = await self._mongo.retention.find_one({"_id": tenant})
        return parsed(RetentionRecord, found or {"_id": tenant, "tenant": tenant})

    async def decide(self, scope: Scope, decided: Mapping[str, Any]) -> RetentionRecord:
        """Decide anew; what is left out is not limited any more."""
        kept = {name: value for name, value in decided.items() if value is not None}
        gone = {name: "" for name in ("max_age_days", "min_reward") if name not in kept}
        update = {"$set": {"tenant": scope.tenant, **kept}, **({"$unset": gone} if gone else {})}
        with unavailable_when_failing(self._seconds):
            await self._acts.tell(scope, RETENTION, did="decided", **kept)
            # unscoped: the tenant's own
            await self._mongo.retention.update_one({"_id": scope.tenant}, update, upsert=True)
        return await self.decided(scope.tenant)

    async def apply(
        self,
        tenant: str,
        *,
        by: str = SERVICE,
        dry_run: bool = False,
        told: Callable[[Retained], None] = lambda _: None,
    ) -> Retained:
        """Remove what the tenant does not keep, or only count it."""
        decided = await self.decided(tenant)
        done = Retained(tenant)
        earlier: list[dict[str, Any]] = []
        for reason, query in decided.outlived(self._clock.earliest()).items():
            wanted = {"tenant": tenant, **query, **({"$nor": list(earlier)} if earlier else {})}
            earlier.append(query)
            if dry_run:
                done.counts[reason] = await self._count(wanted)
                continue
            async for removed in self._removed(tenant, wanted, by, reason):
                done.counts[reason] = done.counts.get(reason, 0) + removed
                told(done)
        return done

    async def tenants(self) -> list[str]:
        """Those that have episodes."""
        with unavailable_when_failing(self._seconds):
            # unscoped: of all tenants, on behalf of the service
            return sorted(await self._mongo.episodes.distinct("tenant"))

    async def run(self, every_seconds: float) -> None:
        """Apply what all tenants decided, for ever, at times that replicas do not share."""
        while True:
            await asyncio.sleep(every_seconds * _SPREAD.uniform(0.5, 1.5))
            try:
                for tenant in await self.tenants():
                    await self._apply_by_itself(tenant)
            except HoldfastError as error:
                _log.warning("retention waits for the database", code=error.code)
            except Exception:  # noqa: BLE001 - the top of the loop
                _log.exception("retention failed")

    async def _apply_by_itself(self, tenant: str) -> None:
        """Apply what a tenant decided; its trouble is no other's."""
        try:
            done = await self.apply(tenant)
        except HoldfastError as error:
            _log.warning("retention has to try again", tenant=tenant, code=error.code)
        else:
            if done.removed:
                _log.info("episodes removed", tenant=tenant, **done.counts)

    async def _count(self, wanted: Mapping[str, Any]) -> int:
        with unavailable_when_failing(self._seconds):
            # unscoped: by the tenant
            return await self._mongo.episodes.count_documents(wanted)

    async def _removed(self, tenant: str, wanted: Mapping[str, Any], by: str, reason: str) -> AsyncIterator[int]:
        """Remove them in batches; how many each time."""
        while True:
            with unavailable_when_failing(self._seconds):
                # unscoped: by the tenant
                found = await self._mongo.episodes.find(wanted, {"_id": 1}).limit(_BATCH).to_list()
                if not found:
                    return
                await self._acts.tell_of(tenant, FORGOTTEN, by, did="removed", reason=reason, episodes=len(found))
                # unscoped: their keys begin with the tenant
                gone = await self._mongo.episodes.delete_many({"_id": {"$in": [one["_id"] for one in found]}})
            yield gone.deleted_count
            await asyncio.sleep(_PAUSE_SECONDS)
