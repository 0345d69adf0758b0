"""Streams: what a reader of a feed gets, from the past that it missed over to what happens now. No HTTP here.

A stream first subscribes, then reads how things stand, then goes on with what its subscription has taken in since:
so nothing lies between, and what lies in both is told once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from app.backoff import Backoff
from app.changelog import ChangeLog, LogPage, LogQuery
from app.feed import Feed, Item, Over, Subscription, log_topic
from app.filling import Filling
from app.reads import Freshness, Reads
from app.scribe import Scribe
from app.segments import Gone
from models.agent import AgentRecord
from models.blob import Damaged
from models.change import DELETED
from models.entry import Entry, position, time_of
from models.errors import FeedGap, HoldfastError, NotFound, Unavailable
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
    """Opens streams. Each raises TooMany over the caps; Unavailable while no stream is open or history was lost."""

    def __init__(self, feed: Feed, reads: Reads, changes: ChangeLog, scribe: Scribe, filling: Filling) -> None:
        self._feed = feed
        self._reads = reads
        self._changes = changes
        self._scribe = scribe
        self._filling = filling

    async def of_agent(self, scope: Scope, agent: str, *, since: int | None, beat_seconds: float) -> Stream:
        """An agent's feed: the steps since a version (if one is given), where it stands, and all that happens.

        Raises NotFound. While iterated it raises FeedGap when the reader is too slow, Over when the replica stops.
        """
        with ExitStack() as stack:
            heard = stack.enter_context(self._feed.listening(scope.agent_key(agent), scope.tenant))
            record = await self._reads.caught_up(scope, agent)
            if since is not None and since > record.version:
                record = (await self._reads.agent(scope, agent, Freshness(strong=True))).record
            items = self._agent_items(scope, agent, record, since, heard, _Pulse(beat_seconds))
            return Stream(items, heard, stack.pop_all())

    async def of_log(self, scope: Scope, query: LogQuery, *, after: str | None, beat_seconds: float) -> Stream:
        """The tenant's log as it grows: from after a position, else from now on. Raises and ends as `of_agent`.

        Raises FeedGap for a position older than what is kept.
        """
        with ExitStack() as stack:
            heard = stack.enter_context(self._feed.listening(log_topic(scope.tenant), scope.tenant))
            begin = self._feed.position or position((0, 0))
            if after is not None:  # refused now, while there is still an answer to refuse it with
                await self._changes.page(scope, query, after=after, limit=1)
            tail = _LogTail(self._changes, scope, query, heard, _Pulse(beat_seconds))
            return Stream(tail.items(begin, after), heard, stack.pop_all())

    async def page_of_log(self, scope: Scope, query: LogQuery, *, after: str | None, limit: int) -> LogPage:
        """A page of the log, which holds what this replica has acknowledged. Raises FeedGap, Unavailable."""
        await self._scribe.caught_up()
        return await self._changes.page(scope, query, after=after, limit=limit)

    async def _agent_items(
        self,
        scope: Scope,
        agent: str,
        record: AgentRecord,
        since: int | None,
        heard: Subscription[Any],
        pulse: _Pulse,
    ) -> AsyncIterator[Told]:
        """The steps since a version, if one is given, where the agent stands, then the news after that."""
        if since is not None:
            async for news in self._past(record, since):
                yield Item(await self._filled(record, news), 0)
        version = record.version
        yield Item(News(version, (snapshot_of(record),)), 0)
        del record
        while True:
            item: Item[News] | None = await heard.next(pulse.left())
            if pulse.beats():
                yield None
            if item is None or item.value.version <= version:
                continue
            backoff = Backoff()
            while not await self._complete(scope, agent, item):
                await backoff.pause()
                if pulse.beats():
                    yield None
            yield item
            if item.value.told and item.value.told[-1][0] == DELETED:
                return

    async def _past(self, record: AgentRecord, since: int) -> AsyncIterator[News]:
        """The steps that came after a version, a page at a time. Raises FeedGap when they are gone meanwhile."""
        after: int | None = 0
        while after is not None:
            try:
                page, after = await self._filling.asked(record, partial(steps_since, version=since, after=after))
            except Gone as error:
                raise _gone() from error
            for news in page:
                yield news

    async def _complete(self, scope: Scope, agent: str, item: Item[News]) -> bool:
        """Put into the news what its event did not hold, once for all readers; False while the database is away.

        Raises FeedGap when it is gone.
        """
        if not item.value.bytes_apart and item.value.moved_to is None:
            return True
        if item.completing is None:
            item.completing = asyncio.ensure_future(self._made_whole(scope, agent, item))
        try:
            await asyncio.shield(item.completing)
        except Unavailable:
            item.completing = None
            return False
        return True

    async def _made_whole(self, scope: Scope, agent: str, item: Item[News]) -> None:
        await self._find_workspace(scope, agent, item)
        news = item.value
        if not news.bytes_apart:
            return
        record = AgentRecord(id=scope.agent_key(agent), tenant=scope.tenant)
        if news.has_prompts:
            try:
                record = await self._reads.caught_up(scope, agent)
            except NotFound as error:
                raise _gone() from error
        item.value = await self._filled(record, news)

    async def _filled(self, record: AgentRecord, news: News) -> News:
        """The news with what is stored apart. Raises FeedGap when its steps are not the agent's any more."""
        if not news.bytes_apart:
            return news
        try:
            if news.has_prompts and not await self._filling.asked(record, partial(_has_steps_of, news=news)):
                raise _gone()
            return replace(
                news, told=tuple([(kind, await self._filling.values(record, data)) for kind, data in news.told])
            )
        except (Damaged, Gone) as error:
            raise _gone() from error

    async def _find_workspace(self, scope: Scope, agent: str, item: Item[News]) -> None:
        """Put the workspace that HEAD came to into the news; once for all readers."""
        news = item.value
        if news.moved_to is None:
            return
        try:
            record = (await self._reads.agent(scope, agent, Freshness(min_version=news.version))).record
            workspace = await self._filling.asked(record, partial(workspace_at, leaf=news.moved_to))
        except (HoldfastError, KeyError, Gone):
            return
        told = tuple((kind, {**data, "workspace": workspace} if kind == "head" else data) for kind, data in news.told)
        item.value = replace(news, told=told, moved_to=None)


