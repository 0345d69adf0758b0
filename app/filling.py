"""Filling: what a record refers to, put back where it belongs when an answer is encoded.

Answers are made of records as they are stored, with references in the place of large values and prompts. The encoder
meets them, takes from memory what is there, and says what it lacks; that is read in one go, and the answer is encoded
again. So nothing is searched for, and an answer without references costs nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import orjson
from bson.binary import Binary

from app.blobs import Blobs
from app.clock import instant
from app.segments import Segments
from models.agent import AgentRecord
from models.blob import Damaged, is_reference
from models.history import NotAtHand, Wanted
from models.packing import bytes_apart
from models.prompt import FIELD, StoredPrompt, chain, is_prompt

T = TypeVar("T")

_GROUP = 100
_GROUP_BYTES = 1024 * 1024
OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME


def plain(value: Any) -> Any:
    """What the encoder asks for beside JSON's own types: times as RFC 3339 UTC with milliseconds. Raises TypeError."""
    if isinstance(value, datetime):
        return instant(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


class NotHeld(Exception):
    """What is stored apart from an agent's document is not in memory."""


@dataclass(frozen=True, slots=True)
class ByPart:
    """A list or an object of an answer that is made a part at a time, so that it may be of any length.

    `parts` of the agent, and of each part the items: of an object key and value, of which the first of a key counts.
    """

    parts: Callable[[AgentRecord], Iterable[Any]]
    items: Callable[[AgentRecord, Any], Iterable[Any]]
    keyed: bool = False


class Filling:
    """Answers questions about agents from all that their documents refer to, and encodes the answers."""

    def __init__(self, blobs: Blobs, segments: Segments) -> None:
        self._blobs = blobs
        self._segments = segments

    async def asked(self, record: AgentRecord, question: Callable[[AgentRecord], T]) -> T:
        """What a question comes to, with as much of the agent's history as that takes.

        Raises what the question raises; Unavailable; Gone.
        """
        return await self._segments.asked(record, question)

    async def answered(self, record: AgentRecord, question: Callable[[AgentRecord], T]) -> tuple[AgentRecord, T]:
        """The same, and the agent with the history that it took, to encode the answer with. Raises as `asked` does."""
        return await self._segments.answered(record, question)

    def asked_now(self, record: AgentRecord, question: Callable[[AgentRecord], T]) -> T:
        """The same from memory alone. Raises NotHeld."""
        while True:
            try:
                return question(record)
            except NotAtHand as lacking:
                supplied = self._segments.supplied_now(record, lacking.wanted)
                if supplied is None:
                    raise NotHeld from lacking
                record = supplied

    async def encoded(self, record: AgentRecord, value: Any) -> bytes:
        """JSON of something made of the record, filled. Raises Unavailable; Damaged; Gone."""
        found: dict[Binary, bytes] = {}
        while True:
            encoder = _Encoder(record, self._blobs, found)
            text = encoder.encoded(value)
            if encoder.wanted:
                record = await self._segments.supplied(record, encoder.wanted)
            elif encoder.missing:
                found |= await self._blobs.fetch(record.tenant, encoder.missing)
            else:
                return text

    def encoded_now(self, record: AgentRecord, value: Any) -> bytes:
        """The same from memory alone. Raises NotHeld."""
        return self.asked_now(record, lambda known: _Encoder(known, self._blobs, {}).encoded_whole(value))

    async def pieces(self, record: AgentRecord, value: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """JSON of an object, a piece at a time where it has parts. Raises as `encoded` does."""
        opening = b"{"
        for name, each in value.items():
            yield opening + orjson.dumps(name) + b":"
            opening = b","
            if isinstance(each, ByPart):
                async for piece in self._keyed(record, each) if each.keyed else self._listed(record, each):
                    yield piece
            else:
                yield await self.encoded(record, each)
        yield b"}"

    async def values(self, record: AgentRecord, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Stored values as they were given, by name. Raises as `encoded` does."""
        filled: dict[str, Any] = orjson.loads(await self.encoded(record, stored))
        return filled

    async def _listed(self, record: AgentRecord, made: ByPart) -> AsyncIterator[bytes]:
        yield b"["
        between = b""
        async for known, items in self._parts(record, made):
            for group in _groups(items):
                yield between + (await self.encoded(known, group))[1:-1]
                between = b","
        yield b"]"

    async def _keyed(self, record: AgentRecord, made: ByPart) -> AsyncIterator[bytes]:
        yield b"{"
        between = b""
        told: set[str] = set()
        async for known, items in self._parts(record, made):
            for key, value in items:
                if key not in told:
                    told.add(key)
                    yield between + orjson.dumps(key) + b":" + await self.encoded(known, value)
                    between = b","
        yield b"}"

    async def _parts(self, record: AgentRecord, made: ByPart) -> AsyncIterator[tuple[AgentRecord, list[Any]]]:
        """The items of each part, and the agent with the history that they took."""
        record, parts = await self.answered(record, lambda known: list(made.parts(known)))
        for part in parts:
            yield await self.answered(record, partial(_items, made, part))


def _items(made: ByPart, part: Any, record: AgentRecord) -> list[Any]:
    return list(made.items(record, part))


def _groups(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Items that are encoded in one go: so many, or so much that is stored apart, or a single one."""
    group: list[Any] = []
    room = _GROUP_BYTES
    for item in items:
        size = bytes_apart(item)
        if group and (size > room or len(group) == _GROUP):
            yield group
            group, room = [], _GROUP_BYTES
        group.append(item)
        room -= size
    if group:
        yield group


class _Encoder:
    """One try to encode an answer: it notes what it met in vain, values (`missing`) and history (`wanted`)."""

    def __init__(self, record: AgentRecord, blobs: Blobs, found: Mapping[Binary, bytes]) -> None:
        self._found = found
        self._record = record
        self._blobs = blobs
        self._prompts: dict[str, list[Any]] = {}
        """By step, of those that others go on from."""
        self.missing: set[Binary] = set()
        self.wanted = Wanted()

    def encoded(self, value: Any) -> bytes:
        """What came of it. Raises Damaged."""
        try:
            return orjson.dumps(value, default=self._other, option=OPTIONS)
        except TypeError as error:
            if isinstance(error.__cause__, Damaged):  # the encoder wraps what is raised in it
                raise error.__cause__ from None
            raise

    def encoded_whole(self, value: Any) -> bytes:
        """The same, if nothing was met in vain. Raises NotHeld, NotAtHand, Damaged."""
        text = self.encoded(value)
        if self.wanted:
            raise NotAtHand(self.wanted)
        if self.missing:
            raise NotHeld
        return text

    def _other(self, value: Any) -> Any:
        if is_reference(value):
            return orjson.Fragment(self._text(value) or b"null")
        if not is_prompt(value):
            return plain(value)
        try:
            return self._messages(value)
        except NotAtHand as lacking:
            self.wanted |= lacking.wanted
            return None

    def _text(self, reference: Binary) -> bytes | None:
        text = self._found.get(reference) or self._blobs.held(self._record.tenant, reference)
        if text is None:
            self.missing.add(reference)
        return text

    def _messages(self, stored: Binary) -> list[Any]:
        """The messages of a prompt; those of a step that others go on from are put together once for all of them."""
        step = ""
        parts: list[tuple[str, StoredPrompt]] = []
        for part in chain(stored, self._stored_prompt):
            parts.append((step, part))
            step = part.step
            if step in self._prompts:
                break
        messages: list[Any] = self._prompts.get(step, [])
        for step, part in reversed(parts):
            messages = [*messages[: part.reused], *self._tail(part.tail)]
            if step:
                self._prompts[step] = messages
        return messages

    def _stored_prompt(self, step: str) -> Any:
        try:
            stored = self._record.body(step).get(FIELD)
        except KeyError:
            stored = None
        if not is_prompt(stored):
            raise Damaged(f"A prompt of '{self._record.id}' goes on from the step '{step}', which has none.")
        return stored

    def _tail(self, tail: Any) -> list[Any]:
        if not is_reference(tail):
            return list(tail)
        return list(orjson.loads(self._text(tail) or b"[]"))
