"""Generations: ephemeral agents of two tenants work, learn and die; the next finds what its own tenant learned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.config import Settings
from app.runtime import running
from models.tenant import Right
from tests.harness import Replica, deployment

LIFE_SECONDS = 40
LESSONS = {
    "acme": {
        "baker": "The sourdough bread stayed flat because the starter was fed too late; feed it the evening before.",
        "pilot": "The drone lost its way in strong wind; check the weather forecast before take-off.",
        "clerk": "An invoice was paid twice since its number was not looked up in the ledger first.",
    },
    "globex": {
        "baker": "Rye loaves burn at 250 degrees in the small oven; bake them at 220 with steam.",
        "nurse": "The patient's allergy stood on page two of the record; read all of it before giving medicine.",
    },
}
QUESTIONS = {"acme": {"baker": "my bread does not rise"}, "globex": {"baker": "how hot should the oven be for bread?"}}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Replica]]]:
    folder = tmp_path_factory.mktemp("generations")
    with deployment(folder, "a", "b", expired_kept_seconds=0) as (database, replicas):
        yield database.uri, replicas


@dataclass
class Tenant:
    """What a tenant's callers know: their key, and what was acknowledged to them."""

    name: str
    key: str
    learned: dict[str, str] = field(default_factory=dict)
    """Episodes by the agent that learned them."""

    @asynccontextmanager
    async def through(self, replica: Replica) -> AsyncIterator[httpx.AsyncClient]:
        headers = {"Authorization": f"Bearer {self.key}"}
        async with httpx.AsyncClient(base_url=replica.url, headers=headers, timeout=60) as client:
            yield client

    async def found(self, replica: Replica, text: str) -> list[dict[str, Any]]:
        async with self.through(replica) as client:
            answer = await client.post("/v1/episodes/search", json={"text": text, "k": 50})
            assert answer.status_code == 200, answer.text
            items: list[dict[str, Any]] = [item["episode"] for item in answer.json()["items"]]
            return items

    async def pulled(self, replica: Replica) -> list[str]:
        async with self.through(replica) as client:
            ids: list[str] = []
            cursor = ""
            while page := (answer := (await client.get("/v1/sync", params={"cursor": cursor, "limit": 2})).json())[
                "items"
            ]:
                ids += [episode["id"] for episode in page]
                cursor = answer["cursor"]
            return ids


async def tenants(uri: str, folder: Path) -> list[Tenant]:
    settings = Settings(mongodb_uri=uri, data=folder)
    async with running(settings, uri) as runtime:
        return [Tenant(name, (await runtime.keys.create(name, list(Right)))[1]) for name in LESSONS]


async def kept_asking(
    clients: list[httpx.AsyncClient], method: str, path: str, key: str, **body: Any
) -> httpx.Response:
    """What a caller does that wants to be sure: the same request, under one key, to one replica and then the other.

    What the killed replica was about to answer is answered by the other when its reservation is over, after 30 s.
    """
    for number in range(600):
        try:
            answer = await clients[number % 2].request(method, path, headers={"Idempotency-Key": key}, **body)
        except httpx.TransportError:
            await asyncio.sleep(0.1)
            continue
        if answer.status_code not in (409, 503):
            return answer
        await asyncio.sleep(0.1)
    raise AssertionError(f"{method} {path} was never answered")


async def live(tenant: Tenant, name: str, replicas: list[Replica], at_work: asyncio.Event | None = None) -> str:
    """One life: made, prompted, thinking, answering; what it learned is stored before it ends."""
    lesson = LESSONS[tenant.name][name]
    async with tenant.through(replicas[0]) as one, tenant.through(replicas[1]) as other:
        clients = [one, other]
        made = await kept_asking(
            clients, "POST", "/v1/agents", f"{name}-made", json={"name": name, "ttl_seconds": LIFE_SECONDS}
        )
        agent: str = made.json()["id"]
        turn = await kept_asking(
            clients, "POST", f"/v1/agents/{agent}/turns", f"{name}-turn", json={"content": "do your work"}
        )
        if at_work is not None:
            at_work.set()
        path = f"/v1/agents/{agent}/turns/{turn.json()['turn_id']}/finish"
        ended = {"outcome": "completed", "steps": [{"role": "agent", "content": lesson}]}
        step = (await kept_asking(clients, "POST", path, f"{name}-end", json=ended)).json()["head"]
        told = {"agent_id": agent, "step_id": step, "task": f"the work of a {name}", "output": lesson, "reward": 0.9}
        stored = await kept_asking(clients, "POST", "/v1/episodes", f"{name}-learned", json=told)
        assert stored.is_success, stored.text
        tenant.learned[agent] = stored.json()["id"]
    return agent


async def test_next_generation_finds_what_its_tenant_learned(house: tuple[str, list[Replica]], tmp_path: Path) -> None:
    """Five lives through two replicas, one killed amid them; afterwards each tenant finds all of its own."""
    uri, replicas = house
    everybody = await tenants(uri, tmp_path)
    first, *others = [(tenant, name) for tenant in everybody for name in LESSONS[tenant.name]]
    await live(*first, replicas)
    at_work = asyncio.Event()
    lives = [asyncio.create_task(live(*one, replicas, at_work)) for one in others]
    await asyncio.wait_for(at_work.wait(), 60)
    assert sum(len(tenant.learned) for tenant in everybody) == 1, "the others are still at work"
    replicas[0].kill9()
    await asyncio.gather(*lives)
    assert sum(len(tenant.learned) for tenant in everybody) == 5
    for tenant in everybody:
        await gone(tenant, replicas[1])
    await asyncio.to_thread(replicas[0].restart)
    for replica in replicas:
        for tenant in everybody:
            await finds_its_own(tenant, replica)


async def gone(tenant: Tenant, replica: Replica) -> None:
    """Wait until none of the tenant's agents is there any more: dead, put away, and removed."""
    async with tenant.through(replica) as client:
        for agent in tenant.learned:
            for _ in range(1200):
                answer = await client.get(f"/v1/agents/{agent}")
                if answer.status_code == 404:
                    break
                await asyncio.sleep(0.05)
            assert answer.status_code == 404, answer.text
            late = await client.post(f"/v1/agents/{agent}/steps", json={"role": "user", "content": "late"})
            assert late.status_code in (404, 410), late.text


async def finds_its_own(tenant: Tenant, replica: Replica) -> None:
    """Everything that its agents learned, what was asked for first; nothing of the other tenant, by any road."""
    own = set(tenant.learned.values())
    for name, question in QUESTIONS[tenant.name].items():
        found = await tenant.found(replica, question)
        assert found[0]["output"] == LESSONS[tenant.name][name]
        assert {episode["id"] for episode in found} == own
        assert {episode["output"] for episode in found} == set(LESSONS[tenant.name].values())
    assert sorted(await tenant.pulled(replica)) == sorted(own)
    async with tenant.through(replica) as client:
        assert (await client.get("/v1/stats")).json()["episodes"] == len(own)
        assert (await client.get("/v1/presence")).json() == {"runners": [], "agents": []}
        entries = (await client.get("/v1/changes", params={"kinds": "episode"})).json()["items"]
        assert sorted(entry["episode"] for entry in entries) == sorted(own)
