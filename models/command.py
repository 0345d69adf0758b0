"""Commands: what an agent's runner is asked to do with it, kept until it was done or its time is over.

pending -> sent -> acked -> completed | failed. A command that was sent and not acknowledged is sent again; one that was
acknowledged by a runner which died is failed, for nobody knows how far it came. The rules are here, the queue is in
`app.commands`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from beanie import Document
from pydantic import BaseModel, ConfigDict, Field
from pymongo import IndexModel


class Action(StrEnum):
    """What is asked for."""

    START = "start"
    STOP = "stop"
    HIBERNATE = "hibernate"
    WAKE = "wake"
    TERMINATE = "terminate"
    CUSTOM = "custom"


class CommandStatus(StrEnum):
    """How far a command came."""

    PENDING = "pending"
    SENT = "sent"
    ACKED = "acked"
    COMPLETED = "completed"
    FAILED = "failed"


UNFINISHED = (CommandStatus.PENDING, CommandStatus.SENT, CommandStatus.ACKED)
WAITING = (CommandStatus.PENDING, CommandStatus.SENT)


class CommandRecord(BaseModel):
    """One command as it is stored."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    id: str = Field(alias="_id", description="<tenant>:<command>")
    tenant: str
    owner: str | None = None
    agent: str
    number: int = Field(description="Of the agent's commands, in the order of their creation.")
    pool: str | None = None
    action: Action
    payload: Any = None
    status: CommandStatus = CommandStatus.PENDING
    runner: str | None = Field(default=None, description="To whom it was sent, or is to be.")
    incarnation: int | None = Field(default=None, description="Of the runner that it was sent to.")
    sends: int = 0
    dead: bool = Field(default=False, description="Its deadline passed before it was completed.")
    result: Any = None
    error: str | None = None
    by: str
    born: datetime | None = Field(default=None, description="When its agent was made: not another one under the id.")
    prepared: bool = Field(default=True, description="Whether what needs no runner was done to the agent.")
    created_at: datetime
    deadline_at: datetime
    sent_at: datetime | None = None
    acked_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = Field(default=None, description="When a finished one is forgotten.")

    @property
    def name(self) -> str:
        """The id that callers know."""
        return self.id.partition(":")[2]


class Queued(NamedTuple):
    """A command as the queue judges it: without what is said in it."""

    key: str
    agent: str
    number: int
    status: CommandStatus
    sends: int
    runner: str | None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Queued:
        """From its document, or the part of it that has these fields."""
        return cls(
            document["_id"],
            document["agent"],
            document["number"],
            CommandStatus(document["status"]),
            document["sends"],
            document.get("runner"),
        )


def deliverable(queue: Iterable[Queued], runner: str, assigned: Mapping[str, str | None]) -> Iterator[Queued]:
    """Of all unfinished commands, by agent and number, those that this runner is to get now, in their order.

    An agent's commands go to its runner; without one to any of the pool, all to the same: nothing is sent before what
    was created earlier, and while another runner has an earlier one in hand, the later ones wait.
    """
    held: dict[str, bool] = {}
    for command in queue:
        mine = held.get(command.agent, True) and _is_for(command, runner, assigned.get(command.agent))
        held[command.agent] = mine
        if mine and command.status in WAITING:
            yield command


def _is_for(command: Queued, runner: str, assigned: str | None) -> bool:
    if command.status == CommandStatus.ACKED:
        return command.runner == runner
    return (assigned or command.runner) in (None, runner)


class Command(CommandRecord, Document):
    """The collection of commands. Beside them it counts each agent's, in a document without a status."""

    model_config = ConfigDict(frozen=False)  # type: ignore[misc]  # declared without ClassVar by the base

    class Settings:
        name = "commands"
        indexes = [
            IndexModel([("tenant", 1), ("pool", 1), ("status", 1), ("agent", 1), ("number", 1)], name="by_pool"),
            IndexModel([("tenant", 1), ("runner", 1), ("status", 1)], name="by_runner"),
            IndexModel([("tenant", 1), ("agent", 1), ("number", 1)], name="by_agent"),
            IndexModel([("status", 1), ("deadline_at", 1)], name="by_deadline"),
            IndexModel([("expires_at", 1)], name="expires", expireAfterSeconds=0),
        ]
