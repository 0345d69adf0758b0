"""Heartbeats of replicas, small and of no other meaning: through the change stream, and before strong reads."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from beanie import Document
from pydantic import Field
from pymongo import IndexModel

KEPT_SECONDS = 3_600


class Beat(Document):
    """The collection of heartbeats; the index only cleans up after replicas that are gone."""

    id: str = Field(alias="_id", description="Whose, a new id each time that a replica starts.")  # type: ignore[assignment]  # a document's id is its own kind otherwise
    nonce: int = Field(description="Counts up with each beat.")
    at: datetime

    class Settings:
        name = "beats"
        indexes: list[Any] = [IndexModel([("at", 1)], name="expires", expireAfterSeconds=KEPT_SECONDS)]
