"""Heartbeats of replicas through the change stream: one small document each, of no other meaning."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from beanie import Document
from pydantic import Field
from pymongo import IndexModel

KEPT_SECONDS = 3_600


class Beat(Document):
    """The collection of heartbeats; the index only cleans up after replicas that are gone."""

    id: str = Field(alias="_id", description="The replica, a new id each time that it starts.")  # type: ignore[assignment]  # a document's id is its own kind otherwise
    nonce: int = Field(description="Counts up with each beat.")
    at: datetime

    class Settings:
        name = "beats"
        indexes: list[Any] = [IndexModel([("at", 1)], name="expires", expireAfterSeconds=KEPT_SECONDS)]
