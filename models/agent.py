"""The agent: one document with its step tree, HEAD, settings, execution state, placement and version.

`AgentRecord` is the frozen snapshot that every rule works on; the moves are in `models.tree` (steps, HEAD,
branches), `models.results` (results, workspace) and `models.profile` (everything else).
`Agent` is the collection. Nothing here writes, and no field is ever changed in place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime
from typing import Any

import bson
from beanie import Document
from bson.binary import Binary
from pydantic import BaseModel, ConfigDict, Field, InstanceOf
from pymongo import IndexModel

from models.change import CREATED, DELETED, RESTORED, Change, Stamp
from models.errors import AgentExpired, Conflict, NotFound
from models.execution import State
from models.history import NOTHING, Directory, History, NotAtHand, Wanted
from models.ids import END, ROOT
from models.lifetime import end_of
from models.packing import references
from models.segment import INHERITED_VERSION, Bound, Descriptor, Node, Segment, Step, Tree, node_of
from models.tenant import SERVICE, Scope

SCHEMA_VERSION = 1
MAIN = "main"

JsonObject = dict[str, Any]


class AgentRecord(BaseModel):
    """One agent at one version.

    Guarantees: `seq` is the highest number that a step ever had; every parent is a step or `root`;
    HEAD and each branch name a step or `root`. HEAD stands in one place: the current branch, or `detached`.
    Version 0 stands for an agent that was never written.

    Older steps may be sealed in segments: their seqs lie below those of all `steps`. What needs more of them than
    `history` holds raises NotAtHand.
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
    incarnation: int | None = Field(default=None, description="Of the runner, when it claimed the agent.")
    previous_runner: str | None = None
    offered_to: str | None = Field(default=None, description="The only runner that may claim it, while that one lives.")
    fence: int = 0
    resource_id: str | None = None
    failures: int = Field(default=0, description="How often it failed since a turn was last finished.")
    transitions: dict[str, JsonObject] = Field(default_factory=dict, description="The newest ones, by slot.")
    turn: JsonObject | None = Field(default=None, description="The open turn, see `models.turn`.")
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
    steps: dict[str, Step] = Field(default_factory=dict, description="Those that are not sealed.")
    results: dict[str, Bound] = Field(default_factory=dict, description="step id -> field name -> result")
    sealed: dict[str, JsonObject] = Field(default_factory=dict, description="lowest seq -> descriptor of a segment")

    last: JsonObject = Field(default_factory=dict, description="The newest commit's envelope.")
    ops: dict[str, int] = Field(default_factory=dict, description="version mod 64 -> op id of that commit")

    size_bytes: int | None = Field(default=None, exclude=True, description="BSON bytes as it was read; not stored.")
    history: InstanceOf[History] = Field(default=NOTHING, exclude=True, description="What was read of the segments.")

    @classmethod
    def of(cls, document: Mapping[str, Any], size_bytes: int | None = None) -> AgentRecord:
        """The record of a stored document, taken as it is: only this program's own writes are read this way.

        What an earlier program left without a version, or a tenant, is of version 0: no agent until it is migrated.
        """
        key = document["_id"]
        stated = {"size_bytes": size_bytes, "tenant": key.partition(":")[0]}
        return cls.model_construct(**{**stated, **document, "id": key, "version": document.get("version") or 0})

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

    def ended_by(self, instant: datetime) -> bool:
        """Whether the agent's life had its end by then."""
        return self.expires_at is not None and self.expires_at <= instant

    def is_over(self, now: datetime) -> bool:
        """Whether the agent's life is over by then, or was found to be over before."""
        return self.archived or self.ended_by(now)

    def require_alive(self, now: datetime) -> None:
        """Raise AgentExpired when the agent's life was over by then."""
        if self.is_over(now):
            raise AgentExpired(f"The life of the agent '{self.name_in_tenant}' is over.")

    @property
    def descriptors(self) -> Sequence[Descriptor]:
        """Of the segments, the oldest first."""
        return self._directory.descriptors

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
        values |= self._end(values, stamp)
        own = {"size_bytes": None, "last": {**self.last, "at": stamp.now}}
        record = self.model_copy(update={**values, **own, **self._maps_with(put or {}, drop)})
        return Change(record, kinds, {**values, **(put or {})}, frozenset(drop), answer, blobs=blobs or {})

    def _end(self, values: Mapping[str, Any], stamp: Stamp) -> dict[str, Any]:
        """When the agent's life ends after a commit, if that is another time than before."""
        ttl = values.get("ttl_seconds", self.ttl_seconds)
        idle = values.get("idle_seconds", self.idle_seconds)
        if stamp.by == SERVICE or (ttl is None and idle is None and self.expires_at is None):
            return {}  # what the service does by itself prolongs no life
        end = end_of(ttl, idle, self.created_at, stamp.lived_from)
        return {} if end == self.expires_at else {"expires_at": end}

    def also(self, fields: Mapping[str, Any], put: Mapping[str, Any]) -> AgentRecord:
        """The same version with more fields replaced, and more put inside the maps."""
        return self.model_copy(update={**fields, **self._maps_with(put, ())})

    def unchanged(self, answer: Any = None) -> Change:
        """Nothing to write; the version stays."""
        return Change(self, answer=answer)

    def has(self, step: str) -> bool:
        """Whether it is a step of this agent."""
        return step in self.steps or self.home(step) is not None

    def require_step(self, step: str) -> str:
        """The id itself, when it is a step of this agent or `root`; raises NotFound otherwise."""
        if step != ROOT and not self.has(step):
            raise NotFound(f"There is no step '{step[:64]}' on agent '{self.name_in_tenant}'.")
        return step

    def body(self, step: str, home: Descriptor | None = None) -> Step:
        """A step as it is stored, in the segment `home` where that is known. Raises KeyError when there is none."""
        found = self.steps.get(step)
        if found is not None:
            return found
        home = home or self._home_of(step)
        found = self.segment(home).steps[step]
        return {**found, "version": INHERITED_VERSION} if home.inherited else found

    def node(self, step: str) -> Node:
        """A step without its content. Raises KeyError when there is none."""
        found = self.steps.get(step)
        if found is not None:
            return node_of(found)
        home = self._home_of(step)
        node = self.tree(home)[step]
        return node._replace(version=INHERITED_VERSION) if home.inherited else node

    def step(self, step: str, home: Descriptor | None = None) -> Step:
        """A step as callers see it; `home` as in `body`. The last one of a turn that is over reads `end`."""
        shown = {"id": step, **self.body(step, home)}
        return {**shown, "end": True} if self._ends_a_turn(step, home) else shown

    def bound(self, step: str) -> Bound:
        """What is bound to a step or to the root; what came after the step was sealed goes first."""
        here = self.results.get(step, {})
        home = self.home(step)
        if home is None or not (home.results or home.workspaces):
            return here
        return {**self.segment(home).results.get(step, {}), **here}

    def _ends_a_turn(self, step: str, home: Descriptor | None) -> bool:
        if END in self.results.get(step, ()):
            return True
        if step in self.steps:
            return False
        return END in self.segment(home or self._home_of(step)).results.get(step, ())

    def home(self, step: str) -> Descriptor | None:
        """The segment that a step is sealed in; None for one that is not sealed, and for the root."""
        if not self.sealed or step == ROOT or step in self.steps:
            return None
        found = self._directory.homes.get(step)
        return self._searched(step) if found is None else found

    def segment(self, kept: Descriptor) -> Segment:
        """A whole segment."""
        return self.history.segment(kept.id)

    def tree(self, kept: Descriptor) -> Tree:
        """A segment's tree."""
        return self.history.tree(kept.id)

    def trees(self) -> dict[str, Tree]:
        """The trees of all segments, by id. Raises NotAtHand, at once for all of them."""
        self.require_trees({kept.id for kept in self.descriptors})
        return {kept.id: self.tree(kept) for kept in self.descriptors}

    def require_trees(self, segments: AbstractSet[str]) -> None:
        """Raise NotAtHand, at once for all of them, unless the segments' trees are at hand."""
        missing = segments - self.history.segments.keys() - self.history.trees.keys()
        if missing:
            raise NotAtHand(Wanted(trees=frozenset(missing)))

    def require_known(self, steps: Collection[str]) -> None:
        """Raise NotAtHand, at once for all of them, unless it is known of each whether it is sealed."""
        known = (self.steps, self._directory.homes, self.history.steps)
        unknown = {step for step in steps if not any(step in each for each in known)}
        if self.sealed and unknown:
            raise NotAtHand(Wanted(steps=frozenset(unknown)))

    def bare(self) -> AgentRecord:
        """The same without what was read of its segments."""
        if self.history is NOTHING:
            return self
        bare = self.model_copy(update={"history": NOTHING})
        bare.__dict__.pop("directory", None)  # it remembers what it was made from
        return bare

    @property
    def _directory(self) -> Directory:
        """What is known of the segments, worked out anew only when that has changed."""
        known: Directory | None = self.__dict__.get("directory")
        if known is None or not known.is_of(self.sealed, self.history):
            known = self.__dict__["directory"] = Directory(self.sealed, self.history)
        return known

    def _home_of(self, step: str) -> Descriptor:
        """The segment of a step that is not in the document. Raises KeyError when there is no such step."""
        home = self.home(step)
        if home is None:
            raise KeyError(step)
        return home

    def _searched(self, step: str) -> Descriptor | None:
        """The same for a step that is in none of the trees at hand, from what a search for it found."""
        if step not in self.history.steps:
            raise NotAtHand(Wanted(steps=frozenset({step})))
        for key in self.history.steps[step]:
            kept = self._directory.by_id.get(key)
            if kept is not None and (not kept.part or step in kept.seen(self.tree(kept))):
                return kept
        return None

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


