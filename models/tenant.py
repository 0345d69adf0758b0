"""Tenants, their keys, and the scope that a caller acts in. Pure: keys are checked here, looked up in `app.tenancy`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from beanie import Document
from pydantic import BaseModel, ConfigDict, Field
from pymongo import IndexModel

from models.errors import Forbidden
from models.ids import agent_key, check_id

DEFAULT_TENANT = "default"
FORGOTTEN_SECONDS = 30 * 86_400
"""How long a runner that is gone is still known, and its tokens are."""


class Right(StrEnum):
    """What a key may do in its own tenant."""

    READ = "read"
    WRITE = "write"
    RUNNER = "runner"
    ADMIN = "admin"


SERVICE = "holdfast"
"""By whom the service does what nobody asked for."""


@dataclass(frozen=True, slots=True)
class Scope:
    """On whose behalf something happens. Every query starts from `filter` or `agent_key`, so tenants never meet."""

    tenant: str
    rights: frozenset[Right]
    owner: str | None = None
    by: str = "anonymous"
    key: str | None = None
    """The key's id, where there is one."""
    runner: str | None = None
    """The only runner that may call on this behalf, and its incarnation."""
    incarnation: int | None = None

    def __post_init__(self) -> None:
        check_id(self.tenant, "the tenant")

    def agent_key(self, agent: str) -> str:
        """The database key of this tenant's agent."""
        return agent_key(self.tenant, agent)

    def filter(self, query: dict[str, Any]) -> dict[str, Any]:
        """The query, kept inside the tenant and, for an owner's key, to what is theirs."""
        mine = {"tenant": self.tenant} if self.owner is None else {"tenant": self.tenant, "owner": self.owner}
        return {**query, **mine}

    def require_every_owner(self) -> None:
        """Raise Forbidden for an owner's key: what is about to be done concerns all that the tenant has."""
        if self.owner is not None:
            raise Forbidden("This concerns every owner of the tenant, and the key is one owner's only.")

    @property
    def is_service(self) -> bool:
        """Whether nobody asked: the service itself acts."""
        return self.by == SERVICE and not self.rights

    @property
    def fence_required(self) -> bool:
        """Whether writes on an agent with a runner need the fence: this key could be a stale runner's."""
        return Right.RUNNER in self.rights and self != ANONYMOUS

    def sees(self, tenant: str, owner: str | None) -> bool:
        """Whether something of this tenant and owner exists for the caller."""
        return tenant == self.tenant and (self.owner is None or owner == self.owner)


ANONYMOUS = Scope(tenant=DEFAULT_TENANT, rights=frozenset(Right))
"""Everybody, as long as no key was ever made."""


def own_scope(tenant: str) -> Scope:
    """What the service itself acts in when nobody asked: it needs no fence, for it decides who has one."""
    return Scope(tenant=tenant, rights=frozenset(), by=SERVICE)


class KeyRecord(BaseModel):
    """A key as it is stored: never the secret, only its SHA-256 (the secret has 256 random bits)."""

    model_config = ConfigDict(populate_by_name=True)

    id: str = Field(alias="_id")
    tenant: str
    rights: list[Right]
    owner: str | None = None
    name: str | None = None
    digest: str
    created_at: datetime
    revoked_at: datetime | None = None
    runner: str | None = Field(default=None, description="The runner that alone may use it.")
    incarnation: int | None = None
    parent: str | None = Field(default=None, description="The key that registered the runner.")
    gone_at: datetime | None = Field(default=None, description="When the runner's incarnation ended.")

    def scope(self) -> Scope:
        """What the bearer of this key acts in."""
        return Scope(
            tenant=self.tenant,
            rights=frozenset(self.rights),
            owner=self.owner,
            by=self.id if self.runner is None else f"runner:{self.runner}",
            key=self.id,
            runner=self.runner,
            incarnation=self.incarnation,
        )


class Key(KeyRecord, Document):
    """The collection of keys."""

    class Settings:
        name = "keys"
        indexes = [
            IndexModel([("tenant", 1), ("_id", 1)], name="by_tenant"),
            IndexModel([("parent", 1)], name="by_parent", partialFilterExpression={"parent": {"$exists": True}}),
            IndexModel([("tenant", 1), ("runner", 1)], name="by_runner"),
            IndexModel([("gone_at", 1)], name="forgotten", expireAfterSeconds=FORGOTTEN_SECONDS),
        ]


class TicketRecord(BaseModel):
    """A ticket as it is stored: what a browser shows once, in a URL, instead of a key; only its SHA-256."""

    model_config = ConfigDict(populate_by_name=True)

    id: str = Field(alias="_id", description="The digest.")
    tenant: str
    key: str | None = Field(default=None, description="The key that asked for it; None while none was ever made.")
    expires_at: datetime


class Ticket(TicketRecord, Document):
    """The collection of tickets; the index only cleans up, the time is compared when one is used."""

    class Settings:
        name = "tickets"
        indexes: list[Any] = [IndexModel([("expires_at", 1)], name="expires", expireAfterSeconds=0)]
