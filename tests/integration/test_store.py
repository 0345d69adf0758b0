"""Each way in which a commit can end, on a real database whose answers are lost, late or refused at chosen points."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import Context
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from pymongo import InsertOne
from pymongo.errors import AutoReconnect, BulkWriteError

from app.blobs import Blobs
from app.clock import SystemClock
from app.config import Settings
from app.lanes import Committed, Once
from app.mongo import Mongo, open_client
from app.segments import Segments
from app.store import Store
from app.telemetry import Metrics
from app.tracing import Tracing
from models.agent import AgentRecord, create, delete
from models.change import OP_SLOTS, Change, Stamp
from models.commit import Guard, Reply
from models.errors import (
    Conflict,
    HoldfastError,
    IdempotencyMismatch,
    NotFound,
    TooLarge,
    Unavailable,
    VersionConflict,
)
from models.event import Event
from models.ids import ROOT
from models.profile import patch_profile, patch_settings
from models.results import put_result
from models.tenant import ANONYMOUS, Scope
from models.tree import Draft, append
from tests.harness import wait_until_async

pytestmark = pytest.mark.asyncio

Call = Callable[[], Awaitable[Any]]
Fault = Callable[[Call], Awaitable[Any]]

AGENT = "agent"
SECONDS = 20.0


async def lost_before(_: Call) -> Any:
    """The request never reaches the database."""
    raise AutoReconnect("lost on the way there")


async def lost_after(call: Call) -> Any:
    """The database carries it out, the answer never arrives."""
    await call()
    raise AutoReconnect("lost on the way back")


async def refused(_: Call) -> Any:
    """The server will not have it."""
    raise BulkWriteError({"writeErrors": [{"index": 0, "code": 10334}], "nMatched": 0, "nInserted": 0})


async def through(call: Call) -> Any:
    """Nothing happens to it."""
    return await call()


class Gate:
    """Holds a call until it is opened, whatever time limit the call began under; tells when the call has come."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, call: Call) -> Any:
        self.reached.set()
        await asyncio.wait_for(self.opened.wait(), SECONDS)
        async with asyncio.TaskGroup() as group:
            late = group.create_task(_awaited(call), context=Context())
        return late.result()

    async def wait(self) -> None:
        await asyncio.wait_for(self.reached.wait(), SECONDS)

    def open(self) -> None:
        self.opened.set()


async def _awaited(call: Call) -> Any:
    return await call()


class Faulty:
    """A collection whose next calls of a method end as planned; the rest go through."""

    def __init__(self, collection: Any, method: str) -> None:
        self._collection = collection
        self._method = method
        self.planned: deque[Fault] = deque()
        self.sent: list[Any] = []
        """The first argument of each call."""

    def __getattr__(self, name: str) -> Any:
        original = getattr(self._collection, name)
        if name != self._method:
            return original

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.sent.append(args[0])
            fault = self.planned.popleft() if self.planned else through
            return await fault(lambda: original(*args, **kwargs))

        return call


class Deaf:
    """An observer whom nothing that the store tells concerns."""

    def wrote(self, event: Event) -> None:
        """Nothing."""

    def knows(self, key: str, version: int) -> None:
        """Nothing."""


@dataclass
class Bench:
    """A store whose writes, reads and stored values can be made to fail, and the database behind them."""

    store: Store
    mongo: Mongo
    metrics: Metrics
    writes: Faulty
    reads: Faulty
    values: Faulty

    async def commit(self, move: Any, scope: Scope = ANONYMOUS, agent: str = AGENT, **terms: Any) -> Committed:
        return await asyncio.wait_for(self.store.commit(scope, agent, move, **terms), SECONDS)

    async def stored(self, agent: str = AGENT) -> AgentRecord:
        """The document as it is, around the store."""
        document = await self.mongo.agents.find_one({"_id": f"default:{agent}"})
        assert document is not None
        return AgentRecord.of(document)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"holdfast_{name}_total", labels or None) or 0.0


Benches = Callable[..., Any]


@pytest.fixture
async def benches(mongo_uri: str) -> AsyncIterator[Benches]:
    """Makes stores over one fresh database: each stands for another replica."""
    database = f"store_{uuid4().hex[:12]}"
    async with AsyncExitStack() as stack:

        async def make(**settings: Any) -> Bench:
            return await stack.enter_async_context(_bench(mongo_uri, database, settings))

        yield make
        last: Bench = await make()
        await last.mongo.client.drop_database(database)


