"""What callers say in headers: guards, idempotency, freshness, conditions. Each is parsed here, once, or refused."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

from litestar import Request
from litestar.params import HeaderParameter, QueryParameter

from app.reads import Freshness
from models.commit import Guard
from models.errors import InvalidRequest
from models.tenant import Scope

_TAG = re.compile(r'\A"?([0-9]{1,18})"?\Z')
_INTEGER = re.compile(r"\A[0-9]{1,18}\Z")
_IDEMPOTENCY_KEY = re.compile(r"\A[\x21-\x7e]{1,255}\Z")

IfMatch = Annotated[
    str | None, HeaderParameter(name="If-Match", required=False, description='Version that the agent must be at: "7".')
]
FencingToken = Annotated[
    str | None, HeaderParameter(name="Fencing-Token", required=False, description="Fence that the agent must have.")
]
IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key", required=False, description="Same key, path and body: the same answer, once."
    ),
]
IfNoneMatch = Annotated[
    str | None, HeaderParameter(name="If-None-Match", required=False, description="Answer 304 at this version.")
]
CacheControl = Annotated[
    str | None, HeaderParameter(name="Cache-Control", required=False, description="`no-cache`: a linearizable read.")
]
MinVersion = Annotated[
    int, QueryParameter(name="min_version", ge=0, le=2**63 - 1, description="Wait up to 2 s for this version.")
]


def guard(if_match: IfMatch = None, fencing_token: FencingToken = None) -> Guard:
    """The guard of a write. Raises InvalidRequest for what is neither a version nor a token."""
    return Guard(version=_version(if_match), fence=_fence(fencing_token))


def freshness(cache_control: CacheControl = None, min_version: MinVersion = 0) -> Freshness:
    """How new a read has to be."""
    directives = (part.strip().lower() for part in (cache_control or "").split(","))
    return Freshness(strong="no-cache" in directives, min_version=min_version)


def matches(if_none_match: str | None, tag: str) -> bool:
    """Whether the caller has this version already."""
    if if_none_match is None:
        return False
    sent = {part.strip().removeprefix("W/") for part in if_none_match.split(",")}
    return tag in sent or "*" in sent


def idempotency_id(scope: Scope, method: str, path: str, key: str) -> str:
    """The id of the record for this key: of one tenant, owner, method and path. Raises InvalidRequest."""
    if not _IDEMPOTENCY_KEY.match(key):
        raise InvalidRequest("Idempotency-Key must be 1 to 255 visible ASCII characters.")
    owner = "" if scope.owner is None else f"owner:{scope.owner}"
    return digest_of(scope.tenant, owner, method, path, key)


async def request_digest(request: Request[Any, Any, Any]) -> str:
    """What tells one request from another under the same key: its query and body."""
    return digest_of(request.scope["query_string"].decode("latin-1"), (await request.body()).hex())


def digest_of(*parts: str) -> str:
    """A digest that tells these parts from any others."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def _version(if_match: str | None) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    match = _TAG.match(if_match.strip())
    if match is None:
        raise InvalidRequest('If-Match takes one version as an ETag has it, such as "7".')
    return int(match[1])


def _fence(token: str | None) -> int | None:
    if token is None:
        return None
    if not _INTEGER.match(token.strip()):
        raise InvalidRequest("Fencing-Token takes the integer that the claim gave.")
    return int(token)
