"""Names of things: which are allowed, and how they become database keys and field paths.

Nothing here reads a database. A caller's text becomes part of a field path only through `field_name`.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from models.errors import InvalidRequest, NotFound

ROOT = "root"
"""The hidden step that every agent's tree hangs from."""

WORKSPACE = "@workspace"
"""Field name of the workspace among results; `field_name` writes `@` as `%40`, so it is out of reach of callers."""

END = "@end"
"""Field name, out of reach like that, of what is bound to the last step of a turn that is over: how it ended."""

RESERVED = frozenset({WORKSPACE, END})
"""Field names of what is bound to steps and is no result."""

ID_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
"""Ids that callers choose: agents, steps, tenants."""

NAME_PATTERN = r"^[^\x00-\x1f\x7f/]{1,128}$"
"""Names that stand in a path: branches, result keys."""

POOL_PATTERN = r"^[^\x00-\x1f\x7f/]{1,256}$"
"""Names of pools, which stand in a path, too."""

_ID = re.compile(ID_PATTERN.replace("$", r"\Z"))
_NAME = re.compile(NAME_PATTERN.replace("$", r"\Z"))
_POOL = re.compile(POOL_PATTERN.replace("$", r"\Z"))


def check_id(value: str, what: str = "id") -> str:
    """The id itself, when it is one; raises InvalidRequest otherwise."""
    if not _ID.match(value) or value == ROOT:
        raise InvalidRequest(f"{what} must match {ID_PATTERN} and not be '{ROOT}'.")
    return value


def check_name(value: str, what: str = "name") -> str:
    """The name itself, when it is one; raises InvalidRequest otherwise."""
    if not _NAME.match(value):
        raise InvalidRequest(f"{what} must be 1 to 128 characters without '/' and control characters.")
    return value


def check_pool(name: str) -> str:
    """The pool's name itself, when it is one; raises InvalidRequest otherwise."""
    if not _POOL.match(name):
        raise InvalidRequest("A pool's name is 1 to 256 characters without '/' and control characters.")
    return name


def check_branch(name: str) -> str:
    """The branch's name itself, when it is one; `HEAD` and `root` stand for places of their own."""
    if name in ("HEAD", ROOT):
        raise InvalidRequest(f"'{name}' is not a name for a branch: it stands for a place of its own.")
    return check_name(name, "a branch")


def agent_key(tenant: str, agent: str) -> str:
    """The `_id` of an agent's document, `<tenant>:<agent>`; an impossible id is NotFound, as an unknown one is."""
    return tenant_key(tenant, agent, "agent")


def tenant_key(tenant: str, name: str, what: str) -> str:
    """The `_id` of something that a tenant has, in the same form."""
    if not _ID.match(name):
        raise NotFound(f"There is no {what} '{name[:64]}'.")
    return f"{tenant}:{name}"


def keys_within(prefix: str, after: str = "") -> dict[str, str]:
    """A query of the `_id`s that begin with a tenant, or with an agent's key, and a colon; those after a name."""
    return {"$gt": f"{prefix}:{after}", "$lt": f"{prefix};"}


def field_name(name: str) -> str:
    """A caller's name as one safe segment of a field path; `plain_name` gives it back."""
    return quote(name, safe="").replace(".", "%2E").replace("~", "%7E")


def plain_name(field: str) -> str:
    """What `field_name` was made from."""
    return unquote(field)
