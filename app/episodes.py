"""Episodes: every verb of the contract about what agents learned: store, read, list, remove, search by meaning.

An episode is acknowledged when a majority holds it, and never changed. What it is found by is made before it is
written, so that a search on any replica compares like with like.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from pymongo.errors import BulkWriteError

from app.acts import Acts
from app.clock import Clock
from app.embedding import EmbedderProblem, Embedding, Vectors
from app.filling import Filling
from app.mongo import Mongo, parsed, require_small, unavailable_when_failing
from app.reads import Freshness, Reads
from app.recall import Recall
from app.segments import Gone
from app.vectors import Found, Row, Space, Wanted, unit
from models.act import FORGOTTEN
from models.agent import AgentRecord
from models.blob import Damaged
from models.entry import entry_key_of_episode
from models.episode import GIVEN, EpisodeRecord, says_the_same, text_of
from models.errors import Conflict, HoldfastError, InvalidRequest, NotFound, Unavailable
from models.ids import keys_within, tenant_key
from models.path import upwards
from models.tenant import Scope

_DUPLICATE = 11000
_NO_TIME = "The embedder had no time for it: send it again, with fewer others, or with an embedding."
_LOOKED_AT = 20
"""How many results are looked at for each that is asked for, where abandoned ones are left out."""


Stored = tuple[EpisodeRecord, bool] | HoldfastError
"""An episode, and whether it is new; or what was wrong with it."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is searched for: a text or a vector (as `embedder` made it), and how many of what is wanted."""

    text: str | None
    vector: Sequence[float] | None
    embedder: str | None
    k: int
    wanted: Wanted
    exclude_abandoned: bool


@dataclass(frozen=True, slots=True)
class Recalled:
    """What was found, the most similar first, and what made the vectors."""

    embedder: str
    items: list[tuple[float, EpisodeRecord]]


