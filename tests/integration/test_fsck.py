"""A consistent database is found to be so; each way to break one is found, and mended where that is safe."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import bson
import pytest
import pytest_asyncio
from backports import zstd
from bson.binary import Binary

from app.config import Settings
from app.fsck import Fsck, mend
from app.lanes import Terms
from app.reads import Freshness
from app.runtime import Runtime, running
from models.blob import REFERENCE
from models.prompt import FIELD, PROMPT, StoredPrompt
from models.tenant import Right, Scope

ANN = Scope("acme", frozenset(Right), by="ann")


@dataclass(frozen=True)
class Place:
    """A replica, and an agent with something of everything."""

    runtime: Runtime
    agent: str

    @property
    def key(self) -> str:
        return f"acme:{self.agent}"

    async def flaws(self) -> list[str]:
        await self.runtime.scribe.caught_up()
        return [str(found) async for found in Fsck(self.runtime.mongo).findings()]

    async def document(self) -> Any:
        return await self.runtime.mongo.agents.find_one({"_id": self.key})

    async def set(self, **fields: Any) -> None:
        """Write behind the service's back; the change stream is told nothing that it could lay on a copy."""
        changed = {name.replace("__", "."): value for name, value in fields.items()}
        await self.runtime.mongo.agents.update_one({"_id": self.key}, {"$set": changed})


@pytest_asyncio.fixture
async def place(tmp_path: Path, mongo_uri: str) -> AsyncIterator[Place]:
    async with _place(tmp_path, mongo_uri) as found:
        yield found


@pytest_asyncio.fixture
async def grown(tmp_path: Path, mongo_uri: str) -> AsyncIterator[Place]:
    """The same, with older steps sealed: a segment with side branches, and one that is a line; a fork shares them."""
    async with _place(tmp_path, mongo_uri, seal_bytes=1500) as found:
        agents = found.runtime.agents
        for number in range(30):
            step: Any = {"id": f"n{number}", "role": "agent", "content": "c" * 200}
            await agents.append(ANN, found.agent, [step], Terms(), advance_head=True)
        await agents.put_result(ANN, found.agent, "late", "s1", 1, Terms())
        await agents.fork(ANN, found.agent, Terms(), at="n7", name=None)
        yield found


@asynccontextmanager
async def _place(data: Path, mongo_uri: str, **chosen: Any) -> AsyncIterator[Place]:
    settings = Settings(mongodb_database=f"test_{uuid4().hex[:12]}", data=data, inline_bytes=1000, **chosen)
    async with running(settings, mongo_uri) as runtime:
        agents = runtime.agents
        spec = {"workspace": {"w": "x" * 1200}, "labels": {"team": "blue"}}
        made = (await agents.create(ANN, spec, Terms())).record.name_in_tenant
        messages = [{"role": "user", "content": f"{number}" * 200} for number in range(12)]
        for number in range(1, 5):
            step = {"id": f"s{number}", "role": "user", "content": "c" * 1200, FIELD: messages[: 3 * number]}
            await agents.append(ANN, made, [step], Terms(), advance_head=True)
        await agents.set_branch(ANN, made, "side", "s2", Terms())
        await agents.put_result(ANN, made, "key", "s1", {"r": "x" * 1200}, Terms())
        await agents.revert(ANN, made, "s4", Terms())
        gone = (await agents.create(ANN, {}, Terms())).record.name_in_tenant
        await agents.delete(ANN, gone, Terms())
        yield Place(runtime, made)
        await runtime.mongo.client.drop_database(settings.mongodb_database)