STORED = tuple(name for name in AgentRecord.model_fields if name not in ("id", "size_bytes", "history"))
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
    segments: Mapping[str, Segment | None] | None = None,
) -> Change:
    """A new agent in the place of nothing or of a tombstone, whose version and fence it continues.

    `draft` holds everything but version and times, and refers to `blobs` and `segments`. Its steps read as
    `step_version`, else as the new version. Raises Conflict when the id is taken.
    """
    if previous.exists:
        raise Conflict(f"There is an agent '{previous.name_in_tenant}' already.")
    version = previous.version + 1
    steps = {step: {**body, "version": step_version or version} for step, body in draft.steps.items()}
    born = stamp.lived_from
    end = end_of(draft.ttl_seconds, draft.idle_seconds, born, born)
    times = {"created_at": born, "deleted_at": None, "expires_at": end, "archived": False}
    kept = {"version": version, "fence": previous.fence, "last": {"at": stamp.now}, "ops": previous.ops}
    record = draft.model_copy(update={**times, **kept, "steps": steps, "size_bytes": None})
    sets = {name: getattr(record, name) for name in STORED if name not in ("last", "ops")}
    return Change(record, (CREATED,), sets, answer=record, blobs=blobs or {}, segments=segments or {})


def restored(previous: AgentRecord, kept: AgentRecord, stamp: Stamp) -> Change:
    """An agent from a backup in the place of its tombstone, whose version and fence it continues.

    Its steps stay what they were, at their versions. Nobody drives it any more: its runner was a stranger since the
    delete. An ephemeral one begins its life anew. Raises Conflict when it exists, and when the tombstone is older than
    the backup.
    """
    if previous.exists:
        raise Conflict(f"There is an agent '{previous.name_in_tenant}' already.")
    if previous.version < kept.version:
        raise Conflict(
            f"The agent '{previous.name_in_tenant}' was deleted here at version {previous.version}, and the backup "
            f"is of version {kept.version}, which it never had: restore it into another database."
        )
    own = {"version": previous.version + 1, "fence": max(previous.fence, kept.fence), "ops": previous.ops}
    driver = {"runner": None, "incarnation": None, "offered_to": None, "previous_runner": kept.runner}
    end = end_of(kept.ttl_seconds, kept.idle_seconds, stamp.lived_from, stamp.lived_from)
    life = {"archived": False, "expires_at": end}
    record = kept.model_copy(update={**own, **driver, **life, "last": {"at": stamp.now}, "size_bytes": None})
    sets = {name: getattr(record, name) for name in STORED if name not in ("last", "ops")}
    segments = dict.fromkeys(each.id for each in kept.descriptors)
    blobs = dict.fromkeys(references(kept.steps, kept.results))
    return Change(record, (CREATED, RESTORED), sets, answer=record, blobs=blobs, segments=segments)


