"""The shapes of answers, for the OpenAPI document. Nothing is encoded through them; a test compares both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from models.execution import State

Json = dict[str, Any]


class ToolCall(Struct):
    id: str
    name: str
    input: Any = UNSET


class ToolResult(Struct):
    id: str
    output: Any = UNSET
    is_error: bool | UnsetType = UNSET


class Step(Struct):
    """A step as it is kept; fields that were not given are not there."""

    id: str
    seq: int
    version: int
    parent_id: str
    turn_id: str
    index: int
    role: Literal["user", "agent", "system", "tool"]
    created_at: str
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    tool_results: list[ToolResult] | UnsetType = UNSET
    usage: Json | UnsetType = UNSET
    input_messages: list[Any] | UnsetType = UNSET
    source: str | UnsetType = UNSET
    workspace: Any = UNSET
    refs: list[Any] | UnsetType = UNSET
    begin: bool | UnsetType = UNSET
    end: bool | UnsetType = UNSET
    data: Json | UnsetType = UNSET


class ForkedFrom(Struct):
    agent: str
    step: str


class Summary(Struct):
    """An agent in a list."""

    id: str
    tenant: str
    name: str
    model: str | None
    version: int
    created_at: str
    updated_at: str
    head: str
    branch: str | None
    branches: dict[str, str]
    state: State
    status: Literal["pending", "running", "stopped", "failed"]
    activity: Literal["idle", "busy"]
    settings: Json
    delegate: Json | None
    labels: dict[str, str]
    pool: str | None
    platform: str | None
    region: str | None
    dormant: bool
    archived: bool
    runner: str | None
    fence: int
    resource_id: str | None
    step_count: int
    size_bytes: int
    ttl_seconds: float | None
    idle_seconds: float | None
    expires_at: str | None
    forked_from: ForkedFrom | None
    can_redo: bool
    owner: str | None


class Agent(Summary):
    """An agent with its newest steps; `steps_before` is the cursor to the older ones."""

    workspace: Any
    steps: list[Step]
    steps_before: str | None


class Unreadable(Struct):
    """An agent whose stored document can't be read."""

    id: str
    error: str


@dataclass
class AgentList:
    """No Struct: those take no union of two Structs."""

    items: list[Summary | Unreadable]
    next_cursor: str | None


class StepList(Struct):
    items: list[Step]
    next_cursor: str | None


class Appended(Struct):
    steps: list[Step]
    head: str
    version: int


class Position(Struct):
    head: str
    branch: str | None
    version: int
    workspace: Any
    can_redo: bool


class Branch(Struct):
    name: str
    step_id: str
    version: int


class Branches(Struct):
    branches: dict[str, str]
    branch: str | None
    head: str
    version: int


class Operation(Struct):
    op: Literal["add", "remove", "replace"]
    path: str
    value: Any = UNSET


class Difference(Struct):
    merge_base: str
    only_from: list[str]
    only_to: list[str]
    workspace: list[Operation]


class Result(Struct):
    key: str
    step_id: str
    result: Any


class SeenResult(Struct):
    step_id: str
    result: Any


class Results(Struct):
    results: dict[str, SeenResult]


class Change(Struct):
    """An entry of the change log; one of kind `gap` stands for entries that were lost, with a snapshot."""

    cursor: str
    agent: str
    version: int
    at: str
    kinds: list[str]
    by: str
    pool: str | UnsetType = UNSET
    trigger: str | UnsetType = UNSET
    trace: str | UnsetType = UNSET
    steps: list[str] | UnsetType = UNSET
    snapshot: Json | UnsetType = UNSET


class ChangeList(Struct):
    items: list[Change]
    next_cursor: str | None


class Ticket(Struct):
    ticket: str
    expires_at: str


class Problem(Struct):
    """What went wrong, after RFC 9457; some codes carry more fields."""

    type: str
    title: str
    status: int
    detail: str
    code: str


class Health(Struct):
    status: Literal["live", "ready"]
