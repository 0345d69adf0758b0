"""The WebSocket of an agent: its events as frames, and prompt, stop and checkout as their HTTP twins do them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from app.agents import Agents
from app.api.answers import Show, encoder, reply
from app.api.bodies import HeadBody, TurnBody
from app.api.body import validated
from app.api.headers import digest_of, guard, idempotency_id
from app.api.security import require_any
from app.api.socket import GOING_AWAY, OF_POLICY, TRY_AGAIN, Frame, Socket, converse, error_frame, until_either_ends
from app.execution import Execution
from app.feed import Over
from app.filling import Filling
from app.lanes import Committed, Once, Terms
from app.streams import Stream
from app.tenancy import Keys
from models.errors import FeedGap, HoldfastError, InvalidRequest
from models.tenant import Right, Scope

_DRIVERS = frozenset({Right.WRITE, Right.RUNNER})
_TERMS = frozenset({"fencing_token", "if_match"})
_OF_A_FRAME = _TERMS | {"type", "id"}


@dataclass(frozen=True, slots=True)
class AgentSocket:
    """One caller's socket of one agent."""

    socket: Socket
    caller: Scope
    agent: str
    agents: Agents
    execution: Execution
    filling: Filling
    keyring: Keys

    async def serve(self, stream: Stream) -> None:
        """Tell the stream and take frames, until either ends. Raises Gone."""
        handlers = {"prompt": self._prompt, "stop": self._stop, "checkout": self._checkout}
        await until_either_ends(self._tell(stream), converse(self.socket, handlers, self._allowed))

    async def _allowed(self) -> bool:
        return await self.keyring.still_allows(self.caller)

    async def _tell(self, stream: Stream) -> None:
        """Send what happens; end the socket when the stream ends, for a reason that its code tells."""
        try:
            async for item in stream:
                if item is None:
                    if not await self._allowed():
                        await self.socket.close(OF_POLICY, "unauthenticated")
                        return
                else:
                    for kind, data in item.value.told:  # type: ignore[union-attr]  # the stream of an agent
                        await self.socket.tell({"type": kind, **data})
        except Over:
            await self.socket.close(GOING_AWAY)
        except FeedGap as gap:
            await self.socket.tell({**error_frame(gap), "type": "gap"})
            await self.socket.close(TRY_AGAIN, gap.code)
        except HoldfastError as error:
            await self.socket.tell(error_frame(error))
            await self.socket.close(TRY_AGAIN, error.code)

    async def _prompt(self, frame: Frame) -> Mapping[str, Any]:
        given = {name: value for name, value in frame.items() if name not in _OF_A_FRAME}
        if "step_id" in given:
            given["id"] = given.pop("step_id")
        body = validated(given, TurnBody)
        step = {"role": body.role, **body.given()}
        return await self._written(
            frame,
            lambda terms: self.execution.begin(self.caller, self.agent, step, terms),
            lambda done: reply(asdict(done.answer), done.record.version, 201),
        )

    async def _stop(self, frame: Frame) -> Mapping[str, Any]:
        return await self._written(
            frame,
            lambda terms: self.execution.stop(self.caller, self.agent, terms),
            lambda done: reply(asdict(done.answer), done.record.version),
        )

    async def _checkout(self, frame: Frame) -> Mapping[str, Any]:
        body = validated({name: value for name, value in frame.items() if name not in _OF_A_FRAME}, HeadBody)
        return await self._written(
            frame,
            lambda terms: self.agents.checkout(self.caller, self.agent, terms, step=body.step_id, branch=body.branch),
            lambda done: reply(done.answer, done.record.version),
        )

    async def _written(
        self, frame: Frame, verb: Callable[[Terms], Awaitable[Committed]], show: Show
    ) -> Mapping[str, Any]:
        """Carry out a write on the frame's terms, once for its id."""
        require_any(_DRIVERS, self.caller)
        encode = encoder(self.filling, show)
        path = f"/v1/agents/{self.agent}/ws"
        record = idempotency_id(self.caller, str(frame["type"]), path, frame["id"])
        asked = {name: value for name, value in frame.items() if name not in _TERMS}
        once = Once(record, digest_of(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS).decode()), encode)
        committed = await verb(Terms(guard(_text(frame, "if_match"), _text(frame, "fencing_token")), once))
        answer = committed.replay or await encode(committed)
        return {"status": answer.status, "answer": orjson.Fragment(answer.body)}


def _text(frame: Frame, name: str) -> str | None:
    """A version or fence of a frame, which may be a number, as a header has it."""
    value = frame.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise InvalidRequest(f"{name} is a whole number.")
    return None if value is None else str(value)