@asynccontextmanager
async def _bench(uri: str, database: str, chosen: dict[str, Any]) -> AsyncIterator[Bench]:
    settings = Settings(mongodb_database=database, **chosen)
    mongo = Mongo.of(open_client(uri), database)
    await mongo.prepare()
    writes = Faulty(mongo.agents, "bulk_write")
    reads = Faulty(mongo.agents_raw, "find_one")
    values = Faulty(mongo.blobs, "bulk_write")
    metrics = Metrics()
    faulty: Any = {"agents": writes, "agents_raw": reads}
    apart: Any = {"blobs": values}
    blobs = Blobs(replace(mongo, **apart), limit_bytes=settings.blob_bytes, seconds=settings.call_seconds)
    segments = Segments(mongo, limit_bytes=settings.segment_bytes, seconds=settings.call_seconds)
    store = Store(replace(mongo, **faulty), settings, SystemClock(), metrics, Tracing(None), Deaf(), blobs, segments)
    try:
        yield Bench(store, mongo, metrics, writes, reads, values)
    finally:
        await store.stop()
        await mongo.client.close()


@pytest.fixture
async def bench(benches: Benches) -> Bench:
    """A store with one agent at version 1."""
    made: Bench = await benches()
    await made.commit(creating(), creates=True)
    made.writes.sent.clear()
    made.reads.sent.clear()
    return made


def creating(agent: str = AGENT) -> Any:
    draft = AgentRecord(id=f"default:{agent}", tenant="default")
    return lambda previous, stamp: create(previous, draft, stamp)


def naming(name: str) -> Any:
    return lambda record, stamp: patch_profile(record, {"name": name}, stamp)


def setting(key: str, value: Any = 1) -> Any:
    return lambda record, stamp: patch_settings(record, {key: value}, stamp)


def appending(step: str, **given: Any) -> Any:
    drafts = [Draft(step, {"role": "user", **given})]
    return lambda record, stamp: append(record, drafts, stamp)


def binding(key: str, result: Any, step: str | None = None) -> Any:
    return lambda record, stamp: put_result(record, key, step, result, stamp)


def refusing(record: AgentRecord, stamp: Stamp) -> Change:
    raise Conflict(f"never at {record.version}")


def once(key: str, digest: str = "body") -> Once:
    async def encode(done: Committed) -> Reply:
        return Reply(201, str(done.record.version).encode(), {"ETag": "x"})

    return Once(key, digest, encode)


async def test_applied_write_is_in_the_document_with_its_envelope_and_op(bench: Bench) -> None:
    """Applied: the document is what the caller was told, with `last` and the op slot of its version."""
    done = await bench.commit(naming("Ada"))
    stored = await bench.stored()
    assert done.changed
    assert stored.document() == done.record.document()
    assert (stored.version, stored.name) == (2, "Ada")
    assert {key: value for key, value in stored.last.items() if value is not None} == {
        "from": 1,
        "v": 2,
        "kinds": ["agent"],
        "at": stored.updated_at,
        "by": "anonymous",
    }
    assert set(stored.ops) == {"1", "2"}
    assert len(set(stored.ops.values())) == 2


async def test_every_update_is_guarded_by_the_version_it_was_decided_on(bench: Bench) -> None:
    """The filter of each update carries id, tenant and version."""
    for number in range(3):
        await bench.commit(setting(f"k{number}"))
    guards = [write._filter for flight in bench.writes.sent for write in flight]
    assert guards == [{"_id": f"default:{AGENT}", "tenant": "default", "version": 1 + n} for n in range(3)]


async def test_unchanged_agent_is_not_written(bench: Bench) -> None:
    """Unchanged: a move that assigns nothing sends nothing and leaves the version."""
    await bench.commit(naming("Ada"))
    sent = len(bench.writes.sent)
    done = await bench.commit(naming("Ada"))
    assert not done.changed
    assert done.record.version == 2
    assert len(bench.writes.sent) == sent


async def test_refusal_from_memory_is_checked_against_the_database(benches: Benches, bench: Bench) -> None:
    """Refused: what this replica remembers may be old, so a refusal is made only on what a linearizable read shows."""
    other: Bench = await benches()
    await bench.commit(naming("Ada"))
    await other.commit(appending("theirs"))

    def needs_theirs(record: AgentRecord, stamp: Stamp) -> Change:
        if "theirs" not in record.steps:
            raise Conflict("not there")
        return patch_settings(record, {"found": 1}, stamp)

    done = await bench.commit(needs_theirs)
    assert done.record.version == 4
    with pytest.raises(Conflict, match="never at 4"):
        await bench.commit(refusing)
    assert (await bench.stored()).version == 4


async def test_no_op_from_memory_is_checked_against_the_database(benches: Benches, bench: Bench) -> None:
    """Unchanged, too, is said only of the agent as it is: another replica's write is not taken for one's own."""
    other: Bench = await benches()
    await bench.commit(naming("Ada"))
    await other.commit(naming("Eve"))
    done = await bench.commit(naming("Ada"))
    assert (done.changed, done.record.version) == (True, 4)
    assert (await bench.stored()).name == "Ada"


