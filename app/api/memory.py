"""Routes of memory: episodes, stored and found by meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from litestar import Controller, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from app.api import shapes
from app.api.agents import Limit
from app.api.answers import JSON, Answer, encode, page
from app.api.bodies import ApplyBody, EpisodeBatch, EpisodeBody, EpisodesBody, RetentionBody, SearchBody, SyncBody
from app.api.body import validated
from app.api.call import ActCall, Acting, Caller
from app.api.feeds import place_of
from app.api.paging import DEFAULT_LIMIT, episode_after, episodes_cursor
from app.api.problems import error_of
from app.api.routes import DECIDE, LIST, PUSH, REMEMBER, SEARCH, gone
from app.census import Census
from app.episodes import Episodes, Question, Stored
from app.retention import Retention
from app.sync import Pulled, Sync
from app.vectors import Wanted
from models.commit import Reply
from models.episode import GIVEN, EpisodeRecord
from models.errors import HoldfastError, Unavailable
from models.retention import RetentionRecord

Memory = NamedDependency[Episodes]


def shown_episode(episode: EpisodeRecord) -> dict[str, Any]:
    """An episode as callers see it."""
    given = {name: getattr(episode, name) for name in GIVEN}
    vector = np.frombuffer(episode.vector, "<f4").tolist()
    made = {"success": episode.success, "embedding": vector, "embedder": episode.embedder}
    return {"id": episode.name, **given, **made, "created_at": episode.created_at, "expires_at": episode.expires_at}


class EpisodeRoutes(Controller):
    """What agents learned; it stays when they are gone."""

    path = "/v1/episodes"
    tags = ["memory"]

    @post(**REMEMBER, summary="Store an episode, or a batch of them")
    async def store(self, data: JSONBody[EpisodesBody], acting: Acting, episodes: Memory) -> Answer[shapes.Episode]:
        if isinstance(data, EpisodeBatch):
            return await acting.answer(lambda: _each(episodes, acting, data.episodes), _told_of_each)
        return await acting.answer(
            lambda: episodes.store(acting.caller, [_named(acting, 0, data.given())]), _told_of_one
        )

    @get(**LIST, summary="List episodes")
    async def list(
        self,
        caller: Caller,
        episodes: Memory,
        agent: FromQuery[str | None] = None,
        session: FromQuery[str | None] = None,
        task: FromQuery[str | None] = None,
        min_reward: Annotated[float | None, QueryParameter(ge=0, le=1)] = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: FromQuery[str | None] = None,
    ) -> Answer[shapes.EpisodeList]:
        asked = {"agent_id": agent, "session_id": session, "task": task}
        query: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if min_reward is not None:
            query["reward"] = {"$gte": min_reward}
        after = None if cursor is None else episode_after(cursor)
        found = await episodes.page(caller, query, after=after, limit=limit + 1)
        more = episodes_cursor(found[limit - 1].name) if len(found) > limit else None
        return page([shown_episode(episode) for episode in found[:limit]], more)

    @get("/{episode_id:str}", **LIST, summary="Read an episode")
    async def read(self, episode_id: FromPath[str], caller: Caller, episodes: Memory) -> Answer[shapes.Episode]:
        return Answer(encode(shown_episode(await episodes.get(caller, episode_id))), media_type=JSON)

    @delete("/{episode_id:str}", **gone(REMEMBER), summary="Forget an episode")
    async def remove(self, episode_id: FromPath[str], caller: Caller, episodes: Memory) -> Answer[None]:
        await episodes.remove(caller, episode_id)
        return Answer(b"", status_code=204)

    @post("/search", **SEARCH, status_code=200, summary="Find episodes by meaning")
    async def search(self, data: JSONBody[SearchBody], caller: Caller, episodes: Memory) -> Answer[shapes.Recalled]:
        since = None if data.since is None else data.since.timestamp()
        wanted = Wanted(agent=data.agent, session=data.session, min_reward=data.min_reward, since=since)
        question = Question(data.text, data.vector, data.embedder, data.k, wanted, data.exclude_abandoned)
        found = await episodes.search(caller, question)
        items = [{"score": score, "episode": shown_episode(episode)} for score, episode in found.items]
        return Answer(encode({"items": items, "embedder": found.embedder}), media_type=JSON)


class SyncRoutes(Controller):
    """Episodes in the order in which they came, for those who keep a copy."""

    path = "/v1/sync"
    tags = ["memory"]

    @get(**LIST, summary="Pull episodes that came after a cursor")
    async def pull(
        self,
        caller: Caller,
        sync: NamedDependency[Sync],
        cursor: FromQuery[str | None] = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Answer[shapes.Pulled]:
        return Answer(encode(_shown_pull(await sync.pull(caller, place_of(cursor), limit))), media_type=JSON)

    @post(**PUSH, status_code=200, summary="Push episodes and pull those that came after a cursor")
    async def push(
        self, data: JSONBody[SyncBody], acting: Acting, sync: NamedDependency[Sync]
    ) -> Answer[shapes.Pushed]:
        async def pushed() -> dict[str, Any]:
            read = [_read(acting, number, value) for number, value in enumerate(data.episodes)]
            well_formed = [spec for spec in read if not isinstance(spec, HoldfastError)]
            stored, pulled = await sync.push(acting.caller, well_formed, place_of(data.cursor), data.limit)
            _require_final(acting, stored)
            return {**_shown_pull(pulled), "pushed": _shown_each(_in_order(read, stored))}

        return await acting.answer(pushed, lambda told: Reply(200, encode(told)))


class RetentionRoutes(Controller):
    """How long episodes are kept, and how good they have to be."""

    path = "/v1/retention"
    tags = ["memory"]

    @get(**LIST, summary="Read what is kept")
    async def read(self, caller: Caller, retention: NamedDependency[Retention]) -> Answer[shapes.Retention]:
        return _shown_retention(await retention.decided(caller.tenant))

    @put(**DECIDE, summary="Decide what is kept; what is left out is not limited")
    async def decide(
        self, data: JSONBody[RetentionBody], caller: Caller, retention: NamedDependency[Retention]
    ) -> Answer[shapes.Retention]:
        caller.require_every_owner()
        return _shown_retention(await retention.decide(caller, data.given()))

    @post("/apply", **DECIDE, status_code=200, summary="Remove what is not kept now, or count it (dry_run)")
    async def apply(
        self, acting: Acting, retention: NamedDependency[Retention], data: JSONBody[ApplyBody | None] = None
    ) -> Answer[shapes.Retained]:
        acting.caller.require_every_owner()
        dry_run = data is not None and data.dry_run
        return await acting.answer(
            lambda: retention.apply(acting.caller.tenant, by=acting.caller.by, dry_run=dry_run),
            lambda done: Reply(200, encode({"dry_run": dry_run, "removed": done.removed, "counts": done.counts})),
        )


@get("/v1/presence", **LIST, summary="Show who is alive: runners and ephemeral agents", tags=["operations"])
async def presence(caller: Caller, census: NamedDependency[Census]) -> Answer[shapes.Presence]:
    """Who is alive."""
    return Answer(encode(await census.present(caller)), media_type=JSON)


@get("/v1/stats", **LIST, summary="Count what the tenant has", tags=["operations"])
async def stats(caller: Caller, census: NamedDependency[Census]) -> Answer[shapes.Stats]:
    """How much there is."""
    return Answer(encode(await census.counted(caller)), media_type=JSON)


def _shown_retention(decided: RetentionRecord) -> Answer[Any]:
    told = {"max_age_days": decided.max_age_days, "min_reward": decided.min_reward}
    return Answer(encode(told), media_type=JSON)


async def _each(episodes: Episodes, acting: ActCall, given: list[Any]) -> list[Stored]:
    """Store those that are well formed; of each what came of it."""
    read = [_read(acting, number, value) for number, value in enumerate(given)]
    stored = await episodes.store(acting.caller, [spec for spec in read if not isinstance(spec, HoldfastError)])
    _require_final(acting, stored)
    return _in_order(read, stored)


def _require_final(acting: ActCall, stored: Sequence[Stored]) -> None:
    """Raise what a later try may not meet again, where the answer would be kept; those that were stored stay so."""
    for one in stored:
        if acting.known_by is not None and isinstance(one, Unavailable):
            raise one


def _in_order(read: list[dict[str, Any] | HoldfastError], stored: list[Stored]) -> list[Stored]:
    """What came of each, those that could not be read among them."""
    came = iter(stored)
    return [spec if isinstance(spec, HoldfastError) else next(came) for spec in read]


def _read(acting: ActCall, number: int, value: Any) -> dict[str, Any] | HoldfastError:
    try:
        body: EpisodeBody = validated(value, EpisodeBody)
    except HoldfastError as error:
        return error
    return _named(acting, number, body.given())


def _named(acting: ActCall, number: int, given: dict[str, Any]) -> dict[str, Any]:
    """Sent again under its Idempotency-Key it is the same episode."""
    known = acting.known_by
    if known is None:
        return given
    said = hashlib.sha256(known.encode() + encode(given)).hexdigest()[:40]
    return {"id": f"{said}-{number}", **given}


def _told_of_one(stored: list[Stored]) -> Reply:
    (one,) = stored
    if isinstance(one, HoldfastError):
        raise one
    episode, new = one
    return Reply(201 if new else 200, encode(shown_episode(episode)), {"Location": f"/v1/episodes/{episode.name}"})


def _told_of_each(stored: list[Stored]) -> Reply:
    return Reply(207, encode({"items": _shown_each(stored)}))


def _shown_each(stored: list[Stored]) -> list[dict[str, Any]]:
    return [error_of(one) if isinstance(one, HoldfastError) else {"id": one[0].name} for one in stored]


def _shown_pull(pulled: Pulled) -> dict[str, Any]:
    return {"items": [shown_episode(episode) for episode in pulled.items], "cursor": pulled.cursor}
