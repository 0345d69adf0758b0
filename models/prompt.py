"""Prompts: an `input_messages` that goes on from an earlier step's is stored as that step, a count and the rest.

Agents send their whole context with each step, so that a history grows with the square of its length. Where the
earlier one lies is found by digests of its last prefixes, without its messages. Stored as a BSON binary of a subtype
of its own holding `{step, reused, tail, count, depth, size, marks}`: the `step` (of the same path) whose first
`reused` messages come first, the `tail` after them (a list, or a reference to one), the `count` of all, how many steps
such a chain is long (`depth`), the `size` of all in bytes of JSON, and `marks`, digests of the last prefixes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import bson
from bson.binary import Binary
from bson.errors import BSONError

from models.blob import Blobs, Damaged, canonical, json_bytes, packed

PROMPT = 0x82
"""Binary subtype of a stored prompt."""

FIELD = "input_messages"
"""The field of a step that holds one."""

DEPTH_LIMIT = 64
"""A chain is not longer than this, so that a step can be read without its whole past."""

_MARKS = 4
_MARK_BYTES = 16
_LEAST_BYTES = 512
"""A prompt that is not longer as JSON stays as it is."""


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """A stored prompt taken apart."""

    step: str
    reused: int
    tail: Any
    count: int
    depth: int
    size: int
    marks: bytes

    @classmethod
    def of(cls, value: Binary) -> StoredPrompt:
        """Take the stored value apart. Raises Damaged."""
        try:
            return cls(**bson.decode(bytes(value)))
        except (BSONError, TypeError) as error:
            raise Damaged("A stored prompt can't be read.") from error

    def stored(self) -> Binary:
        """As a value of a step."""
        return Binary(bson.encode({name: getattr(self, name) for name in self.__slots__}), PROMPT)


class Prompt:
    """The messages of a step to append, and the digest of each of their beginnings."""

    def __init__(self, messages: Sequence[Any]) -> None:
        self.messages = messages
        self._sizes = [len(json_bytes(message)) for message in messages]
        self.size = sum(self._sizes) + len(messages) + 1

    @cached_property
    def _digests(self) -> list[bytes]:
        """One for each count of messages from the first on, none included."""
        digests = [b""]
        for message in self.messages:
            text = hashlib.blake2b(digests[-1], digest_size=_MARK_BYTES)
            text.update(canonical(message))
            digests.append(text.digest())
        return digests

    def stored_after(self, earlier: Iterable[tuple[str, Any]], threshold: int, blobs: Blobs) -> Any:
        """As it is stored on a path with these earlier steps and their stored prompts, the nearest first."""
        if self.size <= _LEAST_BYTES:
            return list(self.messages)
        step, reused, depth = self._shared(earlier)
        tail = packed(list(self.messages[reused:]), threshold, blobs)
        return StoredPrompt(step, reused, tail, len(self.messages), depth, self.size, self._marks()).stored()

    def equals(self, stored: Any) -> bool:
        """Whether a stored prompt reads the same."""
        if is_prompt(stored):
            held = StoredPrompt.of(stored)
            return held.count == len(self.messages) and held.marks == self._marks()
        return isinstance(stored, list) and canonical(stored) == canonical(list(self.messages))

    def _marks(self) -> bytes:
        """The digests of the longest beginnings, the whole one last."""
        return b"".join(self._digests[-_MARKS:])

    def _shared(self, earlier: Iterable[tuple[str, Any]]) -> tuple[str, int, int]:
        """The step to go on from, how many of its messages, and how deep that is; ("", 0, 0) when there is none."""
        best = ("", 0, 0)
        for step, stored in earlier:
            if not is_prompt(stored):
                continue
            held = StoredPrompt.of(stored)
            reused = self._shared_with(held)
            if reused > best[1]:
                best = (step, reused, held.depth + 1)
            if reused == held.count:
                break
        return best if best[2] <= DEPTH_LIMIT else ("", 0, 0)

    def _shared_with(self, held: StoredPrompt) -> int:
        """How many messages the prompts have in common, as far as the other's marks tell."""
        marks = [held.marks[at : at + _MARK_BYTES] for at in range(0, len(held.marks), _MARK_BYTES)]
        for back, mark in enumerate(reversed(marks)):
            count = held.count - back
            if 0 < count < len(self._digests) and self._digests[count] == mark:
                return count
        return 0


def is_prompt(value: Any) -> bool:
    """Whether a stored value is a prompt to be put together."""
    return isinstance(value, Binary) and value.subtype == PROMPT


def chain(stored: Binary, stored_of: Callable[[str], Any]) -> Iterator[StoredPrompt]:
    """The prompts that a stored one is made of, itself first; `stored_of` gives the stored value of a step."""
    while True:
        held = StoredPrompt.of(stored)
        yield held
        if not held.reused:
            return
        stored = stored_of(held.step)