async def test_guard_on_an_old_version_is_refused(benches: Benches, bench: Bench) -> None:
    """Refused: a guard that this replica's memory still satisfies fails once another replica has moved the version."""
    other: Bench = await benches()
    await bench.commit(naming("Ada"))
    await other.commit(naming("Eve"))
    with pytest.raises(VersionConflict) as caught:
        await bench.commit(naming("Ada again"), guard=Guard(version=2))
    assert caught.value.fields == {"expected": 2, "actual": 3}
    assert (await bench.stored()).name == "Eve"


async def test_unknown_agent_is_not_found(bench: Bench) -> None:
    """Refused: no agent, a foreign owner's agent and a deleted one read the same."""
    foreign = replace(ANONYMOUS, owner="eve")
    with pytest.raises(NotFound):
        await bench.commit(naming("x"), agent="nobody")
    with pytest.raises(NotFound):
        await bench.commit(naming("x"), scope=foreign)
    await bench.commit(delete)
    with pytest.raises(NotFound):
        await bench.commit(naming("x"))


async def test_too_large_agent_is_refused_before_it_is_sent(benches: Benches) -> None:
    """Refused: what would break the size limit is not sent, and the agent stays usable."""
    small: Bench = await benches(agent_limit_bytes=64 * 1024)
    await small.commit(creating(), creates=True)
    await small.commit(setting("big", "x" * 40_000))
    sent = len(small.writes.sent)
    with pytest.raises(TooLarge):
        await small.commit(setting("more", "x" * 40_000))
    assert len(small.writes.sent) == sent
    assert (await small.commit(setting("big", "y" * 40_000))).record.version == 3


async def test_replayed_request_has_no_second_effect_on_any_replica(benches: Benches, bench: Bench) -> None:
    """Replayed: the same key gives the first reply, before its guard is looked at; another body is a mismatch."""
    other: Bench = await benches()
    first = await bench.commit(naming("Ada"), once=once("key"))
    await other.commit(naming("Eve"))
    for replica in (bench, other):
        again = await replica.commit(naming("Ada"), once=once("key"), guard=Guard(version=1))
        assert again.replay == Reply(201, b"2", {"ETag": "x"})
        with pytest.raises(IdempotencyMismatch):
            await replica.commit(naming("Ada"), once=once("key", "another body"))
    assert first.replay is None
    assert (await bench.stored()).version == 3


async def test_same_key_at_once_is_refused_while_the_first_runs(bench: Bench) -> None:
    """A second request with the key of one that still runs here is a Conflict, with the time to ask again."""
    gate = Gate()
    bench.writes.planned.append(gate)
    first = asyncio.create_task(bench.commit(naming("Ada"), once=once("key")))
    await gate.wait()
    with pytest.raises(Conflict) as caught:
        await bench.commit(naming("Ada"), once=once("key"))
    gate.open()
    assert (await first).record.version == 2
    assert caught.value.fields == {"retry_after": 1}


async def test_refused_keyed_request_leaves_no_record(bench: Bench) -> None:
    """Only accepted requests are remembered under their key."""
    with pytest.raises(Conflict):
        await bench.commit(refusing, once=once("key"))
    assert (await bench.commit(naming("Ada"), once=once("key"))).replay is None


@pytest.mark.parametrize("fault", [lost_before, lost_after])
async def test_keyed_request_cut_off_in_its_transaction_has_one_effect(bench: Bench, fault: Fault) -> None:
    """A transaction that lost its connection is over, and its request runs anew: one effect, no lock left behind."""
    bench.writes.planned.append(fault)
    done = await bench.commit(appending("one"), once=once("key"))
    assert done.record.version == 2
    assert (await bench.commit(appending("one"), once=once("key"))).replay is not None
    assert (await bench.commit(naming("Ada"))).record.version == 3
    assert list((await bench.stored()).steps) == ["one"]


async def test_rebased_writes_of_two_replicas_all_land(benches: Benches, bench: Bench) -> None:
    """Rebased: of two replicas that decide on the same version both succeed, one a version later; none is lost."""
    other: Bench = await benches()
    await bench.commit(naming("Ada"))
    await other.commit(naming("Bea"))
    done = await asyncio.gather(*(replica.commit(setting(f"{n}")) for n, replica in enumerate((bench, other) * 10)))
    assert sorted(committed.record.version for committed in done) == list(range(4, 24))
    assert len((await bench.stored()).settings) == 20
    assert bench.count("rebases") + other.count("rebases") >= 1


