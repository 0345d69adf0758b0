"""Entries of the change log: one for each version of each agent, each episode and each act, made from change events.

An entry is the same whoever makes it, so every replica may write it again without harm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from beanie import Document
from pymongo import IndexModel

from models.change import CREATED, RUNNER, STATE
from models.event import Event, Time

EPISODE = "episode"
"""The kind of an entry that says that an episode was stored."""

GAP = "gap"
"""The kind of an entry that stands for versions of which nothing is known but where they led."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of one agent: when, what kinds of change, by whom (key id or runner), which steps came with it.

    Or one episode, or one act: what, when and by whom. Those have no agent and no version.
    """

    tenant: str
    agent: str
    version: int
    position: str
    at: datetime
    kinds: tuple[str, ...]
    by: str
    owner: str | None = None
    pool: str | None = None
    trigger: str | None = None
    runner: str | None = None
    """Of kind `runner`: who drives the agent from then on, if anybody does, and by which fence."""
    fence: int | None = None
    trace: str | None = None
    steps: tuple[str, ...] = ()
    snapshot: Mapping[str, Any] | None = None
    """Of a gap: where the agent stood then."""
    episode: str | None = None
    """Of kind `episode`: which one was stored."""
    act: str | None = None
    what: Mapping[str, Any] | None = None
    """Of an act, whose kind is its own: its id, and what was done. An episode's says of which agent it is."""

    @property
    def key(self) -> str:
        """What the entry is about: an agent, an episode or an act."""
        if self.episode is not None:
            return _key_of_episode(self.tenant, self.episode, self.at)
        return f"{self.tenant}:{self.agent}" if self.act is None else f"{self.tenant}:!{self.act}"

    @property
    def id(self) -> str:
        """`<key>:<version>`, so that nothing is in the log twice."""
        return f"{self.key}:{self.version}"

    def document(self) -> dict[str, Any]:
        """As it is stored; what has no value is left out."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values |= {"kinds": list(self.kinds), "steps": list(self.steps)}
        return {name: value for name, value in values.items() if value is not None and value != []}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Entry:
        """The entry that a document holds."""
        lists = {name: tuple(document.get(name, ())) for name in ("kinds", "steps")}
        return cls(**{**{name: document[name] for name in cls.__slots__ if name in document}, **lists})


def position(time: Time, version: int = 0, agent: str = "") -> str:
    """A place in the log, as text that sorts as commits were made; without an agent, before all of that time."""
    return f"{time[0]:08x}{time[1]:08x}{version:012x}{agent}"


def time_of(place: str) -> Time:
    """The cluster time of a place."""
    return int(place[:8], 16), int(place[8:16], 16)


POSITION_PATTERN = r"^[0-9a-f]{28}[A-Za-z0-9_-]{0,64}$"


def entries_of(event: Event) -> list[Entry]:
    """One entry for each version that the event led to, in their order."""
    tenant, _, agent = event.key.partition(":")
    last = event.envelope
    shared = {name: last[name] for name in ("at", "by", "owner") if name in last}
    steps = _steps_by_version(event)
    return [
        Entry(
            tenant=tenant,
            agent=agent,
            version=version,
            position=position(event.time, version, agent),
            kinds=tuple(told["kinds"]),
            pool=told.get("pool", last.get("pool")),
            trigger=last.get("trigger") if STATE in told["kinds"] else None,
            runner=last.get("runner") if RUNNER in told["kinds"] else None,
            fence=last.get("fence") if RUNNER in told["kinds"] else None,
            trace=told.get("trace"),
            steps=() if CREATED in told["kinds"] else tuple(steps.get(version, ())),
            **shared,
        )
        for version, told in each_version(event)
    ]


def entry_key_of_episode(document: Mapping[str, Any]) -> str:
    """What the entry of an episode is about: one that is stored anew under an id is another."""
    tenant, _, name = document["_id"].partition(":")
    return _key_of_episode(tenant, name, document["stored_at"])


def _key_of_episode(tenant: str, name: str, stored_at: datetime) -> str:
    return f"{tenant}:@{name}:{round(stored_at.timestamp() * 1000)}"


def entry_key_of_act(key: str) -> str:
    """The same of an act."""
    tenant, _, name = key.partition(":")
    return f"{tenant}:!{name}"


def entry_of_episode(document: Mapping[str, Any], time: Time) -> Entry:
    """The entry of a new episode, from its document."""
    name = document["_id"].partition(":")[2]
    agent = document.get("agent_id")
    what = None if agent is None else {"agent": agent}
    return _beside(document, name, time, at=document["stored_at"], kind=EPISODE, episode=name, what=what)


def entry_of_act(document: Mapping[str, Any], time: Time) -> Entry:
    """The entry of an act, from its document."""
    name = document["_id"].partition(":")[2]
    return _beside(
        document, name, time, at=document["at"], kind=document["kind"], act=name, what=document.get("what", {})
    )


def _beside(document: Mapping[str, Any], name: str, time: Time, *, at: datetime, kind: str, **fields: Any) -> Entry:
    """An entry of what is no agent's commit."""
    return Entry(
        tenant=document["tenant"],
        agent="",
        version=0,
        position=position(time, 0, name),
        at=at,
        kinds=(kind,),
        by=document["by"],
        owner=document.get("owner"),
        **fields,
    )


def each_version(event: Event) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each version that the event led to, with what the envelope says of it alone."""
    last = event.envelope
    each = last.get("each")
    for number, version in enumerate(range(event.before + 1, event.version + 1)):
        yield version, (each[number] if each else last)


def steps_of(event: Event) -> dict[str, Mapping[str, Any]]:
    """The steps that the event added one by one, in the order of their seq."""
    added = {path[6:]: body for path, body in event.sets.items() if path.startswith("steps.")}
    return dict(sorted(added.items(), key=lambda step: step[1]["seq"]))


def _steps_by_version(event: Event) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for step, body in steps_of(event).items():
        found.setdefault(body["version"], []).append(step)
    return found


class LogEntry(Document):
    """The collection of entries: indexes only. Beside the entries it holds the log's mark, which has no tenant."""

    class Settings:
        name = "changes"
        indexes = [
            IndexModel([("tenant", 1), ("position", 1)], name="by_position"),
            IndexModel([("tenant", 1), ("agent", 1), ("position", 1)], name="by_agent"),
            IndexModel([("position", 1)], name="by_age"),
            *(
                IndexModel(
                    [("tenant", 1), (field, 1), ("position", 1)],
                    name=f"by_{name}",
                    partialFilterExpression={field: {"$exists": True}},
                )
                for name, field in (("owner", "owner"), ("pool", "pool"), ("agent_of_act", "what.agent"))
            ),
        ]
