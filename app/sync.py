"""Sync: episodes in the order of the change log, each once, to whoever comes back with the cursor that it was given.

The order is that of the episodes' places in the log, which are complete up to the log's mark. So whatever is written
meanwhile, on whichever replica, comes after the cursor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from app.changelog import ChangeLog
from app.episodes import Episodes, Stored
from app.scribe import Scribe
from models.entry import position
from models.episode import EpisodeRecord
from models.errors import HoldfastError
from models.tenant import Scope

_BEGINNING = position((0, 0))


@dataclass(frozen=True, slots=True)
class Pulled:
    """Episodes in the order of the log, and the cursor to go on from."""

    items: Sequence[EpisodeRecord]
    cursor: str


class Sync:
    """Pulls and pushes. Raises InvalidRequest for a cursor of another log, Unavailable."""

    def __init__(self, episodes: Episodes, changes: ChangeLog, scribe: Scribe) -> None:
        self._episodes = episodes
        self._changes = changes
        self._scribe = scribe

    async def pull(self, scope: Scope, cursor: str | None, limit: int) -> Pulled:
        """What comes after the cursor, or from the beginning; what this replica has acknowledged is among it."""
        await self._scribe.caught_up()
        after = cursor or _BEGINNING
        end = await self._changes.end_for(after)
        found = await self._episodes.placed(scope, after=after, upto=end, limit=limit)
        return Pulled(found, found[-1].position or after if found else after)

    async def push(
        self, scope: Scope, given: Sequence[Mapping[str, Any]], cursor: str | None, limit: int
    ) -> tuple[list[Stored], Pulled]:
        """Store these, each for itself, and pull what others stored; what was pushed here is not pulled again."""
        await self._changes.end_for(cursor or _BEGINNING)  # a cursor that is refused is refused before anything is done
        stored = await self._episodes.store(scope, given)
        own = {one[0].id for one in stored if not isinstance(one, HoldfastError)}
        return stored, await self._pull_but(own, scope, cursor, limit)

    async def _pull_but(self, own: AbstractSet[str], scope: Scope, cursor: str | None, limit: int) -> Pulled:
        """Up to so many that are none of these: a page is short only where nothing more came."""
        items: list[EpisodeRecord] = []
        while True:
            asked = limit - len(items)
            pulled = await self.pull(scope, cursor, asked)
            items += [episode for episode in pulled.items if episode.id not in own]
            cursor = pulled.cursor
            if len(pulled.items) < asked or len(items) == limit:
                return Pulled(items, cursor)
