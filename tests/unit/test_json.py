"""Merge patches, sameness and differences of JSON values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.json import difference, merge_patch, same

scalars = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2, allow_nan=False) | st.text("a~/.", max_size=3)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("a~/.$", max_size=2), inner, max_size=3),
    max_leaves=12,
)

RFC_7396 = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("target", "patch", "result"), RFC_7396)
def test_merge_patch_as_the_standard_shows_it(target: Any, patch: Any, result: Any) -> None:
    """The examples of RFC 7396, appendix A; the arguments stay as they are."""
    before = json.dumps([target, patch])
    assert merge_patch(target, patch) == result
    assert json.dumps([target, patch]) == before


KINDS = [0, 0.0, False, None, "", "0", [], {}, 1, 1.0, True, "1", [1], [1.0], [True], {"a": 1}, {"a": 1.0}, {"a": True}]


@pytest.mark.parametrize("left", KINDS, ids=repr)
def test_values_of_different_kinds_are_not_the_same(left: Any) -> None:
    """1, 1.0 and true are three values, at any depth."""
    assert [repr(right) for right in KINDS if same(left, right)] == [repr(left)]


@given(values, values)
def test_same_is_equality_of_texts(left: Any, right: Any) -> None:
    """Up to the order of keys, and to 0.0 and -0.0."""
    texts = [json.dumps(value, sort_keys=True).replace("-0.0", "0.0") for value in (left, right)]
    assert same(left, right) == (texts[0] == texts[1])


def applied(value: Any, operations: list[dict[str, Any]]) -> Any:
    """The value after RFC 6902 operations of the kinds that `difference` makes."""
    holder = {"": json.loads(json.dumps(value))}
    for operation in operations:
        *way, last = ["", *(part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:])]
        place: Any = holder
        for part in way:
            place = place[int(part) if isinstance(place, list) else part]
        if isinstance(place, list):
            _apply_to_list(place, last, operation)
        elif operation["op"] == "remove":
            del place[last]
        else:
            assert (last in place) == (operation["op"] == "replace")
            place[last] = operation["value"]
    return holder[""]


def _apply_to_list(place: list[Any], last: str, operation: dict[str, Any]) -> None:
    if operation["op"] == "add":
        assert last == "-"
        place.append(operation["value"])
    elif operation["op"] == "remove":
        del place[int(last)]
    else:
        place[int(last)] = operation["value"]


@given(values, values)
def test_difference_applied_gives_the_target(left: Any, right: Any) -> None:
    """And there is none exactly between values that are the same."""
    operations = difference(left, right)
    assert same(applied(left, operations), right)
    assert (operations == []) == same(left, right)