async def test_unknown_write_that_was_applied_is_settled_as_applied(bench: Bench) -> None:
    """Unknown: the answer was lost after the write; the same write is sent again, and its op id tells it was ours."""
    bench.writes.planned.append(lost_after)
    done = await bench.commit(appending("one"))
    stored = await bench.stored()
    assert (done.record.version, stored.version, list(stored.steps)) == (2, 2, ["one"])
    assert len(bench.writes.sent) == 2
    assert bench.writes.sent[0] == bench.writes.sent[1]
    assert bench.count("settled_outcomes", **{"as": "applied"}) == 1


async def test_unknown_write_that_was_not_applied_is_sent_until_it_is(bench: Bench) -> None:
    """Unknown: the write was lost on its way; sending it again applies it, once."""
    bench.writes.planned.extend([lost_before] * 3)
    done = await bench.commit(appending("one"))
    assert done.record.version == 2
    assert (await bench.stored()).steps["one"]["version"] == 2
    assert bench.count("unknown_outcomes") == 1


async def test_unknown_create_that_was_applied_is_settled_as_applied(benches: Benches) -> None:
    """Unknown: an insert whose answer was lost is not taken for another's agent of that id."""
    made: Bench = await benches()
    made.writes.planned.append(lost_after)
    assert (await made.commit(creating(), creates=True)).record.version == 1
    with pytest.raises(Conflict):
        await made.commit(creating(), creates=True)


async def test_unknown_write_overtaken_by_another_is_settled_as_missed(benches: Benches, bench: Bench) -> None:
    """Unknown: another replica took the version meanwhile, so the write is known to have missed and is rebased."""
    other: Bench = await benches()
    gate = Gate()

    async def lost_and_overtaken(_: Call) -> Any:
        await gate(through_nothing)
        raise AutoReconnect("lost on the way there")

    bench.writes.planned.append(lost_and_overtaken)
    mine = asyncio.create_task(bench.commit(appending("mine")))
    await gate.wait()
    await other.commit(appending("theirs"))
    gate.open()
    assert (await mine).record.version == 3
    steps = (await bench.stored()).steps
    assert [(step, body["seq"], body["version"]) for step, body in steps.items()] == [("theirs", 1, 2), ("mine", 2, 3)]
    assert bench.count("settled_outcomes", **{"as": "missed"}) == 1


async def through_nothing() -> None:
    """Stands for a call that is not made."""


async def test_applied_unknown_write_overtaken_by_another_is_not_doubled(benches: Benches, bench: Bench) -> None:
    """Unknown: applied, its answer lost, and the version moved on by another: the op slot still tells it was ours."""
    other: Bench = await benches()
    gate = Gate()

    async def lost_after_others(call: Call) -> Any:
        await call()
        await gate(through_nothing)
        raise AutoReconnect("lost on the way back")

    bench.writes.planned.append(lost_after_others)
    mine = asyncio.create_task(bench.commit(setting("counter")))
    await gate.wait()
    for number in range(5):
        await other.commit(setting(f"theirs{number}"))
    gate.open()
    assert (await mine).record.version == 2
    assert (await bench.stored()).version == 7


async def test_unknown_write_buried_under_many_others_is_said_to_be_unknown(benches: Benches, bench: Bench) -> None:
    """Unknown for good: when the op slot may have been used again, the caller is told so, and nothing is repeated."""
    other: Bench = await benches()
    gate = Gate()

    async def lost_after_many(call: Call) -> Any:
        await call()
        await gate(through_nothing)
        raise AutoReconnect("lost on the way back")

    bench.writes.planned.append(lost_after_many)
    mine = asyncio.create_task(bench.commit(appending("mine")))
    await gate.wait()
    for number in range(OP_SLOTS):
        await other.commit(setting(f"theirs{number}"))
    gate.open()
    with pytest.raises(Unavailable) as caught:
        await mine
    assert caught.value.fields == {"written": None}
    assert (await bench.stored()).step_count == 1


async def test_write_in_a_shared_flight_that_partly_missed_is_settled_alone(benches: Benches) -> None:
    """Unsure: of two agents in one flight only one was overtaken; each write gets its own, true end."""
    mine: Bench = await benches(flights=1)
    other: Bench = await benches()
    for agent in ("first", "second", "third"):
        await mine.commit(creating(agent), agent=agent, creates=True)
    await other.commit(setting("theirs"), agent="second")
    gate = Gate()
    mine.writes.planned.append(gate)
    ends = [asyncio.create_task(mine.commit(setting("mine"), agent=agent)) for agent in ("first", "second", "third")]
    await gate.wait()
    await wait_until_async(lambda: len(mine.store._bulk._waiting) == 2, SECONDS, "two writes to wait for the flight")
    gate.open()
    assert [done.record.version for done in await asyncio.gather(*ends)] == [2, 3, 2]
    assert any(len(flight) == 2 for flight in mine.writes.sent)


