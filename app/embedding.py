"""Embedding: texts become vectors, in one thread beside the event loop, several callers' texts at once.

An `Embedder` is anything that makes vectors; what is written with one is only compared with what the same one made.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""One unit vector in each row."""

_AT_ONCE = 64
"""Texts in one go."""

_CHARACTERS_AT_ONCE = 8_000
"""The same by what they take: a good second's work, so that nobody waits longer for somebody else's texts."""

_COUNTED_AT_MOST = 1_200
"""Characters of one text that embedders look at, by and large."""


class EmbedderProblem(Exception):
    """The embedder can't be used; the message says why and what to do."""


class Embedder(Protocol):
    """Makes a vector of a text's meaning."""

    @property
    def name(self) -> str:
        """By which its vectors are told from those of others."""

    @property
    def dimension(self) -> int:
        """How long its vectors are."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One unit vector for each text. Called in a thread of its own, never twice at once."""


@dataclass(frozen=True, slots=True)
class _Asked:
    texts: Sequence[str]
    answer: asyncio.Future[Vectors]


class Embedding:
    """The embedder as the service uses it: loaded at the first use, fed in batches. `stop` ends it."""

    def __init__(self, name: str, dimension: int, load: Callable[[], Embedder]) -> None:
        self.name = name
        self.dimension = dimension
        self._load = load
        self._embedder: Embedder | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedder")
        self._asked: deque[_Asked] = deque()
        self._task: asyncio.Task[None] | None = None

    async def embed(self, texts: Sequence[str], seconds: float | None = None) -> Vectors:
        """One unit vector for each text, or for as many of the first as there was time for. Raises EmbedderProblem.

        Who has many lets others in between.
        """
        made = [np.empty((0, self.dimension), np.float32)]
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for part in _parts(texts):
                    made.append(await self._embedded(part))  # noqa: PERF401 - what was made is kept
        return np.concatenate(made)

    async def _embedded(self, texts: Sequence[str]) -> Vectors:
        asked = _Asked(texts, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await asked.answer

    def stop(self) -> None:
        """Take no more texts."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._asked:
            batch = self._batch()
            if not batch:
                return
            texts = [text for asked in batch for text in asked.texts]
            try:
                vectors = await loop.run_in_executor(self._thread, self._embed, texts)
            except Exception as error:  # noqa: BLE001 - whoever asked is told
                for asked in batch:
                    if not asked.answer.done():
                        asked.answer.set_exception(error)
                continue
            begin = 0
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_result(vectors[begin : begin + len(asked.texts)])
                begin += len(asked.texts)

    def _batch(self) -> list[_Asked]:
        """Those who are next, as far as they go together; who has given up is passed over."""
        batch: list[_Asked] = []
        count = size = 0
        while self._asked:
            asked = self._asked[0]
            if not asked.answer.done():
                count, size = count + len(asked.texts), size + _size(asked.texts)
                if batch and (count > _AT_ONCE or size > _CHARACTERS_AT_ONCE):
                    return batch
                batch.append(asked)
            self._asked.popleft()
        return batch

    def _embed(self, texts: Sequence[str]) -> Vectors:
        if self._embedder is None:
            self._embedder = self._load()
        return self._embedder.embed(texts)


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in their order, as many at a time as go together."""
    begin = size = 0
    for number, text in enumerate(texts):
        size += _size([text])
        if number > begin and (number - begin == _AT_ONCE or size > _CHARACTERS_AT_ONCE):
            yield texts[begin:number]
            begin, size = number, _size([text])
    if texts:
        yield texts[begin:]


def _size(texts: Sequence[str]) -> int:
    return sum(min(len(text), _COUNTED_AT_MOST) for text in texts)
