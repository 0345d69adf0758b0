"""The format of backups: which collections go into one, which of their documents, and what stands around them. Pure.

A backup is BSON documents end to end: a header; batches, each led by a marker that tells its length and digest; an end
with the totals. `app.archive` puts them into a file. Nothing here reads or writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from models.blob import Damaged
from models.erased import NOTE as ERASED
from models.event import Time
from models.ids import agent_key, keys_within

FORMAT = 1
"""What this program writes, and the newest that it reads."""

KEPT = (
    *("service", "retention", "pools", "runners", "blobs", "segments", "idempotency", "commands", "changes"),
    *("acts", "episodes", "agents", "keys"),
)
"""The collections in a backup, in the order in which they are restored: the latch comes first, so that nothing is ever
served without a key that needed one; what refers to others comes after them; keys come last, so that nobody who needs
one gets in before everything is there."""

LEFT_OUT: Mapping[str, str] = {
    "beats": "heartbeats of replicas, which tell only that they live now",
    "tickets": "they let a browser in once, within seconds",
}
"""The other collections, and why they are of no use later."""

LATE = frozenset({"changes", "episodes"})
"""Collections that hear after the fact what belongs to a moment: the log's entries, and an episode's place in it."""

BATCH_BYTES = 48 * 1024 * 1024
"""No batch is longer; a database answers with less."""

LATCH = "latch"
"""In the collection `service`: once it is there, nothing is answered without a key."""

_NOTE = "restore:"
_NO_NOTE = {"$not": {"$regex": f"^(migration:lock$|{_NOTE}|{ERASED})"}}
"""What a run of this program notes for itself while it works is nobody else's, and neither is what was erased where."""

WHOLE_NOTE = f"{_NOTE}whole"
"""The `_id` of the note of a restore of the whole database; in the order of ids it comes after all others."""

_LENGTH_BYTES = 4
_SHORTEST = 5


class Foreign(Exception):
    """It is no backup that this program reads; the message says why."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a database: all of it, a tenant, or an agent of a tenant."""

    tenant: str | None = None
    agent: str | None = None

    @property
    def note(self) -> str:
        """The `_id` of the note that a restore of so much leaves while it is under way."""
        kind = "whole" if self.tenant is None else "tenant" if self.agent is None else "agent"
        return ":".join([f"{_NOTE}{kind}", *(part for part in (self.tenant, self.agent) if part is not None)])

    @property
    def key(self) -> str:
        """The agent's `_id`. Raises NotFound for an id that none can have."""
        return agent_key(self.tenant or "", self.agent or "")

    def __str__(self) -> str:
        if self.tenant is None:
            return "the whole database"
        return f"the tenant '{self.tenant}'" if self.agent is None else f"the agent '{self.tenant}:{self.agent}'"

    def queries(self, collection: str) -> tuple[Mapping[str, Any], ...]:
        """Which documents of a collection, beside those that an agent only refers to."""
        if self.tenant is None:
            return ({"_id": _NO_NOTE} if collection == "service" else {},)
        return _of_tenant(collection, self.tenant) if self.agent is None else self._of_agent(collection)

    def _of_agent(self, collection: str) -> tuple[Mapping[str, Any], ...]:
        named = {"tenant": self.tenant, "agent": self.agent}
        if collection == "agents":
            return ({"_id": self.key},)
        if collection == "commands":
            return named, {"_id": f"{self.key}:number"}
        if collection == "idempotency":
            return (named,)
        if collection == "changes":
            return {"_id": keys_within(self.key)}, {"tenant": self.tenant, "what.agent": self.agent}
        if collection == "acts":
            return ({"tenant": self.tenant, "what.agent": self.agent},)
        return ({"tenant": self.tenant, "agent_id": self.agent},) if collection == "episodes" else ()


