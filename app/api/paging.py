"""Cursors: where a list goes on, opaque to callers, checked when they come back."""

from __future__ import annotations

import base64
import binascii
from typing import TypeVar

import msgspec
import orjson

from models.errors import InvalidRequest
from models.listing import Window

T = TypeVar("T")

DEFAULT_LIMIT = 50
MAX_LIMIT = 200


class _StepsCursor(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    leaf: str | None = None
    turn: str | None = None
    after: int = 0
    until: int | None = None


class _AgentsCursor(msgspec.Struct, forbid_unknown_fields=True):
    agent: str


class _RunnersCursor(msgspec.Struct, forbid_unknown_fields=True):
    runner: str


class _EpisodesCursor(msgspec.Struct, forbid_unknown_fields=True):
    episode: str


class _TransitionsCursor(msgspec.Struct, forbid_unknown_fields=True):
    before: int


def steps_cursor(window: Window) -> str:
    """The cursor that goes on with this window of steps."""
    return _packed(_StepsCursor(window.leaf, window.turn, window.after, window.until))


def steps_window(cursor: str) -> Window:
    """The window of a `steps_cursor`. Raises InvalidRequest."""
    found = _unpacked(cursor, _StepsCursor)
    return Window(found.leaf, found.turn, found.after, found.until)


def agents_cursor(agent: str) -> str:
    """The cursor that goes on after this agent."""
    return _packed(_AgentsCursor(agent))


def agent_after(cursor: str) -> str:
    """The agent of an `agents_cursor`. Raises InvalidRequest."""
    return _unpacked(cursor, _AgentsCursor).agent


def runners_cursor(runner: str) -> str:
    """The cursor that goes on after this runner."""
    return _packed(_RunnersCursor(runner))


def runner_after(cursor: str) -> str:
    """The runner of a `runners_cursor`. Raises InvalidRequest."""
    return _unpacked(cursor, _RunnersCursor).runner


def episodes_cursor(episode: str) -> str:
    """The cursor that goes on after this episode."""
    return _packed(_EpisodesCursor(episode))


def episode_after(cursor: str) -> str:
    """The episode of an `episodes_cursor`. Raises InvalidRequest."""
    return _unpacked(cursor, _EpisodesCursor).episode


def transitions_cursor(number: int) -> str:
    """The cursor that goes on before the transition of this number."""
    return _packed(_TransitionsCursor(number))


def transitions_before(cursor: str) -> int:
    """The number of a `transitions_cursor`. Raises InvalidRequest."""
    return _unpacked(cursor, _TransitionsCursor).before


def _packed(cursor: msgspec.Struct) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(msgspec.to_builtins(cursor))).decode().rstrip("=")


def _unpacked(cursor: str, kind: type[T]) -> T:
    try:
        packed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.json.decode(packed, type=kind)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise InvalidRequest("The cursor is not one that this list gave: begin without one.") from error
