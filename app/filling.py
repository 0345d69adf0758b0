"""Filling: what a record refers to, put back where it belongs when an answer is encoded.

Answers are made of records as they are stored, with references in the place of large values and prompts. The encoder
meets them, takes from memory what is there, and says what it lacks; that is read in one go, and the answer is encoded
again. So nothing is searched for, and an answer without references costs nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

import orjson
from bson.binary import Binary

from app.blobs import Blobs
from app.clock import instant
from models.agent import AgentRecord
from models.blob import Damaged, is_reference
from models.prompt import FIELD, StoredPrompt, chain, is_prompt

OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME


def plain(value: Any) -> Any:
    """What the encoder asks for beside JSON's own types: times as RFC 3339 UTC with milliseconds. Raises TypeError."""
    if isinstance(value, datetime):
        return instant(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


class NotHeld(Exception):
    """A value that is stored apart is not in memory."""


class Filling:
    """Encodes answers about agents."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def encoded(self, record: AgentRecord, value: Any) -> bytes:
        """JSON of something made of the record, filled. Raises Unavailable; Damaged."""
        encoder = _Encoder(record, self._blobs, {})
        text = encoder.encoded(value)
        while encoder.missing:
            found = await self._blobs.fetch(record.tenant, encoder.missing)
            encoder = _Encoder(record, self._blobs, {**encoder.found, **found})
            text = encoder.encoded(value)
        return text

    async def pieces(self, record: AgentRecord, value: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """JSON of an object, a piece at a time: of its lists one item after another. Raises as `encoded` does."""
        opening = b"{"
        for name, each in value.items():
            yield opening + orjson.dumps(name) + b":"
            opening = b","
            if not isinstance(each, list):
                yield await self.encoded(record, each)
                continue
            yield b"["
            for number, item in enumerate(each):
                yield (b"," if number else b"") + await self.encoded(record, item)
            yield b"]"
        yield b"}"

    def encoded_now(self, record: AgentRecord, value: Any) -> bytes:
        """The same from memory alone. Raises NotHeld."""
        return _Encoder(record, self._blobs, None).encoded(value)

    async def values(self, record: AgentRecord, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Stored values as they were given, by name. Raises Unavailable; Damaged."""
        filled: dict[str, Any] = orjson.loads(await self.encoded(record, stored))
        return filled


class _Encoder:
    """One try to encode an answer; `missing` are the references met in vain (with `found` None: NotHeld at once)."""

    def __init__(self, record: AgentRecord, blobs: Blobs, found: Mapping[Binary, bytes] | None) -> None:
        self.found = found or {}
        self._now = found is None
        self._record = record
        self._blobs = blobs
        self._prompts: dict[str, list[Any]] = {}
        """By step, of those that others go on from."""
        self.missing: set[Binary] = set()

    def encoded(self, value: Any) -> bytes:
        return orjson.dumps(value, default=self._other, option=OPTIONS)

    def _other(self, value: Any) -> Any:
        if is_reference(value):
            return orjson.Fragment(self._text(value) or b"null")
        if is_prompt(value):
            return self._messages(value)
        return plain(value)

    def _text(self, reference: Binary) -> bytes | None:
        text = self.found.get(reference) or self._blobs.held(self._record.tenant, reference)
        if text is None:
            if self._now:
                raise NotHeld
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
        body = self._record.steps.get(step)
        if body is None or not is_prompt(body.get(FIELD)):
            raise Damaged(f"A prompt of '{self._record.id}' goes on from the step '{step}', which has none.")
        return body[FIELD]

    def _tail(self, tail: Any) -> list[Any]:
        if not is_reference(tail):
            return list(tail)
        return list(orjson.loads(self._text(tail) or b"[]"))
