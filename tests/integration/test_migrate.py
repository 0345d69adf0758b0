"""Documents of earlier programs become what this one stores: by the real program, on a real database."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from bson import encode
from pymongo import MongoClient
from pymongo.database import Database as Tables

from app.clock import SystemClock
from app.config import Settings
from app.lanes import Terms
from app.migrations import STILL_SECONDS, Lock, MigrationProblem, Migrations, load
from app.reads import Freshness
from app.runtime import Runtime, running
from models.errors import Conflict, NotFound
from models.execution import State, activity_of, status_of
from models.tenant import Right, Scope
from tests.harness import wait_until

SECONDS = 60.0
PROGRAM = Path(sys.executable).with_name("holdfast")
AT = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)
DEFAULT = Scope("default", frozenset(Right), by="ann")
STRONG = Freshness(strong=True)

DERIVED = {
    "waits": ({"status": "pending", "activity": "idle"}, "pending"),
    "works": ({"status": "running", "activity": "busy"}, "busy"),
    "rests": ({"status": "running", "activity": "idle"}, "idle"),
    "silent": ({"status": "running"}, "idle"),
    "ended": ({"status": "stopped", "activity": "idle"}, "stopped"),
    "broken": ({"status": "failed", "activity": "idle"}, "failed"),
    "bare": ({}, "pending"),
    "strange": ({"status": "on fire"}, "pending"),
}
"""What an earlier program said of an agent, and the state that follows from it."""

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Place:
    """A database of its own, and the program on it."""

    uri: str
    tables: Tables[Any]
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        own = {"MONGODB_URI": self.uri, "MONGODB_DATABASE": self.tables.name, "HOLDFAST_DATA": str(self.folder)}
        return {**inherited, **own, "COLUMNS": "200"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [PROGRAM, *words], env=self.environment, cwd=self.folder, stdout=pipe, stderr=pipe, text=True
        )

    def call(self, *words: str) -> Done:
        with self.start(*words) as process:
            out, err = process.communicate(timeout=SECONDS)
        assert "Traceback" not in err
        return Done(words, process.returncode, out, err)

    def sound(self) -> None:
        """See that fsck finds nothing; while a replica runs it waits for what that has yet to write."""
        checked = self.call("doctor", "--fsck")
        assert checked.returncode == 0, checked.stdout

    def migrated(self) -> str:
        done = self.call("migrate")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def add(self, agent: str, **fields: Any) -> None:
        """A document of a program that knew no versions."""
        self.tables["agents"].insert_one({"_id": f"default:{agent}", "tenant": "default", "name": agent, **fields})

    def add_many(self, count: int, **fields: Any) -> None:
        documents = [{"_id": f"default:many-{n:05}", "tenant": "default", **fields} for n in range(count)]
        self.tables["agents"].insert_many(documents)

    def document(self, agent: str) -> dict[str, Any]:
        found: dict[str, Any] = self.tables["agents"].find_one({"_id": f"default:{agent}"})
        return found

    def everything(self) -> dict[str, list[bytes]]:
        """All that is stored but heartbeats and the log's mark."""
        names = set(self.tables.list_collection_names()) - {"beats", "changes"}
        return {name: [encode(each) for each in self.tables[name].find().sort("_id")] for name in sorted(names)}

    @asynccontextmanager
    async def replica(self) -> AsyncIterator[Runtime]:
        settings = Settings(mongodb_database=self.tables.name, data=self.folder)
        async with running(settings, self.uri) as runtime:
            yield runtime


@pytest.fixture
def place(mongo_uri: str, tmp_path: Path) -> Iterator[Place]:
    with MongoClient[Any](mongo_uri, tz_aware=True) as client:
        tables = client[f"test_{uuid4().hex[:12]}"]
        yield Place(mongo_uri, tables, tmp_path)
        client.drop_database(tables)


def coherent(document: dict[str, Any]) -> bool:
    """Whether who reads `status` and `activity` sees the same as who reads the state."""
    state = State(document["state"])
    return (document["status"], document["activity"]) == (status_of(state), activity_of(state))


