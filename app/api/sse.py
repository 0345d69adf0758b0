"""Server-sent events: a stream as an answer that goes on, with heartbeats, until its reader or the replica leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from litestar.types import HTTPResponseBodyEvent, HTTPResponseStartEvent, Receive, Scope, Send

from app.api.answers import Answer, encode
from app.feed import Item, Over
from app.streams import Stream
from app.telemetry import get_logger
from models.entry import Entry
from models.errors import FeedGap, HoldfastError
from models.news import News

MEDIA_TYPE = "text/event-stream"
HEARTBEAT_SECONDS = 15.0
STUCK_SECONDS = 60.0
"""How long a reader may take nothing at all before its connection is cut."""

_HEARTBEAT = b": still here\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_log = get_logger(__name__)


def frame(event: str, data: Any, *, last_id: str | None = None) -> bytes:
    """One event. JSON holds no raw line breaks, so its data is one line."""
    ident = "" if last_id is None else f"id: {last_id}\n"
    return f"event: {event}\n{ident}data: ".encode() + encode(data) + b"\n\n"


def news_frame(news: News) -> bytes:
    """The events of one version; only the last carries the id, so that a cut in between repeats them all."""
    last = -1 if news.goes_on else len(news.told) - 1
    return b"".join(
        frame(kind, data, last_id=str(news.version) if number == last else None)
        for number, (kind, data) in enumerate(news.told)
    )


def entry_frame(entry: Entry) -> bytes:
    """One entry of the log; its id is its cursor."""
    return frame("change", shown_entry(entry), last_id=entry.position)


def shown_entry(entry: Entry) -> dict[str, Any]:
    """An entry as callers see it."""
    optional = {
        "pool": entry.pool,
        "trigger": entry.trigger,
        "runner": entry.runner,
        "fence": entry.fence,
        "trace": entry.trace,
        "steps": list(entry.steps) or None,
        "snapshot": entry.snapshot,
        "episode": entry.episode,
        "what": entry.what,
    }
    return {
        "cursor": entry.position,
        "agent": entry.agent or None,
        "version": entry.version,
        "at": entry.at,
        "kinds": list(entry.kinds),
        "by": entry.by,
        **{name: value for name, value in optional.items() if value is not None},
    }


class EventStream(Answer[Any]):
    """An answer made of the items of a stream. `still_allowed` is asked at each heartbeat."""

    def __init__(self, stream: Stream, encode_item: Callable[[Any], bytes], still_allowed: Callable[[], Any]) -> None:
        super().__init__(b"", media_type=MEDIA_TYPE)
        self._stream = stream
        self._encode = encode_item
        self._still_allowed = still_allowed

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        """The response as the server runs it."""
        return self._run

    async def _run(self, _: Scope, receive: Receive, send: Send) -> None:
        leaving = asyncio.create_task(self._hang_up_when_gone(receive))
        try:
            await send(HTTPResponseStartEvent(type="http.response.start", status=200, headers=_HEADERS))
            await self._send_all(send)
            await _send(send, b"", more=False)
        except HoldfastError as error:
            await _send(send, frame("gap" if isinstance(error, FeedGap) else "error", _told(error)), more=False)
        except TimeoutError:  # what is left of the answer is the server's to drop
            _log.info("a reader that took nothing was let go")
        finally:
            leaving.cancel()
            self._stream.close()

    async def _send_all(self, send: Send) -> None:
        try:
            async for item in self._stream:
                if item is not None:
                    await _send(send, self._framed(item))
                elif await self._still_allowed():
                    await _send(send, _HEARTBEAT)
                else:
                    return
        except Over:
            return

    def _framed(self, item: Item[Any]) -> bytes:
        if item.frame is None:
            item.frame = self._encode(item.value)
        return item.frame

    async def _hang_up_when_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._stream.hang_up()


async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
    async with asyncio.timeout(STUCK_SECONDS):
        await send(HTTPResponseBodyEvent(type="http.response.body", body=body, more_body=more))


def _told(error: HoldfastError) -> dict[str, Any]:
    return {"code": error.code, "detail": error.detail}
