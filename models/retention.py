"""Retention: how long a tenant's episodes are kept, and how good they have to be."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from beanie import Document
from pydantic import BaseModel, ConfigDict, Field


class RetentionRecord(BaseModel):
    """What a tenant decided; None: it does not matter."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    id: str = Field(alias="_id", description="The tenant.")
    tenant: str
    max_age_days: float | None = None
    min_reward: float | None = Field(default=None, description="Judged episodes below it go; unjudged ones stay.")

    def outlived(self, now: datetime) -> dict[str, dict[str, Any]]:
        """Database queries of the episodes that are not kept, by the reason: their own time is over, old, poor."""
        queries: dict[str, dict[str, Any]] = {"expired": {"expires_at": {"$lte": now}}}
        if self.max_age_days is not None:
            queries["old"] = {"created_at": {"$lt": now - timedelta(days=self.max_age_days)}}
        if self.min_reward is not None:
            queries["poor"] = {"reward": {"$lt": self.min_reward}}
        return queries


class Retention(RetentionRecord, Document):
    """The collection of decisions, one for each tenant that made one."""

    model_config = ConfigDict(frozen=False)  # type: ignore[misc]  # declared without ClassVar by the base

    class Settings:
        name = "retention"
