"""How steps, results and workspaces are stored: small values in place, large ones as references, prompts as tails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from bson.binary import Binary

from models import prompt
from models.blob import Blobs, canonical, is_reference, length_of, packed, reference_to
from models.ids import ROOT
from models.json import same
from models.prompt import Prompt, is_prompt

INLINE_BYTES = 16 * 1024
"""A value whose JSON is longer is stored out of line, unless a setting says otherwise."""

_LOOK_BACK = 32
"""Steps of the path whose prompts a new one may go on from."""

Steps = Mapping[str, Mapping[str, Any]]


def packed_step(body: Mapping[str, Any], steps: Steps, threshold: int, blobs: Blobs) -> dict[str, Any]:
    """A step as it is stored among the steps that its path leads through; `blobs` takes up what goes out of line."""
    stored = {name: packed(value, threshold, blobs) for name, value in body.items() if name not in _OWN}
    given = body.get(prompt.FIELD)
    if isinstance(given, list):
        stored[prompt.FIELD] = Prompt(given).stored_after(_earlier(steps, body["parent_id"]), threshold, blobs)
    return {name: stored.get(name, value) for name, value in body.items()}


def reads_as(stored: Any, value: Any) -> bool:
    """Whether a stored value reads the same as a given one, wherever it lies."""
    if is_prompt(stored):
        return isinstance(value, list) and Prompt(value).equals(stored)
    if is_reference(stored):
        return bool(reference_to(canonical(value), length_of(stored)) == stored)
    return same(stored, value)


def bytes_apart(value: Any) -> int:
    """Bytes of JSON that a stored value stands for and does not hold; of a map, those of its values. 0: it is whole."""
    if isinstance(value, Mapping):
        return sum([bytes_apart(each) for each in value.values() if isinstance(each, Binary)])
    if is_reference(value):
        return length_of(value)
    return prompt.StoredPrompt.of(value).size if is_prompt(value) else 0


def references(steps: Steps, results: Mapping[str, Mapping[str, Any]]) -> Iterator[Binary]:
    """Every reference in these stored steps and results."""
    for fields in (*steps.values(), *results.values()):
        for stored in fields.values():
            value = prompt.StoredPrompt.of(stored).tail if is_prompt(stored) else stored
            if is_reference(value):
                yield value


_OWN = frozenset({"seq", "version", "parent_id", "turn_id", "index", "created_at", "role", prompt.FIELD})
"""Fields that are never out of line; the prompt has a way of its own."""


def _earlier(steps: Steps, parent: str) -> Iterator[tuple[str, Any]]:
    """The stored prompts of the nearest steps of a path, the last first."""
    return (
        (step, steps[step][prompt.FIELD])
        for step in islice(_path(steps, parent), _LOOK_BACK)
        if prompt.FIELD in steps[step]
    )


def _path(steps: Steps, leaf: str) -> Iterator[str]:
    """Step ids from the leaf upwards, as far as they are at hand."""
    while leaf != ROOT and leaf in steps:
        yield leaf
        leaf = steps[leaf]["parent_id"]