async def test_server_that_refuses_a_write_is_said_to_have_written_nothing(bench: Bench) -> None:
    """A write that the server will not have ends as Unavailable with `written: false`."""
    bench.writes.planned.append(refused)
    with pytest.raises(Unavailable) as caught:
        await bench.commit(naming("Ada"))
    assert caught.value.fields == {"written": False}
    assert (await bench.commit(naming("Bea"))).record.version == 2


async def test_refusal_after_a_lost_answer_does_not_deny_the_write(bench: Bench) -> None:
    """A server that refuses the repetition of a write that it has applied is not taken as proof that it has not."""
    bench.writes.planned.extend([lost_after, refused])
    with pytest.raises(Unavailable) as caught:
        await bench.commit(naming("Ada"))
    assert caught.value.fields == {"written": None}
    assert (await bench.stored()).name == "Ada"


async def test_too_late_before_sending_is_never_written(benches: Benches, bench: Bench) -> None:
    """Too late, never sent: whoever was told `written: false` while the agent was being read finds nothing written."""
    hasty: Bench = await benches(deadline_seconds=0.4)
    gate = Gate()
    hasty.reads.planned.append(gate)
    with pytest.raises(Unavailable) as caught:
        await hasty.commit(naming("Ada"))
    assert caught.value.fields == {"written": False}
    gate.open()
    await hasty.store.stop()
    assert hasty.writes.sent == []
    assert (await bench.stored()).version == 1


async def test_too_late_while_values_are_stored_is_never_written(benches: Benches, bench: Bench) -> None:
    """What lies apart is stored before the write; whoever was told `written: false` meanwhile finds nothing written."""
    hasty: Bench = await benches(deadline_seconds=1, attempt_seconds=10)
    gate = Gate()
    hasty.values.planned.append(gate)
    with pytest.raises(Unavailable) as caught:
        await hasty.commit(appending("large", content="x" * 20_000))
    assert caught.value.fields == {"written": False}
    gate.open()
    await hasty.store.stop()
    assert hasty.values.sent
    assert hasty.writes.sent == []
    assert (await bench.stored()).version == 1


async def test_too_late_after_sending_is_settled_all_the_same(benches: Benches, bench: Bench) -> None:
    """Too late, sent: the caller is told that it is not known; the write still comes to its end."""
    hasty: Bench = await benches(deadline_seconds=0.4, attempt_seconds=10)
    gate = Gate()
    hasty.writes.planned.extend([lost_before, gate])
    with pytest.raises(Unavailable) as caught:
        await hasty.commit(naming("Ada"))
    assert caught.value.fields == {"written": None}
    gate.open()
    await hasty.store.stop()
    assert (await bench.stored()).name == "Ada"


async def test_requests_that_wait_are_folded_into_one_update(bench: Bench) -> None:
    """Folded: what waits for the same agent becomes one update, each with its own version; a refused one has none."""
    ends = await _behind_a_gate(bench, [setting("a"), appending("one"), refusing, naming("Ada"), setting("a")])
    versions = [end.record.version if isinstance(end, Committed) else end for end in ends]
    assert versions[:2] + versions[3:] == [3, 4, 5, 5]
    assert isinstance(versions[2], Conflict)
    assert "never at 4" in str(versions[2])
    assert [len(flight) for flight in bench.writes.sent] == [1, 1]
    stored = await bench.stored()
    assert (stored.version, stored.steps["one"]["version"], stored.name) == (5, 4, "Ada")
    assert {key: stored.last[key] for key in ("from", "v", "kinds")} == {
        "from": 2,
        "v": 5,
        "kinds": ["settings", "step", "head", "agent"],
    }
    assert set(stored.ops) == {"1", "2", "5"}
    assert bench.count("folded_requests") == 2


async def test_folded_update_whose_answer_was_lost_is_settled_as_one(bench: Bench) -> None:
    """Folded and unknown: all requests of the update end as applied, each once."""
    ends = await _behind_a_gate(bench, [appending("one"), appending("two"), naming("Ada")], lost_after)
    assert [end.record.version for end in ends if isinstance(end, Committed)] == [3, 4, 5]
    assert (await bench.stored()).step_count == 2


