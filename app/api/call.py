"""One call of an HTTP client: who it is, on what terms, and how its outcome becomes an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from litestar import Request
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath

from app.agents import Agents
from app.api import views
from app.api.answers import Answer, Pieces, Show, as_response, begun, encode, encoder, etag
from app.api.headers import (
    CacheControl,
    FencingToken,
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    MinVersion,
    digest_of,
    freshness,
    guard,
    idempotency_id,
    matches,
    request_digest,
)
from app.api.shown import Showcase
from app.census import Census
from app.commands import Commands
from app.config import Settings
from app.episodes import Episodes
from app.erasure import Erasure
from app.execution import Execution
from app.filling import Filling
from app.keyed import KeyedAnswers
from app.lanes import Committed, Encode, Once, Terms
from app.reads import Freshness, Seen
from app.reconciler import Reconciler
from app.retention import Retention
from app.runners import Runners
from app.segments import Gone
from app.streams import Streams
from app.sync import Sync
from app.tenancy import Keys
from models.agent import AgentRecord
from models.blob import Damaged
from models.commit import Guard, Reply
from models.tenant import Scope

AnyRequest = Request[Any, Any, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReadCall:
    """A read of one agent, as new as it was asked for; 304 where the caller has that version."""

    caller: Scope
    agents: Agents
    freshness: Freshness
    if_none_match: str | None
    filling: Filling
    showcase: Showcase

    async def answer_whole(self, agent: str) -> Answer[Any]:
        """The agent and the newest steps of its path."""

        async def shown(record: AgentRecord) -> bytes:
            held = self.showcase.at(record) if self.freshness.strong else None  # others were tried before the framework
            return held or await self._encoded(record, views.agent)

        return await self._answered(agent, shown)

    async def answer(self, agent: str, show: Callable[[AgentRecord], Any]) -> Answer[Any]:
        """What `show` makes of the agent."""
        return await self._answered(agent, partial(self._encoded, show=show))

    async def answer_filled(
        self, agent: str, show: Callable[[AgentRecord], tuple[Mapping[str, Any], Callable[[Any], Any]]]
    ) -> Answer[Any]:
        """What is made of stored values as they were given: `show` names the values, and says what to do with them."""

        async def shown(record: AgentRecord) -> bytes:
            known, (stored, made) = await self.filling.answered(record, show)
            return encode(made(await self.filling.values(known, stored)))

        return await self._answered(agent, shown)

    async def answer_in_pieces(self, agent: str, show: Callable[[AgentRecord], Mapping[str, Any]]) -> Answer[Any]:
        """The same as `answer`, sent while it is encoded: for what may be as long as the agent is."""

        async def shown(record: AgentRecord) -> bytes | AsyncIterator[bytes]:
            known, value = await self.filling.answered(record, show)
            return await begun(self.filling.pieces(known, value))

        return await self._answered(agent, shown)

    async def _encoded(self, record: AgentRecord, show: Callable[[AgentRecord], Any]) -> bytes:
        known, value = await self.filling.answered(record, show)
        return await self.filling.encoded(known, value)

    async def _answered(
        self, agent: str, shown: Callable[[AgentRecord], Awaitable[bytes | AsyncIterator[bytes]]]
    ) -> Answer[Any]:
        """The answer, from the agent as it is now when it lost its history since it was read."""
        seen = await self.agents.get(self.caller, agent, self.freshness)
        try:
            body = await shown(seen.record)
        except Gone as error:
            version = seen.record.version
            seen = await self.agents.get(self.caller, agent, Freshness(strong=True))
            if seen.record.version == version:
                raise Damaged(str(error)) from error
            body = await shown(seen.record)
        if (known := self._known(seen)) is not None:
            return known
        headers = _headers(seen)
        return as_response(Reply(200, body, headers)) if isinstance(body, bytes) else Pieces(body, headers)

    def _known(self, seen: Seen) -> Answer[Any] | None:
        """304 for a caller who has that version."""
        headers = _headers(seen)
        return Answer(b"", status_code=304, headers=headers) if matches(self.if_none_match, headers["ETag"]) else None


def _headers(seen: Seen) -> dict[str, str]:
    return {"ETag": etag(seen.record.version), "Age": str(int(seen.age))}


@dataclass(frozen=True, slots=True)
class WriteCall:
    """A write on its terms. `answer` carries it out and encodes what came of it, or repeats what was said before."""

    caller: Scope
    request: AnyRequest
    guard: Guard
    idempotency_key: str | None
    filling: Filling

    async def answer(self, verb: Callable[[Terms], Awaitable[Committed]], show: Show) -> Answer[Any]:
        encode = encoder(self.filling, show)
        committed = await verb(Terms(self.guard, await self.once(encode)))
        return as_response(committed.replay or await encode(committed))

    async def once(self, encode: Encode) -> Once | None:
        """By what the request is known again, if it is to be; `encode` makes the answer that is given again."""
        if self.idempotency_key is None:
            return None
        record = idempotency_id(self.caller, self.request.method, self.request.url.path, self.idempotency_key)
        return Once(record, await request_digest(self.request), encode)


@dataclass(frozen=True, slots=True)
class ActCall:
    """A request that writes no agent and may be done again. `answer` repeats what was said before, if it has a key."""

    caller: Scope
    request: AnyRequest
    idempotency_key: str | None
    keyed: KeyedAnswers

    @property
    def known_by(self) -> str | None:
        """By what the request is known when the same caller sends it again; None: it is always a new one."""
        if self.idempotency_key is None:
            return None
        record = idempotency_id(self.caller, self.request.method, self.request.url.path, self.idempotency_key)
        return digest_of(record, self.caller.by)

    async def answer(self, make: Callable[[], Awaitable[T]], show: Callable[[T], Reply]) -> Answer[Any]:
        async def shown(made: T) -> Reply:
            return show(made)

        record = self.known_by
        if record is None:
            return as_response(show(await make()))
        once = Once(record, await request_digest(self.request), shown)
        return as_response(await self.keyed.answer(once, self.caller.tenant, make))


@contextmanager
def leaving(request: AnyRequest) -> Iterator[Callable[[], bool]]:
    """Says whether the caller has hung up meanwhile. The request's body has to have been read."""
    waiting = asyncio.create_task(_disconnected(request))
    try:
        yield waiting.done
    finally:
        waiting.cancel()


