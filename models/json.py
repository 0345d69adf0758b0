"""Rules about JSON values that the standard library has no word for: merge, sameness, difference."""

from __future__ import annotations

from collections.abc import Mapping
from math import copysign
from typing import Any


def merge_patch(target: Any, patch: Any) -> Any:
    """The target after an RFC 7396 merge patch; neither argument is changed."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def same(left: Any, right: Any) -> bool:
    """Whether two JSON values are the same text to a reader: `1`, `1.0` and `true` are different values."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return _kind(left) is _kind(right) and bool(left == right) and _sign(left) == _sign(right)


def difference(left: Any, right: Any, at: str = "") -> list[dict[str, Any]]:
    """RFC 6902 operations that turn `left` into `right`, key by key and index by index; [] when they are the same."""
    if same(left, right):
        return []
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return _object_difference(left, right, at)
    if isinstance(left, list) and isinstance(right, list):
        return _array_difference(left, right, at)
    return [{"op": "replace", "path": at, "value": right}]


def _object_difference(left: Mapping[str, Any], right: Mapping[str, Any], at: str) -> list[dict[str, Any]]:
    operations: list[dict[str, Any]] = []
    for key, value in left.items():
        path = f"{at}/{_pointer(key)}"
        operations += difference(value, right[key], path) if key in right else [{"op": "remove", "path": path}]
    added = (key for key in right if key not in left)
    return operations + [{"op": "add", "path": f"{at}/{_pointer(key)}", "value": right[key]} for key in added]


def _array_difference(left: list[Any], right: list[Any], at: str) -> list[dict[str, Any]]:
    shared = min(len(left), len(right))
    operations = [op for i in range(shared) for op in difference(left[i], right[i], f"{at}/{i}")]
    operations += [{"op": "remove", "path": f"{at}/{i}"} for i in range(len(left) - 1, shared - 1, -1)]
    return operations + [{"op": "add", "path": f"{at}/-", "value": value} for value in right[shared:]]


def _pointer(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _sign(value: Any) -> float:
    """Tells `-0.0` from `0.0`, which are equal."""
    return copysign(1.0, value) if isinstance(value, float) else 1.0


def _kind(value: Any) -> type:
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind
    return type(value)
