"""What a commit may be asked to respect (guards) and to remember (idempotency). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from beanie import Document
from pydantic import BaseModel, Field
from pymongo import IndexModel

from models.agent import AgentRecord
from models.errors import FencedOut, PreconditionRequired, VersionConflict


@dataclass(frozen=True, slots=True)
class Guard:
    """What must hold of the agent at the moment of the commit. An empty guard lets everything pass."""

    version: int | None = None
    fence: int | None = None
    fence_required: bool = False

    def check(self, record: AgentRecord) -> None:
        """Raise VersionConflict, FencedOut or PreconditionRequired, in the order of the contract."""
        if self.version is not None and self.version != record.version:
            raise VersionConflict(self.version, record.version)
        if self.fence is not None and self.fence != record.fence:
            raise FencedOut(self.fence, record.fence)
        if self.fence_required and self.fence is None and record.runner is not None:
            raise PreconditionRequired("The agent is assigned to a runner: send its fence as Fencing-Token.")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it goes over the wire, so that the same one can be given again."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class IdempotencyRecordFields(BaseModel):
    """The answer that a keyed request got, kept for a day. `_id` is the digest of tenant, owner, method, path, key; and
    of the caller, where the answer may hold a secret of the caller's.

    One without an answer is a reservation: the request is being carried out.
    """

    id: str = Field(alias="_id")
    tenant: str
    digest: str = Field(description="Of the query and body: the same key with another request is a mistake.")
    status: int | None = None
    headers: dict[str, str] | None = None
    body: bytes | None = Field(default=None, description="zlib")
    expires_at: datetime


class IdempotencyRecord(IdempotencyRecordFields, Document):
    """The collection of idempotency records; the index only cleans up, the time is compared at reading."""

    class Settings:
        name = "idempotency"
        indexes: list[Any] = [
            IndexModel([("expires_at", 1)], name="expires", expireAfterSeconds=0),
            IndexModel([("tenant", 1), ("agent", 1)], name="by_agent"),
        ]
