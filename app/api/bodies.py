"""What callers send: the bodies of the contract. Form only; what it means is decided by `models`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from models.errors import InvalidRequest
from models.step import Body, Id, StepInput

Text = Annotated[str, Field(max_length=1024)]
Term = Annotated[str, Field(min_length=1, max_length=256)]
Seconds = Annotated[int | float, Field(gt=0, le=315_360_000)]
Labels = dict[Annotated[str, Field(min_length=1, max_length=256)], Text]
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
    pool: Term | None = None
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
    pool: Term | None = None
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
