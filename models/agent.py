"""The agent: one document with its step tree, HEAD, settings, execution state, placement and version.

`AgentRecord` is the frozen snapshot that every rule works on; the moves are in `models.tree` (steps, HEAD,
branches), `models.results` (results, workspace) and `models.profile` (everything else).
`Agent` is the collection. Nothing here writes, and no field is ever changed in place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import bson
from beanie import Document
from bson.binary import Binary
from pydantic import BaseModel, ConfigDict, Field
from pymongo import IndexModel

from models.change import CREATED, DELETED, Change, Stamp
from models.errors import Conflict, NotFound
from models.execution import State
from models.ids import ROOT
from models.tenant import Scope

SCHEMA_VERSION = 1
MAIN = "main"

JsonObject = dict[str, Any]
Step = dict[str, Any]
"""A step as stored under its id: `seq, version, parent_id, turn_id, index, role, created_at` and what was given."""


class AgentRecord(BaseModel):
    """One agent at one version.

    Guarantees: `seq` is the highest number that a step ever had; every parent in `steps` is a step or `root`;
    HEAD and each branch name a step or `root`. HEAD stands in one place: the current branch, or `detached`.
    Version 0 stands for an agent that was never written.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    id: str = Field(alias="_id", description="<tenant>:<agent id>")
    tenant: str
    schema_version: int = SCHEMA_VERSION
    version: int = 0
    created_at: datetime | None = None
    deleted_at: datetime | None = Field(default=None, description="Set on a tombstone, which has no content.")

    name: str = "Bob"
    owner: str | None = None
    model: str | None = None
    settings: JsonObject = Field(default_factory=dict)
    delegate: JsonObject | None = Field(default=None, description="`token` is sealed.")
    labels: dict[str, str] = Field(default_factory=dict)
    label_terms: list[str] = Field(default_factory=list, description="`key:value` of each label, for the index.")

    state: State = State.PENDING
    status: str = "pending"
    activity: str = "idle"
    dormant: bool = False
    archived: bool = False
    pool: str | None = None
    platform: str | None = None
    region: str | None = None
    runner: str | None = None
    fence: int = 0
    resource_id: str | None = None
    ttl_seconds: float | None = None
    idle_seconds: float | None = None
    expires_at: datetime | None = None
    forked_from: JsonObject | None = None

    detached: str | None = Field(default=None, description="HEAD, while no branch is current.")
    branch: str | None = Field(default=None, description="The current branch, a field name; None: HEAD is detached.")
    branches: dict[str, str] = Field(default_factory=lambda: {MAIN: ROOT}, description="Keys are field names.")
    redo: list[str] = Field(default_factory=list, description="HEADs that were reverted, the latest last.")
    seq: int = 0
    step_count: int = 0
    steps: dict[str, Step] = Field(default_factory=dict)
    results: dict[str, JsonObject] = Field(default_factory=dict, description="step id -> field name -> result")

    last: JsonObject = Field(default_factory=dict, description="The newest commit's envelope.")
    ops: dict[str, int] = Field(default_factory=dict, description="version mod 64 -> op id of that commit")

    size_bytes: int | None = Field(default=None, exclude=True, description="BSON bytes as it was read; not stored.")

    @classmethod
    def of(cls, document: Mapping[str, Any], size_bytes: int | None = None) -> AgentRecord:
        """The record of a stored document, taken as it is: only this program's own writes are read this way."""
        return cls.model_construct(**{"size_bytes": size_bytes, **document, "id": document["_id"]})

    @property
    def name_in_tenant(self) -> str:
        """The id that callers know."""
        return self.id.partition(":")[2]

    @property
    def exists(self) -> bool:
        """Whether there is an agent: neither unwritten nor a tombstone."""
        return self.version > 0 and self.deleted_at is None

    @property
    def head(self) -> str:
        """The step that the next one hangs from."""
        return (self.detached or ROOT) if self.branch is None else self.branches[self.branch]

    @property
    def updated_at(self) -> datetime | None:
        """When the newest commit was made."""
        return self.last.get("at")

    def is_visible(self, scope: Scope) -> bool:
        """Whether this agent exists for the caller; another tenant's or owner's does not."""
        return self.exists and scope.sees(self.tenant, self.owner)

    def require_visible(self, scope: Scope) -> None:
        """Raise NotFound unless the agent is visible."""
        if not self.is_visible(scope):
            raise NotFound(f"There is no agent '{self.name_in_tenant}'.")

    def document(self) -> dict[str, Any]:
        """Every stored field by its stored name; fields without a value are not stored."""
        values = {name: getattr(self, name) for name in STORED}
        return {"_id": self.id, **{name: value for name, value in values.items() if value is not None}}

    def stored_bytes(self) -> int:
        """The BSON size of the document: as it was read, else counted."""
        return len(bson.encode(self.document())) if self.size_bytes is None else self.size_bytes

    def changed(
        self,
        stamp: Stamp,
        kinds: tuple[str, ...],
        fields: Mapping[str, Any] | None = None,
        *,
        put: Mapping[str, Any] | None = None,
        drop: Collection[str] = (),
        answer: Any = None,
        blobs: Mapping[Binary, bytes | None] | None = None,
    ) -> Change:
        """One version on: `fields` replaced as wholes, `put` assigned by path inside the maps, `drop` removed there.

        The record and the assignments of the change come from the same arguments, so they cannot disagree.
        """
        values = {**(fields or {}), "version": self.version + 1}
        own = {"size_bytes": None, "last": {**self.last, "at": stamp.now}}
        record = self.model_copy(update={**values, **own, **self._maps_with(put or {}, drop)})
        return Change(record, kinds, {**values, **(put or {})}, frozenset(drop), answer, blobs=blobs or {})

    def unchanged(self, answer: Any = None) -> Change:
        """Nothing to write; the version stays."""
        return Change(self, answer=answer)

    def require_step(self, step: str) -> str:
        """The id itself, when it is a step of this agent or `root`; raises NotFound otherwise."""
        if step != ROOT and step not in self.steps:
            raise NotFound(f"There is no step '{step[:64]}' on agent '{self.name_in_tenant}'.")
        return step

    def path(self, leaf: str | None = None) -> list[str]:
        """Step ids from the root (left out) to `leaf` (HEAD when None)."""
        found: list[str] = []
        step = self.head if leaf is None else leaf
        while step != ROOT:
            found.append(step)
            step = self.steps[step]["parent_id"]
        found.reverse()
        return found

    def step(self, step: str) -> Step:
        """A step as callers see it."""
        return {"id": step, **self.steps[step]}

    def _maps_with(self, put: Mapping[str, Any], drop: Collection[str]) -> dict[str, Any]:
        maps: dict[str, Any] = {}
        for path in drop:
            top, key = path.split(".")
            maps.setdefault(top, dict(getattr(self, top))).pop(key, None)
        for path, value in put.items():
            top, key, *inner = path.split(".")
            entries = maps.setdefault(top, dict(getattr(self, top)))
            entries[key] = {**entries.get(key, {}), inner[0]: value} if inner else value
        return maps


