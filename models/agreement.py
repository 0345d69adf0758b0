"""Whether an agent's document and its entries of the change log tell the same story. Pure: nothing is read here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain, pairwise
from typing import Any

from models.change import CLEARED, CREATED, DELETED, RESTORED, STEP
from models.entry import GAP, Entry, entries_of, position, time_of
from models.event import Event

CLOCKS_APART = timedelta(minutes=10)
"""By how much the clocks of replicas and database may differ where something is called older than the log."""

_ENVELOPE = frozenset({"from", "v", "kinds", "at", "by"})
_TOLD = ("at", "kinds", "by", "owner", "pool", "trigger", "runner", "fence", "trace")
_STARTS_ANEW = frozenset({CREATED, CLEARED, DELETED})
"""Kinds after which no earlier step is there."""


@dataclass(frozen=True, slots=True)
class Written:
    """What is looked at in an agent's document; `steps` leads from each step to the version that it came with."""

    key: str
    version: int
    last: Mapping[str, Any]
    steps: Mapping[str, int]
    created_at: datetime | None = None
    deleted: bool = False
    erased: bool = False
    """Whether its log was removed once, but for its deletion."""


def differences(agent: Written, entries: Sequence[Entry], kept_from: datetime | None) -> Iterator[str]:
    """Each difference in a sentence; none when document and log agree.

    `entries` are all that the log holds of the agent, in the log's order; what is older than `kept_from` may have been
    removed by age (None: nothing ever was). Of versions that a gap stands for nothing is known, so nothing is demanded.
    """
    if _ENVELOPE - agent.last.keys() or agent.last["v"] != agent.version:
        yield f"the document is at version {agent.version}, its newest commit at {agent.last.get('v', 'none')}"
    elif entries:
        versions = chain(
            _places(entries), _beginning(agent, entries, kept_from), _holes(entries), _ending(agent, entries)
        )
        yield from chain(versions, _kinds(entries), _newest(agent, entries), _unnamed(agent, entries))
        yield from chain(_missing(agent, entries), _life(agent, entries))
    elif kept_from is None or agent.last["at"] > kept_from + CLOCKS_APART:
        yield "the log holds no entry of it"


def remark(entries: Sequence[Entry]) -> str:
    """What has to be said of a log that does not tell the whole story of an agent; empty when it does."""
    gaps = [str(entry.version) for entry in entries if GAP in entry.kinds]
    if gaps:
        return f"what led to version {', '.join(gaps)} is a gap"
    if not entries:
        return "all of it is older than the log is kept"
    return "" if entries[0].version == 1 else f"version {entries[0].version} is the oldest kept"


def _places(entries: Sequence[Entry]) -> Iterator[str]:
    """Each entry stands at its own place, and the order of places is that of versions."""
    for entry in entries:
        if entry.position != position(time_of(entry.position), entry.version, entry.agent):
            yield f"the entry of version {entry.version} stands at another one's place"
    for before, after in pairwise(entries):
        if after.version <= before.version:
            yield f"version {after.version} comes after version {before.version}"


def _beginning(agent: Written, entries: Sequence[Entry], kept_from: datetime | None) -> Iterator[str]:
    """The log begins with version 1, with a gap, or with the oldest entry that its age left."""
    first = entries[0]
    if first.version == 1 or any(GAP in entry.kinds for entry in entries):
        return
    if agent.erased and DELETED in first.kinds:
        return
    young = kept_from is not None and agent.created_at is not None and agent.created_at > kept_from + CLOCKS_APART
    if kept_from is None or (young and not any(CREATED in entry.kinds for entry in entries)):
        yield f"the log begins at version {first.version}, and what was before is not that old"


def _holes(entries: Sequence[Entry]) -> Iterator[str]:
    for before, after in pairwise(entries):
        if after.version > before.version + 1 and GAP not in after.kinds:
            yield f"there is no entry of version {before.version + 1}"


def _ending(agent: Written, entries: Sequence[Entry]) -> Iterator[str]:
    newest = max(entry.version for entry in entries)
    if newest != agent.version:
        yield f"the log is at version {newest}, the document at {agent.version}"


def _kinds(entries: Sequence[Entry]) -> Iterator[str]:
    """An agent is created, changed, deleted, and only then created again; who brings steps says so."""
    alive = False if entries[0].version == 1 else None
    for entry in entries:
        if GAP in entry.kinds:
            alive = None
            continue
        if not entry.kinds or (STEP in entry.kinds) != bool(entry.steps):
            yield f"version {entry.version} says '{'+'.join(entry.kinds)}' and names {len(entry.steps)} steps"
        if alive is not None and alive == (CREATED in entry.kinds):
            found = "creates an agent that is there" if alive else "changes an agent that is not there"
            yield f"version {entry.version} {found}"
        alive = DELETED not in entry.kinds


def _newest(agent: Written, entries: Sequence[Entry]) -> Iterator[str]:
    """The entries of the newest commit say what its envelope in the document says."""
    logged = {entry.version: entry for entry in entries}
    for expected in entries_of(Event(agent.key, (0, 0), {"last": agent.last})):
        entry = logged.get(expected.version)
        if entry is None or GAP in entry.kinds:
            continue
        if entry != replace(expected, position=entry.position, steps=entry.steps):
            other = [name for name in _TOLD if getattr(entry, name) != getattr(expected, name)]
            yield f"the entry of version {entry.version} and the document differ in {', '.join(other) or 'more'}"


def _unnamed(agent: Written, entries: Sequence[Entry]) -> Iterator[str]:
    """Each step of the document is named by the entry of its version, or came with the agent itself.

    Steps that came back from a backup are of versions before that; which of the log's they are is not judged.
    """
    logged = {entry.version: entry for entry in entries}
    back = _newest_of(entries, frozenset({RESTORED}))
    anew = _newest_of(entries, _STARTS_ANEW)
    for step, version in agent.steps.items():
        if version < back == anew:
            continue
        entry = logged.get(version)
        if version < anew or version > agent.version:
            yield f"the document's step {step} is of version {version}, which it can't be"
        elif entry is not None and {CREATED, GAP}.isdisjoint(entry.kinds) and step not in entry.steps:
            yield f"the entry of version {version} does not name the document's step {step}"


def _missing(agent: Written, entries: Sequence[Entry]) -> Iterator[str]:
    """Each step that an entry names is in the document, unless something after it may have taken it away."""
    known_since = _newest_of(entries, _STARTS_ANEW | {GAP})
    for entry in entries:
        for step in entry.steps:
            if entry.version > known_since and agent.steps.get(step) != entry.version:
                yield f"the document has no step {step} of version {entry.version}"


def _life(agent: Written, entries: Sequence[Entry]) -> Iterator[str]:
    """The log ends with a delete if and only if the document is a tombstone, which has no steps."""
    newest = entries[-1]
    if GAP not in newest.kinds and (DELETED in newest.kinds) != agent.deleted:
        found = "is a tombstone" if agent.deleted else "is an agent"
        yield f"the document {found}, the newest entry says '{'+'.join(newest.kinds)}'"
    if agent.deleted and agent.steps:
        yield f"the tombstone has {len(agent.steps)} steps"


def _newest_of(entries: Sequence[Entry], kinds: frozenset[str]) -> int:
    """The newest version of one of the kinds, 0 when there is none."""
    return max((entry.version for entry in entries if not kinds.isdisjoint(entry.kinds)), default=0)
