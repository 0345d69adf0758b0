"""Episodes: what an agent learned from a task, kept after the agent is gone. Written once, never changed.

An episode is found by its vector, which lies with it: given by the caller, or made of its text by an embedder. Vectors
are only compared with those that the same one made (`embedder`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from beanie import Document
from pydantic import BaseModel, ConfigDict, Field
from pymongo import IndexModel

from models.json import same

SUCCESS = 0.7
"""From which reward on a task is taken to be done well."""

_TEXT = 4_000
"""Characters of input, output and critique each that an episode is found by."""


class EpisodeRecord(BaseModel):
    """One episode as it is stored; `vector` holds little-endian float32, of length 1."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    id: str = Field(alias="_id", description="<tenant>:<episode>")
    tenant: str
    owner: str | None = None
    agent_id: str | None = None
    session_id: str | None = None
    step_id: str | None = None
    task: str = ""
    input: Any = None
    output: Any = None
    reward: float | None = None
    critique: str | None = None
    tokens: int | None = None
    latency_ms: float | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    embedder: str
    vector: bytes
    by: str
    stored_at: datetime
    created_at: datetime
    expires_at: datetime | None = None
    position: str | None = Field(default=None, description="Its place in the change log, as soon as that is known.")

    @property
    def name(self) -> str:
        """The id that callers know."""
        return self.id.partition(":")[2]

    @property
    def success(self) -> bool | None:
        """Whether the task was done well, if anybody judged it."""
        return None if self.reward is None else self.reward >= SUCCESS


GIVEN = (
    *("agent_id", "session_id", "step_id", "task", "input", "output", "reward", "critique"),
    *("tokens", "latency_ms", "metadata"),
)
"""What a caller says of an episode, beside its id, vector and times."""


def says_the_same(stored: EpisodeRecord, given: EpisodeRecord, told: Mapping[str, Any]) -> bool:
    """Whether an episode was given before as it is given now; `told`: what the caller said of it."""
    fields = {"embedding": "vector", "embedder": "embedder", "created_at": "created_at", "expires_at": "expires_at"}
    named = [field for name, field in fields.items() if told.get(name) is not None]
    if any(getattr(stored, name) != getattr(given, name) for name in named):
        return False
    return all(same(getattr(stored, name), getattr(given, name)) for name in GIVEN)


def text_of(given: Mapping[str, Any]) -> str:
    """By what text an episode is found: its task first, then what went in, came out and was said of it."""
    parts = [given.get("task"), *(given.get(name) for name in ("input", "output", "critique"))]
    return "\n".join(text for text in map(_readable, parts) if text)


def _readable(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return " ".join(f"{name}: {_readable(inner)}" for name, inner in value.items())[:_TEXT]
    if isinstance(value, list):
        return " ".join(map(_readable, value))[:_TEXT]
    return str(value)[:_TEXT]


class Episode(EpisodeRecord, Document):
    """The collection of episodes."""

    model_config = ConfigDict(frozen=False)  # type: ignore[misc]  # declared without ClassVar by the base

    class Settings:
        name = "episodes"
        indexes = [
            IndexModel([("tenant", 1), ("position", 1)], name="by_position"),
            IndexModel([("tenant", 1), ("agent_id", 1), ("_id", 1)], name="by_agent"),
            IndexModel([("tenant", 1), ("session_id", 1), ("_id", 1)], name="by_session"),
            IndexModel([("tenant", 1), ("task", 1), ("_id", 1)], name="by_task"),
            IndexModel([("tenant", 1), ("created_at", 1)], name="by_age"),
            IndexModel(
                [("tenant", 1), ("reward", 1)], name="by_reward", partialFilterExpression={"reward": {"$exists": True}}
            ),
            IndexModel(
                [("expires_at", 1)], name="by_expiry", partialFilterExpression={"expires_at": {"$exists": True}}
            ),
        ]
