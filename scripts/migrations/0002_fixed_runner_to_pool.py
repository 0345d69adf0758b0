"""Put agents of a fixed runner into a pool.

Once an agent named the only runner that may drive it, in `agent_id`. It gets a pool of that name, unless it has one:
the runner that registers with this pool drives it as before, and others may join. `agent_id` stays for its readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.ids import POOL_PATTERN


def wanted() -> dict[str, Any]:
    """Agents that name a fixed runner, by a name that a pool may have, and are in no pool."""
    return {"agent_id": {"$type": "string", "$regex": POOL_PATTERN}, "pool": None}


def assigned(document: Mapping[str, Any]) -> dict[str, Any]:
    """The pool, named after the runner."""
    return {"pool": document["agent_id"]}
