"""Agents as callers see them: plain JSON objects, with the fields and names of the contract."""

from __future__ import annotations

from typing import Any, Literal

from app.api.paging import steps_cursor
from app.filling import ByPart
from models.agent import AgentRecord
from models.ids import plain_name
from models.listing import Window, newest_of, newest_parts, steps_of
from models.profile import masked
from models.results import workspace_at
from models.tree import branch_names

StepsView = Literal["path", "all", "none"]

_SHOWN = (
    *("tenant", "name", "model", "version", "created_at", "updated_at", "head", "state", "status", "activity"),
    *("settings", "labels", "pool", "platform", "region", "dormant", "archived", "runner", "fence", "resource_id"),
    *("step_count", "ttl_seconds", "idle_seconds", "expires_at", "forked_from", "owner"),
)

STEPS_LIMIT = 1_000


def summary(record: AgentRecord) -> dict[str, Any]:
    """An agent in a list: all but steps and workspace."""
    return {
        "id": record.name_in_tenant,
        **{field: getattr(record, field) for field in _SHOWN},
        "branch": None if record.branch is None else plain_name(record.branch),
        "branches": branch_names(record),
        "delegate": masked(record.delegate),
        "size_bytes": record.stored_bytes(),
        "can_redo": bool(record.redo),
    }


def agent(record: AgentRecord, view: StepsView = "path", limit: int = STEPS_LIMIT) -> dict[str, Any]:
    """An agent whole, with the newest steps of the view; `steps_before` is the cursor to the older ones, or null."""
    leaf = record.head if view == "path" else None
    steps, cut = ([], None) if view == "none" else newest_of(record, leaf, limit)
    return {**_beside_steps(record), "steps": steps, "steps_before": _before(leaf, cut)}


def agent_in_parts(record: AgentRecord, view: Literal["path", "all"], limit: int) -> dict[str, Any]:
    """The same for a great many steps, which are made a part at a time; however much they take, none is left out."""
    leaf = record.head if view == "path" else None
    parts, cut = newest_parts(record, leaf, limit)
    shown = ByPart(lambda _: parts, steps_of)
    return {**_beside_steps(record), "steps": shown, "steps_before": _before(leaf, cut)}


def _beside_steps(record: AgentRecord) -> dict[str, Any]:
    return {**summary(record), "workspace": workspace_at(record, record.head)}


def _before(leaf: str | None, cut: int | None) -> str | None:
    return None if cut is None else steps_cursor(Window(leaf, until=cut))
