"""Settling: what a runner's past still holds is let go of, once for all of it; whoever is cut off does it again."""

from __future__ import annotations

from app.commands import Commands
from app.orphans import Orphans, Reconciled
from app.roster import Roster
from app.tenancy import Keys
from models.runner import RunnerRecord


class Settling:
    """Lets go of what runners that are gone, or their earlier incarnations, hold. Raises Unavailable."""

    def __init__(self, roster: Roster, orphans: Orphans, commands: Commands, keys: Keys) -> None:
        self._roster = roster
        self._orphans = orphans
        self._commands = commands
        self._keys = keys

    async def settle(self, runner: RunnerRecord) -> list[Reconciled]:
        """Free its agents, give its commands to others, let its tokens expire. Noted only when all of it is done."""
        freed, all_of_them = await self._orphans.free(runner)
        await self._commands.leave(runner)
        await self._keys.forget(runner)
        if all_of_them:
            await self._roster.settled(runner)
        return freed
