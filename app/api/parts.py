"""What the edge is made over: the parts of a replica, given by the composition root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.agents import Agents
from app.api.shown import Showcase
from app.cache import Cache
from app.census import Census
from app.commands import Commands
from app.config import Settings
from app.episodes import Episodes
from app.erasure import Erasure
from app.execution import Execution
from app.filling import Filling
from app.keyed import KeyedAnswers
from app.reconciler import Reconciler
from app.retention import Retention
from app.runners import Runners
from app.streams import Streams
from app.sync import Sync
from app.telemetry import Metrics
from app.tenancy import Keys
from app.tracing import Tracing


@dataclass(frozen=True)
class Parts:
    """What the routes need, ready when `lifespan` has been entered."""

    settings: Settings
    agents: Agents
    execution: Execution
    runners: Runners
    commands: Commands
    reconciler: Reconciler
    keyed: KeyedAnswers
    episodes: Episodes
    sync: Sync
    census: Census
    erasure: Erasure
    retention: Retention
    streams: Streams
    cache: Cache
    filling: Filling
    showcase: Showcase
    keyring: Keys
    metrics: Metrics
    tracing: Tracing
    healthy: Callable[[], Awaitable[bool]]