async def _disconnected(request: AnyRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _caller(request: AnyRequest) -> Scope:
    scope: Scope = request.state["caller"]
    return scope


def _filling(request: AnyRequest) -> Filling:
    filling: Filling = request.app.state.filling
    return filling


def _showcase(request: AnyRequest) -> Showcase:
    showcase: Showcase = request.app.state.showcase
    return showcase


def _agents(request: AnyRequest) -> Agents:
    agents: Agents = request.app.state.agents
    return agents


def _execution(request: AnyRequest) -> Execution:
    execution: Execution = request.app.state.execution
    return execution


def _runners(request: AnyRequest) -> Runners:
    runners: Runners = request.app.state.runners
    return runners


def _commands(request: AnyRequest) -> Commands:
    commands: Commands = request.app.state.commands
    return commands


def _reconciler(request: AnyRequest) -> Reconciler:
    reconciler: Reconciler = request.app.state.reconciler
    return reconciler


def _episodes(request: AnyRequest) -> Episodes:
    episodes: Episodes = request.app.state.episodes
    return episodes


def _sync(request: AnyRequest) -> Sync:
    sync: Sync = request.app.state.sync
    return sync


def _retention(request: AnyRequest) -> Retention:
    retention: Retention = request.app.state.retention
    return retention


def _census(request: AnyRequest) -> Census:
    census: Census = request.app.state.census
    return census


def _erasure(request: AnyRequest) -> Erasure:
    erasure: Erasure = request.app.state.erasure
    return erasure


def _settings(request: AnyRequest) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _streams(request: AnyRequest) -> Streams:
    streams: Streams = request.app.state.streams
    return streams


def _keyring(request: AnyRequest) -> Keys:
    keyring: Keys = request.app.state.keyring
    return keyring


def _reading(
    request: AnyRequest,
    cache_control: CacheControl = None,
    if_none_match: IfNoneMatch = None,
    min_version: MinVersion = 0,
) -> ReadCall:
    fresh = freshness(cache_control, min_version)
    return ReadCall(_caller(request), _agents(request), fresh, if_none_match, _filling(request), _showcase(request))


def _posted(
    request: AnyRequest,
    if_match: IfMatch = None,
    fencing_token: FencingToken = None,
    idempotency_key: IdempotencyKey = None,
) -> WriteCall:
    return WriteCall(_caller(request), request, guard(if_match, fencing_token), idempotency_key, _filling(request))


def _guarded(request: AnyRequest, if_match: IfMatch = None, fencing_token: FencingToken = None) -> WriteCall:
    return WriteCall(_caller(request), request, guard(if_match, fencing_token), None, _filling(request))


def _acting(request: AnyRequest, idempotency_key: IdempotencyKey = None) -> ActCall:
    return ActCall(_caller(request), request, idempotency_key, request.app.state.keyed)


DEPENDENCIES = {
    "caller": Provide(_caller, sync_to_thread=False),
    "agents": Provide(_agents, sync_to_thread=False),
    "execution": Provide(_execution, sync_to_thread=False),
    "runners": Provide(_runners, sync_to_thread=False),
    "commands": Provide(_commands, sync_to_thread=False),
    "acting": Provide(_acting, sync_to_thread=False),
    "episodes": Provide(_episodes, sync_to_thread=False),
    "sync": Provide(_sync, sync_to_thread=False),
    "census": Provide(_census, sync_to_thread=False),
    "retention": Provide(_retention, sync_to_thread=False),
    "erasure": Provide(_erasure, sync_to_thread=False),
    "settings": Provide(_settings, sync_to_thread=False),
    "reconciler": Provide(_reconciler, sync_to_thread=False),
    "posted": Provide(_posted, sync_to_thread=False),
    "guarded": Provide(_guarded, sync_to_thread=False),
    "streams": Provide(_streams, sync_to_thread=False),
    "keyring": Provide(_keyring, sync_to_thread=False),
    "reading": Provide(_reading, sync_to_thread=False),
}
"""What handlers may ask for.

`reading` is for a read of one agent, `posted` for a POST (it may be idempotent), `guarded` for other writes.
"""

AgentId = FromPath[str]
Caller = NamedDependency[Scope]
Reading = NamedDependency[ReadCall]
Verbs = NamedDependency[Agents]
Writing = NamedDependency[WriteCall]
Acting = NamedDependency[ActCall]
