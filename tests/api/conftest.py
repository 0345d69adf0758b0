"""Replicas and callers. All tests of a session share one open database, and one where keys are needed.

They run in one event loop, so that a replica is started once and not for each of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient

from app.config import Settings
from app.runtime import running
from models.tenant import Right
from tests.api.driver import Api, serving

SECRET_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
"""Seals delegates in tests."""

KeyMaker = Callable[..., Awaitable[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the asynchronous tests of this folder and of the contract the loop that the replicas live in."""
    for item in items:
        if pytest_asyncio.is_async_test(item) and item.path.parent.name in ("api", "contract"):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture(scope="session")
def mongo(mongo_uri: str) -> Iterator[MongoClient[dict[str, Any]]]:
    """A plain client, to look at the database behind the service's back."""
    with MongoClient(mongo_uri) as client:
        yield client


@pytest.fixture(scope="session")
def new_database(mongo: MongoClient[dict[str, Any]]) -> Iterator[Callable[[], str]]:
    """Names of fresh databases, which are dropped in the end."""
    names: list[str] = []

    def name() -> str:
        names.append(f"test_{uuid4().hex[:12]}")
        return names[-1]

    yield name
    for made in names:
        mongo.drop_database(made)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def open_settings(new_database: Callable[[], str], data: Path) -> Settings:
    """Of a database where no key was ever made: everybody is the tenant `default`."""
    return Settings(mongodb_database=new_database(), data=data, secret_keys=(SECRET_KEY,))


@pytest.fixture(scope="session")
def keyed_settings(new_database: Callable[[], str], data: Path) -> Settings:
    """Of a database where keys are needed."""
    return Settings(mongodb_database=new_database(), data=data, secret_keys=(SECRET_KEY,))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def api(open_settings: Settings, mongo_uri: str) -> AsyncIterator[Api]:
    """A caller of a replica that asks for no key."""
    async with serving(open_settings, mongo_uri) as caller:
        yield caller


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def other_replica(open_settings: Settings, mongo_uri: str) -> AsyncIterator[Api]:
    """A caller of a second replica on the same database."""
    async with serving(open_settings, mongo_uri) as caller:
        yield caller


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def keyed(keyed_settings: Settings, mongo_uri: str) -> AsyncIterator[Api]:
    """A caller, without a key, of a replica that asks for one once `new_key` was used."""
    async with serving(keyed_settings, mongo_uri) as caller:
        yield caller


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def other_keyed(keyed_settings: Settings, mongo_uri: str) -> AsyncIterator[Api]:
    """A caller, without a key, of a second replica that asks for one."""
    async with serving(keyed_settings, mongo_uri) as caller:
        yield caller


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def new_key(keyed_settings: Settings, mongo_uri: str) -> AsyncIterator[KeyMaker]:
    """Makes keys: `await new_key("acme", "read", "write", owner="ann")` is the token."""
    async with running(keyed_settings, mongo_uri) as runtime:

        async def make(tenant: str, *rights: str, owner: str | None = None) -> str:
            _, token = await runtime.keys.create(tenant, map(Right, rights or tuple(Right)), owner=owner)
            return token

        yield make


@pytest.fixture
def tenant() -> str:
    """A tenant that no other test uses."""
    return f"t{uuid4().hex[:12]}"


@pytest.fixture
def document_bytes(mongo: MongoClient[dict[str, Any]], open_settings: Settings) -> Callable[[str], int]:
    """The BSON size of a stored agent of the open database, by its key."""
    agents = mongo[open_settings.mongodb_database].get_collection(
        "agents", CodecOptions(document_class=RawBSONDocument)
    )

    def size(key: str) -> int:
        found = agents.find_one({"_id": key})
        assert found is not None
        return len(found.raw)

    return size


MORTAL_TTL = 1.5
"""Seconds after which a silent runner is dead on the replicas of `mortal`."""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def replicas(
    open_settings: Settings, new_database: Callable[[], str], mongo_uri: str
) -> AsyncIterator[tuple[Api, Api]]:
    """Two replicas over a database for runners, where none dies by itself in the time of a test."""
    settings = open_settings.model_copy(update={"mongodb_database": new_database(), "runner_ttl_seconds": 300})
    async with serving(settings, mongo_uri) as one, serving(settings, mongo_uri) as other:
        yield one, other


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mortal(
    open_settings: Settings, new_database: Callable[[], str], mongo_uri: str
) -> AsyncIterator[tuple[Api, Api]]:
    """The same, where they die fast."""
    settings = open_settings.model_copy(update={"mongodb_database": new_database(), "runner_ttl_seconds": MORTAL_TTL})
    async with serving(settings, mongo_uri) as one, serving(settings, mongo_uri) as other:
        yield one, other


@pytest.fixture
def pool(tenant: str) -> str:
    """A pool that no other test uses."""
    return f"pool-{tenant}"