class Episodes:
    """Episodes of all tenants. What fails raises Unavailable."""

    def __init__(
        self,
        mongo: Mongo,
        acts: Acts,
        reads: Reads,
        filling: Filling,
        embedding: Embedding,
        recall: Recall,
        clock: Clock,
        acknowledged: Callable[[str], None],
        *,
        spaces: Mapping[str, int],
        embedding_seconds: float,
        seconds: float,
    ) -> None:
        self._mongo = mongo
        self._acts = acts
        self._reads = reads
        self._filling = filling
        self._embedding = embedding
        self._recall = recall
        self._clock = clock
        self._acknowledged = acknowledged
        self._spaces = {embedding.name: embedding.dimension, **spaces}
        self._embedding_seconds = embedding_seconds
        self._seconds = seconds

    async def store(self, scope: Scope, given: Sequence[Mapping[str, Any]]) -> list[Stored]:
        """What came of each, in their order.

        One that was stored before with the same id and content is answered as at first.
        """
        drawn = await self._drawn_up(scope, given)
        new = [each for each in drawn if isinstance(each, EpisodeRecord)]
        taken = await self._insert(new)
        known = await self._known(taken)
        answers: list[Stored] = []
        for number, each in enumerate(drawn):
            if isinstance(each, HoldfastError) or each.id not in taken:
                answers.append(each if isinstance(each, HoldfastError) else (each, True))
                continue
            there = known.get(each.id)
            told = given[number]
            if there is None or not scope.sees(there.tenant, there.owner) or not says_the_same(there, each, told):
                answers.append(Conflict(f"There is an episode '{each.name}' already, with other content."))
            else:
                answers.append((there, False))
        return answers

    async def get(self, scope: Scope, name: str) -> EpisodeRecord:
        """An episode of the scope. Raises NotFound."""
        with unavailable_when_failing(self._seconds):
            found = await self._mongo.episodes.find_one(
                scope.filter({"_id": tenant_key(scope.tenant, name, "episode")})
            )
        if found is None:
            raise NotFound(f"There is no episode '{name[:64]}'.")
        return parsed(EpisodeRecord, found)

    async def remove(self, scope: Scope, name: str) -> None:
        """Forget an episode. Raises NotFound."""
        there = await self.get(scope, name)
        with unavailable_when_failing(self._seconds):
            await self._acts.tell(scope, FORGOTTEN, did="removed", episode=name)
            await self._mongo.episodes.delete_one(scope.filter({"_id": there.id}))
        self._recall.removed(there.id)

    async def page(
        self, scope: Scope, query: Mapping[str, Any], *, after: str | None, limit: int
    ) -> list[EpisodeRecord]:
        """Episodes of the scope, in the order of their ids."""
        wanted = scope.filter({**query, "_id": keys_within(scope.tenant, after or "")})
        with unavailable_when_failing(self._seconds):
            found = await self._mongo.episodes.find(wanted).sort("_id", 1).limit(limit).to_list()
        return await asyncio.to_thread(_parsed, found)

    async def placed(self, scope: Scope, *, after: str, upto: str, limit: int) -> list[EpisodeRecord]:
        """Episodes of the scope between two places of the change log, in its order."""
        wanted = scope.filter({"position": {"$gt": after, "$lte": upto}})
        with unavailable_when_failing(self._seconds):
            found = await self._mongo.episodes.find(wanted).sort("position", 1).limit(limit).to_list()
        return await asyncio.to_thread(_parsed, found)

    async def search(self, scope: Scope, question: Question) -> Recalled:
        """The most similar episodes. Raises InvalidRequest for a vector that can't be compared."""
        embedder, vector = await self._asked(question)
        space = await self._recall.space(scope.tenant, embedder, self._spaces[embedder])
        wanted = replace(question.wanted, owner=scope.owner, now=self._clock.now().timestamp())
        found = await asyncio.to_thread(_first, space, vector, wanted, question)
        if question.exclude_abandoned:
            found = await self._on_a_path(scope, found)
        return Recalled(embedder, await self._told(scope, found[: question.k]))

    async def _drawn_up(self, scope: Scope, given: Sequence[Mapping[str, Any]]) -> list[EpisodeRecord | HoldfastError]:
        texts = {number: text_of(spec) for number, spec in enumerate(given) if spec.get("embedding") is None}
        made = await self._embedded(list(texts.values()))
        vectors: dict[int, Row] = dict(zip(texts, made, strict=False))
        drawn: list[EpisodeRecord | HoldfastError] = []
        for number, spec in enumerate(given):
            try:
                embedder = self._embedder_of(spec)
                vector = vectors.get(number) if number in texts else self._comparable(spec["embedding"], embedder)
                if vector is None:
                    raise Unavailable(_NO_TIME)
                drawn.append(self._record(scope, spec, embedder, vector))
            except HoldfastError as error:
                drawn.append(error)
        return drawn

    def _record(self, scope: Scope, spec: Mapping[str, Any], embedder: str, vector: Row) -> EpisodeRecord:
        require_small({name: spec.get(name) for name in GIVEN}, "The episode")
        now = self._clock.now()
        return EpisodeRecord(
            id=tenant_key(scope.tenant, spec.get("id") or self._clock.new_id(), "episode"),
            tenant=scope.tenant,
            owner=scope.owner,
            embedder=embedder,
            vector=vector.astype("<f4").tobytes(),
            by=scope.by,
            stored_at=now,
            created_at=spec.get("created_at") or now,
            expires_at=spec.get("expires_at"),
            **{name: spec[name] for name in GIVEN if name in spec},
        )

    def _embedder_of(self, spec: Mapping[str, Any]) -> str:
        """What made, or is to make, the vector."""
        embedder: str = spec.get("embedder") or self._embedding.name
        if embedder != self._embedding.name and spec.get("embedding") is None:
            raise InvalidRequest(f"Send the embedding that '{embedder}' made: this service has another.")
        return embedder

    def _comparable(self, values: Sequence[float], embedder: str) -> Row:
        """A caller's vector, of length 1. Raises InvalidRequest."""
        dimension = self._spaces.get(embedder)
        if dimension is None:
            known = ", ".join(sorted(self._spaces))
            raise InvalidRequest(f"Nothing is known of the embedder '{embedder[:64]}'; known are {known}.")
        if len(values) != dimension:
            raise InvalidRequest(f"A vector of '{embedder}' has {dimension} numbers, not {len(values)}.")
        vector = unit(values)
        if vector is None:
            raise InvalidRequest("A vector of zeros, or of numbers that are too great, points nowhere.")
        return vector

    async def _asked(self, question: Question) -> tuple[str, Row]:
        embedder = question.embedder or self._embedding.name
        if question.vector is not None:
            return embedder, self._comparable(question.vector, embedder)
        if embedder != self._embedding.name:
            raise InvalidRequest(f"Texts are compared by '{self._embedding.name}'; for '{embedder}' send a vector.")
        made = await self._embedded([question.text or ""])
        if not len(made):
            raise Unavailable(_NO_TIME)
        return embedder, made[0]

    async def _embedded(self, texts: Sequence[str]) -> Vectors:
        """The vectors of the first texts: of as many as there was time for. Raises Unavailable."""
        try:
            return await self._embedding.embed(texts, self._embedding_seconds)
        except EmbedderProblem as problem:
            raise Unavailable(str(problem)) from problem

    async def _insert(self, episodes: Sequence[EpisodeRecord]) -> set[str]:
        """Write what is new; the ids that were taken."""
        taken: set[str] = set()
        if not episodes:
            return taken
        documents = [episode.model_dump(by_alias=True, exclude_none=True) for episode in episodes]
        with unavailable_when_failing(self._seconds):
            try:
                await self._mongo.episodes.insert_many(documents, ordered=False)
            except BulkWriteError as error:
                problems = error.details["writeErrors"]
                unsure = error.details["writeConcernErrors"]
                if unsure or any(each["code"] != _DUPLICATE for each in problems):
                    raise
                taken = {documents[each["index"]]["_id"] for each in problems}
        for document in documents:
            if document["_id"] not in taken:
                self._recall.heard(document)
                self._acknowledged(entry_key_of_episode(document))
        return taken

    async def _known(self, keys: set[str]) -> dict[str, EpisodeRecord]:
        if not keys:
            return {}
        with unavailable_when_failing(self._seconds):
            # unscoped: the keys begin with the tenant
            found = await self._mongo.episodes.find({"_id": {"$in": list(keys)}}).to_list()
        return {episode.id: episode for episode in await asyncio.to_thread(_parsed, found)}

    async def _on_a_path(self, scope: Scope, found: Sequence[Found]) -> list[Found]:
        """Those whose step is on the path of HEAD or of a named branch; of an agent that is gone nothing is known."""
        paths: dict[str, frozenset[str] | None] = {}
        kept = []
        for one in found:
            agent, step = one.facts.agent, one.facts.step
            if agent is not None and step is not None:
                if agent not in paths:
                    paths[agent] = await self._paths(scope, agent)
                path = paths[agent]
                if path is not None and step not in path:
                    continue
            kept.append(one)
        return kept

    async def _paths(self, scope: Scope, agent: str) -> frozenset[str] | None:
        for freshness in (Freshness(), Freshness(strong=True)):
            try:
                seen = await self._reads.agent(scope, agent, freshness)
                _, steps = await self._filling.answered(seen.record, _kept_steps)
            except NotFound:
                return None
            except Gone:  # cleared or deleted since it was read
                continue
            except Damaged:  # which is not for a search to say
                return None
            return steps
        return None

    async def _told(self, scope: Scope, found: Sequence[Found]) -> list[tuple[float, EpisodeRecord]]:
        known = await self._known({one.facts.id for one in found})
        return [
            (one.score, episode)
            for one in found
            if (episode := known.get(one.facts.id)) is not None and scope.sees(episode.tenant, episode.owner)
        ]


def _parsed(found: Sequence[Mapping[str, Any]]) -> list[EpisodeRecord]:
    """Records of documents; in a thread, for what was said in them may be long."""
    return [parsed(EpisodeRecord, document) for document in found]


def _first(space: Space, vector: Row, wanted: Wanted, question: Question) -> list[Found]:
    most = question.k * _LOOKED_AT if question.exclude_abandoned else question.k
    return list(islice(space.search(vector, wanted), most))


def _kept_steps(record: AgentRecord) -> frozenset[str]:
    """Every step on the path of HEAD or of a named branch."""
    return frozenset(_steps(record))


def _steps(record: AgentRecord) -> Iterator[str]:
    seen: set[str] = set()
    for tip in {record.head, *record.branches.values()}:
        for step in upwards(record, tip):
            if step in seen:
                break
            seen.add(step)
            yield step
