"""The list of agents: filters, pages, summaries."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient

from app.config import Settings
from tests.api.driver import Api


async def listed(api: Api, **query: Any) -> list[str]:
    """Ids of all agents that the filters let pass."""
    ids: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await api.call("GET", "/v1/agents", limit=200, **query, **cursor)).json()
        ids += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            return ids
        cursor = {"cursor": page["next_cursor"]}


@pytest.fixture
def pool() -> str:
    return f"p{uuid4().hex}"


async def test_summaries_have_neither_steps_nor_workspace(api: Api, pool: str) -> None:
    """And all else as the agent itself shows it, the size included."""
    agent = await api.made(pool=pool, workspace=1, delegate={"token": "t"}, labels={"a": "1"})
    await agent.added("a")
    answer = await api.call("GET", "/v1/agents", pool=pool)
    (summary,) = answer.json()["items"]
    read = await agent.read()
    assert read.keys() - summary.keys() == {"steps", "steps_before", "workspace"}
    assert summary == {name: read[name] for name in summary}
    assert float(answer.headers["age"]) <= 2


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6])
async def test_pages_are_the_list_in_pieces(api: Api, pool: str, limit: int) -> None:
    """In a fixed order, each agent once; the last page has no cursor."""
    made = [(await api.made(pool=pool)).id for _ in range(5)]
    found: list[str] = []
    pages = 0
    query: dict[str, Any] = {"pool": pool, "limit": limit}
    while pages == 0 or query["cursor"] is not None:
        page = (await api.call("GET", "/v1/agents", **query)).json()
        found += [item["id"] for item in page["items"]]
        query["cursor"] = page["next_cursor"]
        pages += 1
    assert found == sorted(made)
    assert pages == -(-5 // limit)


async def test_page_goes_on_where_it_was_though_agents_come_and_go(api: Api, pool: str) -> None:
    """What was there all the time is seen once, also when the agent of the cursor is deleted."""
    agents = [await api.made(pool=pool, id=f"{pool}-{n}") for n in range(4)]
    first = (await api.call("GET", "/v1/agents", pool=pool, limit=2)).json()
    await agents[1].call("DELETE")
    await api.made(pool=pool, id=f"{pool}-0a")
    rest = (await api.call("GET", "/v1/agents", pool=pool, limit=2, cursor=first["next_cursor"])).json()
    assert [item["id"] for item in rest["items"]] == [f"{pool}-2", f"{pool}-3"]


async def test_fifty_is_the_limit_unless_said_otherwise(api: Api, pool: str) -> None:
    """At most 200 may be asked for."""
    for _ in range(51):
        await api.made(pool=pool)
    page = (await api.call("GET", "/v1/agents", pool=pool)).json()
    assert (len(page["items"]), page["next_cursor"] is None) == (50, False)
    for limit in (0, -1, 201, 10**30, "x", ""):
        await api.call("GET", "/v1/agents", limit=limit, expect="invalid-request")


async def test_filters_narrow_and_go_together(
    api: Api, pool: str, mongo: MongoClient[dict[str, Any]], open_settings: Settings
) -> None:
    """state, status, pool, runner, label, archived."""
    names = ("plain", "labelled", "busy", "archived")
    ids = {name: (await api.made(pool=pool, labels={"k.x": f"{name}:$1"})).id for name in names}
    stored = mongo[open_settings.mongodb_database]["agents"]
    stored.update_one(
        {"_id": f"default:{ids['busy']}"}, {"$set": {"state": "busy", "runner": pool, "status": "running"}}
    )
    stored.update_one({"_id": f"default:{ids['archived']}"}, {"$set": {"archived": True}})

    async def found(**query: Any) -> set[str]:
        wanted = await listed(api, **{"pool": pool, **query})
        return {name for name in names if ids[name] in wanted}

    assert await found() == {"plain", "labelled", "busy"}
    assert await found(archived="true") == {"archived"}
    assert await found(label="k.x:labelled:$1") == {"labelled"}
    assert await found(label="k.x:labelled") == set()
    assert await found(state="busy") == await found(runner=pool) == await found(status="running") == {"busy"}
    assert await found(state="pending", status="pending") == {"plain", "labelled"}
    assert await found(state="busy", status="pending") == set()
    assert await found(pool="none") == set()
    assert await found(state="busy", label="k.x:plain:$1") == set()


@pytest.mark.parametrize(
    "query",
    [
        {"state": "sleeping"},
        {"state": ""},
        {"status": "busy"},
        {"label": "nocolon"},
        {"archived": "perhaps"},
        {"cursor": "x"},
    ],
)
async def test_filter_that_can_mean_nothing_is_refused(api: Api, query: dict[str, str]) -> None:
    """400 rather than a list of something else."""
    await api.call("GET", "/v1/agents", expect="invalid-request", **query)


async def test_cursor_of_another_list_is_refused(api: Api, pool: str) -> None:
    """A cursor belongs to the list that gave it."""
    agent = await api.made(pool=pool)
    await api.made(pool=pool)
    await agent.added("a", "b")
    of_agents = (await api.call("GET", "/v1/agents", pool=pool, limit=1)).json()["next_cursor"]
    of_steps = (await agent.read("/steps", limit=1))["next_cursor"]
    await agent.call("GET", "/steps", cursor=of_agents, expect="invalid-request")
    await api.call("GET", "/v1/agents", cursor=of_steps, expect="invalid-request")
