"""A copy that an event was laid on is the document read anew, after any writes, on a real database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any
from uuid import uuid4

import orjson
import pytest
from bson.raw_bson import RawBSONDocument
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.synchronous.change_stream import CollectionChangeStream

from app.api import views
from app.api.answers import encode
from app.lanes import Limits, Request, Trial
from app.mongo import _RAW, decoded
from app.watcher import _event
from models import profile, results, tree
from models.agent import AgentRecord, create, delete
from models.commit import Guard
from models.event import Event, patched
from models.ids import ROOT
from models.tenant import ANONYMOUS
from tests.harness import rounds
from tests.unit.archive import Archive
from tests.unit.test_moves import STAMP, Move, moves

LIMITS = Limits(15 * 1024 * 1024, 600)
"""Few steps are too many, so that agents are sealed all the time."""
SECONDS = 20.0


@dataclass
class Watched:
    """A collection of agents and its change stream."""

    agents: Collection[RawBSONDocument]
    stream: CollectionChangeStream[RawBSONDocument]

    def next(self, key: str) -> Event:
        """The next event of an agent."""
        until = monotonic() + SECONDS
        while monotonic() < until:
            change = self.stream.try_next()
            if change is None:
                continue
            told = decoded(change.raw)
            event = _event(told, (told["clusterTime"].time, told["clusterTime"].inc))
            if event is not None and event.key == key:
                return event
        raise AssertionError(f"waited in vain for an event of {key}")

    def read(self, key: str) -> AgentRecord:
        """The document as it is."""
        raw = self.agents.find_one({"_id": key})
        assert raw is not None
        return AgentRecord.of(decoded(raw.raw), size_bytes=len(raw.raw))


@pytest.fixture(scope="module")
def watched(mongo_uri: str) -> Iterator[Watched]:
    with MongoClient[RawBSONDocument](mongo_uri) as client:
        database = client[f"events_{uuid4().hex[:12]}"]
        agents = database.create_collection("agents", codec_options=_RAW)
        with agents.watch(max_await_time_ms=100) as stream:
            yield Watched(agents, stream)
        client.drop_database(database)


def creating(key: str, **fields: Any) -> Move:
    draft = AgentRecord(id=key, tenant="default", **fields)
    return lambda record: create(record, draft, STAMP)


def deleting(record: AgentRecord) -> Any:
    return delete(record, STAMP)


def tried(archive: Archive, record: AgentRecord, size: int, batch: Sequence[Move]) -> Trial:
    """The moves as requests that wait for one agent; what can't share the update is left out."""
    nobody: Any = None
    requests = [
        Request(ANONYMOUS, lambda record, _, move=move: move(record), Guard(), None, not record.exists, nobody)
        for move in batch
    ]
    while True:
        trial = Trial(record, size, requests, STAMP, LIMITS)
        if not trial.lacking:
            archive.segments |= {key: segment for key, segment in trial.segments.items() if segment is not None}
            return trial
        record = archive.supplied(record, trial.lacking)


def shown(record: AgentRecord) -> bytes:
    """All that a caller sees, with what is stored apart as it stands."""
    return orjson.dumps(views.agent(record, "all"), default=repr, option=orjson.OPT_PASSTHROUGH_DATETIME)


class Copy:
    """An agent's document, and a copy of it that is only ever patched."""

    def __init__(self, watched: Watched) -> None:
        self.key = f"default:{uuid4().hex}"
        self._watched = watched
        self._size = 0
        self.archive = Archive()
        self.stored = self.copy = AgentRecord(id=self.key, tenant="default")

    def alike(self, copy: AgentRecord, anew: AgentRecord) -> None:
        """To a caller, to the store, and in bytes."""
        assert copy.document() == anew.document()
        assert copy.stored_bytes() == anew.size_bytes
        assert copy.version == anew.version
        if anew.exists:
            assert self.archive.asked(copy, shown) == self.archive.asked(anew, shown)

    def commit(self, *batch: Move) -> list[Any]:
        """Write a batch, lay its event on the copy, and compare; what the write's own event says is the same."""
        trial = tried(self.archive, self.stored, self._size, batch)
        if not trial.changes:
            return trial.changes
        write = trial.write()
        self._watched.agents.bulk_write([write])
        told = self._watched.next(self.key)
        anew = self._watched.read(self.key)
        assert trial.event is not None
        assert (told.before, told.version) == (self.stored.version, anew.version)
        assert told.whole == trial.event.whole == (self.stored.version == 0)
        self.alike(patched(self.stored, told), anew)
        self.alike(patched(self.stored, trial.event), anew)
        copy = patched(self.copy, told)
        self.copy = copy.model_copy(update={"size_bytes": copy.stored_bytes()})  # as the cache does
        self.alike(self.copy, anew)
        self.stored, self._size = anew, anew.size_bytes or 0
        return trial.changes


