"""The reconciler: declares silent runners dead, frees what they drove, ends turns that nobody goes on with.

Every replica runs one, none leads, there is no lock: each judges by its own sightings (`app.sightings`), declares by
compare-and-set on the beat that it saw, and frees by commits that look again. What was freed already changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from app.acts import Acts
from app.clock import Clock
from app.commands import Commands
from app.config import Settings
from app.mongo import Mongo, unavailable_when_failing
from app.orphans import Orphans, Reconciled
from app.roster import Roster
from app.settling import Settling
from app.sightings import LOOK_SECONDS, Sightings
from app.tasks import end
from app.telemetry import Metrics, get_logger
from models.act import OPERATOR, RECONCILED
from models.errors import Unavailable
from models.execution import IN_TURN
from models.settings import lease_seconds
from models.tenant import Scope

_TIDY_SECONDS = 5.0
"""How often orphans are looked for of which no runner's death tells, and commands that nobody sees to."""

_FIRST_LOOK_SECONDS = 1.0
_IN_TURN = sorted(state.value for state in IN_TURN)
_TURN = {"version": 1, "settings.execution_timeout_seconds": 1}
_SILENT = "its turn had no write for {seconds:g} s"
_log = get_logger(__name__)


@dataclass(slots=True)
class Report:
    """What a reconciliation looked at and changed, or would change."""

    examined: int = 0
    changed: list[Reconciled] = field(default_factory=list)

    def shown(self) -> dict[str, Any]:
        """As callers see it."""
        return {"examined": self.examined, "changed": [one.shown() for one in self.changed]}


class Reconciler:
    """Owned by the runtime: `start`, `healthy`, `stop`. `reconcile` may be called at any time beside."""

    def __init__(
        self,
        mongo: Mongo,
        acts: Acts,
        roster: Roster,
        orphans: Orphans,
        commands: Commands,
        settling: Settling,
        settings: Settings,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._mongo = mongo
        self._acts = acts
        self._roster = roster
        self._orphans = orphans
        self._commands = commands
        self._settling = settling
        self._ttl = settings.runner_ttl_seconds
        self._seconds = settings.call_seconds
        self._metrics = metrics
        self._clock = clock
        self._runners: Sightings[str] = Sightings()
        self._turns: Sightings[str] = Sightings()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to watch, and to reconcile."""
        loops: tuple[tuple[Callable[[], Coroutine[Any, Any, object]], float], ...] = (
            (self.watch_runners, LOOK_SECONDS),
            (self.settle, LOOK_SECONDS),
            (self._watch_turns, LOOK_SECONDS),
            (self._commands.tidy, _TIDY_SECONDS),
            (self._tidy, _TIDY_SECONDS),
        )
        self._tasks = [asyncio.create_task(self._repeat(work, seconds)) for work, seconds in loops]

    async def stop(self) -> None:
        """End; what is under way is done by others."""
        await end(*self._tasks)

    @property
    def healthy(self) -> bool:
        """Whether all of it is at work."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    async def reconcile(
        self, scope: Scope | None, *, dry_run: bool = False, told: Callable[[Report], None] = lambda _: None
    ) -> Report:
        """Look through the agents that a runner drives, or should, and free the orphans; None: of all tenants.

        Raises Unavailable.
        """
        report = Report()
        heard = set() if dry_run or scope is None else {scope.tenant}
        await self._tell(heard, OPERATOR if scope is None else scope.by)
        async for examined, orphans in self._orphans.look_through(scope):
            report.examined += examined
            if scope is None and not dry_run:
                found = {one["_id"].partition(":")[0] for one, _ in orphans}
                await self._tell(found - heard, OPERATOR)
                heard |= found
            report.changed += (
                [self._orphans.foreseen(*one) for one in orphans] if dry_run else await self._orphans.free_each(orphans)
            )
            told(report)
        if not dry_run:
            self._metrics.freed.inc(len(report.changed))
        return report

    async def _tell(self, tenants: AbstractSet[str], by: str) -> None:
        """Tell tenants' logs that their orphans are about to be freed because somebody asked for it."""
        with unavailable_when_failing(self._seconds):
            for tenant in tenants:
                await self._acts.tell_of(tenant, RECONCILED, by, did="asked for")

    async def watch_runners(self) -> int:
        """Look once at every runner that is taken to live, and declare dead who was silent for too long; how many live.

        Raises Unavailable.
        """
        asked = self._clock.monotonic()
        pulses = await self._roster.pulses()
        still = self._runners.look(
            ((pulse.runner, pulse) for pulse in pulses), asked=asked, answered=self._clock.monotonic()
        )
        living = len(pulses)
        for pulse in pulses:
            silent = still[pulse.runner]
            if silent < self._ttl or self._roster.heard_since(pulse, asked - self._ttl):
                continue  # a heartbeat that is on its way through a slow service is a sign of life, too
            if await self._roster.expire(pulse) is not None:
                self._metrics.expired.inc()
                _log.warning("runner declared dead", runner=pulse.runner, silent_seconds=round(silent, 2))
                living -= 1
        return living

    async def settle(self) -> list[Reconciled]:
        """Free what runners that are gone, or were registered anew, still hold. Raises Unavailable."""
        freed: list[Reconciled] = []
        for runner in await self._roster.unsettled():
            freed += await self._settling.settle(runner)
        self._metrics.freed.inc(len(freed))
        return freed

    async def _watch_turns(self) -> None:
        """Look once at every turn of an agent without a pool, and break off those whose lease ended."""
        asked = self._clock.monotonic()
        turns = await self._open_turns()
        things = [(turn["_id"], turn["version"]) for turn in turns]
        still = self._turns.look(things, asked=asked, answered=self._clock.monotonic())
        for turn in turns:
            seconds = lease_seconds(turn.get("settings", {}))
            if still[turn["_id"]] >= seconds:
                reason = _SILENT.format(seconds=seconds)
                ended = await self._orphans.end_turn(turn["_id"], turn["version"], reason)
                self._metrics.freed.inc(ended is not None)

    async def _tidy(self) -> None:
        """Free what no runner's death told of."""
        before: dict[str, Any] = {}
        async for _, orphans in self._orphans.look_through(None):
            before |= {one["_id"]: (one, reason) for one, reason in orphans}
        if not before:
            return
        await asyncio.sleep(_FIRST_LOOK_SECONDS)  # one that is just being prompted or claimed is none
        self._metrics.freed.inc(len(await self._orphans.free_each(before.values())))

    async def _open_turns(self) -> list[dict[str, Any]]:
        query = {"state": {"$in": _IN_TURN}, "runner": None, "pool": None, "deleted_at": None}
        with unavailable_when_failing(self._seconds):
            # unscoped: replicas watch over the turns of all tenants
            return await self._mongo.agents.find(query, _TURN).hint("in_turn").to_list()

    async def _repeat(self, work: Callable[[], Coroutine[Any, Any, object]], seconds: float) -> None:
        """Do it again and again, with so many seconds between."""
        while True:
            try:
                await work()
            except Unavailable as error:
                _log.debug("reconciliation waits for the database", code=error.code)
            except Exception:  # noqa: BLE001 - the top of the loop: logged, and tried again
                _log.exception("reconciliation failed")
            await asyncio.sleep(seconds)
