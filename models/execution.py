"""Execution: the states of an agent and the one table of what leads from which to which, by what.

The table is the only source: the docs' table and diagram are made from it (`python -m scripts.state_machine`), and
`status` and `activity`, which older readers know, are derived from the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from models.errors import IllegalTransition


class State(StrEnum):
    """Where an agent's execution stands."""

    PENDING = "pending"
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class Trigger(StrEnum):
    """What moves an agent from one state to another."""

    SPAWN = "spawn"
    CONNECTED = "connected"
    PROMPT_RECEIVED = "prompt_received"
    RESULT_RECEIVED = "result_received"
    STOP_REQUESTED = "stop_requested"
    USER_TERMINATED = "user_terminated"
    PROCESS_CRASHED = "process_crashed"
    RECONCILIATION = "reconciliation"


_STARTS = {State.STARTING: frozenset({Trigger.SPAWN})}
_ENDS = {
    State.FAILED: frozenset({Trigger.PROCESS_CRASHED, Trigger.RECONCILIATION}),
    State.STOPPED: frozenset({Trigger.USER_TERMINATED}),
}

TRANSITIONS: Mapping[State, Mapping[State, frozenset[Trigger]]] = {
    State.PENDING: {**_STARTS, **_ENDS},
    State.STARTING: {State.IDLE: frozenset({Trigger.CONNECTED}), **_ENDS},
    State.IDLE: {State.BUSY: frozenset({Trigger.PROMPT_RECEIVED}), **_ENDS},
    State.BUSY: {
        State.IDLE: frozenset({Trigger.RESULT_RECEIVED}),
        State.STOPPING: frozenset({Trigger.STOP_REQUESTED}),
        **_ENDS,
    },
    State.STOPPING: {State.IDLE: frozenset({Trigger.RESULT_RECEIVED}), **_ENDS},
    State.FAILED: {**_STARTS, State.STOPPED: _ENDS[State.STOPPED]},
    State.STOPPED: _STARTS,
}
"""From each state the states that it may move to, each with the triggers that lead there."""

IN_TURN = frozenset({State.BUSY, State.STOPPING})
OVER = frozenset({State.FAILED, State.STOPPED})
"""Nothing runs, and nothing will until the agent is spawned again."""

_RUNNING = frozenset({State.STARTING, State.IDLE, *IN_TURN})


def require_legal(state: str, to: str, trigger: str) -> None:
    """Raise IllegalTransition unless the table leads from the state there by this trigger."""
    if trigger not in TRANSITIONS[State(state)].get(State(to), ()):
        raise IllegalTransition(state, to, trigger)


def status_of(state: State) -> str:
    """The coarse status: `running` for every state with a process behind it, else the state's own name."""
    return "running" if state in _RUNNING else state.value


def activity_of(state: State) -> str:
    """The coarse activity: `busy` in the middle of a turn, else `idle`."""
    return "busy" if state in IN_TURN else "idle"


def states_of(status: str) -> list[State]:
    """Every state that reads as this status; [] for an unknown one."""
    return [state for state in State if status_of(state) == status]