def _of_tenant(collection: str, tenant: str) -> tuple[Mapping[str, Any], ...]:
    if collection == "service":
        return ({"_id": LATCH},)
    if collection == "retention":
        return ({"_id": tenant},)
    if collection in ("keys", "idempotency"):
        return ({"tenant": tenant},)
    if collection == "changes":  # a tenant may be called as what was removed by age begins
        return {"_id": keys_within(tenant), "tenant": tenant}, {"_id": f"kept:{tenant}"}
    return ({"_id": keys_within(tenant)},)


@dataclass(frozen=True, slots=True)
class Header:
    """What a backup begins with. `time`: the cluster time at which everything in it was so."""

    extent: Extent
    database: str
    made_at: datetime
    time: Time
    migrations: tuple[str, ...] = ()
    """Those that had been applied."""
    version: int | None = None
    """Of the agent, in the backup of one."""

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        extent = {"tenant": self.extent.tenant, "agent": self.extent.agent}
        told = {"database": self.database, "made_at": self.made_at, "time": list(self.time)}
        more = {"migrations": list(self.migrations), "version": self.version}
        return {"holdfast_backup": FORMAT, **extent, **told, **more}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Header:
        """The header that a document is. Raises Foreign, Damaged."""
        made_by = document.get("holdfast_backup")
        if not isinstance(made_by, int):
            raise Foreign("it is not a backup of Holdfast")
        if made_by > FORMAT:
            raise Foreign(f"it was made by a newer Holdfast (format {made_by}; this one reads {FORMAT})")
        try:
            extent = Extent(document["tenant"], document["agent"])
            seconds, number = document["time"]
            applied = tuple(document["migrations"])
            where = (document["database"], document["made_at"], (seconds, number))
            return cls(extent, *where, applied, document["version"])
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged("its header can't be read") from error


@dataclass(frozen=True, slots=True)
class Totals:
    """Documents, their bytes as BSON, and the digest of them all."""

    documents: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Totals:
        """From a marker or from the end. Raises Damaged."""
        try:
            return cls(int(document["documents"]), int(document["bytes"]), str(document["sha256"]))
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged("it holds a count that can't be read") from error

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        return {"documents": self.documents, "bytes": self.bytes, "sha256": self.sha256}


@dataclass(slots=True)
class Sum:
    """Adds up documents as they go by."""

    documents: int = 0
    size: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    def add(self, documents: int, raw: bytes) -> None:
        """So many documents, end to end."""
        self.documents += documents
        self.size += len(raw)
        self._digest.update(raw)

    @property
    def totals(self) -> Totals:
        """What it came to so far."""
        return Totals(self.documents, self.size, self._digest.hexdigest())


@dataclass(frozen=True, slots=True)
class End:
    """What a backup ends with: the totals by collection, and the ids of the keys that secrets in it are sealed with."""

    collections: Mapping[str, Totals]
    secret_keys: tuple[str, ...] = ()

    @property
    def documents(self) -> int:
        """All of them."""
        return sum(totals.documents for totals in self.collections.values())

    @property
    def bytes(self) -> int:
        """Theirs, as BSON."""
        return sum(totals.bytes for totals in self.collections.values())

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        collections = {name: totals.document() for name, totals in self.collections.items()}
        return {"end": True, "collections": collections, "secret_keys": list(self.secret_keys)}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> End:
        """The end that a document is. Raises Damaged."""
        try:
            collections = {name: Totals.of(totals) for name, totals in document["collections"].items()}
            return cls(collections, tuple(document["secret_keys"]))
        except (AttributeError, KeyError, TypeError) as error:
            raise Damaged("its end can't be read") from error


def is_note_of_restore() -> dict[str, Any]:
    """A query of the notes that restores leave while they are under way."""
    return {"_id": {"$gte": _NOTE, "$lt": f"{_NOTE}~"}}


def split(raw: bytes) -> Iterator[bytes]:
    """The documents that lie end to end in a batch. Raises Damaged where they do not."""
    at = 0
    while at < len(raw):
        length = int.from_bytes(raw[at : at + _LENGTH_BYTES], "little")
        if length < _SHORTEST or at + length > len(raw):
            raise Damaged("a document in it has an impossible length")
        yield raw[at : at + length]
        at += length