def widened(
    change: Change,
    kinds: tuple[str, ...],
    fields: Mapping[str, Any],
    *,
    put: Mapping[str, Any] | None = None,
    told: Mapping[str, Any] | None = None,
) -> Change:
    """The change with more assignments in the same version, and more kinds, which come first."""
    return replace(
        change,
        record=change.record.also(fields, put or {}),
        kinds=(*kinds, *change.kinds),
        sets={**change.sets, **fields, **(put or {})},
        told={**change.told, **(told or {})},
    )


def delete(record: AgentRecord, stamp: Stamp) -> Change:
    """Leave a tombstone: the content goes, version and fence stay so that neither ever goes back.

    The fence goes on, so that whoever drove the agent is a stranger to one that is made under its id.
    """
    version = record.version + 1
    kept = {name: getattr(record, name) for name in OF_A_TOMBSTONE}
    sets = {"version": version, "deleted_at": stamp.now, "fence": record.fence + bool(record.fence)}
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
        ] + [
            IndexModel([("state", 1), ("runner", 1)], name="in_turn"),
            IndexModel([("runner", 1)], name="driven", partialFilterExpression={"runner": {"$exists": True}}),
            IndexModel(
                [("archived", 1), ("expires_at", 1)],
                name="by_end",
                partialFilterExpression={"expires_at": {"$type": "date"}},
            ),
        ]
