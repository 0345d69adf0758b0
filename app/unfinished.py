"""Restores that are under way or were broken off, as their notes in the database tell. It only reads.

A note is written before a restore's first write and taken away after its last; `app.restore` does both.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from app.mongo import Mongo
from models.archive import WHOLE_NOTE, is_note_of_restore


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A restore that has not come to its end: of what, from which file, since when."""

    note: str
    file: str
    since: datetime

    @property
    def whole(self) -> bool:
        """Whether the whole database is in question, so that nothing of it may be served."""
        return self.note == WHOLE_NOTE

    def __str__(self) -> str:
        return f"A restore from {self.file}, begun {self.since:%Y-%m-%d %H:%M:%S} UTC, is under way or was broken off"


async def unfinished(mongo: Mongo) -> Unfinished | None:
    """The restore that has not come to its end, that of the whole database before others. Raises PyMongoError."""
    # unscoped: of the whole database
    found = await mongo.service.find(is_note_of_restore()).sort("_id", -1).limit(1).to_list()
    return Unfinished(found[0]["_id"], found[0]["file"], found[0]["since"]) if found else None
