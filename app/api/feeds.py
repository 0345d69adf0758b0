"""Routes of feeds: an agent's events, the tenant's change log as pages and as a stream, tickets for browsers."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery, HeaderParameter, QueryParameter

from app.api import shapes
from app.api.agents import Limit
from app.api.answers import JSON, Answer, encode, page
from app.api.call import AgentId, Caller
from app.api.paging import DEFAULT_LIMIT
from app.api.routes import FEED, TICKET
from app.api.sse import HEARTBEAT_SECONDS, MEDIA_TYPE, EventStream, entry_frame, news_frame, shown_entry
from app.changelog import LogQuery
from app.streams import Streams
from app.tenancy import Keys
from models.entry import POSITION_PATTERN
from models.errors import InvalidRequest
from models.ids import check_id
from models.tenant import Scope

LastEventId = Annotated[
    str | None,
    HeaderParameter(name="Last-Event-ID", required=False, description="Go on after this event, on any replica."),
]
Accept = Annotated[
    str | None, HeaderParameter(name="Accept", required=False, description="`text/event-stream`: live entries.")
]
Kinds = Annotated[list[str] | None, QueryParameter(description="Separated by commas, or repeated; gaps always come.")]
TicketParameter = Annotated[str | None, QueryParameter(name="ticket", description="From POST /v1/tickets, once.")]

_VERSION = re.compile(r"\A[0-9]{1,18}\Z")
_POSITION = re.compile(POSITION_PATTERN.replace("$", r"\Z"))


def _allowed(keys: Keys, scope: Scope) -> Callable[[], Awaitable[bool]]:
    return partial(keys.still_allows, scope)


def since_of(last_event_id: str | None) -> int | None:
    """The version that a reader of an agent's feed has. Raises InvalidRequest."""
    if not last_event_id:
        return None
    if not _VERSION.match(last_event_id):
        raise InvalidRequest("Last-Event-ID is not one that this feed gave: it gives versions.")
    return int(last_event_id)


def place_of(cursor: str | None) -> str | None:
    """The place in the change log that a cursor names. Raises InvalidRequest."""
    if not cursor:
        return None
    if not _POSITION.match(cursor):
        raise InvalidRequest("The cursor is not one that the change log gave: begin without one.")
    return cursor


def _query(agent: str | None, kinds: list[str] | None, pool: str | None) -> LogQuery:
    named = tuple(kind for part in kinds or () for kind in part.split(",") if kind)
    return LogQuery(None if agent is None else check_id(agent), named or None, pool)


class FeedRoutes(Controller):
    """What happens, as it happens."""

    path = "/v1"
    tags = ["feeds"]

    @get("/agents/{agent_id:str}/events", **FEED, media_type=MEDIA_TYPE, summary="Follow an agent (server-sent events)")
    async def events(
        self,
        agent_id: AgentId,
        caller: Caller,
        streams: NamedDependency[Streams],
        keyring: NamedDependency[Keys],
        last_event_id: LastEventId = None,
        after: Annotated[str | None, QueryParameter(name="last_event_id", description="As the header.")] = None,
        ticket: TicketParameter = None,  # noqa: ARG002 - read by the guard
    ) -> EventStream:
        since = since_of(last_event_id or after)
        stream = await streams.of_agent(caller, agent_id, since=since, beat_seconds=HEARTBEAT_SECONDS)
        return EventStream(stream, news_frame, _allowed(keyring, caller))

    @get("/changes", **FEED, summary="Read the tenant's change log, as pages or live (server-sent events)")
    async def changes(
        self,
        caller: Caller,
        streams: NamedDependency[Streams],
        keyring: NamedDependency[Keys],
        cursor: FromQuery[str | None] = None,
        agent: FromQuery[str | None] = None,
        kinds: Kinds = None,
        pool: FromQuery[str | None] = None,
        limit: Limit = DEFAULT_LIMIT,
        accept: Accept = None,
        last_event_id: LastEventId = None,
        ticket: TicketParameter = None,  # noqa: ARG002 - read by the guard
    ) -> Answer[shapes.ChangeList]:
        query = _query(agent, kinds, pool)
        if MEDIA_TYPE in (accept or "").lower():
            after = place_of(last_event_id) or place_of(cursor)
            stream = await streams.of_log(caller, query, after=after, beat_seconds=HEARTBEAT_SECONDS)
            return EventStream(stream, entry_frame, _allowed(keyring, caller))
        found = await streams.page_of_log(caller, query, after=place_of(cursor), limit=limit)
        return page([shown_entry(entry) for entry in found.entries], found.onward)

    @post("/tickets", **TICKET, summary="Get a ticket for one feed, for a browser that can't send headers")
    async def ticket(self, caller: Caller, keyring: NamedDependency[Keys]) -> Answer[shapes.Ticket]:
        ticket, expires_at = await keyring.issue_ticket(caller)
        return Answer(encode({"ticket": ticket, "expires_at": expires_at}), status_code=201, media_type=JSON)
