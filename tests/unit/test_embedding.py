"""Embedders: what is alike in meaning, or in words, has vectors that lie close; batches change nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import minilm
from app.embedding import EmbedderProblem, Embedding, Vectors
from app.lexical import Lexical
from app.minilm import MiniLM

PERSON = "That is a happy person"


@pytest.fixture(scope="module")
def model() -> MiniLM:
    return MiniLM.load()


def test_model_is_the_one_that_is_named(model: MiniLM) -> None:
    """The similarities that its publisher shows of these sentences."""
    person, dog, very, sunny = model.embed(
        [PERSON, "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    )
    assert [person @ dog, person @ very, person @ sunny] == pytest.approx([0.695, 0.943, 0.257], abs=1e-3)


def test_text_has_the_same_vector_in_any_company(model: MiniLM) -> None:
    """Of whatever length the others are, and wherever it stands among them; vectors have length 1."""
    texts = ["", "a", PERSON, "word " * 400, "日本語 🙂", "word " * 30]
    together = model.embed(texts)
    for text, vector in zip(texts, together, strict=True):
        assert np.abs(model.embed([text])[0] - vector).max() < 1e-5
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-5)


def test_tokens_after_the_first_256_do_not_count(model: MiniLM) -> None:
    """As with the model's own program."""
    one, other = model.embed(["word " * 400, "word " * 300 + "something else"])
    assert np.abs(one - other).max() < 1e-5


def test_nothing_is_no_work(model: MiniLM) -> None:
    """And no mistake."""
    assert model.embed([]).shape == (0, 384)


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not the one that was pinned, and a package that is not there."""
    monkeypatch.setitem(minilm._SHA256, "tokenizer.json", "0" * 64)
    with pytest.raises(EmbedderProblem, match="not the file"):
        MiniLM.load()
    monkeypatch.setattr(minilm, "_PACKAGE", "no_such_package")
    with pytest.raises(EmbedderProblem, match="make venv"):
        MiniLM.load()


def test_texts_with_the_same_words_are_alike_lexically() -> None:
    """And those with parts of them; no meaning is known."""
    cat, cats, dog = Lexical().embed(["the red cat", "Cats are RED", "a dog"])
    assert cat @ cats > 0.3 > abs(cat @ dog)
    assert Lexical().embed([""]).shape == (1, Lexical.dimension)


class Counting:
    """An embedder that tells in which batches it was asked."""

    name = "counting"
    dimension = 2

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.batches.append(list(texts))
        if "bad" in texts:
            raise EmbedderProblem("bad")
        return np.array([[len(text), 0] for text in texts], np.float32).reshape(-1, 2)


async def test_those_who_ask_together_share_batches() -> None:
    """Each gets its own, in order; one batch that fails fails those in it only."""
    embedder = Counting()
    embedding = Embedding("counting", 2, lambda: embedder)
    first = asyncio.create_task(embedding.embed(["x"]))
    await asyncio.sleep(0)
    rest = await asyncio.gather(*(embedding.embed(["a" * n, "b"]) for n in range(50)))
    assert (await first).tolist() == [[1, 0]]
    assert [vectors[:, 0].tolist() for vectors in rest] == [[n, 1] for n in range(50)]
    assert [len(batch) for batch in embedder.batches] == [1, 64, 36]
    failed = asyncio.gather(embedding.embed(["bad"]), embedding.embed(["good"]), return_exceptions=True)
    assert all(isinstance(one, EmbedderProblem) for one in await failed)
    assert (await embedding.embed(["good"])).tolist() == [[4, 0]]
    embedding.stop()


async def test_who_brings_much_lets_others_in_between_and_gets_what_there_was_time_for() -> None:
    """The first of the texts, in whole batches; a single one of somebody else's does not wait for all of them."""
    embedder = Counting()
    embedding = Embedding("counting", 2, lambda: embedder)
    much = asyncio.create_task(embedding.embed(["a"] * 640))
    await asyncio.sleep(0)
    await embedding.embed(["b"])
    assert sum(len(batch) for batch in embedder.batches) < 640
    assert (await much).shape == (640, 2)
    assert (await embedding.embed(["a"] * 640, 0)).shape == (0, 2)
    embedding.stop()


async def test_embedder_that_can_not_be_loaded_is_tried_again() -> None:
    """It may be there by then."""
    there: list[Any] = []

    def load() -> Counting:
        if not there:
            raise EmbedderProblem("not there")
        return Counting()

    embedding = Embedding("counting", 2, load)
    with pytest.raises(EmbedderProblem):
        await embedding.embed(["x"])
    there.append(Path())
    assert (await embedding.embed(["x"])).shape == (1, 2)
    embedding.stop()
