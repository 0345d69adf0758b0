"""The kinds of routes: which rights open them, how they decode, what they may refuse.

Give one of these to each route decorator: `@get("/settings", **READ)`. `create_litestar` refuses a route under
`/v1` that has none.
"""

from __future__ import annotations

from typing import Any

from litestar.openapi import ResponseSpec

from app.api import shapes
from app.api.body import StrictJSON
from app.api.problems import MEDIA_TYPE
from models.tenant import Right

_REFUSALS = {
    400: "The request is not well formed.",
    401: "A valid key is needed.",
    403: "This key, host or origin may not do that.",
    404: "Unknown, or another tenant's.",
    409: "It contradicts what is there.",
    410: "The agent's time is over.",
    412: "The agent is at another version.",
    413: "A size limit would be broken.",
    422: "The Idempotency-Key was used for another request.",
    428: "Send the fence as Fencing-Token.",
    429: "Too many feeds are open.",
    503: "The database does not answer in time.",
}
_OF_WRITES = tuple(status for status in _REFUSALS if status != 429)
_OF_READS = (400, 401, 403, 404, 410, 503)


def _refusals(*statuses: int) -> dict[int, ResponseSpec]:
    return {
        status: ResponseSpec(
            data_container=shapes.Problem, generate_examples=False, description=_REFUSALS[status], media_type=MEDIA_TYPE
        )
        for status in statuses
    }


def _kind(*rights: Right, changes: bool, wrapped: int = 0, of_steps: bool = False) -> dict[str, Any]:
    decoding = {"dto": StrictJSON, "return_dto": None} if changes else {}
    responses = _refusals(*(_OF_WRITES if changes else _OF_READS))
    opt = {"rights": frozenset(rights), "wrapped": wrapped, "of_steps": of_steps}
    return {"opt": opt, "responses": responses, **decoding}


def _also(kind: dict[str, Any], status: int, description: str, shape: Any = None) -> dict[str, Any]:
    answer = ResponseSpec(data_container=shape, generate_examples=False, description=description)
    return {**kind, "responses": {**kind["responses"], status: answer}}


def gone(kind: dict[str, Any]) -> dict[str, Any]:
    """The kind, for a route that answers 204 and nothing else."""
    return _also(kind, 204, "Done; there is nothing to show.")


LIST = _kind(Right.READ, Right.RUNNER, changes=False)
"""Shows several agents."""

READ = _also(LIST, 304, "The caller has this version.")
"""Shows one agent."""

DRIVE = _kind(Right.WRITE, Right.RUNNER, changes=True)
"""Changes an agent: for its callers and its runner."""

WRITE = _kind(Right.WRITE, changes=True)
"""Makes, ends or hands over an agent."""

APPEND = _also(
    _kind(Right.WRITE, Right.RUNNER, changes=True, of_steps=True),
    200,
    "The same steps were there already.",
    shapes.Appended,
)
"""Changes an agent by steps, each with a key limit of its own."""

END_TURN = _kind(Right.WRITE, Right.RUNNER, changes=True, of_steps=True)
"""The same, ending a turn with them."""

IMPORT = _kind(Right.WRITE, changes=True, wrapped=3, of_steps=True)
"""Takes an export, which wraps what it holds (most of all a workspace) in three more levels."""

RUNNER = _also(_kind(Right.RUNNER, changes=True), 403, "This key, or token, is not this runner's.")
"""What a runner says of itself; needs its token, or the key that it was registered with."""

POLL = _kind(Right.RUNNER, changes=False)
"""What a runner asks for itself."""

DECIDE = _kind(Right.ADMIN, changes=True)
"""Decides something for the tenant, or has it done."""

REMEMBER = _also(
    _kind(Right.WRITE, Right.RUNNER, changes=True),
    207,
    "Of each of a batch what came of it.",
    shapes.StoredEpisodes,
)
"""Stores or removes what agents learned."""

PUSH = _kind(Right.WRITE, Right.RUNNER, changes=True)
"""Stores episodes, and shows others."""

SEARCH = _kind(Right.READ, Right.RUNNER, changes=True)
"""Asks by a body; changes nothing."""

FEED = {
    **LIST,
    "opt": {**LIST["opt"], "ticket": True},
    "responses": _refusals(*_OF_READS, 429),
}
"""Goes on telling what happens; opened by a ticket, too."""

TICKET = {**LIST, "status_code": 201}
"""Makes a ticket: changes no agent, takes no body."""

PUBLIC: dict[str, Any] = {"responses": _refusals(400, 403, 503)}
"""Needs no key and shows nothing of any tenant: liveness, metrics."""
