"""What a step may hold when it comes in. Only form is judged here; where a step hangs is `models.tree`'s matter."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from models.ids import ID_PATTERN

MAX_COUNT = 2**53 - 1
"""Greatest number that a caller may give to count on from: what every JSON reader can still tell from the next."""

Id = Annotated[str, Field(pattern=ID_PATTERN, description="1 to 64 letters, digits, `_` or `-`; not `root`.")]
Role = Literal["user", "agent", "system", "tool"]


def parse_instant(value: Any) -> Any:
    """RFC 3339 text as UTC, cut to the millisecond that is kept; anything else is left for the validator to refuse."""
    if not isinstance(value, str) or len(value) < len("2000-01-01T00:00:00Z"):
        return value
    try:
        instant = datetime.fromisoformat(value)
        if instant.tzinfo is None:
            return value
        return instant.astimezone(UTC).replace(microsecond=instant.microsecond // 1000 * 1000)
    except (ValueError, OverflowError):
        return value


Instant = Annotated[datetime, BeforeValidator(parse_instant)]


class Body(BaseModel):
    """A JSON object from a caller: no unknown fields, no coercion of types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def given(self) -> dict[str, Any]:
        """The fields that were sent, and only those, as plain JSON values."""
        return self.model_dump(exclude_unset=True)


ABSENT: Any = None
"""Default of a field that may be left out but, when it is sent, must have its type: null is not "left out"."""


class ToolCall(Body):
    """A tool that the agent asks for."""

    id: str
    name: str
    input: Any = None


class ToolResult(Body):
    """What a tool call gave back."""

    id: str
    output: Any = None
    is_error: bool = False


class StepInput(Body):
    """A step to append. What is given is kept exactly, what is left out stays out; only `role` is needed."""

    id: Id = ABSENT
    parent_id: Annotated[str, Field(pattern=ID_PATTERN, description="A step or `root`; HEAD when left out.")] = ABSENT
    turn_id: Id = ABSENT
    index: Annotated[int, Field(ge=0, le=MAX_COUNT, description="Place in the turn, from 0.")] = ABSENT
    role: Role
    content: str = ABSENT
    tool_calls: list[ToolCall] = ABSENT
    tool_results: list[ToolResult] = ABSENT
    usage: dict[str, Any] = ABSENT
    input_messages: list[Any] = ABSENT
    source: str = ABSENT
    workspace: Any = ABSENT
    refs: list[Any] = ABSENT
    begin: bool = ABSENT
    end: bool = ABSENT
    data: dict[str, Any] = ABSENT
    created_at: Instant = ABSENT


class SnapshotStep(StepInput):
    """A step of an export: as it was answered. `version` is of the exported agent and is given anew on import."""

    id: Id
    seq: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    version: int | None = None
    parent_id: Annotated[str, Field(pattern=ID_PATTERN)]
    turn_id: Id
    index: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    created_at: Instant
