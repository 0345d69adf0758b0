"""Settings of the program: each is an option of the environment, read once at start.

This file reads the environment and nothing else: no database, no files but the data directory's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.packing import INLINE_BYTES
from models.sealing import SEAL_BYTES

MIB = 1024 * 1024


class Settings(BaseSettings):
    """Everything that can be set, with its default; `HOLDFAST_<NAME>` in the environment, units in the name."""

    model_config = SettingsConfigDict(env_prefix="HOLDFAST_", extra="ignore", populate_by_name=True)

    mongodb_uri: str | None = Field(
        default=None,
        validation_alias=AliasChoices("MONGODB_URI", "mongodb_uri"),
        description="Replica set to use; unset: the embedded development server in the data directory.",
    )
    mongodb_database: str = Field(
        default="holdfast",
        validation_alias=AliasChoices("MONGODB_DATABASE", "mongodb_database"),
        pattern=r"^[A-Za-z0-9_-]{1,38}$",
    )
    data: Path = Field(default=Path(".holdfast"), description="Data directory (embedded database, generated secrets).")

    host: str = "127.0.0.1"
    port: int = Field(default=8700, ge=0, le=65535)
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Host names served beside loopback and the bound address; `*` turns the check off."
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Browser origins served beside the service's own."
    )
    secret_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Base64 keys of 32 bytes, comma-separated: the first seals, all open."
    )

    log_level: str = Field(default="info", pattern="(?i)^(debug|info|warning|error|critical)$")
    log_format: str = Field(default="auto", pattern="^(auto|json|console)$")

    body_limit_bytes: int = Field(default=8 * MIB, ge=1024)
    step_limit_bytes: int = Field(default=4 * MIB, ge=1024)
    agent_limit_bytes: int = Field(default=15 * MIB, ge=64 * 1024, le=15 * MIB)
    inline_bytes: int = Field(
        default=INLINE_BYTES, ge=1, description="A step's field, a workspace or result over this is stored apart."
    )
    seal_bytes: int = Field(
        default=SEAL_BYTES,
        ge=1024,
        le=4 * MIB,
        description="Over so many bytes of steps an agent's older half is sealed.",
    )
    json_depth: int = Field(default=32, ge=4, le=128)
    json_keys: int = Field(default=10_000, ge=16)

    deadline_seconds: float = Field(default=10.0, gt=0, description="No answer comes later than this.")
    attempt_seconds: float = Field(
        default=3.0, gt=0, description="One database call at most, and never more than half of the deadline."
    )
    shutdown_seconds: float = Field(default=10.0, gt=0)
    fold_limit: int = Field(default=32, ge=1, le=64, description="Requests of one agent in one update; 1: no folding.")
    bulk_limit: int = Field(default=64, ge=1, le=1000, description="Agents in one bulk write; 1: no sharing.")
    flights: int = Field(default=2, ge=1, le=64, description="Bulk writes under way at once.")
    basis_bytes: int = Field(default=64 * MIB, ge=0, description="Agents remembered to write from, in BSON bytes.")

    cache_bytes: int = Field(default=256 * MIB, ge=0, description="Agents kept in memory to answer from; 0: none.")
    cache_idle_seconds: float = Field(default=600.0, gt=0, description="An agent that nobody reads is let go.")
    blob_bytes: int = Field(default=64 * MIB, ge=0, description="Values stored apart that are kept in memory.")
    segment_bytes: int = Field(default=64 * MIB, ge=0, description="Sealed steps kept in memory, as they lie there.")
    feed_items: int = Field(default=1024, ge=1, description="Commits that may wait for one slow reader of a feed.")
    feed_bytes: int = Field(default=4 * MIB, ge=1024, description="The same in bytes.")
    feeds: int = Field(default=10_000, ge=1, description="Feeds open at once on this replica.")
    feeds_of_a_tenant: int = Field(default=2_000, ge=1, description="The same for one tenant.")
    collect_hours: float = Field(
        default=24.0, ge=0, description="How often values that nothing refers to are removed; 0: by command only."
    )
    collect_wait_seconds: float = Field(
        default=600.0, gt=0, description="How long they are left marked before; more than any commit takes."
    )
    runner_ttl_seconds: float = Field(
        default=10.0, ge=1, description="A runner that is silent for so long is taken to be dead."
    )
    expired_kept_seconds: float = Field(
        default=86_400.0, ge=0, description="How long an ephemeral agent may be read when its life is over."
    )
    command_seconds: float = Field(
        default=3600.0, gt=0, description="How long a command waits at most, unless it says so itself."
    )
    embedder: str = Field(
        default="all-MiniLM-L6-v2",
        pattern="^(all-MiniLM-L6-v2|lexical)$",
        description="What makes the vectors that episodes are found by; `lexical` compares words, not meaning.",
    )
    embedders: dict[str, Annotated[int, Field(ge=1, le=8_192)]] = Field(
        default_factory=dict,
        description='Others, whose vectors callers bring, with their dimensions: {"name": 1536}, as JSON.',
    )
    recall_bytes: int = Field(
        default=512 * MIB, ge=MIB, description="Vectors of episodes kept in memory; what is beyond lies in files."
    )
    log_days: float = Field(default=30.0, gt=0, description="How long the change log is kept.")

    @property
    def call_seconds(self) -> float:
        """What one database call may take."""
        return min(self.attempt_seconds, self.deadline_seconds / 2)

    @property
    def seal_over_bytes(self) -> int:
        """`seal_bytes`, and never more than leaves room in a document for what a request may add."""
        return min(self.seal_bytes, self.agent_limit_bytes // 4)

    @property
    def heartbeat_seconds(self) -> float:
        """How often a runner should beat: so that some may be lost before it is taken to be dead."""
        return self.runner_ttl_seconds / 5

    @property
    def commit_seconds(self) -> float:
        """What a commit may take: the deadline, less the call that may go before it to find out who asks."""
        return self.deadline_seconds - self.call_seconds

    @field_validator("embedders")
    @classmethod
    def _others(cls, value: dict[str, int]) -> dict[str, int]:
        for name in ("all-MiniLM-L6-v2", "lexical"):
            if name in value:
                raise ValueError(f"'{name}' is the service's own")
        return value

    @field_validator("collect_wait_seconds")
    @classmethod
    def _longer_than_commits(cls, value: float, others: ValidationInfo) -> float:
        deadline = others.data.get("deadline_seconds", 0.0)
        if value < 2 * deadline:
            raise ValueError(f"must be at least twice HOLDFAST_DEADLINE_SECONDS, {2 * deadline}")
        return value

    @field_validator("mongodb_uri")
    @classmethod
    def _unset_when_empty(cls, value: str | None) -> str | None:
        return value or None

    @field_validator("allowed_hosts", "allowed_origins", "secret_keys", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
