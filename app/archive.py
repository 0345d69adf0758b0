"""The file that a backup is: written whole or not at all, and read with every byte of it checked.

One zstd frame holds the documents of `models.archive`, so that `zstd -d FILE | bsondump` shows them. Behind it stands a
seal, a frame that zstd skips, with the SHA-256 of all bytes before: whatever is changed, cut off or added anywhere in
the file is found. Nothing here knows a database.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import bson
from backports import zstd
from bson.errors import BSONError

from app.mongo import CODEC
from models.archive import BATCH_BYTES, End, Foreign, Header, Sum, Totals, split
from models.blob import Damaged

_LEVEL = 3
_FRAME = b"\x28\xb5\x2f\xfd"
_SEAL = b"\x5e\x2a\x4d\x18" + (40).to_bytes(4, "little") + b"holdfast"
"""A frame to be skipped, of 40 bytes: these 8, and the digest."""

_SEAL_BYTES = len(_SEAL) + 32
_PIECE_BYTES = 1024 * 1024
_HEADER_BYTES = 1024 * 1024


class ArchiveProblem(Exception):
    """The file can't be used; the message says which, and why."""


class Batch(NamedTuple):
    """Documents of one collection."""

    collection: str
    documents: list[bytes]


class Writer:
    """Writes the documents of a backup one after another."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        settings = zstd.CompressionParameter
        options: dict[int, int] = {settings.compression_level: _LEVEL, settings.checksum_flag: 1}
        self._compressor = zstd.ZstdCompressor(options=options)
        self._sums: dict[str, Sum] = {}

    def begin(self, header: Header) -> None:
        """Write what a backup begins with."""
        self._add(bson.encode(header.document(), codec_options=CODEC))

    def add(self, collection: str, raw: bytes) -> int:
        """Write documents that lie end to end; how many. Raises OSError."""
        count = sum(1 for _ in split(raw))
        own = Sum()
        own.add(count, raw)
        self._sums.setdefault(collection, Sum()).add(count, raw)
        self._add(bson.encode({"collection": collection, **own.totals.document()}) + raw)
        return count

    def end(self, secret_keys: tuple[str, ...]) -> End:
        """Write what a backup ends with, and the seal. Raises OSError."""
        end = End({name: total.totals for name, total in self._sums.items()}, secret_keys)
        self._add(bson.encode(end.document()))
        self._put(self._compressor.flush())
        self._file.write(_SEAL + self._digest.digest())
        return end

    def _add(self, raw: bytes) -> None:
        self._put(self._compressor.compress(raw))

    def _put(self, compressed: bytes) -> None:
        self._digest.update(compressed)
        self._file.write(compressed)


@contextmanager
def written(path: Path) -> Iterator[Writer]:
    """A backup at a path where nothing is yet: there when this is left without an error, whole and for good; else not.

    Only its owner may read it. Raises ArchiveProblem.
    """
    if os.path.lexists(path):
        raise ArchiveProblem(f"{path} is there already: choose another name, or remove it first.")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            yield Writer(file)
            file.flush()
            os.fsync(file.fileno())
        _settle(part, path)
    except OSError as error:
        raise ArchiveProblem(f"{path} can't be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _settle(part: Path, path: Path) -> None:
    """Give the finished file its name, unless somebody took that meanwhile."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise
        part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class _Body:
    """The file without its seal, with the digest of what has been read of it."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self._length = length
        self.digest = hashlib.sha256()
        self.position = 0

    def read(self, size: int = -1) -> bytes:
        left = self._length - self.position
        raw = self._file.read(left if size < 0 else min(size, left))
        self.digest.update(raw)
        self.position += len(raw)
        return raw


class Reader:
    """A backup that is read once, from its beginning to its end. Raises Foreign for another file, Damaged.

    What `batches` gave is as it was written; whether all of the file is, is known when it has come to its end.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self._body = _Body(file, size - _SEAL_BYTES)
        file.seek(size - _SEAL_BYTES)
        self._seal = file.read(_SEAL_BYTES)
        file.seek(0)
        self._stream = zstd.ZstdFile(cast("BinaryIO", self._body), "r")
        self._sums: dict[str, Sum] = {}
        self.header = Header.of(self._document(_HEADER_BYTES))

    @property
    def position(self) -> int:
        """How many bytes of the file have been read."""
        return self._body.position

    @property
    def id(self) -> str:
        """What tells this backup from any other."""
        return self._seal[len(_SEAL) :].hex()

    def batches(self) -> Iterator[Batch]:
        """Every batch; after the last one everything has been checked."""
        while "end" not in (marker := self._document(_HEADER_BYTES)):
            yield self._batch(marker)
        end = End.of(marker)
        if end.collections != {name: total.totals for name, total in self._sums.items()}:
            raise Damaged("its totals are not those of what it holds")
        if self._some(1):
            raise Damaged("something stands behind its end")
        if self._seal != _SEAL + self._body.digest.digest():
            raise Damaged("its seal is broken: it was changed, cut off or added to")
        self.end = end

    def _batch(self, marker: Mapping[str, Any]) -> Batch:
        totals = Totals.of(marker)
        collection = marker.get("collection")
        if not isinstance(collection, str) or not 0 <= totals.bytes <= BATCH_BYTES:
            raise Damaged("it holds a batch without a name or of an impossible length")
        raw = self._exactly(totals.bytes)
        documents = list(split(raw))
        own = Sum()
        own.add(len(documents), raw)
        if own.totals != totals:
            raise Damaged("it holds a batch that is not as it was written")
        self._sums.setdefault(collection, Sum()).add(len(documents), raw)
        return Batch(collection, documents)

    def _document(self, limit: int) -> dict[str, Any]:
        prefix = self._exactly(4)
        length = int.from_bytes(prefix, "little")
        if not len(prefix) < length <= limit:
            raise Damaged("it holds a document of an impossible length")
        try:
            found: dict[str, Any] = bson.decode(prefix + self._exactly(length - len(prefix)), CODEC)
        except BSONError as error:
            raise Damaged("it holds a document that can't be read") from error
        return found

    def _exactly(self, size: int) -> bytes:
        raw = bytearray()
        while len(raw) < size:
            piece = self._some(min(size - len(raw), _PIECE_BYTES))
            if not piece:
                raise Damaged("it ends too early")
            raw += piece
        return bytes(raw)

    def _some(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except (zstd.ZstdError, EOFError) as error:
            raise Damaged("its compressed content is broken, or it ends too early") from error


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """The backup at a path. What is damaged, missing or none at all raises ArchiveProblem, also inside."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size <= _SEAL_BYTES or file.read(len(_FRAME)) != _FRAME:
                raise ArchiveProblem(f"{path} is not a backup of Holdfast.")
            file.seek(0)
            yield Reader(file, size)
    except OSError as error:
        raise ArchiveProblem(f"{path} can't be read: {error.strerror or error}.") from error
    except Foreign as foreign:
        raise ArchiveProblem(f"{path} can't be restored: {foreign}.") from foreign
    except Damaged as damage:
        raise ArchiveProblem(f"{path} is damaged: {damage}.") from damage


@dataclass(frozen=True, slots=True)
class Contents:
    """A backup of which every byte was checked."""

    path: Path
    id: str
    size: int
    header: Header
    end: End
