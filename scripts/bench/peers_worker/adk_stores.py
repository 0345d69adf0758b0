"""Google ADK: one session, to which an event is appended for each step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from google.adk.events import Event
from google.adk.integrations.mongodb import MongoDbSessionService
from google.adk.sessions import BaseSessionService, DatabaseSessionService, Session
from google.adk.sessions.sqlite_session_service import SqliteSessionService
from google.genai import types

from scripts.bench.peers_worker.storage import MongoStorage, SqliteStorage
from scripts.bench.peers_worker.store import Loaded, Place, Stored

_WHOSE: dict[str, str] = {"app_name": "bench", "user_id": "user", "session_id": "session"}


class AdkStore:
    """One session; subclasses say where it is kept."""

    storage: MongoStorage | SqliteStorage
    sessions: BaseSessionService

    def __init__(self, place: Place) -> None:
        self.place = place
        self._runner = asyncio.Runner()

    def open(self, name: str) -> None:
        """Open storage and the sessions in it."""
        raise NotImplementedError

    def begin(self, name: str) -> None:
        self.open(name)
        self._session: Session = self._runner.run(self.sessions.create_session(**_WHOSE))

    def append(self, texts: Sequence[str]) -> list[float]:
        return self._runner.run(self._append(texts))

    def state(self) -> Loaded:
        found = self._runner.run(self.sessions.get_session(**_WHOSE))
        assert found is not None
        return Loaded(len(found.events))

    def history(self, _: float) -> Loaded:
        return self.state()

    def stored(self) -> Stored:
        return self.storage.stored()

    def end(self) -> None:
        close: Any = getattr(self.sessions, "close", None)
        if close is not None:
            self._runner.run(close())
        self.storage.remove()

    async def _append(self, texts: Sequence[str]) -> list[float]:
        taken: list[float] = []
        for text in texts:
            started = time.perf_counter()
            await self.sessions.append_event(self._session, _event(text))
            taken.append((time.perf_counter() - started) * 1000)
        return taken


class MongoSessions(AdkStore):
    """google.adk.integrations.mongodb, of google-adk itself."""

    def open(self, name: str) -> None:
        self.storage = storage = MongoStorage(self.place, name)
        self.sessions = MongoDbSessionService(database_name=storage.name, mongo_client=storage.client)


class SqliteSessions(AdkStore):
    """SqliteSessionService, over aiosqlite."""

    def open(self, name: str) -> None:
        self.storage = storage = SqliteStorage(self.place, name)
        self.sessions = SqliteSessionService(str(storage.file))


class SqlSessions(AdkStore):
    """DatabaseSessionService, over SQLAlchemy and aiosqlite."""

    def open(self, name: str) -> None:
        self.storage = storage = SqliteStorage(self.place, name)
        self.sessions = DatabaseSessionService(f"sqlite+aiosqlite:///{storage.file}")


def _event(text: str) -> Event:
    return Event(author="agent", content=types.Content(role="model", parts=[types.Part(text=text)]))
