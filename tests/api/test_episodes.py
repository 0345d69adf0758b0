"""Episodes: what agents learned is kept as it was given, found by meaning, and never another tenant's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from pymongo import WriteConcern

from app.config import Settings
from app.runtime import running
from models.errors import Unavailable
from models.tenant import ANONYMOUS
from tests.api.conftest import KeyMaker
from tests.api.driver import Api, Json, bearer, serving

LESSONS = {
    "python": "Fixed a Python traceback: a missing import broke the module.",
    "soup": "Cooked a tomato soup; more salt and basil made it better.",
    "flight": "Booked a flight to Lisbon and chose a window seat.",
    "tests": "The unit tests failed because a dependency was not installed.",
}


async def learned(api: Api, **fields: Any) -> Json:
    told: Json = (await api.call("POST", "/v1/episodes", fields, expect=201)).json()
    return told


async def found(api: Api, expect: int | str | None = None, **asked: Any) -> list[str]:
    answer = await api.call("POST", "/v1/episodes/search", asked, expect=expect)
    return [item["episode"]["id"] for item in answer.json().get("items", [])]


@pytest_asyncio.fixture(loop_scope="session")
async def mine(keyed: Api, new_key: KeyMaker, tenant: str) -> Api:
    """A caller of a tenant that no other test uses."""
    return keyed.with_headers(bearer(await new_key(tenant)))


async def test_episode_is_kept_as_it_was_given(mine: Api) -> None:
    """With its success, vector and times; found again by its id."""
    given = {
        "agent_id": "bob",
        "session_id": "monday",
        "step_id": "s1",
        "task": "fix it",
        "input": {"$ref": "a", "$id": "b", "x.y": [1, 2.5, None]},
        "output": "done",
        "reward": 0.7,
        "critique": "slow",
        "tokens": 12,
        "latency_ms": 3.5,
        "metadata": {"k": "v"},
    }
    told = await learned(mine, **given)
    assert {name: told[name] for name in given} == given
    assert (told["success"], told["embedder"], len(told["embedding"])) == (True, "all-MiniLM-L6-v2", 384)
    assert (await mine.call("GET", f"/v1/episodes/{told['id']}")).json() == told
    assert (await learned(mine, task="x", reward=0.69))["success"] is False
    assert (await learned(mine, task="x"))["success"] is None


async def test_episodes_are_found_by_meaning(mine: Api) -> None:
    """The most similar first, though no word is the same; the answer says what compared them."""
    for name, text in LESSONS.items():
        await learned(mine, id=name, task=text)
    answer = (await mine.call("POST", "/v1/episodes/search", {"text": "preparing a meal", "k": 2})).json()
    assert (answer["items"][0]["episode"]["id"], answer["embedder"]) == ("soup", "all-MiniLM-L6-v2")
    scores = [item["score"] for item in answer["items"]]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert (await found(mine, text="airplane travel"))[0] == "flight"
    assert set(await found(mine, text="software bug", k=2)) == {"python", "tests"}
    vector = (await mine.call("GET", "/v1/episodes/soup")).json()["embedding"]
    assert (await found(mine, vector=[7 * number for number in vector]))[0] == "soup"


async def test_search_is_filtered(mine: Api) -> None:
    """By agent, session, reward and time."""
    early = await learned(mine, id="early", agent_id="a", session_id="s", reward=0.2, task="one")
    await asyncio.sleep(0.01)
    late = await learned(mine, id="late", agent_id="b", session_id="t", reward=0.9, task="one")
    assert await found(mine, text="one", agent="a") == ["early"]
    assert await found(mine, text="one", session="t") == ["late"]
    assert await found(mine, text="one", min_reward=0.9) == ["late"]
    assert await found(mine, text="one", since=late["created_at"]) == ["late"]
    assert set(await found(mine, text="one", since=early["created_at"])) == {"early", "late"}
    assert await found(mine, text="one", agent="nobody") == []


async def test_episodes_of_abandoned_steps_can_be_left_out(mine: Api) -> None:
    """Those of steps on no path of HEAD or of a named branch; those of no step, or of agents that are gone, stay."""
    agent, gone = await mine.made(), await mine.made()
    await agent.append({"role": "user", "id": "kept"})
    for name in ("dead-end", "named", "now"):
        await agent.append({"role": "agent", "id": name, "parent_id": "kept"}, advance_head="false")
    await agent.call("PUT", "/branches/side", {"step_id": "named"})
    await agent.call("PUT", "/head", {"step_id": "now"})
    for step in ("kept", "dead-end", "named", "now", "never-was"):
        await learned(mine, id=step, agent_id=agent.id, step_id=step, task="one")
    await learned(mine, id="no-step", agent_id=agent.id, task="one")
    await learned(mine, id="of-nobody", step_id="dead-end", task="one")
    await learned(mine, id="of-the-gone", agent_id=gone.id, step_id="s", task="one")
    await gone.call("DELETE")
    on_a_path = {"kept", "named", "now", "no-step", "of-nobody", "of-the-gone"}
    assert set(await found(mine, text="one", exclude_abandoned=True)) == on_a_path
    assert set(await found(mine, text="one")) == {*on_a_path, "dead-end", "never-was"}
    await agent.call("PUT", "/head", {"step_id": "dead-end"})
    assert "dead-end" in await found(mine, text="one", exclude_abandoned=True)
    assert "now" not in await found(mine, text="one", exclude_abandoned=True)


async def test_batch_answers_for_each(mine: Api) -> None:
    """In order; what is wrong with one keeps no other from being stored."""
    batch = [{"id": "one", "task": "1"}, {"reward": 2}, "no", {"task": "4"}, {"id": "one", "task": "other"}]
    answer = await mine.call("POST", "/v1/episodes", {"episodes": batch}, expect=207)
    one, two, three, four, five = answer.json()["items"]
    assert one == {"id": "one"}
    assert two["status"] == three["status"] == 400
    assert five["status"] == 409
    assert {two["error"]["code"], five["error"]["code"]} == {"invalid-request", "conflict"}
    assert (await mine.call("GET", f"/v1/episodes/{four['id']}")).json()["task"] == "4"


async def test_same_episode_again_is_answered_as_at_first(mine: Api) -> None:
    """With other content under the same id it is refused: nothing is overwritten."""
    first = await learned(mine, id="e", task="one", reward=1)
    again = await mine.call("POST", "/v1/episodes", {"id": "e", "task": "one", "reward": 1}, expect=200)
    assert again.json() == first
    await mine.call("POST", "/v1/episodes", {"id": "e", "task": "two"}, expect="conflict")
    assert (await mine.call("GET", "/v1/episodes/e")).json() == first


async def test_removed_episode_is_found_no_more(mine: Api) -> None:
    """On the replica that removed it, at once."""
    await learned(mine, id="e", task="one")
    assert await found(mine, text="one") == ["e"]
    await mine.call("DELETE", "/v1/episodes/e", expect=204)
    assert await found(mine, text="one") == []
    await mine.call("GET", "/v1/episodes/e", expect="not-found")
    await mine.call("DELETE", "/v1/episodes/e", expect="not-found")


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"text": "x", "vector": [1.0]},
        {"vector": [1.0]},
        {"vector": [0.0] * 384},
        {"text": "x", "k": 0},
        {"text": "x", "embedder": "strange"},
        {"vector": [1.0] * 384, "embedder": "strange"},
        {"text": "x", "min_reward": 2},
    ],
)
async def test_questions_that_make_no_sense_are_refused(mine: Api, asked: Json) -> None:
    """With what is wrong with them."""
    await found(mine, expect="invalid-request", **asked)


async def test_new_episode_is_found_on_the_other_replica(
    keyed: Api, other_keyed: Api, new_key: KeyMaker, tenant: str
) -> None:
    """Within the staleness bound, whether or not it was searched before."""
    key = bearer(await new_key(tenant))
    here, there = keyed.with_headers(key), other_keyed.with_headers(key)
    assert await found(there, text="one") == []
    await learned(here, id="e", task="one")
    async with asyncio.timeout(2):
        while await found(there, text="one") != ["e"]:  # noqa: ASYNC110 - another replica's doing
            await asyncio.sleep(0.02)


async def test_tenants_never_find_each_others(keyed: Api, new_key: KeyMaker, tenant: str) -> None:
    """Nor owners of one tenant."""
    mine, theirs, ann = [
        keyed.with_headers(bearer(await new_key(who, owner=owner)))
        for who, owner in ((tenant, None), (f"{tenant}x", None), (tenant, "ann"))
    ]
    await learned(mine, id="e", task="one")
    await learned(ann, id="hers", task="one")
    assert await found(theirs, text="one") == []
    assert await found(ann, text="one") == ["hers"]
    assert set(await found(mine, text="one")) == {"e", "hers"}
    await theirs.call("GET", "/v1/episodes/e", expect="not-found")
    await ann.call("GET", "/v1/episodes/e", expect="not-found")
    await ann.call("POST", "/v1/episodes", {"id": "e", "task": "one"}, expect="conflict")


async def test_episode_that_no_majority_has_is_not_acknowledged(open_settings: Settings, mongo_uri: str) -> None:
    """Though the one server that answered has it: the caller is told to try again."""
    settings = open_settings.model_copy(update={"embedder": "lexical"})
    async with running(settings, mongo_uri) as runtime:
        doubted = runtime.mongo.episodes.with_options(write_concern=WriteConcern(w=3, wtimeout=50))
        runtime.episodes._mongo = replace(runtime.mongo, episodes=doubted)
        with pytest.raises(Unavailable):
            await runtime.episodes.store(ANONYMOUS, [{"task": "one"}])


async def test_other_content_under_a_taken_id_is_a_conflict(mine: Api) -> None:
    """Also where it differs in the vector or the times that were given only."""
    given = {"id": "e", "task": "one", "embedding": [1.0] + [0.0] * 383, "expires_at": "2999-01-01T00:00:00Z"}
    await learned(mine, **given)
    await mine.call("POST", "/v1/episodes", given, expect=200)
    for other in ({"embedding": [0.0] * 383 + [1.0]}, {"expires_at": "2998-01-01T00:00:00Z"}, {"task": "two"}):
        await mine.call("POST", "/v1/episodes", {**given, **other}, expect="conflict")


async def test_episode_stored_anew_under_a_forgotten_id_is_told_again(mine: Api) -> None:
    """It is another one: the log has an entry of each, and sync brings the new one."""
    await learned(mine, id="e", task="one")
    _, cursor = await pulled(mine)
    await mine.call("DELETE", "/v1/episodes/e")
    await learned(mine, id="e", task="two")
    assert (await pulled(mine, cursor))[0] == ["e"]
    entries = (await mine.call("GET", "/v1/changes", kinds="episode")).json()["items"]
    assert [entry["episode"] for entry in entries] == ["e", "e"]


async def test_vectors_of_an_embedder_that_was_another_once_are_not_compared(
    open_settings: Settings, new_database: Callable[[], str], mongo_uri: str
) -> None:
    """What has another length under the same name is found by nobody, and harms nobody."""
    name = new_database()
    for dimension in (3, 2):
        update = {"mongodb_database": name, "embedder": "lexical", "embedders": {"own": dimension}}
        async with serving(open_settings.model_copy(update=update), mongo_uri) as api:
            vector = [1.0] * dimension
            await learned(api, id=f"of-{dimension}", embedding=vector, embedder="own")
            assert await found(api, vector=vector, embedder="own") == [f"of-{dimension}"]


async def pulled(api: Api, cursor: str | None = None, **options: Any) -> tuple[list[str], str]:
    told = (await api.call("GET", "/v1/sync", **({"cursor": cursor} if cursor else {}), **options)).json()
    return [episode["id"] for episode in told["items"]], told["cursor"]


async def test_sync_gives_each_once_in_the_order_of_the_log(mine: Api) -> None:
    """A cursor is given also when nothing is new; what is removed does not come."""
    nothing, cursor = await pulled(mine)
    assert nothing == []
    for name in ("b", "a", "c"):
        await learned(mine, id=name)
    first, cursor = await pulled(mine, cursor, limit=2)
    assert first == ["b", "a"]
    second, cursor = await pulled(mine, cursor)
    assert second == ["c"]
    assert await pulled(mine, cursor) == ([], cursor)
    await mine.call("DELETE", "/v1/episodes/a")
    assert (await pulled(mine))[0] == ["b", "c"]
    entries = (await mine.call("GET", "/v1/changes", kinds="episode")).json()["items"]
    assert [entry["episode"] for entry in entries] == ["b", "a", "c"]


async def test_push_and_pull_in_one(mine: Api) -> None:
    """Of each pushed one it is told what came of it; none of them is pulled again."""
    await learned(mine, id="theirs")
    body = {"cursor": None, "episodes": [{"id": "own"}, {"reward": 9}]}
    told = (await mine.call("POST", "/v1/sync", body)).json()
    assert [episode["id"] for episode in told["items"]] == ["theirs"]
    assert (told["pushed"][0], told["pushed"][1]["status"]) == ({"id": "own"}, 400)
    again = (await mine.call("POST", "/v1/sync", {"cursor": told["cursor"]})).json()
    assert (again["items"], again["pushed"]) == ([], [])


async def test_second_pull_after_a_push_of_any_length_is_empty(mine: Api) -> None:
    """What was pushed is passed over, however much it is; what others stored is among the first."""
    await learned(mine, id="others")
    pushed = {"episodes": [{"id": f"own-{number}", "task": "x"} for number in range(120)], "limit": 50}
    told = (await mine.call("POST", "/v1/sync", pushed)).json()
    assert [episode["id"] for episode in told["items"]] == ["others"]
    assert (await pulled(mine, told["cursor"]))[0] == []
    again = (await mine.call("POST", "/v1/sync", {**pushed, "cursor": told["cursor"]})).json()
    assert again["items"] == []


async def test_sync_misses_and_repeats_nothing_while_others_push(
    keyed: Api, other_keyed: Api, new_key: KeyMaker, tenant: str
) -> None:
    """On both replicas at once, read in small pages from either."""
    key = bearer(await new_key(tenant))
    replicas = [keyed.with_headers(key), other_keyed.with_headers(key)]
    written: set[str] = set()

    async def push(number: int) -> None:
        for _ in range(15):
            batch = {"episodes": [{"task": f"of {number}"} for _ in range(3)]}
            told = (await replicas[number % 2].call("POST", "/v1/episodes", batch, expect=207)).json()
            written.update(item["id"] for item in told["items"])

    seen: list[str] = []
    pushing = asyncio.gather(*map(push, range(4)))
    cursor, count = "", 0
    while not pushing.done() or len(seen) < len(written):
        items, cursor = await pulled(replicas[count % 2], cursor, limit=7)
        seen += items
        count += 1
        assert count < 2000
    await pushing
    assert len(seen) == len(set(seen)) == 180
    assert set(seen) == written
