"""Large values out of line: how a value too large for its document is named, and how equal ones are told.

A value over the threshold is stored once per tenant, under the digest of its canonical JSON; its place in the document
holds a reference, a BSON binary of a subtype of its own. JSON has no binary values, so no caller can forge one.
Nothing here reads or writes: a *packing* says what is to be stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import MutableMapping
from typing import Any

import orjson
from beanie import Document
from bson.binary import Binary
from pydantic import Field

REFERENCE = 0x80
"""Binary subtype of a reference: 32 bytes of digest, 8 of length."""

_DIGEST_BYTES = 32
_LENGTH_BYTES = 8
_SCALARS = (type(None), bool, int, float)


class Damaged(Exception):
    """What is stored contradicts itself."""


Blobs = MutableMapping[Binary, bytes]
"""References, and the JSON that each stands for."""


def json_bytes(value: Any) -> bytes:
    """The value as JSON text, keys in the order that they came in."""
    return orjson.dumps(value)


def canonical(value: Any) -> bytes:
    """Text that is equal for values that read the same (`models.json.same`): keys sorted, `1` apart from `1.0`."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def packed(value: Any, threshold: int, blobs: Blobs) -> Any:
    """The value as it is stored: itself, or over `threshold` bytes of JSON a reference, with what it stands for."""
    if isinstance(value, _SCALARS):
        return value
    text = json_bytes(value)
    if len(text) <= threshold:
        return value
    reference = reference_to(canonical(value), len(text))
    blobs[reference] = text
    return reference


def reference_to(text: bytes, length: int) -> Binary:
    """The reference to a value of this canonical text and length as JSON."""
    return Binary(hashlib.sha256(text).digest() + length.to_bytes(_LENGTH_BYTES, "big"), REFERENCE)


def is_reference(value: Any) -> bool:
    """Whether a stored value stands for one that is stored elsewhere."""
    return isinstance(value, Binary) and value.subtype == REFERENCE


def key_of(tenant: str, reference: Binary) -> str:
    """The `_id` of the document that holds the value."""
    return f"{tenant}:{reference[:_DIGEST_BYTES].hex()}"


def length_of(reference: Binary) -> int:
    """Bytes of the value as JSON."""
    return int.from_bytes(reference[_DIGEST_BYTES:], "big")


class Blob(Document):
    """The collection of values. `_id` = `<tenant>:<digest>`."""

    id: str = Field(alias="_id")  # type: ignore[assignment]  # the base has an ObjectId
    tenant: str
    data: bytes = Field(description="zstd of the JSON")
    length: int = Field(description="Bytes of the JSON.")
    mark: str | None = Field(default=None, description="Set by a collector that found nothing to refer to it.")

    class Settings:
        name = "blobs"
