"""What callers send: the bodies of the contract. Form only; what it means is decided by `models`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from app.api.paging import DEFAULT_LIMIT, MAX_LIMIT
from models.command import Action
from models.errors import InvalidRequest
from models.execution import State, Trigger
from models.ids import POOL_PATTERN
from models.runner import RestartMode
from models.step import ABSENT, MAX_COUNT, Body, Id, Instant, Role, StepInput

Text = Annotated[str, Field(max_length=1024)]
Term = Annotated[str, Field(min_length=1, max_length=256)]
PoolName = Annotated[str, Field(pattern=POOL_PATTERN)]
Seconds = Annotated[int | float, Field(gt=0, le=315_360_000)]
Labels = dict[Annotated[str, Field(min_length=1, max_length=256)], Text]


def _named(kind: type[StrEnum]) -> BeforeValidator:
    """Takes one of the names of an enumeration."""

    def parse(value: Any) -> Any:
        if isinstance(value, str) and value in {each.value for each in kind}:
            return kind(value)
        raise ValueError(f"must be one of {', '.join(each.value for each in kind)}")

    return BeforeValidator(parse)


Reason = Annotated[str, Field(max_length=500)]
MAX_CAPACITY = 10_000
MAX_WAIT_SECONDS = 60
Wait = Annotated[int | float, Field(ge=0, le=MAX_WAIT_SECONDS)]
StepRef = Annotated[str, Field(min_length=1, max_length=128)]


class DelegateBody(Body):
    """On whose behalf the agent acts; `token` is stored sealed and never shown again."""

    model_config = {**Body.model_config, "extra": "allow"}

    user: dict[str, Any] | None = None
    token: Annotated[str, Field(min_length=1)] | None = None


class CreateBody(Body):
    """A new agent; every field may be left out."""

    id: Id | None = None
    name: Text = "Bob"
    owner: Term | None = None
    model: Text | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    delegate: DelegateBody | None = None
    workspace: Any = None
    pool: PoolName | None = None
    platform: Term | None = None
    region: Term | None = None
    dormant: bool = False
    ttl_seconds: Seconds | None = None
    idle_seconds: Seconds | None = None
    labels: Labels = Field(default_factory=dict)


class PatchBody(Body):
    """A merge patch: null takes a field, or a label, away."""

    name: Text = "Bob"
    model: Text | None = None
    labels: dict[Annotated[str, Field(min_length=1, max_length=256)], Text | None] | None = None
    pool: PoolName | None = None
    platform: Term | None = None
    region: Term | None = None
    ttl_seconds: Seconds | None = None
    idle_seconds: Seconds | None = None


class StepBatch(Body):
    """Steps to append together; each hangs from the one before."""

    steps: Annotated[list[StepInput], Field(min_length=1)]


def _step_or_batch(value: Any) -> str:
    many = "steps" in value if isinstance(value, dict) else isinstance(value, StepBatch)
    return "batch" if many else "step"


StepsBody = Annotated[
    Annotated[StepInput, Tag("step")] | Annotated[StepBatch, Tag("batch")], Discriminator(_step_or_batch)
]


MOST_EPISODES = 1_000
MOST_FOUND = 200
Vector = Annotated[list[int | float], Field(min_length=1, max_length=8_192)]
Reward = Annotated[int | float, Field(ge=0, le=1)]


class EpisodeBody(Body):
    """What was learned from a task. Without an `embedding` the service makes one of the texts."""

    id: Id = ABSENT
    agent_id: Id | None = None
    session_id: Term | None = None
    step_id: Id | None = None
    task: str = ""
    input: Any = None
    output: Any = None
    reward: Reward | None = None
    critique: str | None = None
    tokens: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    latency_ms: Annotated[int | float, Field(ge=0)] | None = None
    embedding: Vector | None = None
    embedder: Annotated[Term | None, Field(description="What made the embedding; left out: the service's own.")] = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    created_at: Instant = ABSENT
    expires_at: Instant | None = None


class EpisodeBatch(Body):
    """Episodes to store, each for itself: one that is wrong keeps no other from being stored."""

    episodes: Annotated[list[Any], Field(min_length=1, max_length=MOST_EPISODES)]


def _episode_or_batch(value: Any) -> str:
    many = "episodes" in value if isinstance(value, dict) else isinstance(value, EpisodeBatch)
    return "batch" if many else "episode"


EpisodesBody = Annotated[
    Annotated[EpisodeBody, Tag("episode")] | Annotated[EpisodeBatch, Tag("batch")], Discriminator(_episode_or_batch)
]


class SearchBody(Body):
    """What to look for, by a text or by a vector, and among which episodes."""

    text: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None
    vector: Vector | None = None
    embedder: Term | None = None
    k: Annotated[int, Field(ge=1, le=MOST_FOUND)] = 10
    min_reward: Reward | None = None
    agent: Id | None = None
    session: Term | None = None
    since: Instant | None = None
    exclude_abandoned: bool = False

    @model_validator(mode="after")
    def _exactly_one(self) -> SearchBody:
        if (self.text is None) == (self.vector is None):
            raise InvalidRequest("Send either text or vector.")
        return self


class SyncBody(Body):
    """Episodes to push, if there are any, and from where on to pull."""

    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT
    episodes: Annotated[list[Any], Field(max_length=MOST_EPISODES)] = Field(default_factory=list)


class RetentionBody(Body):
    """What is kept; null, or left out, takes a limit away."""

    max_age_days: Annotated[int | float, Field(gt=0, le=36_500)] | None = None
    min_reward: Reward | None = None


class ApplyBody(Body):
    """Whether to count what would be removed, and remove nothing."""

    dry_run: bool = False


class HeadBody(Body):
    """Where HEAD goes: to a step (detached) or to a branch (attached)."""

    step_id: StepRef | None = None
    branch: StepRef | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> HeadBody:
        if (self.step_id is None) == (self.branch is None):
            raise InvalidRequest("Send either step_id or branch.")
        return self


class BranchBody(Body):
    """The step that a branch points at."""

    step_id: StepRef


class ForkBody(Body):
    """Where to fork, a step or a branch (HEAD when left out), and the new agent's name."""

    at: StepRef | None = None
    name: Text | None = None


