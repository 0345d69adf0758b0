"""Answers: JSON bytes with the version in the ETag, 304 where the caller has it already, replays as they were."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic, TypeVar

import orjson
from litestar import Response

from app.lanes import Committed
from models.commit import Reply

T = TypeVar("T")
Encode = Callable[[Committed], Reply]

JSON = "application/json"


class Answer(Response[bytes], Generic[T]):
    """An encoded answer; `T` is the shape of its JSON, for the OpenAPI document."""


def encode(value: Any) -> bytes:
    """JSON bytes; times as RFC 3339 UTC with milliseconds."""
    return orjson.dumps(value, default=_encode_other, option=orjson.OPT_PASSTHROUGH_DATETIME)


def reply(value: Any, version: int, status: int = 200, **headers: str) -> Reply:
    """A JSON answer about an agent at a version."""
    return Reply(status, encode(value), {"ETag": etag(version), **headers})


def no_content(committed: Committed) -> Reply:
    """204: done, there is nothing to show but the version."""
    return Reply(204, b"", {"ETag": etag(committed.record.version)})


def etag(version: int) -> str:
    """The entity tag of a version."""
    return f'"{version}"'


def as_response(given: Reply) -> Answer[Any]:
    """The reply over the wire."""
    return Answer(given.body, status_code=given.status, media_type=JSON, headers=dict(given.headers))


def page(items: list[Any], next_cursor: str | None) -> Answer[Any]:
    """A page of a list."""
    return Answer(encode({"items": items, "next_cursor": next_cursor}), media_type=JSON, headers={"Age": "0"})


def instant(value: datetime) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return value.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _encode_other(value: Any) -> Any:
    if isinstance(value, datetime):
        return instant(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
