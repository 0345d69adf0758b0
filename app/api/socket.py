"""One WebSocket as the server hands it over: refused with a problem, or opened, read and written as JSON frames."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from litestar.types import Receive, Scope, Send

from app.api.answers import encode
from app.api.body import Limits, decode
from app.api.problems import of_domain
from app.api.sse import STUCK_SECONDS
from app.tasks import end
from app.telemetry import get_logger
from models.errors import HoldfastError, InvalidRequest

GOING_AWAY, OF_POLICY, TRY_AGAIN = 1001, 1008, 1013
"""Close codes of RFC 6455: the replica stops; the caller may not go on; it missed something and resumes."""

_CLOSING_SECONDS = 2.0

Frame = dict[str, Any]
_log = get_logger(__name__)


class Gone(Exception):
    """The other side left, or takes nothing any more."""


class Socket:
    """A WebSocket that was asked for. `receive` and `send` are the server's."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self._scope = scope
        self._receive: Any = receive
        self._send: Any = send
        self._limits = limits
        self._writing = asyncio.Lock()
        self._opened = False

    async def open(self, headers: Mapping[str, str]) -> None:
        """Take the request. Raises Gone."""
        if (await self._receive())["type"] != "websocket.connect":
            raise Gone
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "websocket.accept", "headers": raw})
        self._opened = True

    async def refuse(self, error: HoldfastError) -> None:
        """Answer the request with a problem, as any other one is answered."""
        problem = of_domain(error)
        if "websocket.http.response" not in (self._scope.get("extensions") or {}):
            await self._send({"type": "websocket.close", "code": OF_POLICY, "reason": error.code})
            return
        headers = {"content-type": str(problem.media_type), **problem.headers}
        raw = [(name.lower().encode(), str(value).encode()) for name, value in headers.items()]
        await self._send({"type": "websocket.http.response.start", "status": problem.status_code, "headers": raw})
        await self._send({"type": "websocket.http.response.body", "body": problem.content, "more_body": False})

    async def frames(self) -> AsyncIterator[Frame | HoldfastError]:
        """What the other side sends, until it leaves; a frame that is none, as what is wrong with it."""
        while (message := await self._receive())["type"] != "websocket.disconnect":
            try:
                yield self._decoded(message)
            except HoldfastError as error:
                yield error

    async def tell(self, frame: Mapping[str, Any] | bytes) -> None:
        """Send one frame, an object or its JSON. Raises Gone."""
        text = (frame if isinstance(frame, bytes) else encode(frame)).decode()
        try:
            async with asyncio.timeout(STUCK_SECONDS), self._writing:
                await self._send({"type": "websocket.send", "text": text})
        except (TimeoutError, OSError) as error:
            raise Gone from error

    async def close(self, code: int, reason: str = "") -> None:
        """End it from here, if the other side lets us."""
        if self._opened:
            with suppress(TimeoutError, OSError):
                async with asyncio.timeout(_CLOSING_SECONDS), self._writing:
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})

    def _decoded(self, message: Mapping[str, Any]) -> Frame:
        text = message.get("text")
        if text is None:
            raise InvalidRequest("Send frames as text.")
        frame = decode(text.encode("utf-8", "surrogatepass"), self._limits)
        if not isinstance(frame, dict):
            raise InvalidRequest("A frame is a JSON object with a type.")
        return frame


Handler = Callable[[Frame], Awaitable[Mapping[str, Any]]]
"""Does what a frame asks for, and says what came of it. Raises HoldfastError."""


async def until_either_ends(telling: Coroutine[Any, Any, None], answering: Coroutine[Any, Any, None]) -> None:
    """Let both run until one of them is over: nobody is answered who is told nothing any more. Raises as they do."""
    tasks = [asyncio.create_task(telling), asyncio.create_task(answering)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end(*tasks)


async def converse(socket: Socket, handlers: Mapping[str, Handler], allowed: Callable[[], Awaitable[bool]]) -> None:
    """Answer each frame by the handler of its type, as long as who sends them is let in and stays. Raises Gone."""
    async for frame in socket.frames():
        if not await allowed():
            await socket.close(OF_POLICY, "unauthenticated")
            return
        await socket.tell(await _answer_to(frame, handlers))


def error_frame(error: HoldfastError, **more: Any) -> Frame:
    """What went wrong, as a frame."""
    fields = {name: value for name, value in error.fields.items() if value is not None}
    return {**fields, **more, "type": "error", "code": error.code, "detail": error.detail}


async def _answer_to(frame: Frame | HoldfastError, handlers: Mapping[str, Handler]) -> Frame:
    if isinstance(frame, HoldfastError):
        return error_frame(frame)
    ident = frame.get("id")
    known = {"id": ident} if isinstance(ident, str) else {}
    try:
        if not known:
            raise InvalidRequest("A frame needs an id, a text: the answer carries it, and the same one is done once.")
        handler = handlers.get(str(frame.get("type")))
        if handler is None:
            raise InvalidRequest(f"The type of a frame is one of {', '.join(sorted(handlers))}.")
        return {"type": "answer", **known, **await handler(frame)}
    except HoldfastError as error:
        return error_frame(error, **known)
    except Exception:  # noqa: BLE001 - the top of a conversation: one frame that fails is logged, the rest goes on
        _log.exception("a frame could not be carried out")
        return {"type": "error", **known, "code": "internal-error", "detail": "The service failed; it was logged."}
