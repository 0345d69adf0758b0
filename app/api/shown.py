"""An agent's whole answer as bytes, made from the last version's: the steps that it has are taken over encoded."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from app.api import views
from app.api.answers import JSON, etag
from app.cache import Entry
from app.filling import Filling
from models.agent import AgentRecord
from models.listing import ANSWER_BYTES
from models.packing import bytes_apart
from models.path import upwards
from models.results import workspace_at

_STEPS_HEAD = b',"steps":['
_STEPS_TAIL = b'],"steps_before":null}'

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Shown:
    """An agent's answer at one version, and where in it its steps are: the next version's is made from them."""

    version: int
    etag: bytes
    headers: Headers
    unchanged: Headers
    """The headers of a 304."""
    body: bytes
    steps_from: int
    steps_to: int
    count: int
    apart: int
    """Bytes in the steps that are stored apart from them."""
    newest: dict[str, Any] | None
    """The last of the steps, the very object: where a copy still holds it, all steps before it are the same too."""


def show(entry: Entry, held: Shown | None, filling: Filling) -> Shown:
    """The answer at the copy's version, byte for byte what `views.agent` encoded would be.

    Raises NotHeld when it takes values that are stored apart and not in memory.
    """
    return filling.asked_now(entry.record, lambda record: _show(record, held, filling))


def _show(record: AgentRecord, held: Shown | None, filling: Filling) -> Shown:
    path = list(islice(upwards(record, record.head), views.STEPS_LIMIT + 1))[::-1]
    kept, apart, steps = 0, 0, memoryview(b"")
    if held is not None and 0 < held.count <= len(path) and record.body(path[held.count - 1]) is held.newest:
        kept, apart, steps = held.count, held.apart, memoryview(held.body)[held.steps_from : held.steps_to]
    apart += sum(bytes_apart(record.body(step)) for step in path[kept:])
    if len(path) > views.STEPS_LIMIT or apart > ANSWER_BYTES:
        return _shown(record.version, filling.encoded_now(record, views.agent(record)), (0, 0), 0, 0, None)
    fields = filling.encoded_now(record, {**views.summary(record), "workspace": workspace_at(record, record.head)})
    added = memoryview(filling.encoded_now(record, [record.step(step) for step in path[kept:]]))[1:-1]
    between = b"," if steps and added else b""
    body = b"".join((memoryview(fields)[:-1], _STEPS_HEAD, steps, between, added, _STEPS_TAIL))
    start = len(fields) - 1 + len(_STEPS_HEAD)
    newest = record.body(path[-1]) if path else None
    return _shown(record.version, body, (start, len(body) - len(_STEPS_TAIL)), len(path), apart, newest)


def _shown(
    version: int, body: bytes, steps: tuple[int, int], count: int, apart: int, newest: dict[str, Any] | None
) -> Shown:
    tag = etag(version).encode()
    unchanged = [(b"x-content-type-options", b"nosniff"), (b"etag", tag)]
    described = [(b"content-type", JSON.encode()), (b"content-length", str(len(body)).encode())]
    return Shown(version, tag, unchanged + described, unchanged, body, *steps, count, apart, newest)