async def test_what_the_service_wrote_is_consistent(place: Place) -> None:
    """Agents with branches, results, large values, prompts; forks, copies and tombstones."""
    await place.runtime.agents.fork(ANN, place.agent, Terms(), at="s2", name=None)
    fsck = Fsck(place.runtime.mongo)
    await place.runtime.scribe.caught_up()
    assert [found async for found in fsck.findings()] == []
    assert (fsck.counts.agents, fsck.counts.of_agents) == (3, 3)
    assert fsck.counts.values == fsck.counts.of_values > 3


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "another tenant": ({"tenant": "rivals"}, "its key names another"),
    "a version that no commit made": ({"version": 99}, "its newest commit at"),
    "no operation id": ({"ops": {}}, "left no operation id"),
    "a parent that is not there": ({"steps__s2__parent_id": "nowhere"}, "hangs from 'nowhere'"),
    "a circle": ({"steps__s1__parent_id": "s3"}, "hangs from one that is not before it"),
    "a seq twice": ({"steps__s2__seq": 1}, "2 steps have the seq 1"),
    "a seq beyond": ({"steps__s4__seq": 9}, "the agent's highest is 4"),
    "a step of the future": ({"steps__s4__version": 500}, "is of version 500"),
    "a step with nothing in it": ({"steps__s4": {"seq": 4}}, "has no version, parent_id"),
    "HEAD nowhere": ({"branches__main": "nowhere"}, "HEAD 'nowhere' is not there"),
    "a branch nowhere": ({"branches__side": "nowhere"}, "the branch 'side' points at 'nowhere'"),
    "no current branch": ({"branch": "other"}, "current branch 'other' is not there"),
    "a result of nothing": ({"results__nowhere": {"k": 1}}, "results are bound to 'nowhere'"),
    "a count": ({"step_count": 7}, "its step_count is 7"),
    "label terms": ({"label_terms": []}, "its label_terms is []"),
    "a status": ({"status": "failed"}, "its status is 'failed'"),
    "a redo stack": ({"redo": ["s4", "nowhere"]}, "its redo stack names"),
    "a reference to nothing": ({"steps__s1__content": Binary(bytes(40), REFERENCE)}, "which is not there"),
    "a prompt of nothing": ({f"steps__s1__{FIELD}": []}, "goes on from the step 's1', which has none"),
    "an unreadable prompt": ({f"steps__s3__{FIELD}": Binary(b"rubbish", PROMPT)}, "it can't be read (Damaged"),
    "something unreadable": ({"steps": 7}, "it can't be read"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_what_is_broken_is_found(place: Place, case: str) -> None:
    change, told = BROKEN[case]
    await place.set(**change)
    found = await place.flaws()
    assert any(place.key in flaw and told in flaw for flaw in found), found


async def test_prompts_that_contradict_each_other_are_found(place: Place) -> None:
    """More messages than there are, another path, another depth."""
    stored = StoredPrompt.of((await place.document())["steps"]["s3"][FIELD])
    for change, told in (
        ({"count": 50}, "says 50"),
        ({"reused": 50}, "takes 50 messages"),
        ({"depth": 0}, "is 0 steps deep"),
        ({"step": "s4"}, "not on its path"),
    ):
        fields = {name: getattr(stored, name) for name in StoredPrompt.__slots__}
        await place.set(**{f"steps__s3__{FIELD}": StoredPrompt(**{**fields, **change}).stored()})
        assert any(told in flaw for flaw in await place.flaws()), told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": b"rubbish"}, "can't be read"),
        ({"data": zstd.compress(b'"other"')}, "and it has 7"),
        ({"length": 1}, "says that it has 1 bytes"),
        ({"tenant": "rivals"}, "of the tenant 'rivals'"),
    ],
)
async def test_damaged_values_are_found(place: Place, change: dict[str, Any], told: str) -> None:
    await place.runtime.mongo.blobs.update_one({}, {"$set": change})
    assert any(told in flaw for flaw in await place.flaws())


async def test_value_under_another_key_is_found(place: Place) -> None:
    value = await place.runtime.mongo.blobs.find_one({})
    assert value is not None
    text = b'"' + b"y" * (value["length"] - 2) + b'"'
    await place.runtime.mongo.blobs.update_one({"_id": value["_id"]}, {"$set": {"data": zstd.compress(text)}})
    assert any("not the one that its key names" in flaw for flaw in await place.flaws())


async def test_lost_value_is_found_with_whoever_refers_to_it(place: Place) -> None:
    await place.runtime.mongo.blobs.delete_many({})
    lost = [flaw for flaw in await place.flaws() if "which is not there" in flaw]
    assert len(lost) >= 3
    assert all(flaw.startswith(place.key) for flaw in lost)


async def test_log_that_differs_is_found(place: Place) -> None:
    await place.runtime.scribe.caught_up()
    await place.runtime.mongo.changes.delete_one({"_id": f"{place.key}:3"})
    assert any("the change log differs: there is no entry of version 3" in flaw for flaw in await place.flaws())


async def test_tombstone_with_content_is_found(place: Place) -> None:
    await place.runtime.mongo.agents.update_one({"deleted_at": {"$ne": None}}, {"$set": {"name": "Zombie"}})
    assert any("is a tombstone and has content: name" in flaw for flaw in await place.flaws())