BOUNDED = settings(
    max_examples=rounds(120), deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
batches = st.lists(moves, min_size=1, max_size=5)
lives = st.lists(st.lists(batches, max_size=6), min_size=1, max_size=2)
"""What happens to an agent between its creation and its deletion, once or twice."""


@BOUNDED
@given(lives)
def test_patched_copy_is_the_document_after_any_writes(watched: Watched, lives: list[list[list[Move]]]) -> None:
    """Size in bytes included, from the creation on, over deletions, laid on what was patched before."""
    agent = Copy(watched)
    for life in lives:
        agent.commit(creating(agent.key, branch="main", labels={"a": "1"}))
        for batch in life:
            agent.commit(*batch)
        agent.commit(deleting)


ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63 - 1,
    1.0,
    -0.0,
    1e308,
    "",
    "ü\u2028",
    [],
    [[], [None], {}],
    {},
    {"": {"": 1}},
    {"a.b": {"$set": 1}},
    {"$ref": "c", "$id": 1},
    [{"$ref": "c", "$id": 1, "$db": "d", "x": 1}],
    {"$date": 0, "_id": 1},
    {"b": 1, "a": {"d": 1, "c": 2}},
    {str(number): number for number in (10, 2, 1)},
    "x" * 20_000,
]
"""JSON that a database might take for something else, or keep in another form or order."""


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:30])
def test_odd_values_are_patched_as_they_are_stored(watched: Watched, value: Any) -> None:
    """Wherever a caller's JSON may stand, overwritten and taken away again."""
    agent = Copy(watched)
    agent.commit(creating(agent.key, branch="main"))
    for chosen in (value, {"other": value}, [value, 1], value):
        step = uuid4().hex
        draft = tree.Draft(step, {"role": "user", "data": {"k": chosen}, "workspace": chosen}, chosen=True)
        agent.commit(lambda record, draft=draft: tree.append(record, [draft], STAMP))
        agent.commit(lambda record, chosen=chosen: results.put_workspace(record, chosen, STAMP))
        for key in ("k.$", "10", "2"):
            agent.commit(lambda record, key=key, chosen=chosen: results.put_result(record, key, ROOT, chosen, STAMP))
        agent.commit(lambda record, chosen=chosen: profile.patch_settings(record, {"own": chosen}, STAMP))
        agent.commit(lambda record, chosen=chosen: profile.set_delegate(record, {"user": {"k": chosen}}, STAMP))
    agent.commit(lambda record: profile.set_delegate(record, None, STAMP))
    agent.commit(lambda record: tree.clear(record, STAMP))


def test_branches_come_and_go_in_the_copy_as_in_the_document(watched: Watched) -> None:
    """In the same order, also when many come with one write."""
    agent = Copy(watched)
    agent.commit(creating(agent.key, branch="main"))
    for name in ("z", "a", "10", "9", "m.x"):
        agent.commit(lambda record, name=name: tree.set_branch(record, name, ROOT, STAMP))
    for name in ("z", "m.x"):
        agent.commit(lambda record, name=name: tree.delete_branch(record, name, STAMP))
        agent.commit(lambda record, name=name: tree.set_branch(record, name, ROOT, STAMP))


def test_many_appends_in_one_update_are_laid_on_the_copy(watched: Watched) -> None:
    """In whatever order their ids sort."""
    agent = Copy(watched)
    agent.commit(creating(agent.key, branch="main"))
    for count in (1, 40, 3):
        drafts = [[tree.Draft(uuid4().hex, {"role": "user"}) for _ in range(2)] for _ in range(count)]
        shared = agent.commit(*(lambda record, two=two: tree.append(record, two, STAMP) for two in drafts))
        assert len(shared) == count


def test_old_op_slots_are_overwritten_in_the_copy(watched: Watched) -> None:
    """After more versions than there are slots."""
    agent = Copy(watched)
    agent.commit(creating(agent.key, branch="main"))
    for number in range(70):
        agent.commit(lambda record, number=number: profile.patch_profile(record, {"name": f"{number}"}, STAMP))
    assert len(agent.copy.ops) == 64


def test_nothing_of_the_record_before_is_changed(watched: Watched) -> None:
    """Snapshots stay as they are: someone may be reading them."""
    agent = Copy(watched)
    agent.commit(creating(agent.key, branch="main"))
    agent.commit(lambda record: results.put_result(record, "k", ROOT, {"x": [1]}, STAMP))
    before, document = agent.copy, encode({**agent.copy.document(), "ops": None})
    agent.commit(lambda record: results.put_result(record, "k", ROOT, {"y": 1}, STAMP))
    agent.commit(lambda record: tree.append(record, [tree.Draft("s", {"role": "user"})], STAMP))
    agent.commit(deleting)
    assert encode({**before.document(), "ops": None}) == document


def test_an_event_of_a_later_release_is_laid_on_the_copy_without_harm() -> None:
    """Fields and maps that this release has never heard of: the stream of a rolling upgrade brings them."""
    record = AgentRecord(id="t:a", tenant="t", version=1)
    sets = {"name": "new", "later": 1, "maps.key": 2, "maps.deep.er": 3, "version": 2, "last": {"from": 1, "v": 2}}
    after = patched(record, Event("t:a", (1, 1), sets, ["gone.key"]))
    assert (after.version, after.name) == (2, "new")
    again = {"maps.key": 4, "version": 3, "last": {"from": 2, "v": 3}}
    assert patched(after, Event("t:a", (1, 2), again)).version == 3
