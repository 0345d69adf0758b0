"""Answers: JSON bytes with the version in the ETag, 304 where the caller has it already, replays as they were."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import orjson
from litestar import Response
from litestar.response import Stream

from app.filling import OPTIONS, Filling, plain
from app.lanes import Committed, Encode
from models.agent import AgentRecord
from models.commit import Reply

T = TypeVar("T")

JSON = "application/json"
_NOTHING: Any = object()
_PIECE_BYTES = 64 * 1024


class Answer(Response[bytes], Generic[T]):
    """An encoded answer; `T` is the shape of its JSON, for the OpenAPI document."""


class Pieces(Answer[Any]):
    """An answer that is sent while it is encoded, so that its length is no matter of memory."""

    def __init__(self, pieces: AsyncIterator[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(b"", media_type=JSON, headers=dict(headers))
        self._pieces = pieces

    def to_asgi_response(self, *given: Any, **more: Any) -> Any:
        """The response as the server runs it."""
        stream = Stream(self._pieces, media_type=JSON, headers=self.headers)
        return stream.to_asgi_response(*given, **more)


@dataclass(frozen=True, slots=True)
class Unsent:
    """An answer about an agent at a version, not encoded yet; without a value it has no body."""

    version: int
    value: Any = _NOTHING
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    async def encoded(self, record: AgentRecord, filling: Filling) -> Reply:
        """As it goes over the wire. Raises Unavailable."""
        body = b"" if self.value is _NOTHING else await filling.encoded(record, self.value)
        return Reply(self.status, body, {"ETag": etag(self.version), **self.headers})


Show = Callable[[Committed], Unsent]


def encoder(filling: Filling, show: Show) -> Encode:
    """What encodes the outcome of a write as `show` has it, for now and for when the same request comes again."""

    async def encoded(committed: Committed) -> Reply:
        known, shown = await filling.answered(committed.record, lambda known: show(replace(committed, record=known)))
        return await shown.encoded(known, filling)

    return encoded


def encode(value: Any) -> bytes:
    """JSON bytes of what refers to nothing; times as RFC 3339 UTC with milliseconds."""
    return orjson.dumps(value, default=plain, option=OPTIONS)


def reply(value: Any, version: int, status: int = 200, **headers: str) -> Unsent:
    """A JSON answer about an agent at a version."""
    return Unsent(version, value, status, headers)


def no_content(committed: Committed) -> Unsent:
    """204: done, there is nothing to show but the version."""
    return Unsent(committed.record.version, status=204)


def etag(version: int) -> str:
    """The entity tag of a version."""
    return f'"{version}"'


def as_response(given: Reply) -> Answer[Any]:
    """The reply over the wire."""
    return Answer(given.body, status_code=given.status, media_type=JSON, headers=dict(given.headers))


def page(items: list[Any], next_cursor: str | None) -> Answer[Any]:
    """A page of a list."""
    return Answer(encode({"items": items, "next_cursor": next_cursor}), media_type=JSON, headers={"Age": "0"})


async def begun(pieces: AsyncIterator[bytes]) -> bytes | AsyncIterator[bytes]:
    """The whole of it where it is short, else what it goes on with: so that what fails early is still answered."""
    joined = _joined(pieces)
    first, second = await anext(joined), await anext(joined, None)
    return first if second is None else _followed((first, second), joined)


async def _followed(first: Sequence[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for piece in first:
        yield piece
    async for piece in rest:
        yield piece


async def _joined(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces that are worth a message each."""
    held: list[bytes] = []
    size = 0
    async for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _PIECE_BYTES:
            yield b"".join(held)
            held, size = [], 0
            await asyncio.sleep(0)  # others get their turn
    if held:
        yield b"".join(held)
