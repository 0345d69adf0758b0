"""An agent's settings: known keys with types and defaults, other keys kept as they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from models.errors import InvalidRequest

DEFAULTS: Mapping[str, Any] = {
    "max_steps": 100,
    "tool_timeout_seconds": 240,
    "execution_timeout_seconds": 240,
    "result_char_limit": 2000,
    "result_cell_char_limit": 2000,
    "result_serialization": "tsv",
    "disabled_tools": [],
    "allowed_tools": None,
}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "max_steps": (_is_count, "an integer of at least 1"),
    "tool_timeout_seconds": (_is_seconds, "a number above 0"),
    "execution_timeout_seconds": (_is_seconds, "a number above 0"),
    "result_char_limit": (_is_count, "an integer of at least 1"),
    "result_cell_char_limit": (_is_count, "an integer of at least 1"),
    "result_serialization": (lambda value: isinstance(value, str), "a string"),
    "disabled_tools": (_is_names, "a list of strings"),
    "allowed_tools": (_is_names, "a list of strings or null"),
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise InvalidRequest when a known key has a value of the wrong type; null stands for "not set"."""
    for key, (holds, wanted) in _CHECKS.items():
        value = settings.get(key)
        if value is not None and not holds(value):
            raise InvalidRequest(f"settings.{key} must be {wanted}.")


def lease_seconds(settings: Mapping[str, Any]) -> float:
    """How long a turn without a runner may go without a write; the default for what is no number of seconds."""
    value = settings.get("execution_timeout_seconds")
    return float(value) if value is not None and _is_seconds(value) else float(DEFAULTS["execution_timeout_seconds"])


def most_steps(settings: Mapping[str, Any]) -> float:
    """How many steps a turn may have; null takes the limit away, the default stands for what is no count."""
    value = settings.get("max_steps", DEFAULTS["max_steps"])
    return float("inf") if value is None else float(value if _is_count(value) else DEFAULTS["max_steps"])


def with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings laid over the defaults; a given null stays null."""
    check_settings(settings)
    return {**DEFAULTS, **settings}
