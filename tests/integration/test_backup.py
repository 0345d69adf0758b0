"""Backups and restores, by the real program on a real database: what goes in comes back, whole or not at all."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import bson
import httpx
import pytest
from backports import zstd
from pymongo import MongoClient
from pymongo.database import Database as Tables
from pymongo.errors import OperationFailure

from app.archive import ArchiveProblem, reading, written
from app.cli import main
from app.config import Settings
from app.fsck import Fsck
from app.lanes import Terms
from app.mongo import Mongo, open_client
from app.reads import Freshness
from app.restore import Restore, verified
from app.runtime import Runtime, running
from app.unfinished import unfinished
from models.act import COPIED
from models.archive import FORMAT, KEPT, LEFT_OUT, WHOLE_NOTE, Extent, Header
from models.errors import NotFound
from models.tenant import Right, Scope
from tests.api.driver import serving
from tests.harness import _warm, wait_until_async

SECONDS = 60.0
SECRET_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
APART = {"blobs", "segments"}
ANN = Scope("acme", frozenset(Right), by="ann")
BOB = Scope("rivals", frozenset(Right), by="bob")
CAT = Scope("acme", frozenset({Right.READ, Right.WRITE}), by="cat")
"""Who needs no fence."""
STRONG = Freshness(strong=True)

Done = subprocess.CompletedProcess[str]
Everything = dict[str, list[bytes]]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail() -> None:
    raise OperationFailure("no", 14031)


def run_program(words: tuple[str, ...], settings: dict[str, str], told: Path, deed: Any, at: str) -> None:
    """What the program's process does; where there is a deed, that too, when a batch of the collection is restored."""
    for number in (1, 2):
        os.dup2(os.open(f"{told}.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(settings)
    add = Restore._add

    async def breaking(self: Restore, note: Any, collection: str, documents: Any) -> None:
        await add(self, note, collection, documents)
        if collection == at:
            deed()
            await asyncio.sleep(SECONDS)

    if deed is not None:
        Restore._add = breaking  # type: ignore[method-assign]
    sys.argv = ["holdfast", *words]
    main()


@dataclass(frozen=True)
class Place:
    """A database of its own, and the program on it."""

    uri: str
    tables: Tables[Any]
    folder: Path

    @property
    def settings(self) -> Settings:
        return Settings(
            mongodb_database=self.tables.name,
            data=self.folder,
            secret_keys=(SECRET_KEY,),
            inline_bytes=1000,
            seal_bytes=1500,
            embedder="lexical",
        )

    def call(self, *words: object, deed: Any = None, at: str = "") -> Done:
        own = {"MONGODB_URI": self.uri, "MONGODB_DATABASE": self.tables.name, "HOLDFAST_DATA": str(self.folder)}
        settings = {**own, "HOLDFAST_SECRET_KEYS": SECRET_KEY, "HOLDFAST_EMBEDDER": "lexical", "COLUMNS": "200"}
        told = self.folder / f"told-{uuid4().hex}"
        given = tuple(map(str, words))
        process = _warm.Process(target=run_program, args=(given, settings, told, deed, at))
        process.start()
        process.join(SECONDS)
        assert process.exitcode is not None, f"{words} did not end"
        out, err = (Path(f"{told}.{number}").read_text() for number in (1, 2))
        assert "Traceback" not in err, err
        return Done(given, process.exitcode, out, err)

    def does(self, *words: object) -> str:
        done = self.call(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refuses(self, *words: object) -> str:
        done = self.call(*words)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def backed_up(self, *words: str) -> Path:
        """A backup of so much, made once."""
        path = self.folder / "-".join([self.tables.name, *words])
        if not path.exists():
            self.does("backup", path, *words)
        return path

    def everything(self, tenant: str | None = None) -> Everything:
        """All that is kept, as bytes; the log without its mark, and without what tells of backups and restores."""
        found = {}
        for name in KEPT:
            own = {"kind": {"$ne": COPIED}, "kinds": {"$ne": COPIED}} | ({} if tenant is None else {"tenant": tenant})
            documents = self.tables[name].find({**own, "_id": {"$nin": ["mark", "migration:lock"]}}).sort("_id")
            found[name] = [bson.encode(document) for document in documents]
        return {name: documents for name, documents in found.items() if documents}

    @asynccontextmanager
    async def replica(self, **settings: Any) -> AsyncIterator[Runtime]:
        async with running(self.settings.model_copy(update=settings), self.uri) as runtime:
            yield runtime


@dataclass(frozen=True)
class Places:
    """Makes databases."""

    client: MongoClient[Any]
    uri: str
    folder: Path

    def new(self) -> Place:
        return Place(self.uri, self.client[f"test_{uuid4().hex[:12]}"], self.folder)


@pytest.fixture
def places(mongo_uri: str, tmp_path: Path) -> Iterator[Places]:
    with MongoClient[Any](mongo_uri) as client:
        before = set(client.list_database_names())
        yield Places(client, mongo_uri, tmp_path)
        for name in set(client.list_database_names()) - before:
            client.drop_database(name)


async def fill(runtime: Runtime, scope: Scope) -> None:
    """Something of everything that there is."""
    agents, tenant = runtime.agents, scope.tenant
    spec = {"id": "old", "workspace": {"w": "x" * 1200}, "labels": {"team": "blue"}, "delegate": {"token": "secret"}}
    await agents.create(scope, spec, Terms())
    for number in range(20):
        step: Any = {"id": f"s{number}", "role": "agent", "content": f"{tenant}{number}" * 40}
        await agents.append(scope, "old", [step], Terms(), advance_head=True)
    await agents.append(
        scope, "old", [{"id": "large", "role": "user", "content": "y" * 3000}], Terms(), advance_head=True
    )
    await agents.set_branch(scope, "old", "side", "s2", Terms())
    await agents.put_result(scope, "old", "key", "s1", {"r": "x" * 1200}, Terms())
    await agents.fork(scope, "old", Terms(), at="s7", name=None)
    await agents.create(scope, {"id": "gone"}, Terms())
    await agents.delete(scope, "gone", Terms())
    await agents.create(scope, {"id": "pooled", "pool": "p"}, Terms())
    await runtime.runners.register(scope, {"id": "r1", "pool": "p", "platform": "vm", "capacity": 5})
    assert len(await runtime.runners.claim(scope, "r1", 5, 10)) == 1
    await runtime.commands.create(scope, "old", {"action": "custom", "payload": {"a": 1}}, Terms())
    episode = {"agent_id": "old", "task": "t", "input": "in", "output": "out", "reward": 0.9}
    await runtime.mongo.retention.insert_one({"_id": tenant, "tenant": tenant, "max_age_days": 9.0})
    await runtime.mongo.pools.insert_one({"_id": f"{tenant}:p", "tenant": tenant, "attempts": 2})
    record = {"_id": f"digest-{tenant}", "tenant": tenant, "digest": "d", "status": 201, "body": b"z"}
    await runtime.mongo.idempotency.insert_one({**record, "expires_at": datetime.now(UTC) + timedelta(days=1)})
    await runtime.keys.create(tenant, [Right.READ], name=tenant)
    await runtime.episodes.store(scope, [episode])


@pytest.fixture(scope="module")
def full(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A database with two tenants, for all tests that leave it as it is."""
    with MongoClient[Any](mongo_uri) as client:
        place = Place(mongo_uri, client[f"test_{uuid4().hex[:12]}"], tmp_path_factory.mktemp("full"))

        async def filled() -> None:
            async with place.replica() as runtime:
                await fill(runtime, ANN)
                await fill(runtime, BOB)
                await runtime.scribe.caught_up()

        asyncio.run(filled())
        yield place
        client.drop_database(place.tables)


@pytest.fixture
def copy(full: Place, places: Places) -> Place:
    """The same, for one test alone."""
    place = places.new()
    place.does("restore", full.backed_up())
    return place


def test_every_collection_is_kept_or_left_out_for_a_reason(mongo_uri: str) -> None:
    """A new one has to be decided about."""

    async def known() -> set[str]:
        client = open_client(mongo_uri)
        mongo = Mongo.of(client, "any")
        names = {getattr(mongo, field.name).name for field in fields(Mongo) if field.name != "client"}
        assert all(getattr(mongo, name).name == name for name in KEPT)
        await client.close()
        return names

    assert set(KEPT) | LEFT_OUT.keys() == asyncio.run(known())
    assert not set(KEPT) & LEFT_OUT.keys()


def test_the_whole_database_comes_back_byte_for_byte(full: Place, places: Places) -> None:
    before = full.everything()
    assert set(before) == set(KEPT)
    path = full.folder / "backup"
    assert "agents: 8 documents" in full.does("backup", path)
    assert path.stat().st_mode & 0o777 == 0o600
    other = places.new()
    assert "agents: 8 documents" in full.does("restore", path, "--into", other.tables.name)
    assert other.everything() == before
    assert full.everything() == before
    checked = other.call("doctor", "--fsck")
    assert checked.returncode == 0, checked.stdout


async def test_restored_agents_are_served_with_their_history_and_their_delegates(full: Place, places: Places) -> None:
    other = places.new()
    other.does("restore", full.backed_up())
    exports = []
    for place in (full, other):
        async with place.replica() as runtime:
            seen = await runtime.agents.get(ANN, "old", STRONG)
            exports.append((seen.record.version, seen.record.seq, seen.record.head))
            assert seen.record.delegate is not None
            assert runtime.agents._vault.open(seen.record.delegate["token"], "acme:old") == "secret"
            assert (await runtime.segments.asked(seen.record, lambda record: record.body("s3")))["seq"] == 4
            with pytest.raises(NotFound):
                await runtime.agents.get(ANN, "gone", STRONG)
    assert exports[0] == exports[1]


def test_one_tenant_comes_back_and_nobody_else_is_touched(full: Place, places: Places) -> None:
    """Also into a database where another tenant lives."""
    other = places.new()
    acme, rivals = full.backed_up("--tenant", "acme"), full.backed_up("--tenant", "rivals")
    other.does("restore", rivals)
    assert other.everything("acme") == {}
    before = other.everything("rivals")
    other.does("restore", acme)
    assert other.everything("rivals") == before == full.everything("rivals")
    assert other.everything("acme") == full.everything("acme")
    assert other.tables["service"].find_one({"_id": "latch"}) == {"_id": "latch", "closed": True}
    assert other.call("doctor", "--fsck").returncode == 0


def test_one_agent_comes_back_with_all_that_it_refers_to_and_nothing_else(full: Place, places: Places) -> None:
    other = places.new()
    other.does("restore", full.backed_up("--tenant", "acme", "--agent", "old"))
    (agent,) = other.everything()["agents"]
    assert agent in full.everything()["agents"]
    assert set(other.everything()) == {"agents", "segments", "blobs", "changes", "acts", "episodes", "commands"}
    assert all(document in full.everything()[name] for name, found in other.everything().items() for document in found)
    assert {entry["agent"] for entry in other.tables["changes"].find({"version": {"$gt": 0}})} == {"old"}
    checked = other.call("doctor", "--fsck")
    assert checked.returncode == 0, checked.stdout


def test_backups_and_restores_are_told(full: Place, places: Places) -> None:
    """To each tenant that they are of; a refused one leaves no word."""
    other = places.new()
    other.does("restore", full.backed_up())
    other.does("backup", full.folder / "told", "--tenant", "acme", "--agent", "old")
    other.refuses("backup", full.folder / "untold", "--tenant", "nobody")
    told = [
        (act["tenant"], act["by"], act["what"]) for act in other.tables["acts"].find({"kind": COPIED}).sort("at", 1)
    ]
    lately = [what for what in told if what[2] in ({"did": "restored"}, {"did": "backed up", "agent": "old"})]
    assert sorted(lately[:2], key=str) == [(tenant, "operator", {"did": "restored"}) for tenant in ("acme", "rivals")]
    assert lately[2:] == [("acme", "operator", {"did": "backed up", "agent": "old"})]
    assert other.tables["acts"].find_one({"tenant": "nobody"}) is None


def test_an_agent_without_a_tenant_is_one_of_the_tenant_default(full: Place) -> None:
    said = full.refuses("backup", full.folder / "b", "--agent", "old")
    assert "There is no agent 'old' in the tenant 'default'." in said
    assert not (full.folder / "b").exists()


def test_what_there_is_nothing_of_is_refused_and_leaves_no_file(full: Place, places: Places) -> None:
    path = full.folder / "b"
    assert "nothing of the tenant 'nobody'" in full.refuses("backup", path, "--tenant", "nobody")
    assert "There is no agent 'gone'" in full.refuses("backup", path, "--tenant", "acme", "--agent", "gone")
    assert "must match" in full.refuses("backup", path, "--tenant", "a b")
    assert "was never used" in places.new().refuses("backup", path)
    assert "can't be written" in full.refuses("backup", full.folder / "nowhere" / "b")
    path.write_text("mine")
    assert "is there already" in full.refuses("backup", path)
    assert path.read_text() == "mine"
    assert [one.name for one in full.folder.iterdir() if one.name.endswith(".part")] == []


async def test_a_backup_under_writes_is_of_one_moment_and_its_log_is_complete(places: Places) -> None:
    """Two agents that are written in turn are never more than one write apart; fsck finds the log as far as both."""
    place, other = places.new(), places.new()
    async with place.replica() as runtime:
        for agent in ("left", "right"):
            await runtime.agents.create(ANN, {"id": agent}, Terms())
        over = asyncio.Event()

        async def write() -> None:
            while not over.is_set():
                for agent in ("left", "right"):
                    step: Any = {"role": "user", "content": "z" * 200}
                    await runtime.agents.append(ANN, agent, [step], Terms(), advance_head=True)

        writing = asyncio.create_task(write())
        path = place.folder / "backup"
        await asyncio.to_thread(place.does, "backup", path)
        over.set()
        await writing
    await asyncio.to_thread(other.does, "restore", path)
    left, right = (other.tables["agents"].find_one({"_id": f"acme:{agent}"}) for agent in ("left", "right"))
    assert left["seq"] - right["seq"] in (0, 1)
    assert left["seq"] > 3
    logged = other.tables["changes"].count_documents({"agent": {"$in": ["left", "right"]}})
    assert logged == left["version"] + right["version"]
    checked = await asyncio.to_thread(other.call, "doctor", "--fsck")
    assert checked.returncode == 0, checked.stdout


@pytest.fixture
def small(places: Places) -> Path:
    """A backup of a little."""
    place = places.new()

    async def fill_a_little() -> None:
        async with place.replica() as runtime:
            await runtime.agents.create(ANN, {"id": "one"}, Terms())
            await runtime.agents.append(ANN, "one", [{"role": "user", "content": "hi"}], Terms(), advance_head=True)
            await runtime.scribe.caught_up()

    asyncio.run(fill_a_little())
    return place.backed_up()


def refusal_of(path: Path) -> str:
    with pytest.raises(ArchiveProblem) as told:
        asyncio.run(verified(path))
    return str(told.value)


def test_any_changed_byte_is_found(small: Path) -> None:
    whole = small.read_bytes()
    damaged = small.with_name("damaged")
    for place in range(len(whole)):
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        assert "damaged" in refusal_of(damaged) or place < 4, place


def test_what_is_cut_off_or_added_to_is_found(small: Path) -> None:
    whole = small.read_bytes()
    damaged = small.with_name("damaged")
    for length in {*range(0, len(whole), 13), *range(len(whole) - 60, len(whole))}:
        damaged.write_bytes(whole[:length])
        refusal_of(damaged)
    for more in (b"\0", b"x" * 100, whole, whole[-56:]):
        damaged.write_bytes(whole + more)
        assert "damaged" in refusal_of(damaged)
    damaged.write_bytes(whole[:-56] + whole[:-56] + whole[-56:])
    assert "damaged" in refusal_of(damaged)


def test_a_damaged_backup_or_none_is_refused_in_a_sentence_and_nothing_is_written(small: Path, places: Places) -> None:
    other = places.new()
    damaged = small.with_name("damaged")
    whole = small.read_bytes()
    damaged.write_bytes(whole[:-100] + b"?" + whole[-99:])
    assert "is damaged" in other.refuses("restore", damaged)
    assert "is damaged" in other.refuses("restore", damaged, "--dry-run")
    damaged.write_text("no backup at all, and long enough to be taken for one if nobody looked at it more closely")
    assert "is not a backup of Holdfast" in other.refuses("restore", damaged)
    damaged.write_bytes(b"")
    assert "is not a backup of Holdfast" in other.refuses("restore", damaged)
    assert "can't be read" in other.refuses("restore", small.with_name("nothing"))
    assert "can't be read" in other.refuses("restore", small.parent)
    assert other.tables.list_collection_names() == []


def test_a_backup_of_a_newer_format_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = Header(Extent(), "holdfast", datetime.now(UTC), (1, 1))
    newer = {**header.document(), "holdfast_backup": FORMAT + 1}
    monkeypatch.setattr(Header, "document", lambda _: newer)
    with written(tmp_path / "newer") as archive:
        archive.begin(header)
        archive.end(())
    assert f"made by a newer Holdfast (format {FORMAT + 1}; this one reads {FORMAT})" in refusal_of(tmp_path / "newer")


def test_zstd_reads_a_backup_as_bson_documents(small: Path) -> None:
    """So that it can be looked at without Holdfast."""
    with reading(small) as archive:
        names = {batch.collection for batch in archive.batches()}
    documents = bson.decode_all(zstd.decompress(small.read_bytes()))
    assert documents[0]["holdfast_backup"] == FORMAT
    assert {one["collection"] for one in documents if "collection" in one and "sha256" in one} == names
    assert documents[-1]["end"] is True
    assert [one["name"] for one in documents if one.get("_id") == "acme:one"] == ["Bob"]


def test_existing_data_is_never_restored_over(full: Place, places: Places) -> None:
    other = places.new()
    whole, acme = full.backed_up(), full.backed_up("--tenant", "acme")
    old = full.backed_up("--tenant", "acme", "--agent", "old")
    other.does("restore", whole)
    before = other.everything()
    for path in (whole, acme, old):
        assert "already" in other.refuses("restore", path)
        said = other.call("restore", path, "--dry-run")
        assert (said.returncode, "taken  " in said.stdout) == (0, True)
    assert other.everything() == before
    for name in ("episodes", "changes", "keys", "runners"):
        lone = places.new()
        document = next(iter(full.tables[name].find({"tenant": "acme"})))
        lone.tables[name].insert_one(document)
        assert f"1 in '{name}'" in lone.refuses("restore", whole)
        assert f"1 in '{name}'" in lone.refuses("restore", acme)


async def test_a_database_that_only_a_fresh_service_used_is_empty(full: Place, places: Places) -> None:
    other = places.new()
    async with other.replica() as runtime:
        await runtime.scribe.caught_up()
        path = full.backed_up()
        await asyncio.to_thread(other.does, "restore", path)
        assert (await runtime.agents.get(ANN, "old", STRONG)).record.step_count == 21
    assert other.everything()["changes"] == full.everything()["changes"]


def test_a_dry_run_writes_nothing(full: Place, places: Places) -> None:
    other = places.new()
    for extent in ((), ("--tenant", "acme"), ("--tenant", "acme", "--agent", "old")):
        path = full.backed_up(*extent)
        said = other.does("restore", path, "--dry-run")
        assert "is whole" in said and "there is room" in said
    assert other.tables.list_collection_names() == []


def test_a_database_with_an_impossible_name_is_refused(full: Place) -> None:
    path = full.backed_up()
    for name in ("", "a.b", "a b", "x" * 39):
        assert "can't be the name of a database" in full.refuses("restore", path, "--into", name)


async def test_a_deleted_agent_comes_back_with_the_version_and_fence_after_its_delete(copy: Place) -> None:
    """Its steps, sealed ones too, keep their versions; its log goes on; whoever drove it is a stranger."""
    paths = {agent: copy.backed_up("--tenant", "acme", "--agent", agent) for agent in ("old", "pooled")}
    async with copy.replica() as runtime:
        kept = {agent: (await runtime.agents.get(ANN, agent, STRONG)).record for agent in paths}
        await runtime.agents.append(ANN, "old", [{"id": "late", "role": "user"}], Terms(), advance_head=True)
        for agent, path in paths.items():
            await runtime.agents.delete(CAT, agent, Terms())
            deleted = copy.tables["agents"].find_one({"_id": f"acme:{agent}"})
            assert "there is room" in await asyncio.to_thread(copy.does, "restore", path, "--dry-run")
            await asyncio.to_thread(copy.does, "restore", path)
            back = (await runtime.agents.get(ANN, agent, STRONG)).record
            assert back.version == deleted["version"] + 1
            assert back.fence == deleted["fence"] >= kept[agent].fence
            assert (back.runner, back.seq, back.head) == (None, kept[agent].seq, kept[agent].head)
            assert (back.sealed, back.steps) == (kept[agent].sealed, kept[agent].steps)
            assert "already" in await asyncio.to_thread(copy.refuses, "restore", path)
        assert copy.tables["agents"].find_one({"_id": "acme:pooled"})["previous_runner"] == "r1"
        step: Any = {"id": "next", "role": "user"}
        assert (await runtime.agents.append(ANN, "old", [step], Terms(), advance_head=True)).record.seq == 22
        await runtime.scribe.caught_up()
        newest = copy.tables["changes"].find_one({"_id": f"acme:old:{kept['old'].version + 3}"})
        assert (newest["kinds"], newest["by"]) == (["created", "restored"], "restore")
        assert [str(found) async for found in Fsck(runtime.mongo).findings()] == []


async def test_a_tombstone_that_is_older_than_the_backup_is_left_alone(full: Place, places: Places) -> None:
    other = places.new()
    path = full.backed_up("--tenant", "acme", "--agent", "old")
    async with other.replica() as runtime:
        await runtime.agents.create(ANN, {"id": "old"}, Terms())
        await runtime.agents.delete(ANN, "old", Terms())
        await runtime.scribe.caught_up()
    before = other.everything()
    assert "deleted here at version 2" in other.refuses("restore", path)
    assert other.everything() == before


@pytest.mark.parametrize("at", ["blobs", "agents"])
async def test_a_killed_restore_is_told_by_everybody_and_gone_on_with(full: Place, places: Places, at: str) -> None:
    other = places.new()
    path, old = full.backed_up(), full.backed_up("--tenant", "acme", "--agent", "old")
    assert other.call("restore", path, deed=kill, at=at).returncode == -signal.SIGKILL
    assert "the database is not whole" in other.refuses("serve", "--port", "0")
    examined = other.call("doctor")
    assert (examined.returncode, "wrong  restores" in examined.stdout) == (1, True)
    assert "come to its end first" in other.refuses("backup", full.folder / "no")
    assert "run that one again first" in other.refuses("restore", old)
    assert "would be gone on with" in other.does("restore", path, "--dry-run")
    async with other.replica(collect_wait_seconds=0.1) as runtime:
        assert not await runtime.healthy()
        assert (await runtime.collector.collect()).removed == 0
        await asyncio.to_thread(other.does, "restore", path)
        assert await runtime.healthy()
        await runtime.scribe.caught_up()
        assert [str(found) async for found in Fsck(runtime.mongo).findings()] == []
    kinds = {name: len(documents) for name, documents in other.everything().items()}
    assert kinds == {name: len(documents) for name, documents in full.everything().items()}
    assert other.everything()["agents"] == full.everything()["agents"]
    assert other.tables["service"].find_one({"_id": WHOLE_NOTE}) is None


async def _collected(place: Place) -> None:
    """What lies apart and nothing refers to is a collector's business, for others may refer to it meanwhile."""
    async with place.replica(collect_wait_seconds=0.1) as runtime:
        await runtime.collector.collect()


@pytest.mark.parametrize("deed", [interrupt, terminate, fail])
def test_a_restore_that_is_broken_off_leaves_nothing(full: Place, places: Places, deed: Any) -> None:
    other = places.new()
    done = other.call("restore", full.backed_up(), deed=deed, at="keys")
    assert done.returncode != 0
    assert "what it wrote was taken away again" in done.stderr
    assert other.everything().keys() <= APART
    asyncio.run(_collected(other))
    assert other.everything() == {}
    other.does("restore", full.backed_up())
    assert other.everything() == full.everything()


@pytest.mark.parametrize("deed", [kill, fail])
async def test_an_agents_restore_that_is_broken_off_spares_what_was_there(copy: Place, deed: Any) -> None:
    """What its fork shares with it, its episodes and its log stay; run again it comes to its end."""
    path = copy.backed_up("--tenant", "acme", "--agent", "old")
    async with copy.replica() as runtime:
        await runtime.agents.delete(ANN, "old", Terms())
        await runtime.scribe.caught_up()
    lost = copy.tables["segments"].find({"agent": "acme:old"}).sort("_id", -1).limit(1)[0]["_id"]
    copy.tables["segments"].delete_one({"_id": lost})
    before = copy.everything()
    assert copy.call("restore", path, deed=deed, at="segments").returncode != 0
    if deed is fail:
        assert {**copy.everything(), "segments": []} == {**before, "segments": []}
    copy.does("restore", path)
    after = copy.everything()
    assert len(after["segments"]) == len(before["segments"]) + 1
    assert {name: after[name] for name in ("blobs", "episodes", "keys")} == {
        name: before[name] for name in ("blobs", "episodes", "keys")
    }
    assert copy.call("doctor", "--fsck").returncode == 0


async def test_a_restored_service_asks_for_keys_and_lets_its_own_in(places: Places) -> None:
    place, other = places.new(), places.new()
    async with place.replica() as runtime:
        await runtime.agents.create(ANN, {"id": "one"}, Terms())
        _, token = await runtime.keys.create("acme", [Right.READ])
    await asyncio.to_thread(other.does, "restore", place.backed_up())
    async with serving(other.settings, other.uri) as api:
        await api.call("GET", "/v1/agents/one", expect="unauthenticated")
        headers = {"Authorization": f"Bearer {token}"}
        answer: httpx.Response = await api.call("GET", "/v1/agents/one", headers=headers)
        assert answer.json()["version"] == 1
        assert (await api.call("GET", "/health/ready")).status_code == 200


async def test_a_replica_of_a_restored_database_finds_a_log_without_gaps_and_goes_on_with_it(
    copy: Place, places: Places
) -> None:
    """Also of agents whose entries were removed by age."""
    copy.tables["changes"].delete_many({"agent": "pooled"})
    other = places.new()
    other.does("restore", copy.backed_up())
    async with other.replica() as runtime:
        await runtime.agents.append(ANN, "old", [{"role": "user"}], Terms(), advance_head=True)
        await runtime.scribe.caught_up()
    entries = list(other.tables["changes"].find({"kinds": {"$exists": True}}).sort("position"))
    assert [entry for entry in entries if "gap" in entry["kinds"]] == []
    assert entries[-1]["agent"] == "old"


async def test_restored_runners_are_found_to_be_dead_and_their_agents_go_on(full: Place, places: Places) -> None:
    other = places.new()
    other.does("restore", full.backed_up())
    runners, agents = other.tables["runners"], other.tables["agents"]
    assert agents.find_one({"_id": "acme:pooled"})["runner"] == "r1"
    async with other.replica(runner_ttl_seconds=1.0):
        await wait_until_async(lambda: runners.count_documents({"state": "dead"}) == 2, SECONDS, "runners to be dead")
        await wait_until_async(lambda: agents.count_documents({"runner": "r1"}) == 0, SECONDS, "agents to be free")


async def test_the_database_has_to_be_later_than_the_backup(small: Path, places: Places) -> None:
    """Its change log would go back, and readers would miss what comes."""
    later = small.with_name("later")
    with reading(small) as archive, written(later) as copy:
        copy.begin(replace(archive.header, time=(2**32 - 2, 1)))
        for batch in archive.batches():
            copy.add(batch.collection, b"".join(batch.documents))
        copy.end(())
    other = places.new()
    assert "set the clock" in await asyncio.to_thread(other.refuses, "restore", later)
    assert other.everything() == {}
    async with other.replica() as runtime:
        assert await unfinished(runtime.mongo) is None


async def test_what_was_erased_and_comes_back_is_not_swept(full: Place, places: Places) -> None:
    """A tenant, and a whole database: replicas that swept what came late of it let it be."""
    acme, whole = full.backed_up("--tenant", "acme"), full.backed_up()
    other = places.new()
    other.does("restore", whole)
    async with other.replica() as runtime:
        await runtime.erasure.tenant("acme")
        assert other.everything("acme") == {}
        await asyncio.to_thread(other.does, "restore", acme)
        await runtime.erasure.sweep()
        assert other.everything("acme") == full.everything("acme")
        for tenant in ("acme", "rivals"):
            await runtime.erasure.tenant(tenant)
        await asyncio.to_thread(other.does, "restore", whole)
        await runtime.erasure.sweep()
    assert other.everything("acme") == full.everything("acme")
    assert other.call("doctor", "--fsck").returncode == 0


async def test_erased_agent_comes_back_with_its_history(full: Place, places: Places) -> None:
    """Its log is there again before its deletion, and stays."""
    path = full.backed_up("--tenant", "acme", "--agent", "old")
    other = places.new()
    other.does("restore", full.backed_up())
    async with other.replica(deadline_seconds=2) as runtime:
        version = (await runtime.agents.get(ANN, "old", STRONG)).record.version
        await runtime.erasure.agent(ANN, "old", episodes=True)
        await asyncio.to_thread(other.does, "restore", path)
        await runtime.erasure.sweep()
        assert (await runtime.agents.get(ANN, "old", STRONG)).record.version == version + 2
        await runtime.scribe.caught_up()
        assert [str(found) async for found in Fsck(runtime.mongo).findings()] == []
    versions = [one["version"] for one in other.tables["changes"].find({"agent": "old", "tenant": "acme"})]
    assert sorted(versions) == list(range(1, version + 3))


async def test_an_ephemeral_agent_that_comes_back_begins_its_life_anew(places: Places) -> None:
    """What was left of it when the backup was taken may long be over."""
    place = places.new()
    async with place.replica() as runtime:
        await runtime.agents.create(ANN, {"id": "short", "ttl_seconds": 300}, Terms())
        path = await asyncio.to_thread(place.backed_up, "--tenant", "acme", "--agent", "short")
        before = (await runtime.agents.get(ANN, "short", STRONG)).record.expires_at
        await runtime.agents.delete(ANN, "short", Terms())
        await asyncio.to_thread(place.does, "restore", path)
        after = (await runtime.agents.get(ANN, "short", STRONG)).record.expires_at
    assert before is not None and after is not None and after > before


def test_a_backup_of_a_newer_program_is_left_to_it(full: Place, places: Places) -> None:
    """What its migrations changed is not known here."""
    place = places.new()
    place.does("restore", full.backed_up())
    place.tables["service"].insert_one({"_id": "migration:9999", "finished_at": datetime.now(UTC)})
    assert "migration:9999" in places.new().refuses("restore", place.backed_up())


def test_a_restore_that_is_broken_off_twice_takes_nothing_away(full: Place, places: Places) -> None:
    """Others may have gone on with what the first run wrote: the third one ends it."""
    other = places.new()
    path = full.backed_up("--tenant", "acme")
    assert other.call("restore", path, deed=kill, at="keys").returncode == -signal.SIGKILL
    there = other.everything("acme")
    again = other.call("restore", path, deed=fail, at="episodes")
    assert (again.returncode, "Run it once more" in again.stderr) == (1, True)
    assert other.everything("acme") == there
    other.does("restore", path)
    assert other.everything("acme") == full.everything("acme")