def test_every_status_becomes_its_state_and_reads_as_before(place: Place) -> None:
    """Also where nothing but an `_id` was stored: each is a whole agent then, by every check that there is."""
    for agent, (said, _) in DERIVED.items():
        place.add(agent, **said)
    place.tables["agents"].insert_one({"_id": "default:alone", "version": None})
    out = place.migrated()
    assert f"changed {len(DERIVED) + 1} documents" in out
    assert place.document("alone")["tenant"] == "default"
    for agent, (said, state) in DERIVED.items():
        document = place.document(agent)
        assert (document["state"], document["version"], coherent(document)) == (state, 1, True), agent
        assert agent == "strange" or document["status"] == said.get("status", "pending")
    place.sound()


async def test_a_document_without_a_version_becomes_an_agent_with_all_its_content(place: Place) -> None:
    """Its steps, listed or by id, are a chain to HEAD that goes on; results, settings and labels are there."""
    listed = [{"role": "user", "content": "hi"}, {"role": "agent", "content": "hello"}, {"role": "user", "id": "s3"}]
    by_id = {"one": {"role": "user", "content": "1", "seq": 4}, "two": {"role": "agent", "content": "2", "seq": 9}}
    place.add("list", status="running", steps=listed, created_at=AT, labels={"team": "blue"}, settings={"own": 1})
    place.add("map", status="running", steps=by_id, results={"two": {"answer": 42}}, head="one")
    place.migrated()
    async with place.replica() as runtime:
        first = (await runtime.agents.get(DEFAULT, "list", STRONG)).record
        assert [(first.step(step)["content"], first.node(step).turn_id) for step in ("step-1", "step-2")] == [
            ("hi", "step-1"),
            ("hello", "step-1"),
        ]
        assert (first.head, first.node("s3").parent_id, first.created_at) == ("s3", "step-2", AT)
        assert (first.settings, first.label_terms, first.step_count) == ({"own": 1}, ["team:blue"], 3)
        second = (await runtime.agents.get(DEFAULT, "map", STRONG)).record
        assert (second.head, second.seq, second.node("two").parent_id) == ("one", 9, "one")
        assert second.results == {"two": {"answer": 42}}
        appended = await runtime.agents.append(DEFAULT, "list", [{"role": "agent"}], Terms(), advance_head=True)
        assert (appended.record.version, appended.record.seq) == (2, 4)
        await asyncio.to_thread(place.sound)


async def test_an_agent_that_lost_its_state_keeps_its_versions_and_its_log(place: Place) -> None:
    """One with commits gets one more; one whose commits nobody knows gets a gap in the log, and then one more."""
    async with place.replica() as runtime:
        await runtime.agents.create(DEFAULT, {"id": "known"}, Terms())
        await runtime.agents.append(DEFAULT, "known", [{"role": "user"}], Terms(), advance_head=True)
        await runtime.scribe.caught_up()
    stripped = {"$unset": dict.fromkeys(("state", "activity"), ""), "$set": {"status": "running"}}
    place.tables["agents"].update_one({"_id": "default:known"}, stripped)
    place.add("unknown", version=7, status="failed")
    place.migrated()
    known, unknown = place.document("known"), place.document("unknown")
    assert (known["version"], known["state"], known["activity"]) == (3, "idle", "idle")
    assert (known["last"]["kinds"], known["last"]["by"]) == (["state"], "migration:0001")
    assert (unknown["version"], unknown["state"]) == (8, "failed")
    entries = place.tables["changes"].find({"agent": "unknown"}).sort("position")
    assert [(entry["version"], entry["kinds"]) for entry in entries] == [(7, ["gap"]), (8, ["state"])]
    place.sound()


