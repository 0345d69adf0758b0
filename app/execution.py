"""Execution: transitions and turns of agents, and what their platforms call them. It writes only through the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.clock import Clock
from app.config import Settings
from app.drafts import Drafts
from app.lanes import Committed, Move, Terms
from app.store import Store
from models import assignment, turn
from models.change import Change, Stamp
from models.execution import State, Trigger
from models.tenant import Scope


class Execution:
    """What callers and runners do with an agent's state. Each raises what the store's `commit` and the move raise."""

    def __init__(self, store: Store, drafts: Drafts, settings: Settings, clock: Clock) -> None:
        self._store = store
        self._drafts = drafts
        self._settings = settings
        self._clock = clock

    async def transit(
        self, scope: Scope, agent: str, to: State, trigger: Trigger, reason: str | None, terms: Terms
    ) -> Committed:
        """One transition of the table."""
        closing = self._clock.new_id()
        return await self._commit(
            scope, agent, lambda record, at: turn.transit(record, to, trigger, reason, at, closing), terms
        )

    async def begin(self, scope: Scope, agent: str, step: Mapping[str, Any], terms: Terms) -> Committed:
        """Open a turn with a user's step. Raises TooLarge for a step over its limit."""
        draft = self._drafts.of(step)
        inline = self._settings.inline_bytes
        return await self._commit(scope, agent, lambda record, at: turn.begin(record, draft, at, inline=inline), terms)

    async def finish(
        self,
        scope: Scope,
        agent: str,
        named: str,
        steps: Sequence[Mapping[str, Any]],
        outcome: str,
        error: str | None,
        terms: Terms,
    ) -> Committed:
        """End the open turn, with its last steps. Raises TooLarge for a step over its limit."""
        drafts = [self._drafts.of(step) for step in steps]
        inline = self._settings.inline_bytes

        def move(record: Any, at: Stamp) -> Change:
            return turn.finish(record, named, drafts, outcome, error, at, inline=inline)

        return await self._commit(scope, agent, move, terms)

    async def stop(self, scope: Scope, agent: str, terms: Terms) -> Committed:
        """Ask for the end of the open turn."""
        return await self._commit(scope, agent, turn.stop, terms)

    async def set_resource(self, scope: Scope, agent: str, resource: str | None, terms: Terms) -> Committed:
        """Keep what the platform calls the agent's process."""
        return await self._commit(scope, agent, lambda record, at: assignment.set_resource(record, resource, at), terms)

    async def _commit(self, scope: Scope, agent: str, move: Move, terms: Terms) -> Committed:
        return await self._store.commit(scope, agent, move, guard=terms.guard_of(scope), once=terms.once)
