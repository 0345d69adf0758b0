"""What is stored in the place of a large value or a prompt reads as what was given, and grows with what is new."""

from __future__ import annotations

import random
from typing import Any

import bson
import orjson
import pytest
from bson.binary import Binary
from hypothesis import given, settings
from hypothesis import strategies as st

from models import blob, prompt
from models.blob import Blobs, is_reference, key_of, length_of, packed
from models.ids import ROOT
from models.json import same
from models.packing import packed_step, reads_as
from models.prompt import DEPTH_LIMIT, FIELD, StoredPrompt, chain, is_prompt

THRESHOLD = 64
Steps = dict[str, dict[str, Any]]

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
json_values = st.recursive(
    scalars | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def messages_of(steps: Steps, step: str, blobs: Blobs) -> list[Any]:
    """The prompt of a step, put together from the start of its chain."""
    stored = steps[step][FIELD]
    if not is_prompt(stored):
        return list(stored)
    found: list[Any] = []
    for part in reversed(list(chain(stored, lambda earlier: steps[earlier][FIELD]))):
        tail = orjson.loads(blobs[part.tail]) if is_reference(part.tail) else part.tail
        found = [*found[: part.reused], *tail]
    return found


def appended(steps: Steps, parent: str, step: str, messages: list[Any], blobs: Blobs) -> Any:
    steps[step] = packed_step({"parent_id": parent, "role": "agent", FIELD: messages}, steps, THRESHOLD, blobs)
    return steps[step][FIELD]


def message(text: str) -> dict[str, str]:
    return {"role": "user", "content": text.ljust(40, ".")}


@given(json_values)
def test_what_is_larger_than_the_threshold_is_stored_once_and_reads_the_same(value: Any) -> None:
    blobs: Blobs = {}
    stored = packed(value, THRESHOLD, blobs)
    text = orjson.dumps(value)
    assert is_reference(stored) == (len(text) > THRESHOLD) == bool(blobs)
    assert reads_as(stored, value)
    if blobs:
        assert blobs == {stored: text}
        assert length_of(stored) == len(text)
        assert packed(orjson.loads(text), THRESHOLD, {}) == stored
    else:
        assert stored is value


@given(json_values, json_values)
def test_values_have_one_reference_exactly_when_they_read_the_same(left: Any, right: Any) -> None:
    assert reads_as(packed(left, 0, {}), right) == same(left, right)


def test_keys_in_another_order_are_the_same_value_and_another_number_is_not() -> None:
    stored = packed({"a": 1, "b": [1, 2]}, 0, {})
    assert reads_as(stored, {"b": [1, 2], "a": 1})
    for other in ({"a": 1.0, "b": [1, 2]}, {"a": True, "b": [1, 2]}, {"a": 1, "b": [2, 1]}, {"a": 1}):
        assert not reads_as(stored, other)


def test_a_reference_names_the_tenant() -> None:
    stored = packed("x" * 100, 10, {})
    assert key_of("acme", stored) == f"acme:{bytes(stored)[:32].hex()}"
    assert bson.decode(bson.encode({"v": stored}))["v"] == stored
    assert stored.subtype == blob.REFERENCE


def test_fields_that_say_where_a_step_is_are_never_apart() -> None:
    body = {"seq": 1, "version": 2, "parent_id": ROOT, "turn_id": "t", "index": 0, "role": "user", "content": "x"}
    blobs: Blobs = {}
    stored = packed_step(body, {}, 0, blobs)
    assert {name for name, value in stored.items() if is_reference(value)} == {"content"}
    assert list(stored) == list(body), "the order of the fields stays"


def test_a_growing_prompt_is_stored_as_what_it_adds() -> None:
    """A hundred steps that each send the whole context take little more than the new messages."""
    steps: Steps = {}
    blobs: Blobs = {}
    messages: list[Any] = []
    sent = new = 0
    parent = ROOT
    for number in range(100):
        added = [message(f"{number}-{part}" * 100) for part in range(2)]
        messages = [*messages, *added]
        sent += len(orjson.dumps(messages))
        new += len(orjson.dumps(added))
        appended(steps, parent, f"s{number}", messages, blobs)
        parent = f"s{number}"
        assert messages_of(steps, parent, blobs) == messages
    kept = sum(len(bson.encode(body)) for body in steps.values()) + sum(map(len, blobs.values()))
    assert sent > 40 * new
    assert kept < 3 * new


def test_chains_are_bounded_and_begin_anew() -> None:
    steps: Steps = {}
    blobs: Blobs = {}
    parent, messages = ROOT, []
    depths = []
    for number in range(3 * DEPTH_LIMIT):
        messages = [*messages, message(str(number))]
        stored = appended(steps, parent, f"s{number}", messages, blobs)
        parent = f"s{number}"
        if is_prompt(stored):
            depths.append(StoredPrompt.of(stored).depth)
            assert len(list(chain(stored, lambda step: steps[step][FIELD]))) <= DEPTH_LIMIT + 1
        assert messages_of(steps, parent, blobs) == messages
    assert max(depths) == DEPTH_LIMIT
    assert depths.count(0) >= 2


@pytest.mark.parametrize(
    ("later", "reused"),
    [
        (lambda old: [*old, message("new")], 20),
        (lambda old: old, 20),
        (lambda old: old[:-1], 19),
        (lambda old: [*old[:-1], message("another end")], 19),
        (lambda old: [*old[:-3], message("another end")], 17),
        (lambda old: [message("another begin"), *old[1:]], 0),
        (lambda old: [{"content": old[0]["content"], "role": "user"}, *old[1:], message("new")], 20),
    ],
    ids=["longer", "the same", "shorter", "last one changed", "last three changed", "first one changed", "keys turned"],
)
def test_a_prompt_goes_on_from_what_it_has_in_common(later: Any, reused: int) -> None:
    """Also where the last messages are others; what differs further back begins anew."""
    steps: Steps = {}
    blobs: Blobs = {}
    old = [message(str(number)) for number in range(20)]
    appended(steps, ROOT, "old", old, blobs)
    stored = appended(steps, "old", "new", later(old), blobs)
    assert StoredPrompt.of(stored).reused == reused
    assert messages_of(steps, "new", blobs) == later(old)


def test_prompts_of_two_interleaved_agents_each_go_on_from_their_own() -> None:
    steps: Steps = {}
    blobs: Blobs = {}
    parent = ROOT
    prompts: dict[str, list[Any]] = {"planner": [], "coder": []}
    for number in range(30):
        who = "planner" if number % 3 else "coder"
        prompts[who] = [*prompts[who], message(f"{who} {number}" * 20)]
        stored = appended(steps, parent, f"s{number}", prompts[who], blobs)
        if number > 12:
            assert StoredPrompt.of(stored).reused == len(prompts[who]) - 1
        parent = f"s{number}"


def test_what_lies_beside_the_path_is_not_gone_on_from() -> None:
    steps: Steps = {}
    blobs: Blobs = {}
    old = [message(str(number)) for number in range(20)]
    appended(steps, ROOT, "a", old, blobs)
    stored = appended(steps, ROOT, "b", old, blobs)
    assert StoredPrompt.of(stored).step == ""


@settings(max_examples=60, deadline=None)
@given(st.randoms())
def test_any_tree_of_prompts_reads_as_it_was_given(chance: random.Random) -> None:
    steps: Steps = {}
    blobs: Blobs = {}
    sent: dict[str, list[Any]] = {ROOT: []}
    for number in range(40):
        parent = chance.choice(list(sent)) if chance.random() < 0.3 else list(sent)[-1]
        old = sent[parent]
        kept = old[: len(old) - chance.choice([0, 0, 0, 1, 2, 9])] if old else []
        messages = [
            *kept,
            *(message(str(chance.random()) * chance.choice([1, 9])) for _ in range(chance.randint(0, 3))),
        ]
        stored = appended(steps, parent, f"s{number}", messages, blobs)
        sent[f"s{number}"] = messages
        assert reads_as(stored, messages)
        assert not reads_as(stored, [*messages, {}])
    for step in steps:
        assert messages_of(steps, step, blobs) == sent[step]


def test_a_short_prompt_stays_as_it_is() -> None:
    steps: Steps = {}
    assert appended(steps, ROOT, "a", ["hi"], {}) == ["hi"]
    assert not isinstance(steps["a"][FIELD], Binary)
    assert prompt.PROMPT != blob.REFERENCE