async def test_agents_of_a_fixed_runner_become_members_of_its_pool(place: Place) -> None:
    """The runner that registers with the pool claims them; a pool that was there stays, and so does `agent_id`."""
    place.add("driven", status="running", activity="idle", agent_id="old-runner")
    place.add("placed", status="pending", agent_id="old-runner", pool="chosen")
    place.add("free", status="pending", agent_id="")
    place.migrated()
    driven = place.document("driven")
    assert (driven["pool"], driven["agent_id"], driven["version"]) == ("old-runner", "old-runner", 2)
    assert place.document("placed")["pool"] == "chosen"
    assert "pool" not in place.document("free")
    async with place.replica() as runtime:
        spec = {"id": "r1", "pool": "old-runner", "platform": "vm", "capacity": 5}
        await runtime.runners.register(DEFAULT, spec)
        claims = await runtime.runners.claim(DEFAULT, "r1", 5, 10)
        assert [claim["agent"] for claim in claims] == ["driven"]


def test_a_dry_run_says_what_it_would_change_and_writes_nothing(place: Place) -> None:
    place.add_many(5, status="running", agent_id="r")
    place.add("other", status="stopped")
    before = place.everything()
    done = place.call("migrate", "--dry-run")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert re.match(r"0001 .*: would change 6 documents, such as default:many-00000, ", first)
    assert re.match(r"0002 .*: would change 5 documents", second)
    assert place.everything() == before
    assert set(before) == {"agents"}


def test_status_tells_before_after_and_what_came_since(place: Place) -> None:
    place.add_many(3, status="running")
    fresh = place.call("migrate", "--status")
    assert fresh.returncode == 0
    assert re.match(r"0001 Give every agent an execution state: not yet; 3 documents need it\n0002 ", fresh.stdout)
    assert "service" not in place.tables.list_collection_names()
    place.migrated()
    applied = place.call("migrate", "--status").stdout
    assert re.match(r"0001 .*: applied 20\S+Z, 3 documents changed\n0002 .*: applied 20\S+Z, 0 documents", applied)
    place.add("late", status="running")
    assert "1 came since and need it" in place.call("migrate", "--status").stdout
    assert "execution state: changed 1 documents" in place.migrated()
    assert "4 documents changed\n" in place.call("migrate", "--status").stdout


def test_a_second_run_changes_nothing(place: Place) -> None:
    place.add_many(20, status="running", activity="busy", agent_id="r", steps=[{"role": "user"}])
    place.migrated()
    before = place.everything()
    assert "ok     all is up to date, 0 changed" in place.migrated()
    assert place.everything() == before


def test_a_run_that_was_killed_is_resumed_and_blocks_nobody(place: Place) -> None:
    """After kill -9 in the middle the next run starts within seconds and goes on; each document is changed once."""
    count = 2_000
    place.add_many(count, status="running")
    service, agents = place.tables["service"], place.tables["agents"]
    with place.start("migrate") as run:
        wait_until(lambda: service.count_documents({"after": {"$gt": ""}}), SECONDS, "the run to be in the middle")
        run.send_signal(signal.SIGKILL)
        run.communicate(timeout=SECONDS)
    done = agents.count_documents({"version": 1})
    after = service.find_one({"_id": "migration:0001"})["after"]
    assert 0 < done < count
    told = place.call("migrate", "--status")
    assert f"interrupted after {after}" in told.stdout
    assert "is migrating, or was killed" in told.stderr
    again = place.migrated()
    assert f"execution state: changed {count - done} documents" in again
    assert agents.count_documents({"version": 1, "state": "idle"}) == count
    assert service.find_one({"_id": "migration:lock"}) is None


def test_what_came_behind_the_cursor_of_an_interrupted_run_is_not_forgotten(place: Place) -> None:
    place.add_many(10, status="running")
    kept = {"_id": "migration:0001", "after": "default:many-00004", "started_at": AT, "changed": 5, "wrong": 0}
    place.tables["service"].insert_one(kept)
    assert "execution state: changed 10 documents" in place.migrated()
    assert place.tables["agents"].count_documents({"state": "idle"}) == 10


async def test_a_second_run_beside_one_that_lives_says_who_holds_it(place: Place) -> None:
    """It waits a little, then ends with 1; as soon as the first is over, another may run."""
    place.add("one", status="running")
    async with place.replica() as runtime:
        async with Lock(runtime.mongo, SystemClock(), seconds=3).held():
            done = await asyncio.to_thread(place.call, "migrate")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"process {os.getpid()}, is migrating" in done.stderr
        assert "version" not in place.document("one")
        await asyncio.to_thread(place.migrated)


