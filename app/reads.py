"""Reads of one agent: from memory when that is fresh enough, else from the database, once for all who ask."""

from __future__ import annotations

import asyncio
import contextvars
from dataclasses import dataclass

from app.cache import Cache, Flight
from app.clock import Clock
from app.store import Store
from app.telemetry import Metrics
from models.agent import AgentRecord
from models.errors import Unavailable
from models.event import Time
from models.tenant import Scope

MIN_VERSION_SECONDS = 2.0
_VERSION_PAUSE = 0.01
_ASKING_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Freshness:
    """How new a read must be: within the staleness bound, at least `min_version`, or linearizable (`strong`)."""

    strong: bool = False
    min_version: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """An agent as it was read, and by how many seconds that may be behind."""

    record: AgentRecord
    age: float = 0.0


class Reads:
    """Every read of one agent. Guarantee: what this replica has acknowledged is seen, whatever the freshness."""

    def __init__(self, store: Store, cache: Cache, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._cache = cache
        self._clock = clock
        self._metrics = metrics
        self._flying: set[asyncio.Task[AgentRecord]] = set()

    async def agent(self, scope: Scope, agent: str, freshness: Freshness) -> Seen:
        """The agent. Raises NotFound; Unavailable when the database does not answer or a version does not come."""
        key = scope.agent_key(agent)
        if freshness.strong:
            seen = Seen(await self._linearizable(key))
        else:
            seen = await self._lately(key, freshness.min_version)
        seen.record.require_visible(scope)
        if seen.record.version < freshness.min_version:
            seen = Seen(await self._awaited(key, freshness.min_version))
            seen.record.require_visible(scope)
        self._metrics.staleness.observe(seen.age)
        return seen

    async def caught_up(self, scope: Scope, agent: str) -> AgentRecord:
        """The agent, not older than the newest event that the change stream has brought. Raises as `agent` does."""
        key = scope.agent_key(agent)
        entry = self._cache.look(key)
        if entry is not None:
            record = entry.record
        else:
            record = await self._brought_by(self._take_off(key))
        record.require_visible(scope)
        return record

    async def _lately(self, key: str, min_version: int) -> Seen:
        found = self._cache.glance(key, self._clock.monotonic())
        if found is not None and found[0].record.version >= min_version:
            self._cache.tally.hits += 1
            return Seen(found[0].record, found[1])
        self._cache.tally.misses += 1
        heard_of = self._cache.newest(key)
        flight = self._cache.joinable(key) or self._take_off(key)
        record = await self._brought_by(flight)
        if record.version < heard_of:
            return Seen(await self._store.read(key))
        return Seen(record, self._clock.monotonic() - flight.started)

    async def _linearizable(self, key: str) -> AgentRecord:
        """The agent by a linearizable read; of its version alone, where memory has the rest."""
        version, time = await self._store.version(key)
        entry = self._cache.look(key)
        if entry is not None and entry.record.version == version:
            return entry.record
        self._cache.knows(key, version)
        return await self._brought_by(self._take_off(key, time))

    async def _awaited(self, key: str, version: int) -> AgentRecord:
        """The agent once it has reached the version."""
        until = self._clock.monotonic() + MIN_VERSION_SECONDS
        while (reached := (await self._store.version(key))[0]) < version:
            if self._clock.monotonic() >= until:
                raise Unavailable(f"Version {version} is not there yet; it is at {reached}.", version=reached)
            await self._heard_of(key, version, until)
        return await self._linearizable(key)

    async def _heard_of(self, key: str, version: int, until: float) -> None:
        """Wait until the change stream tells of the version; not for long, as the stream may be silent."""
        until = min(until, self._clock.monotonic() + _ASKING_SECONDS)
        while self._cache.newest(key) < version and self._clock.monotonic() < until:  # noqa: ASYNC110 - short, bounded
            await asyncio.sleep(_VERSION_PAUSE)

    async def _brought_by(self, flight: Flight) -> AgentRecord:
        assert flight.landing is not None  # noqa: S101 - given by _take_off, before anybody can join
        return await asyncio.shield(flight.landing)

    def _take_off(self, key: str, time: Time | None = None) -> Flight:
        """Begin a read, not behind the cluster time if one is given; it goes on when those who wait for it leave.

        Where the flight must be linearizable, it is so from now on: the given time is from before its token.
        """
        flight = self._cache.depart(key)
        since = flight.since if flight.since is None or time is None else max(flight.since, time)
        flight.landing = asyncio.create_task(self._fly(flight, since), context=contextvars.Context())
        self._flying.add(flight.landing)
        flight.landing.add_done_callback(self._flying.discard)
        return flight

    async def _fly(self, flight: Flight, since: Time | None) -> AgentRecord:
        record: AgentRecord | None = None
        try:
            record = await self._store.read(flight.key, since=since)
        finally:
            self._cache.land(flight, record)
        return record
