"""Acts: what is done to a tenant beside its agents' commits and its episodes. Each becomes an entry of the change log.

Reads are no acts, and neither is what only keeps something alive, such as a heartbeat or an acknowledgement.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from beanie import Document
from pydantic import BaseModel, ConfigDict, Field
from pymongo import IndexModel

KEY, TICKET = "key", "ticket"
"""A key was made or revoked; a ticket was handed over."""

POOL, ROSTER, COMMAND = "pool", "roster", "command"
"""Something was decided for a pool; a runner came, drains or went; a command was given or ended."""

RETENTION, FORGOTTEN = "retention", "forgotten"
"""It was decided what is kept; episodes were removed."""

RECONCILED, ERASED, COPIED = "reconciled", "erased", "copied"
"""Reconciliation was asked for; an agent was erased; a backup was taken or restored."""

KINDS = (KEY, TICKET, POOL, ROSTER, COMMAND, RETENTION, FORGOTTEN, RECONCILED, ERASED, COPIED)

OPERATOR = "operator"
"""By whom acts of the command line are done."""

KEPT_DAYS = 7
"""How long an act is kept to be told again, should the log lose some of the stream."""


class ActRecord(BaseModel):
    """One act, as it is stored for a while beside the log; `what` says it in the words of its kind."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    id: str = Field(alias="_id", description="<tenant>:<act>")
    tenant: str
    owner: str | None = None
    at: datetime
    by: str
    kind: str
    what: dict[str, Any]


class Act(ActRecord, Document):
    """The collection of acts."""

    model_config = ConfigDict(frozen=False)  # type: ignore[misc]  # declared without ClassVar by the base

    class Settings:
        name = "acts"
        indexes = [
            IndexModel([("tenant", 1)], name="by_tenant"),
            IndexModel([("at", 1)], name="expires", expireAfterSeconds=KEPT_DAYS * 86_400),
        ]
