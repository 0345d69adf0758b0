"""The WebSocket of a runner: its commands as frames, as soon as they are there, and its heartbeats and answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.api.bodies import DoneBody, FailedBody, HeartbeatBody
from app.api.body import validated
from app.api.execution import shown_command
from app.api.runners import shown_beat
from app.api.socket import GOING_AWAY, OF_POLICY, Frame, Socket, converse, error_frame, until_either_ends
from app.commands import Commands
from app.runners import Runners
from app.tenancy import Keys
from models.errors import HoldfastError, InvalidRequest, Unavailable
from models.tenant import Scope

_POLL_SECONDS = 5.0
_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class RunnerSocket:
    """One runner's socket."""

    socket: Socket
    caller: Scope
    runner: str
    runners: Runners
    commands: Commands
    keyring: Keys

    async def serve(self) -> None:
        """Send commands and take frames, until either side leaves or the runner is no more. Raises Gone."""
        handlers = {"heartbeat": self._beat, "ack": self._ack, "complete": self._complete, "fail": self._fail}
        await until_either_ends(self._send_commands(), converse(self.socket, handlers, self._allowed))

    async def _allowed(self) -> bool:
        return await self.keyring.still_allows(self.caller)

    async def _send_commands(self) -> None:
        """Send what is due, again until it is acknowledged."""
        try:
            while True:
                try:
                    due = await self.runners.commands(self.caller, self.runner, _POLL_SECONDS)
                except Unavailable:
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                for command in due:
                    await self.socket.tell({"type": "command", **shown_command(command)})
                if not due and self.runners.ending:
                    await self.socket.close(GOING_AWAY)
                    return
                if not await self._allowed():
                    await self.socket.close(OF_POLICY, "unauthenticated")
                    return
        except HoldfastError as error:
            await self.socket.tell(error_frame(error))
            await self.socket.close(OF_POLICY, error.code)

    async def _beat(self, frame: Frame) -> Mapping[str, Any]:
        body = validated(_rest(frame), HeartbeatBody)
        return _done(shown_beat(await self.runners.heartbeat(self.caller, self.runner, body.agents, body.capacity)))

    async def _ack(self, frame: Frame) -> Mapping[str, Any]:
        return _done(shown_command(await self.commands.ack(self.caller, _command(frame))))

    async def _complete(self, frame: Frame) -> Mapping[str, Any]:
        body = validated(_rest(frame), DoneBody)
        return _done(shown_command(await self.commands.complete(self.caller, _command(frame), body.result)))

    async def _fail(self, frame: Frame) -> Mapping[str, Any]:
        body = validated(_rest(frame), FailedBody)
        return _done(shown_command(await self.commands.fail(self.caller, _command(frame), body.error)))


def _done(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"status": 200, "answer": answer}


def _rest(frame: Frame) -> Frame:
    return {name: value for name, value in frame.items() if name not in ("type", "id", "command")}


def _command(frame: Frame) -> str:
    """The command that a frame is about. Raises InvalidRequest."""
    command = frame.get("command")
    if not isinstance(command, str):
        raise InvalidRequest("Name the command by its id, as `command`.")
    return command