async def test_folding_never_mixes_callers(bench: Bench) -> None:
    """Requests of different callers go one after another, so that each envelope names the one who wrote."""
    ann, ben = replace(ANONYMOUS, by="ann"), replace(ANONYMOUS, by="ben")
    moves = [appending(step) for step in "abcd"]
    await _behind_a_gate(bench, moves, scopes=[ann, ann, ben, ann])
    writers = envelopes(bench)
    assert [(last["by"], last["v"] - last["from"]) for last in writers] == [
        ("anonymous", 1),
        ("ann", 2),
        ("ben", 1),
        ("ann", 1),
    ]


async def test_keyed_request_is_not_folded(bench: Bench) -> None:
    """A request with an Idempotency-Key goes alone, also between others that wait."""
    moves = [appending(step) for step in "abc"]
    await _behind_a_gate(bench, moves, keys={1: once("key")})
    writers = envelopes(bench)
    assert [last["v"] - last["from"] for last in writers] == [1, 1, 1, 1]


async def test_fold_is_bounded_in_bytes_and_requests(bench: Bench) -> None:
    """What does not fit into an update goes with the next: about 4 MiB, or `fold_limit` requests."""
    big = "x" * (2 * 1024 * 1024)
    ends = await _behind_a_gate(bench, [appending(f"s{n}", content=big) for n in range(4)])
    assert [end.record.version for end in ends if isinstance(end, Committed)] == [3, 4, 5, 6]
    assert [last["v"] for last in envelopes(bench)] == [2, 4, 6]
    many = await _behind_a_gate(bench, [appending(f"m{n}") for n in range(40)])
    assert len({end.record.version for end in many if isinstance(end, Committed)}) == 40
    assert max(last["v"] - last["from"] for last in envelopes(bench)) == Settings().fold_limit


def envelopes(bench: Bench) -> list[dict[str, Any]]:
    """Those of the updates that were sent."""
    return [write._doc["$set"]["last"] for flight in bench.writes.sent for write in flight]


async def _behind_a_gate(
    bench: Bench,
    moves: list[Any],
    fault: Fault = through,
    *,
    scopes: list[Scope] | None = None,
    keys: dict[int, Once] | None = None,
) -> list[Committed | BaseException]:
    """Ends of requests that all waited while a first update was under way."""
    gate = Gate()
    bench.writes.planned.extend([gate, fault])
    first = asyncio.create_task(bench.commit(setting(f"first-{uuid4().hex}")))
    await gate.wait()
    ends = [
        asyncio.create_task(
            bench.commit(move, (scopes or [ANONYMOUS] * len(moves))[number], once=(keys or {}).get(number))
        )
        for number, move in enumerate(moves)
    ]
    await queued(bench, len(moves))
    gate.open()
    await first
    return await asyncio.gather(*ends, return_exceptions=True)


async def queued(bench: Bench, count: int) -> None:
    """Wait until so many requests of the agent wait in their lane."""
    lanes = bench.store._lanes
    await wait_until_async(lambda: len(lanes[f"default:{AGENT}"].waiting) == count, SECONDS, f"{count} to wait")


async def test_cancelled_caller_does_not_stop_the_write(bench: Bench) -> None:
    """A caller that goes away while its write is under way, or waits, leaves a write that still happens, once."""
    gate = Gate()
    bench.writes.planned.append(gate)
    sent = asyncio.create_task(bench.commit(appending("sent")))
    await gate.wait()
    waiting = asyncio.create_task(bench.commit(appending("waiting")))
    await queued(bench, 1)
    for task in (sent, waiting):
        task.cancel()
    await asyncio.gather(sent, waiting, return_exceptions=True)
    assert sent.cancelled() and waiting.cancelled()
    gate.open()
    await bench.store.stop()
    assert list((await bench.stored()).steps) == ["sent", "waiting"]


async def test_deleted_agent_goes_on_with_its_version_and_fence(bench: Bench) -> None:
    """A tombstone has no content; creating the id again goes on from its version, so neither number ever goes back."""
    await bench.commit(appending("one"))
    assert (await bench.commit(delete)).record.version == 3
    tombstone = await bench.mongo.agents.find_one({"_id": f"default:{AGENT}"})
    assert tombstone is not None
    assert not {"steps", "settings", "results", "name", "branches"} & tombstone.keys()
    again = await bench.commit(creating(), creates=True)
    assert (again.record.version, again.record.step_count) == (4, 0)
    stored = await bench.stored()
    assert stored.document() == again.record.document()
    assert (await bench.commit(appending("two"))).record.steps["two"]["version"] == 5


async def test_unknown_re_creation_is_settled(bench: Bench) -> None:
    """A delete and a re-creation whose answers were lost are each settled as applied."""
    bench.writes.planned.append(lost_after)
    await bench.commit(delete)
    bench.writes.planned.append(lost_after)
    assert (await bench.commit(creating(), creates=True)).record.version == 3
    assert (await bench.stored()).version == 3


