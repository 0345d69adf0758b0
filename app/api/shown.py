"""An agent's whole answer as bytes, made from the last version's: the steps that it has are taken over encoded."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from app.api import views
from app.api.answers import JSON, etag
from app.cache import Cache, Entry
from app.filling import Filling, NotHeld
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


class Showcase:
    """Agents' whole answers, kept with their copies in memory."""

    def __init__(self, cache: Cache, filling: Filling) -> None:
        self._cache = cache
        self._filling = filling

    def of(self, entry: Entry) -> Shown:
        """The answer at the copy's version. Raises as `show` does."""
        held: Shown | None = entry.shown
        if held is None or held.version != entry.record.version:
            held = show(entry, held, self._filling)
            self._cache.show(entry, held, len(held.body))
        return held

    def at(self, record: AgentRecord) -> bytes | None:
        """The answer of an agent as it was just read; None where memory does not have it."""
        entry = self._cache.look(record.id)
        if entry is None or entry.record.version != record.version:
            return None
        try:
            return self.of(entry).body
        except NotHeld:
            return None


def _show(record: AgentRecord, held: Shown | None, filling: Filling) -> Shown:
    new, found = _since(record, held)
    kept, apart, steps = 0, 0, memoryview(b"")
    if found is not None:
        kept, apart, steps = found.count, found.apart, memoryview(found.body)[found.steps_from : found.steps_to]
    apart += sum(bytes_apart(record.body(step)) for step in new)
    count = kept + len(new)
    if count > views.STEPS_LIMIT or apart > ANSWER_BYTES:
        return _shown(record.version, filling.encoded_now(record, views.agent(record)), (0, 0), 0, 0, None)
    fields = filling.encoded_now(record, {**views.summary(record), "workspace": workspace_at(record, record.head)})
    added = memoryview(filling.encoded_now(record, [record.step(step) for step in new]))[1:-1]
    between = b"," if steps and added else b""
    body = b"".join((memoryview(fields)[:-1], _STEPS_HEAD, steps, between, added, _STEPS_TAIL))
    start = len(fields) - 1 + len(_STEPS_HEAD)
    newest = record.body(record.head) if count else None
    return _shown(record.version, body, (start, len(body) - len(_STEPS_TAIL)), count, apart, newest)


def _since(record: AgentRecord, held: Shown | None) -> tuple[list[str], Shown | None]:
    """The steps of the path after those that were shown, and what was shown; all of them, and None, where that is gone.

    Of a path that is too long to be shown whole, one more than is shown.
    """
    new: list[str] = []
    for step in islice(upwards(record, record.head), views.STEPS_LIMIT + 1):
        if held is not None and held.newest is not None and record.steps.get(step) is held.newest:
            return new[::-1], held
        new.append(step)
    return new[::-1], None


def _shown(
    version: int, body: bytes, steps: tuple[int, int], count: int, apart: int, newest: dict[str, Any] | None
) -> Shown:
    tag = etag(version).encode()
    unchanged = [(b"x-content-type-options", b"nosniff"), (b"etag", tag)]
    described = [(b"content-type", JSON.encode()), (b"content-length", str(len(body)).encode())]
    return Shown(version, tag, unchanged + described, unchanged, body, *steps, count, apart, newest)