STORED = tuple(name for name in AgentRecord.model_fields if name not in ("id", "size_bytes"))
"""Names of the stored fields beside `_id`."""

OF_A_TOMBSTONE = ("tenant", "schema_version", "version", "fence", "deleted_at", "last", "ops")
"""All that is stored of a deleted agent beside `_id`."""


def create(
    previous: AgentRecord,
    draft: AgentRecord,
    stamp: Stamp,
    *,
    step_version: int | None = None,
    blobs: Mapping[Binary, bytes | None] | None = None,
) -> Change:
    """A new agent in the place of nothing or of a tombstone, whose version and fence it continues.

    `draft` holds everything but version and times, and refers to `blobs`. Its steps read as `step_version`, else as the
    new version. Raises Conflict when the id is taken.
    """
    if previous.exists:
        raise Conflict(f"There is an agent '{previous.name_in_tenant}' already.")
    version = previous.version + 1
    steps = {step: {**body, "version": step_version or version} for step, body in draft.steps.items()}
    times = {"created_at": stamp.now, "deleted_at": None}
    kept = {"version": version, "fence": previous.fence, "last": {"at": stamp.now}, "ops": previous.ops}
    record = draft.model_copy(update={**times, **kept, "steps": steps, "size_bytes": None})
    sets = {name: getattr(record, name) for name in STORED if name not in ("last", "ops")}
    return Change(record, (CREATED,), sets, answer=record, blobs=blobs or {})


def delete(record: AgentRecord, stamp: Stamp) -> Change:
    """Leave a tombstone: the content goes, version and fence stay so that neither ever goes back."""
    version = record.version + 1
    kept = {name: getattr(record, name) for name in OF_A_TOMBSTONE}
    sets = {"version": version, "deleted_at": stamp.now}
    tombstone = AgentRecord(**{**kept, **sets, "id": record.id})
    drops = frozenset(STORED) - set(OF_A_TOMBSTONE)
    whose = {"owner": record.owner, "pool": record.pool}
    return Change(tombstone, (DELETED,), sets, drops, told=whose)


class Agent(AgentRecord, Document):
    """The collection of agents: indexes, schema, migrations and ad-hoc reads. Writes never go through it."""

    model_config = ConfigDict(frozen=False)  # type: ignore[misc]  # declared without ClassVar by the base

    class Settings:
        name = "agents"
        indexes = [
            IndexModel([("tenant", 1), (field, 1), ("_id", 1)], name=f"by_{field}")
            for field in ("state", "pool", "runner", "owner", "label_terms")
        ]