async def test_agents_remembered_to_write_from_are_bounded(benches: Benches) -> None:
    """What a store remembers of agents stays within `basis_bytes`; what it forgot is read again and stays right."""
    forgetful: Bench = await benches(basis_bytes=100_000)
    for number in range(10):
        await forgetful.commit(creating(f"a{number}"), agent=f"a{number}", creates=True)
        await forgetful.commit(setting("big", "x" * 30_000), agent=f"a{number}")
    remembered = sum(lane.bound for lane in forgetful.store._lanes.values())
    assert 0 < remembered <= 100_000
    assert forgetful.store._basis_bytes == remembered
    for number in range(10):
        assert (await forgetful.commit(setting("more"), agent=f"a{number}")).record.version == 3


async def test_results_at_several_steps_fold_into_their_maps(bench: Bench) -> None:
    """Assignments below one another fold into an update that the server takes, with all values in place."""
    moves = [
        appending("one"),
        binding("k", 1, "one"),
        binding("k", {"$a.b": None}, "one"),
        binding("a.b", [1], "root"),
    ]
    ends = await _behind_a_gate(bench, moves)
    last = ends[-1]
    assert isinstance(last, Committed)
    stored = await bench.stored()
    assert stored.document() == last.record.document()
    assert stored.results == {"one": {"k": {"$a.b": None}}, "root": {"a%2Eb": [1]}}


async def test_stop_waits_until_what_was_sent_is_settled(bench: Bench) -> None:
    """`stop` returns when every queue is empty, with each write at its end."""
    bench.writes.planned.extend([lost_before, lost_after])
    gate = Gate()
    bench.writes.planned.appendleft(gate)
    ends = [asyncio.create_task(bench.commit(appending("s0")))]
    await gate.wait()
    ends += [asyncio.create_task(bench.commit(appending(f"s{n}"))) for n in range(1, 5)]
    await queued(bench, 4)
    stopping = asyncio.create_task(bench.store.stop())
    gate.open()
    await stopping
    assert (await bench.stored()).step_count == 5
    assert sorted(done.record.version for done in await asyncio.gather(*ends)) == [2, 3, 4, 5, 6]


async def test_failure_of_a_move_fails_its_caller_and_leaves_the_queue_working(bench: Bench) -> None:
    """A bug in a move ends its own batch as Unavailable; later requests of the agent are served."""

    def broken(record: AgentRecord, stamp: Stamp) -> Change:
        raise ZeroDivisionError

    with pytest.raises(HoldfastError) as caught:
        await bench.commit(broken)
    assert isinstance(caught.value, Unavailable)
    assert (await bench.commit(naming("Ada"))).record.version == 2


async def test_inserts_and_updates_share_a_flight(benches: Benches) -> None:
    """Creates and updates of different agents that leave together each take effect."""
    made: Bench = await benches(flights=1)
    await made.commit(creating(), creates=True)
    gate = Gate()
    made.writes.planned.append(gate)
    first = asyncio.create_task(made.commit(naming("Ada")))
    await gate.wait()
    others = [asyncio.create_task(made.commit(creating(f"new{n}"), agent=f"new{n}", creates=True)) for n in range(3)]
    await wait_until_async(lambda: len(made.store._bulk._waiting) == 3, SECONDS, "three writes to wait for the flight")
    gate.open()
    await asyncio.gather(first, *others)
    assert sum(isinstance(write, InsertOne) for flight in made.writes.sent for write in flight) == 4
    for number in range(3):
        assert (await made.stored(f"new{number}")).version == 1


@pytest.mark.parametrize("kept", [True, False])
async def test_keyed_request_is_replayed_only_while_its_agent_is_there(
    benches: Benches, bench: Bench, kept: bool
) -> None:
    """Whether the agent exists is judged anew, on every replica, before its record is looked up."""
    other: Bench = await benches()
    await bench.commit(appending("one"), once=once("key"))
    if not kept:
        await other.commit(delete)
    for replica in (bench, other):
        if kept:
            assert (await replica.commit(appending("one"), once=once("key"))).replay is not None
        else:
            with pytest.raises(NotFound):
                await replica.commit(appending("one"), once=once("key"))


async def test_keyed_request_waits_for_a_look_up_that_fails(bench: Bench) -> None:
    """A look-up of the record that gets no answer does not mean that there is none: no refusal comes of it."""
    await bench.commit(naming("Ada"), once=once("key"), guard=Guard(version=1))
    records = Faulty(bench.mongo.idempotency, "find_one")
    records.planned.extend([lost_before, lost_before])
    bench.store._idempotency._mongo = replace(bench.store._mongo, idempotency=records)  # type: ignore[arg-type]
    again = await bench.commit(naming("Ada"), once=once("key"), guard=Guard(version=1))
    assert again.replay == Reply(201, b"2", {"ETag": "x"})


