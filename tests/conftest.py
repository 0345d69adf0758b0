"""What every test may use: a real MongoDB of its own, started once for the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.mongod import EmbeddedServer


@pytest.fixture(scope="session")
def mongo_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of an embedded replica set in a directory of its own, stopped at the end."""
    server = EmbeddedServer(Path(tmp_path_factory.mktemp("mongo")))
    yield server.start()
    server.stop()
