"""LangGraph: a graph of one node whose state is a list of messages, kept by a checkpointer."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.mongodb import MongoDBSaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from psycopg import Connection
from psycopg.rows import dict_row

from scripts.bench.peers_worker.storage import MongoStorage, PostgresStorage, SqliteStorage
from scripts.bench.peers_worker.store import Loaded, Place, Stored, milliseconds

_PAGE = 20
_CONFIG: Any = {"configurable": {"thread_id": "bench"}}


def _extended(state: list[AnyMessage], writes: Sequence[list[AnyMessage]]) -> list[AnyMessage]:
    return [*state, *chain.from_iterable(writes)]


class _State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


class _DeltaState(TypedDict):
    messages: Annotated[list[AnyMessage], DeltaChannel(_extended)]


_STATES: dict[bool, type] = {False: _State, True: _DeltaState}


class _Script:
    """What the node says next, where it speaks itself."""

    def __init__(self) -> None:
        self.texts: Iterator[str] = iter(())
        self.left = 0

    def give(self, texts: Sequence[str]) -> None:
        self.texts, self.left = iter(texts), len(texts)

    def speak(self, _: Any) -> dict[str, Any]:
        self.left -= 1
        return {"messages": [AIMessage(next(self.texts))]}

    def onward(self, _: Any) -> str:
        return "speak" if self.left else END


class LangGraphStore(ABC):
    """One thread; `delta`: its messages are a DeltaChannel; `one_run`: appends are supersteps of one invocation."""

    storage: MongoStorage | SqliteStorage | PostgresStorage

    def __init__(self, place: Place, *, delta: bool = False, one_run: bool = False) -> None:
        self.place = place
        self._delta = delta
        self._one_run = one_run
        self._script = _Script()
        self.stack = ExitStack()

    @abstractmethod
    def saver(self, name: str) -> BaseCheckpointSaver[Any]:
        """The checkpointer over new storage; what must be closed with it goes on the stack."""

    def begin(self, name: str) -> None:
        saver = self.saver(name)
        built: Any = StateGraph(_STATES[self._delta])
        if self._one_run:
            built.add_node("speak", self._script.speak)
            built.add_conditional_edges("speak", self._script.onward)
        else:
            built.add_node("speak", lambda _: None)
            built.add_edge("speak", END)
        built.add_edge(START, "speak")
        self._graph: Any = built.compile(checkpointer=saver)

    def append(self, texts: Sequence[str]) -> list[float]:
        if self._one_run:
            return list(self._run(texts))
        return [milliseconds(partial(self._invoke, text)) for text in texts]

    def state(self) -> Loaded:
        return Loaded(len(self._graph.get_state(_CONFIG).values["messages"]))

    def history(self, until: float) -> Loaded:
        """In pages: `get_state_history` makes all states before it gives the first, gigabytes of a long agent."""
        states, before = 0, None
        while page := list(self._graph.get_state_history(_CONFIG, before=before, limit=_PAGE)):
            states, before = states + len(page), page[-1].config
            if time.monotonic() > until:
                return Loaded(states, whole=False)
        return Loaded(states)

    def stored(self) -> Stored:
        return self.storage.stored()

    def end(self) -> None:
        self.stack.close()
        self.storage.remove()

    def _invoke(self, text: str) -> None:
        self._graph.invoke({"messages": [AIMessage(text)]}, _CONFIG)

    def _run(self, texts: Sequence[str]) -> Iterator[float]:
        """The time from one superstep's end to the next one's."""
        self._script.give(texts)
        config = {**_CONFIG, "recursion_limit": len(texts) + 10}
        before = time.perf_counter()
        for _ in self._graph.stream({"messages": []}, config, stream_mode="updates", durability="sync"):
            now = time.perf_counter()
            yield (now - before) * 1000
            before = now


class MongoCheckpoints(LangGraphStore):
    """langgraph-checkpoint-mongodb."""

    def saver(self, name: str) -> BaseCheckpointSaver[Any]:
        self.storage = storage = MongoStorage(self.place, name)
        return MongoDBSaver(storage.client, db_name=storage.name)


class SqliteCheckpoints(LangGraphStore):
    """langgraph-checkpoint-sqlite."""

    def saver(self, name: str) -> BaseCheckpointSaver[Any]:
        self.storage = storage = SqliteStorage(self.place, name)
        saver = self.stack.enter_context(SqliteSaver.from_conn_string(str(storage.file)))
        saver.setup()
        return saver


class PostgresCheckpoints(LangGraphStore):
    """langgraph-checkpoint-postgres."""

    def saver(self, name: str) -> BaseCheckpointSaver[Any]:
        self.storage = storage = PostgresStorage(self.place, name)
        connection: Any = Connection.connect(
            storage.address, autocommit=True, prepare_threshold=0, row_factory=dict_row
        )
        saver = PostgresSaver(self.stack.enter_context(connection))
        saver.setup()
        return saver