async def test_a_holder_that_was_taken_for_dead_stops(place: Place) -> None:
    """Its lock is taken over after it was seen not to move for a while, and it is told so."""
    async with place.replica() as runtime:
        paused, next_one = (Lock(runtime.mongo, SystemClock(), seconds=3) for _ in range(2))
        await paused._take()  # and never renews it, as if it were stopped
        clock = SystemClock()
        began = clock.monotonic()
        async with next_one.held():
            assert clock.monotonic() - began >= STILL_SECONDS
            await asyncio.wait_for(paused._renew(), SECONDS)
            with pytest.raises(MigrationProblem, match="took over"):
                paused.require()
            next_one.require()
            await paused._leave()
            assert await next_one.holder() is not None


def test_two_runs_at_once_change_each_document_once(place: Place) -> None:
    place.add_many(300, status="running", agent_id="r")
    with place.start("migrate") as one, place.start("migrate") as other:
        outs = [run.communicate(timeout=SECONDS) for run in (one, other)]
    assert {one.returncode, other.returncode} <= {0, 1}
    assert 0 in (one.returncode, other.returncode)
    assert not [err for _, err in outs if "Traceback" in err]
    assert place.tables["agents"].count_documents({"version": 2, "pool": "r", "state": "idle"}) == 300


async def test_readers_of_status_see_what_they_saw_before_throughout(place: Place) -> None:
    """Whoever reads a document at any moment sees its old status; and with a state, what follows from that."""
    before = {}
    for number in range(20):
        for agent, (said, _) in DERIVED.items():
            if "activity" in said:
                place.add(f"{agent}-{number}", **said)
                before[f"default:{agent}-{number}"] = said
    with place.start("migrate") as run:
        looks = 0
        while run.poll() is None:
            for document in place.tables["agents"].find():
                said = before[document["_id"]]
                assert {name: document[name] for name in said} == said
                assert "state" not in document or coherent(document)
            looks += 1
            await asyncio.sleep(0)
    assert run.returncode == 0
    assert looks > 2
    assert place.tables["agents"].count_documents({"state": None}) == 0


async def test_replicas_write_meanwhile_and_lose_nothing(place: Place) -> None:
    """Appends go on while the agents get their state; each is there, each version once, and copies are up to date."""
    names = [f"hot-{number}" for number in range(4)]
    async with place.replica() as runtime:
        for name in names:
            await runtime.agents.create(DEFAULT, {"id": name}, Terms())
        stripped = {"$unset": {"state": "", "activity": ""}, "$set": {"status": "running"}}
        place.tables["agents"].update_many({}, stripped)
        acknowledged: Counter[str] = Counter()
        run = place.start("migrate")

        async def write(name: str) -> None:
            while run.poll() is None:
                await runtime.agents.append(DEFAULT, name, [{"role": "user"}], Terms(), advance_head=True)
                acknowledged[name] += 1

        await asyncio.gather(*map(write, names))
        assert run.communicate()[0].count("changed 4 documents") == 1
        for name in names:
            seen = (await runtime.agents.get(DEFAULT, name, STRONG)).record
            assert (seen.step_count, seen.version) == (acknowledged[name], acknowledged[name] + 2)
            assert (seen.state, seen.status, seen.activity) == ("idle", "running", "idle")
        await asyncio.to_thread(place.sound)


