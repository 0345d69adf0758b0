"""The lexical embedder: texts are alike when they share words and parts of words. It knows nothing of meaning.

Each word and each of its trigrams counts for one of 1 024 numbers, chosen with its sign by a hash (feature hashing,
Weinberger et al. 2009), by the logarithm of how often it is there.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from math import log1p

import numpy as np

from app.embedding import Vectors

_WORD = re.compile(r"\w+")


class Lexical:
    """The embedder that needs no weights."""

    name = "lexical"
    dimension = 1024

    @classmethod
    def load(cls) -> Lexical:
        """Nothing is to be loaded."""
        return cls()

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One unit vector for each text."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for feature, count in Counter(_features(text)).items():
                hashed = zlib.crc32(feature.encode())
                row[hashed % self.dimension] += log1p(count) * (1 if hashed >> 31 else -1)
            length = np.linalg.norm(row)
            row[:] = row / length if length else 1 / np.sqrt(self.dimension)
        return vectors


def _features(text: str) -> Iterator[str]:
    for word in _WORD.findall(text.lower()):
        yield f" {word} "
        framed = f"^{word}$"
        yield from (framed[at : at + 3] for at in range(len(framed) - 2))