def _has_steps_of(record: AgentRecord, news: News) -> bool:
    """Whether the steps that are told are still the agent's: it may be cleared, and others have their ids."""
    steps = [data for kind, data in news.told if kind == "step"]
    return all(record.has(step["id"]) and record.node(step["id"]).version == step["version"] for step in steps)


def _gone() -> FeedGap:
    return FeedGap("The agent was cleared or deleted before the reader came to this. Resume.")


class _Pulse:
    """Says when a reader is to be shown that the stream lives, and asked whether it still may read."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until the next beat."""
        return max(0.0, self._due - time.monotonic())

    def beats(self) -> bool:
        """Whether it is time; then the next time is counted from now."""
        if self.left():
            return False
        self._due = time.monotonic() + self._seconds
        return True


@dataclass(frozen=True, slots=True)
class _LogTail:
    """What one reader of a tenant's log gets."""

    changes: ChangeLog
    scope: Scope
    query: LogQuery
    heard: Subscription[Any]
    pulse: _Pulse

    async def items(self, begin: str, after: str | None) -> AsyncIterator[Told]:
        """What was missed since `after` up to `begin`, where the subscription begins, then what it takes in."""
        last = begin if after is None else after
        if after is not None:
            async for entry in self._missed(begin, after):
                if entry is None:
                    yield None
                else:
                    last = entry.position
                    yield Item(entry, 0)
        while True:
            item: Item[Entry] | None = await self.heard.next(self.pulse.left())
            if self.pulse.beats():
                yield None
            if item is not None and item.value.position > last and self.query.matches(self.scope, item.value):
                yield item

    async def _missed(self, begin: str, after: str) -> AsyncIterator[Entry | None]:
        """The stored entries, until all that was told before `begin` is among them or the reader is gone."""
        backoff = Backoff()
        while not self.heard.ended:
            page = await self.changes.page(self.scope, self.query, after=after, limit=_PAGE)
            for entry in page.entries:
                yield entry
            if self.pulse.beats():
                yield None
            if page.onward is not None:
                after = page.onward
            elif page.complete_to >= time_of(begin):
                return
            else:
                after = page.entries[-1].position if page.entries else after
                await backoff.pause()
