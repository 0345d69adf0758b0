"""Runners: the processes that drive agents, and their pools. A runner's document tells that it lives, and nothing else.

`beat` counts up with each heartbeat. Whether a runner is silent is judged by whoever sees the same beat for too long
(`app.reconciler`); no time that is stored here is ever compared with a clock.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from beanie import Document
from pydantic import BaseModel, ConfigDict, Field
from pymongo import IndexModel

from models.assignment import Driver, Restarts
from models.tenant import FORGOTTEN_SECONDS


class RunnerState(StrEnum):
    """Whether a runner may claim agents, drives only what it has, or is gone."""

    LIVE = "live"
    DRAINING = "draining"
    DEAD = "dead"
    LEFT = "left"


PRESENT = (RunnerState.LIVE, RunnerState.DRAINING)


class RunnerRecord(BaseModel):
    """One runner as it is stored."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    id: str = Field(alias="_id", description="<tenant>:<runner>")
    tenant: str
    owner: str | None = Field(default=None, description="Of the key that registered it: it drives only this one's.")
    key: str = Field(description="The key that registered it, which may make all its calls.")
    pool: str
    platform: str
    region: str | None = None
    capacity: int
    metadata: dict[str, Any] = Field(default_factory=dict)
    state: RunnerState
    incarnation: int
    beat: int = 0
    claims: int = Field(default=0, description="Counts claims up, so that no two of them pass each other.")
    settled: bool = Field(default=True, description="Whether agents of earlier incarnations, or of the dead, are free.")
    registered_at: datetime
    seen_at: datetime
    gone_at: datetime | None = None

    @property
    def name(self) -> str:
        """The id that callers know."""
        return self.id.partition(":")[2]

    @property
    def present(self) -> bool:
        """Whether it is taken to live."""
        return self.state in PRESENT

    @property
    def past(self) -> int:
        """The last of its incarnations that drives nothing any more."""
        return self.incarnation - 1 if self.present else self.incarnation

    def driver(self) -> Driver:
        """The runner as far as agents are concerned."""
        return Driver(self.name, self.incarnation, self.pool, self.platform, self.region, self.owner)


class Runner(RunnerRecord, Document):
    """The collection of runners."""

    model_config = ConfigDict(frozen=False)  # type: ignore[misc]  # declared without ClassVar by the base

    class Settings:
        name = "runners"
        indexes = [
            IndexModel([("tenant", 1), ("pool", 1), ("_id", 1)], name="by_pool"),
            IndexModel([("state", 1)], name="by_state"),
            IndexModel([("settled", 1)], name="unsettled", partialFilterExpression={"settled": False}),
            IndexModel([("gone_at", 1)], name="forgotten", expireAfterSeconds=FORGOTTEN_SECONDS),
        ]


class RestartMode(StrEnum):
    """Whether agents that failed are started again."""

    NEVER = "never"
    ON_FAILURE = "on_failure"


class PoolRecord(BaseModel):
    """What was decided for a pool."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    id: str = Field(alias="_id", description="<tenant>:<pool>")
    tenant: str
    restart: RestartMode = RestartMode.ON_FAILURE
    attempts: int = Field(default=3, description="Starts in a row without a turn that was finished.")
    backoff_seconds: float = Field(default=1.0, description="Before the second restart; doubled for each one after.")

    def restarts(self) -> Restarts:
        """How often a failed agent is started again."""
        return Restarts(self.attempts if self.restart == RestartMode.ON_FAILURE else 0)

    def pause(self, failures: int) -> float:
        """Seconds that an agent waits which failed so often in a row; none at first, so that fail-over is fast."""
        return 0.0 if failures < 2 else self.backoff_seconds * 2.0 ** (failures - 2)


class Pool(PoolRecord, Document):
    """The collection of pools that something was decided for."""

    model_config = ConfigDict(frozen=False)  # type: ignore[misc]  # declared without ClassVar by the base

    class Settings:
        name = "pools"