async def test_requests_that_were_given_up_are_not_kept(benches: Benches, bench: Bench) -> None:
    """While one write is unknown, those behind it are answered at their deadline and forgotten, bodies and all."""
    hasty: Bench = await benches(deadline_seconds=0.4, attempt_seconds=10)
    gate = Gate()
    hasty.writes.planned.append(gate)
    behind = [asyncio.create_task(hasty.commit(setting(f"key{number}"))) for number in range(20)]
    ends = await asyncio.gather(*behind, return_exceptions=True)
    assert {type(end) for end in ends} == {Unavailable}
    assert not hasty.store._lanes[f"default:{AGENT}"].waiting
    gate.open()


async def test_write_whose_slot_still_stands_after_many_versions_is_settled_as_applied(
    benches: Benches, bench: Bench
) -> None:
    """Folded commits use one slot for many versions, so the op of an older commit may still be there to be read."""
    other: Bench = await benches()
    gate = Gate()

    async def lost_after_many(call: Call) -> Any:
        await call()
        await gate(through_nothing)
        raise AutoReconnect("lost on the way back")

    bench.writes.planned.append(lost_after_many)
    mine = asyncio.create_task(bench.commit(appending("mine")))
    await gate.wait()
    while (await other.stored()).version < 2 + OP_SLOTS:
        await asyncio.gather(*(other.commit(appending(uuid4().hex)) for _ in range(20)))
    assert "2" in (await other.stored()).ops
    gate.open()
    assert (await mine).record.version == 2


async def _until_full(bench: Bench) -> None:
    for _ in range(100):
        try:
            await bench.commit(setting(uuid4().hex, "x" * 500))
        except TooLarge:
            return
    pytest.fail("the agent never became full")


async def test_full_agent_can_still_be_made_smaller(benches: Benches) -> None:
    """At the limit only what grows is refused: there is room for what a commit itself stores."""
    small: Bench = await benches(agent_limit_bytes=64 * 1024)
    await small.commit(creating(), creates=True)
    await small.commit(setting("big", "x" * 58_000))
    await _until_full(small)
    assert (await small.stored()).stored_bytes() <= 64 * 1024
    assert (await small.commit(naming("B"))).record.name == "B"


async def test_request_that_changes_nothing_seals_nothing(benches: Benches) -> None:
    """Not even in memory, where the next write begins; also under an Idempotency-Key, which is written by itself."""
    growing: Bench = await benches(seal_bytes=1024)
    await growing.commit(creating(), creates=True)
    await growing.commit(binding("k", 1, ROOT))
    for name, terms in (("a", {}), ("b", {"once": once("key")})):
        large = [Draft(f"{name}{number}", {"role": "user", "content": "x" * 200}) for number in range(9)]
        await growing.commit(lambda record, stamp, large=large: append(record, large, stamp))
        before = await growing.stored()
        done = await growing.commit(binding("k", 1, ROOT), **terms)
        assert not done.changed
        assert (await growing.stored()).document() == before.document()
        for number in range(9):
            await growing.commit(appending(f"{name}more{number}", content="x" * 200))
    sealed = await growing.stored()
    seqs = sorted((kept["from_seq"], kept["to_seq"]) for kept in sealed.sealed.values())
    assert all(before[1] + 1 == after[0] for before, after in pairwise(seqs))
    assert min(body["seq"] for body in sealed.steps.values()) == seqs[-1][1] + 1
    assert sum(kept["count"] for kept in sealed.sealed.values()) + len(sealed.steps) == sealed.step_count == 36


async def test_seal_takes_the_mark_off_a_segment_that_an_earlier_one_left(benches: Benches) -> None:
    """A write that was refused left it; it is about to be collected when the next write seals the very same steps."""
    growing: Bench = await benches(seal_bytes=1024)
    await growing.commit(creating(), creates=True)
    large = [Draft(f"s{number}", {"role": "user", "content": "x" * 200}) for number in range(9)]
    await growing.commit(lambda record, stamp: append(record, large, stamp))
    growing.writes.planned.append(refused)
    with pytest.raises(Unavailable):
        await growing.commit(setting("k"))
    assert not (await growing.stored()).sealed
    segments = growing.mongo.segments
    left = (await segments.update_many({}, {"$set": {"mark": "somebody's"}})).modified_count
    await growing.commit(setting("k"))
    sealed = {kept["id"] for kept in (await growing.stored()).sealed.values()}
    assert {found["_id"] async for found in segments.find({"mark": {"$exists": False}})} == sealed
    assert left == len(sealed) == await segments.count_documents({}) > 0