async def test_what_follows_from_the_rest_is_mended_by_a_commit(place: Place) -> None:
    """All of it, one commit each; what can't be known is left alone."""
    await place.set(step_count=7, label_terms=[], status="failed", redo=["s4", "nowhere"], branches__side="nowhere")
    before = (await place.document())["version"]
    fsck = Fsck(place.runtime.mongo)
    found = [one async for one in fsck.findings() if one.key == place.key]
    mended = [await mend(place.runtime.store, one) for one in found]
    assert mended.count(True) == 4
    (left,) = await place.flaws()
    assert "the branch 'side' points at 'nowhere'" in left
    after = await place.document()
    assert after["version"] == before + 4
    assert (after["step_count"], after["label_terms"], after["redo"]) == (4, ["team:blue"], ["s4"])
    assert after["last"]["by"] == "fsck"
    read = (await place.runtime.agents.get(ANN, place.agent, Freshness(strong=True))).record
    assert read.status == "pending"


async def test_mending_twice_changes_nothing_more(place: Place) -> None:
    await place.set(step_count=7)
    (found,) = [one async for one in Fsck(place.runtime.mongo).findings()]
    assert await mend(place.runtime.store, found)
    assert not await mend(place.runtime.store, found)


async def test_sealed_agents_and_their_forks_are_consistent(grown: Place) -> None:
    fsck = Fsck(grown.runtime.mongo)
    await grown.runtime.scribe.caught_up()
    assert [found async for found in fsck.findings()] == []
    assert fsck.counts.segments == fsck.counts.of_segments > 3
    kept = list((await grown.document())["sealed"].values())
    assert {one["chain"] for one in kept} == {True, False}


DESCRIBED: dict[str, tuple[dict[str, Any], str]] = {
    "too many steps": ({"count": 99}, "says of its segment"),
    "another end": ({"last": "s1"}, "says of its segment"),
    "another beginning": ({"parent": "nowhere"}, "is not the line that it says"),
    "another highest seq": ({"to_seq": 10**6}, "says of its segment"),
    "an older version": ({"to_version": 1}, "says of its segment"),
    "no such segment": ({"id": "acme:x:y"}, "its segment acme:x:y is not there"),
    "something unreadable": ({"from_seq": "x"}, "it can't be read"),
}


@pytest.mark.parametrize("case", DESCRIBED)
async def test_descriptors_that_are_not_so_are_found(grown: Place, case: str) -> None:
    change, told = DESCRIBED[case]
    sealed = (await grown.document())["sealed"]
    lines = [number for number, kept in sealed.items() if kept["chain"]]
    await grown.set(sealed={**sealed, lines[-1]: {**sealed[lines[-1]], **change}})
    found = await grown.flaws()
    assert any(grown.key in flaw and told in flaw for flaw in found), found


def packed(steps: Any, results: Any) -> bytes:
    """The content of a segment, as it is stored."""
    return zstd.compress(bson.encode({"steps": steps, "results": results}))


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "another tenant": ({"tenant": "rivals"}, "its tenant are not"),
    "another tree": ({"seqs": []}, "its seqs are not"),
    "turns that nobody finds": ({"turns.0": "other"}, "its turns are not"),
    "content that can't be read": ({"data": b"rubbish"}, "can't be read"),
    "no steps": ({"data": packed({}, {})}, "its ids are not"),
    "a result of nothing": ({"data": packed({}, {"nowhere": {"k": 1}})}, "results are bound to 'nowhere'"),
    "a reference to nothing": (
        {"data": packed({}, {"nowhere": {"k": Binary(bytes(40), REFERENCE)}})},
        "refers to the value",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
async def test_damaged_segments_are_found(grown: Place, case: str) -> None:
    change, told = DAMAGED[case]
    await grown.runtime.mongo.segments.update_one({}, {"$set": change})
    found = await grown.flaws()
    assert any(told in flaw for flaw in found), found


async def test_steps_sealed_and_not_sealed_are_found(grown: Place) -> None:
    """A step may not be older than one that is sealed, nor hang from one that is nowhere."""
    sealed = (await grown.document())["sealed"]
    first = sealed.pop(min(sealed, key=int))
    await grown.set(sealed=sealed)
    found = await grown.flaws()
    assert any("hangs from" in flaw and "which is not there" in flaw for flaw in found), found
    assert any("step_count" in flaw for flaw in found), found
    await grown.set(sealed={**sealed, str(first["from_seq"]): first}, steps__n29__seq=1)
    assert any("older than one that is sealed" in flaw for flaw in await grown.flaws())


async def test_what_follows_from_a_sealed_agent_is_mended(grown: Place) -> None:
    await grown.set(step_count=7)
    fsck = Fsck(grown.runtime.mongo)
    mended = [found async for found in fsck.findings() if await mend(grown.runtime.store, found)]
    assert len(mended) == 1
    assert await grown.flaws() == []
    assert (await grown.document())["step_count"] == 34