async def test_runs_that_do_not_see_each_other_spoil_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock spares work and no more: without it, too, each document is changed once."""

    @asynccontextmanager
    async def open_to_all(_: Lock) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(Lock, "held", open_to_all)
    place.add_many(60, status="running", agent_id="r")
    async with place.replica() as one, place.replica() as other:

        async def run(runtime: Runtime) -> int:
            migrations = Migrations(load(), runtime.mongo, runtime.store, SystemClock(), seconds=3)
            return sum([standing.changed_now async for standing in migrations.apply(lambda _: None)])

        assert sum(await asyncio.gather(run(one), run(other))) == 120
    assert place.tables["agents"].count_documents({"version": 2, "pool": "r", "state": "idle"}) == 60


async def test_a_document_that_was_written_meanwhile_is_decided_on_anew(place: Place) -> None:
    """A pool that was chosen between the look and the commit stays; the commit is refused by the version."""
    place.add("raced", status="pending")
    place.migrated()
    agents, (_, pools) = place.tables["agents"], load()
    agents.update_one({"_id": "default:raced"}, {"$set": {"agent_id": "fixed"}})

    def assigned(document: Mapping[str, Any]) -> Mapping[str, Any]:
        agents.update_one({"_id": "default:raced", "pool": None}, {"$set": {"pool": "chosen"}, "$inc": {"version": 1}})
        return pools.assigned(document)

    async with place.replica() as runtime:
        raced = replace(pools, number=1, assigned=assigned)
        migrations = Migrations([raced], runtime.mongo, runtime.store, SystemClock(), seconds=3)
        assert [standing.changed_now async for standing in migrations.apply(lambda _: None)] == [0]
    assert place.document("raced")["pool"] == "chosen"


def test_what_can_not_be_migrated_is_named_and_stops_what_comes_after(place: Place) -> None:
    place.add("good", status="running", agent_id="r")
    place.add("lost", status="running", head="nowhere")
    place.tables["agents"].insert_one({"_id": "no-tenant", "status": "running"})
    done = place.call("migrate")
    assert done.returncode == 1
    assert "wrong  default:lost: " in done.stdout
    assert "nowhere" in done.stdout
    assert "wrong  no-tenant: " in done.stdout
    assert "2 documents can't be migrated, 1 changed" in done.stdout
    assert place.document("good")["state"] == "idle"
    assert "pool" not in place.document("good")
    told = place.call("migrate", "--status")
    assert (told.returncode, "2 need it, 2 can't be migrated" in told.stdout) == (1, True)
    place.tables["agents"].delete_many({"version": None})
    place.migrated()
    assert place.document("good")["pool"] == "r"
    assert place.call("migrate", "--status").returncode == 0


async def test_a_document_without_a_version_is_no_agent_and_its_id_is_taken(place: Place) -> None:
    place.add("old", status="running", settings={"precious": 1})
    async with place.replica() as runtime:
        with pytest.raises(NotFound):
            await runtime.agents.get(DEFAULT, "old", STRONG)
        with pytest.raises(NotFound):
            await runtime.agents.append(DEFAULT, "old", [{"role": "user"}], Terms(), advance_head=True)
        with pytest.raises(Conflict, match="holdfast migrate"):
            await runtime.agents.create(DEFAULT, {"id": "old"}, Terms())
        assert place.document("old")["settings"] == {"precious": 1}


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (["0001_a.py", "0003_b.py"], "0002"),
        (["0001_a.py", "0001_b.py"], "0002"),
        (["0002_a.py"], "0001"),
        (["0001_a.py", "second.py"], "0002"),
        (["1_a.py"], "0001"),
    ],
)
def test_doubles_and_holes_in_the_numbers_are_refused(tmp_path: Path, names: list[str], wrong: str) -> None:
    for name in names:
        (tmp_path / name).write_text('"""Do."""\ndef wanted(): ...\ndef assigned(document): ...\n')
    with pytest.raises(MigrationProblem, match=f"should be number {wrong}"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["", '"""Do."""\n', "def wanted(:\n", '"""Do."""\nimport no_such_thing_at_all\n'])
def test_a_file_that_is_no_migration_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "0001_a.py").write_text(content)
    with pytest.raises(MigrationProblem, match="0001_a"):
        load(tmp_path)


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(MigrationProblem, match="is missing"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("words", [("--status", "--dry-run"), ("--stauts",), ("now",)])
def test_a_slip_of_the_keyboard_is_told(place: Place, words: tuple[str, ...]) -> None:
    done = place.call("migrate", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


def test_migrate_teaches_and_needs_a_database(place: Place) -> None:
    assert "Apply the migrations" in place.call("migrate", "--help").stdout
    done = replace(place, uri="mongodb://127.0.0.1:1/").call("migrate")
    assert (done.returncode, done.stdout) == (1, "")
    assert "127.0.0.1:1" in done.stderr
