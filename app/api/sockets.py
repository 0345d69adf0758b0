"""WebSockets: who may open which, and to whom they are handed. Everything else goes on to the application below.

Frames are JSON objects with a `type`. What comes in carries an `id`, is answered by a frame with the same one, and does
what its HTTP twin does, on the same terms; a bad frame is answered, and the socket stays open.
"""

from __future__ import annotations

import re
from contextlib import suppress
from urllib.parse import parse_qs

from litestar.datastructures import Headers
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from app.api.agent_socket import AgentSocket
from app.api.body import Limits
from app.api.edge import echoed_headers
from app.api.feeds import since_of
from app.api.parts import Parts
from app.api.runner_socket import RunnerSocket
from app.api.security import Doorkeeper, authenticate, require_any
from app.api.socket import Gone, Socket
from app.api.sse import HEARTBEAT_SECONDS
from app.telemetry import get_logger
from models.errors import HoldfastError, NotFound, Unavailable
from models.tenant import Right
from models.tenant import Scope as Caller

_PATH = re.compile(r"\A/v1/(agents|runners)/([^/]+)/ws\Z")
_READERS = frozenset({Right.READ, Right.RUNNER})
_RUNNERS = frozenset({Right.RUNNER})
_log = get_logger(__name__)


class Sockets:
    """The layer that serves WebSockets over the application's parts."""

    def __init__(self, app: ASGIApp, parts: Parts, doorkeeper: Doorkeeper) -> None:
        self._app = app
        self._parts = parts
        self._doorkeeper = doorkeeper
        settings = parts.settings
        self._limits = Limits(settings.body_limit_bytes, settings.json_depth, settings.json_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.WEBSOCKET:
            await self._app(scope, receive, send)
            return
        socket = Socket(scope, receive, send, self._limits)
        try:
            await self._serve(scope, socket)
        except HoldfastError as error:
            await socket.refuse(error)
        except Gone:
            return
        except Exception:  # noqa: BLE001 - the outermost layer: logged, and answered if that is still possible
            _log.exception("socket failed")
            with suppress(Exception):
                await socket.refuse(Unavailable("The service failed; it was logged."))

    async def _serve(self, scope: Scope, socket: Socket) -> None:
        """Open the socket, if the caller may, and serve it. Raises HoldfastError before it is open; Gone."""
        headers = Headers.from_scope(scope)
        query = parse_qs(scope["query_string"].decode("latin-1"))
        self._doorkeeper.check(headers.get("host"), headers.get("origin"))
        match = _PATH.match(scope["path"])
        if match is None:
            raise NotFound("There is no WebSocket at this path.")
        ticket = query.get("ticket", [None])[-1]
        caller = await authenticate(headers, self._parts.keyring, ticket)
        if match[1] == "agents":
            await self._serve_agent(socket, require_any(_READERS, caller), match[2], headers, query)
        else:
            await self._serve_runner(socket, require_any(_RUNNERS, caller), match[2], headers)

    async def _serve_agent(
        self, socket: Socket, caller: Caller, agent: str, headers: Headers, query: dict[str, list[str]]
    ) -> None:
        parts = self._parts
        since = since_of(headers.get("last-event-id") or query.get("last_event_id", [None])[-1])
        stream = await parts.streams.of_agent(caller, agent, since=since, beat_seconds=HEARTBEAT_SECONDS)
        try:
            await socket.open(echoed_headers(headers))
            served = AgentSocket(socket, caller, agent, parts.agents, parts.execution, parts.filling, parts.keyring)
            await served.serve(stream)
        finally:
            stream.close()

    async def _serve_runner(self, socket: Socket, caller: Caller, runner: str, headers: Headers) -> None:
        parts = self._parts
        await parts.runners.own(caller, runner)
        await socket.open(echoed_headers(headers))
        await RunnerSocket(socket, caller, runner, parts.runners, parts.commands, parts.keyring).serve()
