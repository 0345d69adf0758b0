"""The states of an agent, and what readers who know only `status` and `activity` see of them."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where an agent's execution stands."""

    PENDING = "pending"
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


IN_TURN = frozenset({State.BUSY, State.STOPPING})
_RUNNING = frozenset({State.STARTING, State.IDLE, State.BUSY, State.STOPPING})


def status_of(state: State) -> str:
    """The coarse status: `running` for every state with a process behind it, else the state's own name."""
    return "running" if state in _RUNNING else state.value


def states_of(status: str) -> list[State]:
    """Every state that reads as this status; [] for an unknown one."""
    return [state for state in State if status_of(state) == status]
