"""The shapes of answers, for the OpenAPI document. Nothing is encoded through them; a test compares both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from models.command import Action, CommandStatus
from models.execution import State, Trigger
from models.runner import RestartMode, RunnerState

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
    turn_ended: Literal["max_steps"] | UnsetType = UNSET


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
    """An entry of the change log; one of kind `gap` stands for entries that were lost, with a snapshot.

    Entries of episodes and acts, which are no agent's commits, have no agent and no version (0); `what` tells an act.
    """

    cursor: str
    agent: str | None
    version: int
    at: str
    kinds: list[str]
    by: str
    pool: str | UnsetType = UNSET
    trigger: str | UnsetType = UNSET
    runner: str | UnsetType = UNSET
    fence: int | UnsetType = UNSET
    trace: str | UnsetType = UNSET
    steps: list[str] | UnsetType = UNSET
    snapshot: Json | UnsetType = UNSET
    episode: str | UnsetType = UNSET
    what: Json | UnsetType = UNSET


class ChangeList(Struct):
    items: list[Change]
    next_cursor: str | None


class Episode(Struct):
    """What an agent learned from a task; `embedder` made its embedding."""

    id: str
    agent_id: str | None
    session_id: str | None
    step_id: str | None
    task: str
    input: Any
    output: Any
    reward: float | None
    success: bool | None
    critique: str | None
    tokens: int | None
    latency_ms: float | None
    embedding: list[float]
    embedder: str
    metadata: Json
    created_at: str
    expires_at: str | None


class EpisodeList(Struct):
    items: list[Episode]
    next_cursor: str | None


class ItemProblem(Struct):
    """What is wrong with one item of a batch."""

    code: str
    detail: str


class StoredEpisode(Struct):
    """One of a batch: stored under an id, or refused."""

    id: str | UnsetType = UNSET
    status: int | UnsetType = UNSET
    error: ItemProblem | UnsetType = UNSET


class StoredEpisodes(Struct):
    items: list[StoredEpisode]


class Pulled(Struct):
    """Episodes in the order of the change log, and where to go on."""

    items: list[Episode]
    cursor: str


class Pushed(Struct):
    """The same, and what came of each that was pushed."""

    items: list[Episode]
    cursor: str
    pushed: list[StoredEpisode]


class Retention(Struct):
    """Which episodes are kept; null: all."""

    max_age_days: float | None
    min_reward: float | None


class Retained(Struct):
    """How many episodes were removed, or would be, by the reason."""

    dry_run: bool
    removed: int
    counts: dict[str, int]


class Erased(Struct):
    """How many documents were removed, by collection."""

    tenant: str
    removed: dict[str, int]


class PresentRunner(Struct):
    id: str
    pool: str
    state: RunnerState
    last_seen: str


class PresentAgent(Struct):
    """An ephemeral agent that lives."""

    id: str
    state: State
    runner: str | None
    expires_at: str | None
    last_seen: str | None


class Presence(Struct):
    runners: list[PresentRunner]
    agents: list[PresentAgent]


class Stats(Struct):
    """How much the tenant has: agents by state, their steps, runners by state, commands by status, episodes."""

    agents: dict[str, int]
    steps: int
    runners: dict[str, int]
    commands: dict[str, int]
    episodes: int


class Recollection(Struct):
    score: float
    episode: Episode


class Recalled(Struct):
    """The most similar episodes first; `embedder` made what was compared."""

    items: list[Recollection]
    embedder: str


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


class Transition(Struct, rename={"before": "from"}):
    """One transition of an agent's history."""

    before: State
    to: State
    trigger: Trigger
    at: str
    version: int
    by: str
    reason: str | UnsetType = UNSET


class TransitionList(Struct):
    items: list[Transition]
    next_cursor: str | None


class Standing(Struct):
    """Where an agent stands, and by what it came there."""

    state: State
    status: Literal["pending", "running", "stopped", "failed"]
    activity: Literal["idle", "busy"]
    version: int
    at: str | None
    trigger: Trigger | None


class Turn(Struct):
    """A turn that was begun; `fence` guards its writes when it is sent."""

    turn_id: str
    step: Step
    version: int
    fence: int


class Finished(Standing):
    """A turn that is over."""

    turn_id: str
    outcome: Literal["completed", "error", "stopped"]
    steps: list[Step]
    head: str


class Resource(Struct):
    resource_id: str | None
    version: int


class Runner(Struct):
    """A runner, and how many agents it drives of those that it can."""

    id: str
    pool: str
    platform: Literal["kubernetes", "docker", "vm", "cloud", "local"]
    region: str | None
    capacity: int
    load: int
    metadata: Json
    state: RunnerState
    draining: bool
    incarnation: int
    owner: str | None
    registered_at: str
    seen_at: str
    gone_at: str | None
    heartbeat_seconds: float
    ttl_seconds: float


class Registered(Runner):
    """The same with its token, which is shown once."""

    token: str


class RunnerList(Struct):
    items: list[Runner]
    next_cursor: str | None


class Driven(Struct):
    id: str
    fence: int
    state: State


class Beaten(Struct):
    """What a heartbeat answers: what the runner drives, and of what it named, what it does not (`lost`)."""

    agents: list[Driven]
    lost: list[str]
    commands_waiting: int
    draining: bool


class Claim(Struct):
    """An agent that a runner drives from now on; the delegate comes with its token."""

    agent: str
    fence: int
    version: int
    attempt: int
    previous_runner: str | None
    resource_id: str | None
    state: State
    delegate: Json | UnsetType = UNSET


class Claims(Struct):
    claims: list[Claim]


class Released(Struct):
    agent: str
    state: State
    fence: int
    version: int


class Command(Struct):
    """A command, and how far it came; `dead`: its deadline passed before that."""

    id: str
    agent: str
    action: Action
    status: CommandStatus
    sends: int
    dead: bool
    by: str
    created_at: str
    deadline_at: str
    payload: Any = UNSET
    pool: str | UnsetType = UNSET
    runner: str | UnsetType = UNSET
    result: Any = UNSET
    error: str | UnsetType = UNSET
    sent_at: str | UnsetType = UNSET
    acked_at: str | UnsetType = UNSET
    finished_at: str | UnsetType = UNSET


class Commands(Struct):
    items: list[Command]
    next_cursor: str | None


class Restarts(Struct):
    """How a pool restarts agents that failed."""

    pool: str
    restart: RestartMode
    attempts: int
    backoff_seconds: float


class Pool(Struct):
    """A pool: its runners and agents by state, what it can drive and drives, its commands."""

    pool: str
    runners: dict[str, int]
    capacity: int
    load: int
    agents: dict[str, int]
    commands_waiting: int
    commands_dead: int


class PoolList(Struct):
    items: list[Pool]
    next_cursor: str | None


class Reconciled(Struct, rename={"before": "from"}):
    """One agent that reconciliation changed."""

    agent: str
    before: State
    to: State
    reason: str


class Report(Struct):
    examined: int
    changed: list[Reconciled]