class RevertBody(Body):
    """The turn to go back before."""

    turn_id: Id


class ResultBody(Body):
    """A result to keep, and the step to bind it to (HEAD when left out)."""

    step_id: StepRef | None = None
    result: Any


class TransitionBody(Body):
    """A transition of the table, and why it is made."""

    to: Annotated[State, _named(State)]
    trigger: Annotated[Trigger, _named(Trigger)]
    reason: Reason | None = None


class TurnBody(StepInput):
    """The step that opens a turn."""

    role: Role = "user"
    content: str


class FinishBody(Body):
    """How a turn ended, with its last steps."""

    steps: Annotated[list[StepInput], Field(min_length=1)] = ABSENT
    outcome: Literal["completed", "error", "stopped"]
    error: Reason | None = None


class ResourceBody(Body):
    """What the platform calls the agent's process; null takes it away."""

    resource_id: Text | None


class RunnerBody(Body):
    """A runner, and how many agents it can drive at once."""

    id: Id | None = None
    pool: PoolName
    platform: Literal["kubernetes", "docker", "vm", "cloud", "local"]
    region: Term | None = None
    capacity: Annotated[int, Field(ge=1, le=MAX_CAPACITY)]
    metadata: dict[str, Any] = Field(default_factory=dict)


class HeartbeatBody(Body):
    """What the runner believes to drive, and how much it can by now."""

    agents: Annotated[list[Id], Field(max_length=MAX_CAPACITY)] | None = None
    capacity: Annotated[int, Field(ge=0, le=MAX_CAPACITY)] | None = None


class ClaimBody(Body):
    """How many agents to claim at most, and how long to wait for the first."""

    max: Annotated[int, Field(ge=1, le=MAX_CAPACITY)]
    wait_seconds: Wait = 0
    agents: Annotated[
        list[Id] | None,
        Field(max_length=MAX_CAPACITY, description="What the runner knows it drives: other claims are told again."),
    ] = None


class ReleaseBody(Body):
    """The agent to let go; `hand_off` names the only runner that may claim it then, true stands for any other."""

    agent: Id
    hand_off: Id | bool | None = None


class CommandBody(Body):
    """What the agent's runner is to do."""

    action: Annotated[Action, _named(Action)]
    payload: Any = None
    deadline_seconds: Seconds | None = None


class DoneBody(Body):
    """What came of a command."""

    result: Any = None


class FailedBody(Body):
    """Why a command could not be carried out."""

    error: Text | None = None


class PoolBody(Body):
    """How a pool restarts agents that failed; what is left out stays as it is."""

    restart: Annotated[RestartMode, _named(RestartMode)] = ABSENT
    attempts: Annotated[int, Field(ge=1, le=1000, description="Restarts in a row without a finished turn.")] = ABSENT
    backoff_seconds: Annotated[int | float, Field(ge=0, le=86_400, description="Before the second; then doubled.")] = (
        ABSENT
    )
