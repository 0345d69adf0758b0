"""The one error tree. No HTTP in here: the API knows each `code` in one table.

    HoldfastError
    ├── InvalidRequest        what was asked is not well formed
    ├── Unauthenticated       no key, or not one of ours
    ├── Forbidden             a good key, without the right
    ├── NotFound              unknown in this tenant, or not to be seen
    ├── VersionConflict       expected, actual
    ├── Conflict              it contradicts what is there
    │   ├── IllegalTransition state, to, trigger
    │   ├── FencedOut         fence, actual
    │   ├── AgentBusy
    │   └── StepExists        the same id with other content
    ├── AgentExpired          its time is over
    ├── FeedGap               the past asked for is no longer kept
    ├── TooLarge              limit, size
    ├── IdempotencyMismatch   the same key with another request
    ├── PreconditionRequired  a guard must be sent
    ├── TooMany               retry_after
    └── Unavailable           retry_after; what became of a write is said in the detail

A class's docstring is the title that callers see; `detail` says what to do about it.
"""

from __future__ import annotations

from typing import Any, ClassVar


class HoldfastError(Exception):
    """Holdfast refused."""

    code: ClassVar[str] = "error"

    def __init__(self, detail: str, **fields: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = fields

    @classmethod
    def title(cls) -> str:
        """One line for people: the first line of the class's docstring."""
        return (cls.__doc__ or cls.__name__).strip().splitlines()[0]


class InvalidRequest(HoldfastError):
    """The request is not well formed."""

    code = "invalid-request"


class Unauthenticated(HoldfastError):
    """A valid key is needed."""

    code = "unauthenticated"


class Forbidden(HoldfastError):
    """That is not allowed."""

    code = "forbidden"


class NotFound(HoldfastError):
    """There is no such thing."""

    code = "not-found"


class VersionConflict(HoldfastError):
    """The agent is at another version."""

    code = "version-conflict"

    def __init__(self, expected: int, actual: int) -> None:
        super().__init__(
            f"If-Match names version {expected}, the agent is at {actual}: read it again and decide anew.",
            expected=expected,
            actual=actual,
        )


class Conflict(HoldfastError):
    """The request contradicts what is there."""

    code = "conflict"


class IllegalTransition(Conflict):
    """The agent's state does not allow that."""

    code = "illegal-transition"

    def __init__(self, state: str, to: str, trigger: str) -> None:
        super().__init__(f"No transition leads from {state} to {to} by {trigger}.", state=state, to=to, trigger=trigger)


class FencedOut(Conflict):
    """Someone else drives the agent by now."""

    code = "fenced-out"

    def __init__(self, fence: int, actual: int, detail: str | None = None) -> None:
        told = f"The fencing token {fence} is not the agent's ({actual}): stop driving it, or claim it again."
        super().__init__(detail or told, fence=fence, actual=actual)


class AgentBusy(Conflict):
    """The agent is in the middle of a turn."""

    code = "agent-busy"


class StepExists(Conflict):
    """A step of this id is there with other content."""

    code = "step-exists"


class AgentExpired(HoldfastError):
    """The agent's time is over."""

    code = "agent-expired"


class FeedGap(HoldfastError):
    """The past asked for is no longer kept."""

    code = "feed-gap"


class TooLarge(HoldfastError):
    """A size limit would be broken."""

    code = "too-large"

    def __init__(self, what: str, limit: int, size: int) -> None:
        super().__init__(
            f"{what} would take {size} bytes, {limit} are allowed: nothing was written.", limit=limit, size=size
        )


class IdempotencyMismatch(HoldfastError):
    """This Idempotency-Key was used for another request."""

    code = "idempotency-mismatch"


class PreconditionRequired(HoldfastError):
    """This write needs a guard."""

    code = "precondition-required"


class TooMany(HoldfastError):
    """Too much at once."""

    code = "too-many"

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class Unavailable(HoldfastError):
    """Not available at this moment."""

    code = "unavailable"

    def __init__(self, detail: str, retry_after: int = 1, **fields: Any) -> None:
        super().__init__(detail, **fields)
        self.retry_after = retry_after
