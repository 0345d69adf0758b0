"""How it is noted what was erased: by a digest, so that the note of a tenant names nobody."""

from __future__ import annotations

import hashlib

NOTE = "erased:"
"""What the `_id` of such a note in the collection `service` begins with."""


def note_of(tenant: str, agent: str | None = None) -> str:
    """The `_id` of the note of a tenant, or of an agent."""
    whose = tenant if agent is None else f"{tenant}:{agent}"
    return NOTE + hashlib.sha256(whose.encode()).hexdigest()
