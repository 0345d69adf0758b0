"""What subscribers of an agent are told of a commit: events of the feed, made from the change event alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from models.agent import MAIN, AgentRecord
from models.change import AGENT, BRANCHES, CLEARED, DELETED, HEAD, RESULTS, RUNNER, SETTINGS, STATE
from models.change import WORKSPACE as WORKSPACE_KIND
from models.entry import each_version, steps_of
from models.event import Event
from models.execution import State, activity_of, status_of
from models.ids import END, RESERVED, ROOT, WORKSPACE, plain_name
from models.listing import Window, page_of
from models.packing import bytes_apart
from models.profile import masked
from models.prompt import FIELD, is_prompt

Data = dict[str, Any]
Told = tuple[str, Data]
"""The type of an event of the feed, and its data."""

_PAGE = 100
"""Steps of the past that are told at once."""

PROFILE = (
    *("name", "model", "labels", "pool", "platform", "region", "resource_id", "dormant"),
    *("ttl_seconds", "idle_seconds"),
)


@dataclass(frozen=True, slots=True)
class News:
    """What happened with one version, in order."""

    version: int
    told: tuple[Told, ...]
    moved_to: str | None = None
    """HEAD was moved to this step: which workspace that brings is not seen from the event."""
    goes_on: bool = False
    """Whether more of the same version comes with the next news."""

    @property
    def bytes_apart(self) -> int:
        """Bytes of JSON that it refers to and does not hold; 0 when it is whole."""
        return sum(_bytes_apart(data) for _, data in self.told)

    @property
    def has_prompts(self) -> bool:
        """Whether a step in it goes on from messages of earlier ones."""
        return any(is_prompt(data.get(FIELD)) for _, data in self.told)


def news_of(event: Event) -> list[News]:
    """The news of each version that the event led to, in their order; a new agent has no subscribers and no news."""
    steps = steps_of(event)
    return [_news(event, version, kinds["kinds"], steps) for version, kinds in each_version(event)]


def snapshot_of(record: AgentRecord) -> Told:
    """Where the agent stands: what a subscriber begins with."""
    branch = None if record.branch is None else plain_name(record.branch)
    return "snapshot", {"version": record.version, "state": record.state, "head": record.head, "branch": branch}


def steps_since(record: AgentRecord, version: int, after: int = 0, limit: int = _PAGE) -> tuple[list[News], int | None]:
    """Steps that came after a version, told commit by commit, and the seq after which to go on (None at the end)."""
    page = page_of(record, Window(None, since=version, after=after), limit)
    more = page.next_after is not None
    steps = (
        page.steps[:-1] if more and len(page.steps) > 1 else page.steps
    )  # the last tells whether its version goes on
    found: dict[int, list[Told]] = {}
    for step in steps:
        found.setdefault(record.node(step).version, []).append(("step", record.step(step)))
    told = [News(at, tuple(each)) for at, each in found.items()]
    if not more:
        return told, None
    told[-1] = replace(told[-1], goes_on=record.node(page.steps[-1]).version == told[-1].version)
    return told, record.node(steps[-1]).seq


def _bytes_apart(value: Any, levels: int = 3) -> int:
    """The same of what is told, as far down as there are references in it."""
    if isinstance(value, Mapping) and levels:
        return sum(_bytes_apart(each, levels - 1) for each in value.values())
    return 0 if isinstance(value, Mapping) else bytes_apart(value)


def _news(event: Event, version: int, kinds: list[str], steps: Mapping[str, Mapping[str, Any]]) -> News:
    own = {step: body for step, body in steps.items() if body["version"] == version}
    told = [("step", {"id": step, **body, **_end_of(event, step)}) for step, body in own.items()]
    if HEAD in kinds and own:
        told.append(("head", {"version": version, **_advanced(event, own)}))
    told += [_TELLERS[kind](event, version) for kind in kinds if kind in _TELLERS and not (kind == HEAD and own)]
    moved_to = event.envelope.get("head") if HEAD in kinds and not own else None
    return News(version, tuple(told), moved_to)


def _end_of(event: Event, step: str) -> Data:
    """What the last step of a turn that ends with it reads beside its own."""
    whole = event.sets.get(f"results.{step}", {})
    return {"end": True} if f"results.{step}.{END}" in event.sets or END in whole else {}


def _advanced(event: Event, own: Mapping[str, Mapping[str, Any]]) -> Data:
    """HEAD after an append, and the workspace where one of its steps brought one."""
    branch = next((plain_name(path[9:]) for path in event.sets if path.startswith("branches.")), None)
    brought = [body["workspace"] for body in own.values() if "workspace" in body]
    return {"head": list(own)[-1], "branch": branch, **({"workspace": brought[-1]} if brought else {})}


def _head(event: Event, version: int) -> Told:
    branch = event.envelope.get("branch")
    head = event.envelope["head"]
    return "head", {"version": version, "head": head, "branch": None if branch is None else plain_name(branch)}


def _workspace(event: Event, version: int) -> Told:
    kind, data = _head(event, version)
    bound = _bound(event)[data["head"]]
    return kind, {**data, "workspace": bound[WORKSPACE]}


def _results(event: Event, version: int) -> Told:
    results = {
        plain_name(field): {"step_id": step, "result": value}
        for step, fields in _bound(event).items()
        for field, value in fields.items()
        if field not in RESERVED
    }
    return "results", {"version": version, "results": results}


def _bound(event: Event) -> dict[str, Data]:
    """The results and workspaces that the event put, by step and field name."""
    found: dict[str, Data] = {}
    for path, value in event.sets.items():
        top, _, rest = path.partition(".")
        if top == "results" and rest:
            step, _, field = rest.partition(".")
            found.setdefault(step, {}).update({field: value} if field else value)
    return found


def _settings(event: Event, version: int) -> Told:
    return "settings", {"version": version, "settings": event.sets["settings"]}


def _branches(event: Event, version: int) -> Told:
    pointed = {plain_name(path[9:]): step for path, step in event.sets.items() if path.startswith("branches.")}
    forgotten = {plain_name(path[9:]): None for path in event.drops if path.startswith("branches.")}
    return "agent", {"version": version, "branches": {**pointed, **forgotten}}


def _profile(event: Event, version: int) -> Told:
    changed = {name: event.sets[name] for name in PROFILE if name in event.sets}
    gone = {name: None for name in PROFILE if name in event.drops}
    delegate = {"delegate": masked(event.sets.get("delegate"))} if "delegate" in {*event.sets, *event.drops} else {}
    return "agent", {"version": version, **changed, **gone, **delegate}


def _state(event: Event, version: int) -> Told:
    state = State(event.sets["state"])  # what stays as it was, as the status may, is not in the database's event
    derived = {"state": state.value, "status": status_of(state), "activity": activity_of(state)}
    fence = {"fence": event.sets["fence"]} if "fence" in event.sets else {}
    return "state", {"version": version, **derived, "trigger": event.envelope.get("trigger"), **fence}


def _runner(event: Event, version: int) -> Told:
    return "agent", {"version": version, "runner": event.sets.get("runner"), "fence": event.sets["fence"]}


def _cleared(_: Event, version: int) -> Told:
    return "cleared", {"version": version, "head": ROOT, "branch": MAIN}


def _deleted(_: Event, version: int) -> Told:
    return "deleted", {"version": version}


_TELLERS: Mapping[str, Callable[[Event, int], Told]] = {
    HEAD: _head,
    WORKSPACE_KIND: _workspace,
    RESULTS: _results,
    SETTINGS: _settings,
    BRANCHES: _branches,
    AGENT: _profile,
    STATE: _state,
    RUNNER: _runner,
    CLEARED: _cleared,
    DELETED: _deleted,
}
