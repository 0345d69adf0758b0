"""Blobs: values too large for an agent's document, compressed, each once per tenant under the digest of its content.

They are immutable. A value is stored before the commit that refers to it; `app.collector` removes what nothing refers
to. Guarantee: storing a value again takes its mark off, so a collector that is about to remove it does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from backports import zstd
from bson.binary import Binary

from app import apart
from app.apart import Apart
from app.mongo import Mongo, unavailable_when_failing
from app.shelf import Shelf
from models.blob import Damaged, key_of
from models.errors import TooLarge

_LEVEL = 3
_CALL_READS = 100
_DATA_BYTES = 15 * 1024 * 1024


class Blobs:
    """The large values of all tenants; what was lately read is kept in memory, up to `limit_bytes` of JSON."""

    def __init__(self, mongo: Mongo, *, limit_bytes: int, seconds: float) -> None:
        self._mongo = mongo
        self._seconds = seconds
        self._held: Shelf[bytes] = Shelf(limit_bytes)

    @property
    def bytes_held(self) -> int:
        """JSON bytes in memory."""
        return self._held.bytes

    async def store(self, tenant: str, blobs: Mapping[Binary, bytes | None]) -> None:
        """Make the values durable, and take the marks off those that are there (None: one that has to be).

        They stay in memory, too: who writes is about to read. Raises PyMongoError; TooLarge; Damaged if one is missing.
        """
        documents = (_apart(key_of(tenant, reference), tenant, text) for reference, text in blobs.items())
        await apart.store(self._mongo.blobs, documents, seconds=self._seconds)
        for reference, text in blobs.items():
            if text is not None:
                self._held.put(key_of(tenant, reference), text, len(text))

    def held(self, tenant: str, reference: Binary) -> bytes | None:
        """The value as JSON, if it is in memory."""
        return self._held.get(key_of(tenant, reference))

    async def fetch(self, tenant: str, references: Iterable[Binary]) -> dict[Binary, bytes]:
        """The values as JSON, read in one go but for what memory has. Raises Unavailable; Damaged if one is missing."""
        found: dict[Binary, bytes] = {}
        wanted: dict[str, Binary] = {}
        for reference in references:
            text = self.held(tenant, reference)
            if text is None:
                wanted[key_of(tenant, reference)] = reference
            else:
                found[reference] = text
        if wanted:
            found |= await self._read(wanted)
        return found

    async def _read(self, wanted: Mapping[str, Binary]) -> dict[Binary, bytes]:
        found: dict[Binary, bytes] = {}
        for keys in _batches(list(wanted)):
            with unavailable_when_failing(self._seconds):
                # unscoped: the keys begin with the tenant
                async for document in self._mongo.blobs.find({"_id": {"$in": keys}}, {"data": 1}):
                    text = zstd.decompress(document["data"])
                    found[wanted[document["_id"]]] = text
                    self._held.put(document["_id"], text, len(text))
        missing = [key for key, reference in wanted.items() if reference not in found]
        if missing:
            raise Damaged(f"A value that an agent refers to is not there: {missing[0]}.")
        return found


def _batches(keys: list[str]) -> Iterator[list[str]]:
    """The keys in parts that one call may ask for."""
    for start in range(0, len(keys), _CALL_READS):
        yield keys[start : start + _CALL_READS]


def _apart(key: str, tenant: str, text: bytes | None) -> Apart:
    if text is None:
        return Apart(key, None)
    data = zstd.compress(text, _LEVEL)
    if len(data) > _DATA_BYTES:
        raise TooLarge("A value, compressed,", _DATA_BYTES, len(data))
    return Apart(key, {"tenant": tenant, "data": data, "length": len(text)}, len(text))
