"""Streams: what a reader of a feed gets, from the past that it missed over to what happens now. No HTTP here.

A stream first subscribes, then reads how things stand, then goes on with what its subscription has taken in since:
so nothing lies between, and what lies in both is told once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from app.backoff import Backoff
from app.changelog import ChangeLog, LogPage, LogQuery
from app.feed import Feed, Item, Over, Subscription, log_topic
from app.reads import Freshness, Reads
from app.scribe import Scribe
from models.agent import AgentRecord
from models.change import DELETED
from models.entry import Entry, position, time_of
from models.errors import HoldfastError
from models.ids import ROOT
from models.news import News, snapshot_of, steps_since
from models.results import workspace_at
from models.tenant import Scope

_PAGE = 200

Told = Item[News] | Item[Entry] | None
"""What a stream gives: None each time that as many seconds have passed as its reader chose, however much happens."""


class Stream:
    """An open stream. Iterate it once, and `close` it in any case; `hang_up` ends the iteration from elsewhere."""

    def __init__(self, items: AsyncIterator[Told], subscription: Subscription[Any], stack: ExitStack) -> None:
        self._items = items
        self._subscription = subscription
        self._stack = stack

    def __aiter__(self) -> AsyncIterator[Told]:
        return self._items

    def hang_up(self) -> None:
        """The reader is gone."""
        self._subscription.end(Over)

    def close(self) -> None:
        """Give the subscription back."""
        self._stack.close()


class Streams:
    """Opens streams. Each raises TooMany over the caps, and Unavailable while the change stream was never open."""

    def __init__(self, feed: Feed, reads: Reads, changes: ChangeLog, scribe: Scribe) -> None:
        self._feed = feed
        self._reads = reads
        self._changes = changes
        self._scribe = scribe

    async def of_agent(self, scope: Scope, agent: str, *, since: int | None, beat_seconds: float) -> Stream:
        """An agent's feed: the steps since a version (if one is given), where it stands, and all that happens.

        Raises NotFound. While iterated it raises FeedGap when the reader is too slow, Over when the replica stops.
        """
        with ExitStack() as stack:
            heard = stack.enter_context(self._feed.listening(scope.agent_key(agent), scope.tenant))
            record = await self._reads.caught_up(scope, agent)
            if since is not None and since > record.version:
                record = (await self._reads.agent(scope, agent, Freshness(strong=True))).record
            items = self._agent_items(scope, record, heard, since, beat_seconds)
            return Stream(items, heard, stack.pop_all())

    async def of_log(self, scope: Scope, query: LogQuery, *, after: str | None, beat_seconds: float) -> Stream:
        """The tenant's log as it grows: from after a position, else from now on. Raises and ends as `of_agent`.

        Raises FeedGap for a position older than what is kept.
        """
        with ExitStack() as stack:
            heard = stack.enter_context(self._feed.listening(log_topic(scope.tenant), scope.tenant))
            begin = self._feed.position or position((0, 0))
            first = None if after is None else await self._changes.page(scope, query, after=after, limit=_PAGE)
            items = self._log_items(scope, query, heard, begin, after or begin, first, beat_seconds)
            return Stream(items, heard, stack.pop_all())

    async def page_of_log(self, scope: Scope, query: LogQuery, *, after: str | None, limit: int) -> LogPage:
        """A page of the log, which holds what this replica has acknowledged. Raises FeedGap, Unavailable."""
        await self._scribe.caught_up()
        return await self._changes.page(scope, query, after=after, limit=limit)

    async def _agent_items(
        self, scope: Scope, record: AgentRecord, heard: Subscription[Any], since: int | None, beat_seconds: float
    ) -> AsyncIterator[Told]:
        for news in [] if since is None else steps_since(record, since):
            yield Item(news, 0)
        yield Item(News(record.version, (snapshot_of(record),)), 0)
        async for item in _beating(heard, beat_seconds):
            if item is None:
                yield None
            elif item.value.version > record.version:
                await self._find_workspace(scope, record.name_in_tenant, item)
                yield item
                if item.value.told and item.value.told[-1][0] == DELETED:
                    return

    async def _log_items(
        self,
        scope: Scope,
        query: LogQuery,
        heard: Subscription[Any],
        begin: str,
        after: str,
        page: LogPage | None,
        beat_seconds: float,
    ) -> AsyncIterator[Told]:
        if page is not None:
            async for entry in self._missed(scope, query, page, begin, after):
                after = entry.position
                yield Item(entry, 0)
        async for item in _beating(heard, beat_seconds):
            if item is None:
                yield None
            elif item.value.position > after and query.matches(scope, item.value):
                yield item

    async def _missed(
        self, scope: Scope, query: LogQuery, page: LogPage, begin: str, after: str
    ) -> AsyncIterator[Entry]:
        """The stored entries from a page on, until all that was told before `begin` is among them."""
        backoff = Backoff()
        while True:
            for entry in page.entries:
                after = entry.position
                yield entry
            if not page.more and page.complete_to >= time_of(begin):
                return
            if not page.more:
                await backoff.pause()
            page = await self._changes.page(scope, query, after=after, limit=_PAGE)

    async def _find_workspace(self, scope: Scope, agent: str, item: Item[News]) -> None:
        """Put the workspace that HEAD came to into the news; once for all readers."""
        news = item.value
        if news.moved_to is None:
            return
        try:
            record = (await self._reads.agent(scope, agent, Freshness(min_version=news.version))).record
        except HoldfastError:
            return
        if news.moved_to in record.steps or news.moved_to == ROOT:
            workspace = workspace_at(record, record.path(news.moved_to))
            told = tuple(
                (kind, {**data, "workspace": workspace} if kind == "head" else data) for kind, data in news.told
            )
            item.value = replace(news, told=told, moved_to=None)


async def _beating(heard: Subscription[Any], seconds: float) -> AsyncIterator[Item[Any] | None]:
    """What is heard, with a None every so many seconds, also while much comes that its reader does not want."""
    loop = asyncio.get_running_loop()
    due = loop.time() + seconds
    while True:
        left = due - loop.time()
        item = await heard.next(left) if left > 0 else None
        if item is None:
            due = loop.time() + seconds
        yield item
