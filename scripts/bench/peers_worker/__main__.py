"""`python -m scripts.bench.peers_worker PEER PLACE`: obey orders for one peer, a line of JSON each, until they end."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from scripts.bench.peers_worker.store import Loaded, Place, Store
from scripts.bench.peers_worker.words import messages

_HERE = "scripts.bench.peers_worker"
_LANGGRAPH = f"{_HERE}.langgraph_stores"
_ADK = f"{_HERE}.adk_stores"

_PEERS: dict[str, tuple[str, str, dict[str, bool]]] = {
    "langgraph-mongodb": (_LANGGRAPH, "MongoCheckpoints", {}),
    "langgraph-mongodb-run": (_LANGGRAPH, "MongoCheckpoints", {"one_run": True}),
    "langgraph-mongodb-delta": (_LANGGRAPH, "MongoCheckpoints", {"delta": True}),
    "langgraph-mongodb-delta-run": (_LANGGRAPH, "MongoCheckpoints", {"delta": True, "one_run": True}),
    "langgraph-sqlite": (_LANGGRAPH, "SqliteCheckpoints", {}),
    "langgraph-sqlite-delta": (_LANGGRAPH, "SqliteCheckpoints", {"delta": True}),
    "langgraph-postgres": (_LANGGRAPH, "PostgresCheckpoints", {}),
    "langgraph-postgres-delta": (_LANGGRAPH, "PostgresCheckpoints", {"delta": True}),
    "adk-mongodb": (_ADK, "MongoSessions", {}),
    "adk-sqlite": (_ADK, "SqliteSessions", {}),
    "adk-sqlalchemy": (_ADK, "SqlSessions", {}),
}


class Worker:
    """Orders by their names; each answer is an object."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._steps = 0

    def begin(self, name: str) -> dict[str, Any]:
        self._store.begin(name)
        self._steps = 0
        return {}

    def grow(self, steps: int) -> dict[str, Any]:
        """Append until the agent has so many steps."""
        taken = self._store.append(messages(steps)[self._steps :])
        self._steps = steps
        return {"milliseconds": taken}

    def state(self, calls: int, seconds: float) -> dict[str, Any]:
        return _loading(lambda _: self._store.state(), calls, seconds)

    def history(self, calls: int, seconds: float) -> dict[str, Any]:
        return _loading(self._store.history, calls, seconds)

    def stored(self) -> dict[str, Any]:
        return asdict(self._store.stored())

    def end(self) -> dict[str, Any]:
        self._store.end()
        return {}


def main() -> None:
    """Answer each line of the input; what else is printed goes to the errors."""
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr
    module, name, options = _PEERS[sys.argv[1]]
    store: Store = getattr(import_module(module), name)(Place(**json.loads(sys.argv[2])), **options)
    worker = Worker(store)
    print(json.dumps({"ready": Path(sys.executable).name}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(worker, order.pop("do"))(**order)), file=answers, flush=True)


def _loading(load: Callable[[float], Loaded], calls: int, seconds: float) -> dict[str, Any]:
    """Load a few times, at least once; none begins later than that, and none that can be stopped takes longer."""
    until = time.monotonic() + seconds
    taken: list[float] = []
    while True:
        started = time.perf_counter()
        loaded = load(time.monotonic() + seconds)
        taken.append((time.perf_counter() - started) * 1000)
        if len(taken) == calls or time.monotonic() > until:
            return {"milliseconds": taken, **asdict(loaded)}


if __name__ == "__main__":
    main()
