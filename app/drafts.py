"""Drafts: the steps that callers send, with ids and within the limits, before any agent is asked. It reads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.clock import Clock
from app.config import Settings
from app.mongo import require_small
from models.ids import check_id
from models.tree import Draft


class Drafts:
    """Makes drafts of steps."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    def of(self, step: Mapping[str, Any]) -> Draft:
        """A step to append. Raises InvalidRequest, TooLarge."""
        given = {name: value for name, value in step.items() if name != "id"}
        chosen = step.get("id")
        draft = Draft(self._clock.new_id() if chosen is None else check_id(chosen), given, chosen is not None)
        self.require_fitting({"id": draft.id, **given})
        return draft

    def require_fitting(self, step: Mapping[str, Any]) -> None:
        """Raise TooLarge for a step over its limit."""
        require_small(step, "A step", self._settings.step_limit_bytes)
