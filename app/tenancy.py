"""Keys: who calls, in which tenant, with which rights.

A key reads `hf_<id>_<secret>`. Only the SHA-256 of the secret is stored. Once a first key was made, the latch is
closed for good: the service never again answers without a key, also when all keys are revoked.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf
from typing import Any

import pymongo
from pymongo.errors import PyMongoError

from app.acts import Acts
from app.clock import Clock
from app.mongo import Mongo, unavailable_when_failing
from models.act import KEY, OPERATOR, ROSTER, TICKET
from models.archive import LATCH
from models.errors import InvalidRequest, NotFound, Unauthenticated
from models.ids import check_id
from models.runner import RunnerRecord
from models.tenant import ANONYMOUS, KeyRecord, Right, Scope, TicketRecord

CACHED_SECONDS = 2.0
"""How long a replica may go on answering a key that was revoked elsewhere."""

OPEN_SECONDS = 1.0
"""How long a replica may go on believing that there is no key. The first key is given out only after that time."""

TICKET_LIFE = timedelta(seconds=30)

_GRACE_SECONDS = 0.3
_TOKEN = re.compile(r"hf_([0-9A-Za-z]{22})_([A-Za-z0-9_-]{43})\Z")
_CACHE = 10_000
_TOKENS_REMEMBERED = 16
"""Earlier incarnations of a runner whose tokens are still known."""


@dataclass(eq=False, slots=True)
class Admission:
    """Lets a caller in until a monotonic time, which moves on when the database is asked again.

    For a short while longer it is good enough for those who would be let in while that happens.
    """

    scope: Scope
    until: float = -inf

    def extend(self, asked: float, seconds: float) -> None:
        """The database, asked at this time, let the caller in: so many seconds are good, the grace among them."""
        self.until = asked + seconds - _GRACE_SECONDS

    def end(self) -> None:
        """Let nobody in any more."""
        self.until = -inf


@dataclass(slots=True)
class _Known:
    """A key as it was last read, and the admission of those who hold it."""

    record: KeyRecord
    admission: Admission


class Keys:
    """The keys of all tenants. `authenticate` is for callers; the rest is for the command line."""

    def __init__(self, mongo: Mongo, acts: Acts, clock: Clock, *, seconds: float) -> None:
        self._mongo = mongo
        self._acts = acts
        self._clock = clock
        self._seconds = seconds
        self._latched = False
        self._open = Admission(ANONYMOUS)
        self._renewing: dict[str | None, asyncio.Task[None]] = {}
        self._known: dict[str, _Known] = {}

    async def authenticate(self, token: str | None) -> Scope:
        """The scope of a token (None: no key was sent). Raises Unauthenticated; Unavailable without a database."""
        with unavailable_when_failing(self._seconds):
            if token is None:
                return await self._without_key()
            return (await self._verified(token)).scope()

    def glance(self, token: str | None) -> Admission | None:
        """Lets in as `authenticate` would, if that is known without asking the database; else None."""
        if token is None:
            known: Admission | None = self._open
        else:
            match = _TOKEN.match(token)
            found = self._known.get(match[1]) if match else None
            known = found.admission if match and found is not None and _fits(found.record, match[2]) else None
        now = self._clock.monotonic()
        if known is None or now >= known.until + _GRACE_SECONDS:
            return None
        if now >= known.until:
            self._renew(token)
        return known

    def _renew(self, token: str | None) -> None:
        """Ask the database again before an answer grows too old, so that those who glance go on unhindered."""
        if token not in self._renewing:
            self._renewing[token] = asyncio.create_task(self._ask_again(token))

    async def _ask_again(self, token: str | None) -> None:
        try:
            with pymongo.timeout(self._seconds):
                if token is None:
                    await self._look_at_latch()
                elif match := _TOKEN.match(token):
                    await self._fetch(match[1])
        except PyMongoError:
            return  # whoever needs to know will ask and be told
        finally:
            del self._renewing[token]

    async def still_allows(self, scope: Scope) -> bool:
        """Whether whoever was let in with this scope would be let in again. True while the database can't say."""
        try:
            with pymongo.timeout(self._seconds):
                if scope == ANONYMOUS:
                    return not await self.required()
                return scope.key is not None and await self._looked_up(scope.key) is not None
        except PyMongoError:
            return True

    async def issue_ticket(self, scope: Scope) -> tuple[str, datetime]:
        """A ticket that lets its bearer in once, as the scope's key would, for 30 s. Raises Unavailable."""
        ticket = secrets.token_urlsafe(32)
        expires_at = self._clock.now() + TICKET_LIFE
        record = TicketRecord(id=_digest(ticket), tenant=scope.tenant, key=scope.key, expires_at=expires_at)
        with unavailable_when_failing(self._seconds):
            await self._acts.tell(scope, TICKET, did="handed over", key=scope.key)
            await self._mongo.tickets.insert_one(record.model_dump(by_alias=True))
        return ticket, expires_at

    async def redeem_ticket(self, ticket: str) -> Scope:
        """The scope of the key behind a ticket, which is used up. Raises Unauthenticated; Unavailable."""
        with unavailable_when_failing(self._seconds):
            # unscoped: the ticket itself tells the tenant
            found = await self._mongo.tickets.find_one_and_delete({"_id": _digest(ticket)})
            if found is None or found["expires_at"] <= self._clock.now():
                raise Unauthenticated("This ticket is not known here, was used, or is too old: get a new one.")
            if found.get("key") is None:
                return await self._without_key()
            record = await self._looked_up(found["key"])
        if record is None:
            raise Unauthenticated("The key behind this ticket was revoked.")
        return record.scope()

    async def required(self) -> bool:
        """Whether the latch is closed: a first key was made, or is about to be given out."""
        if not self._latched and self._clock.monotonic() >= self._open.until:
            await self._look_at_latch()
        return self._latched

    async def create(
        self, tenant: str, rights: Iterable[Right], *, owner: str | None = None, name: str | None = None
    ) -> tuple[KeyRecord, str]:
        """A new key and its token, which can't be had again. Closes the latch first. Raises InvalidRequest."""
        check_id(tenant, "the tenant")
        if owner == "":
            raise InvalidRequest("An owner needs a name; leave it out for a key that sees every owner's agents.")
        chosen = sorted(set(rights))
        if not chosen:
            raise InvalidRequest("A key needs at least one right: read, write, runner or admin.")
        record, token = self._made(tenant=tenant, rights=chosen, owner=owner, name=name)
        await self._close_latch()
        rights_given = [right.value for right in chosen]
        await self._acts.tell_of(tenant, KEY, OPERATOR, did="created", key=record.id, rights=rights_given)
        await self._mongo.keys.insert_one(record.model_dump(by_alias=True, exclude_none=True))
        return record, token

    async def create_for_runner(self, scope: Scope, runner: str, incarnation: int) -> str:
        """The token of one incarnation of a runner, which can do no more than the key that asks for it.

        It is no key that closes the latch. Those of earlier incarnations stay known, to be told that they are fenced
        out; it ends with the key that asked for it. Raises PyMongoError.
        """
        whose = {"runner": runner, "incarnation": incarnation, "parent": scope.key}
        record, token = self._made(tenant=scope.tenant, rights=[Right.RUNNER], owner=scope.owner, **whose)
        await self._acts.tell(scope, ROSTER, did="registered", runner=runner, incarnation=incarnation, key=record.id)
        await self._mongo.keys.insert_one(record.model_dump(by_alias=True, exclude_none=True))
        # unscoped: by the tenant
        await self._mongo.keys.delete_many(
            {"tenant": scope.tenant, "runner": runner, "incarnation": {"$lt": incarnation - _TOKENS_REMEMBERED}}
        )
        return token

    async def forget(self, runner: RunnerRecord) -> None:
        """Let the tokens of a runner's past expire with what is known of it. Raises Unavailable."""
        past = {"tenant": runner.tenant, "runner": runner.name, "incarnation": {"$lte": runner.past}, "gone_at": None}
        with unavailable_when_failing(self._seconds):
            # unscoped: by the tenant
            await self._mongo.keys.update_many(past, {"$set": {"gone_at": self._clock.now()}})

    def _made(self, **fields: Any) -> tuple[KeyRecord, str]:
        secret = secrets.token_urlsafe(32)
        record = KeyRecord(id=self._clock.new_id(), digest=_digest(secret), created_at=self._clock.now(), **fields)
        return record, f"hf_{record.id}_{secret}"

    async def list(self, tenant: str | None = None) -> list[KeyRecord]:
        """All keys but those of runners, of one tenant or of every one, oldest first."""
        query: dict[str, Any] = {"runner": None, **({} if tenant is None else {"tenant": tenant})}
        # unscoped: for the operator's command line
        found = await self._mongo.keys.find(query).sort("_id", 1).to_list()
        return [KeyRecord.model_validate(document) for document in found]

    async def revoke(self, key: str) -> KeyRecord:
        """End a key, and those of runners that it registered, everywhere within `CACHED_SECONDS`. Raises NotFound."""
        # unscoped: for the operator's command line
        known = await self._mongo.keys.find_one({"_id": key}, {"tenant": 1})
        if known is not None:
            await self._acts.tell_of(known["tenant"], KEY, OPERATOR, did="revoked", key=key)
        # unscoped: as above
        await self._mongo.keys.update_many({"parent": key}, {"$set": {"revoked_at": self._clock.now()}})
        # unscoped: as above
        found = await self._mongo.keys.find_one_and_update(
            {"_id": key}, {"$set": {"revoked_at": self._clock.now()}}, return_document=True
        )
        if found is None:
            raise NotFound(f"There is no key '{key}': 'holdfast keys list' shows them.")
        self._forget(key)
        return KeyRecord.model_validate(found)

    async def _close_latch(self) -> None:
        """Close the latch; before the first key, wait until every replica knows."""
        closed = {"$set": {"closed": True}, "$unset": {"restoring": ""}}  # also when the restore that closed it fails
        # unscoped: the latch is the whole service's
        await self._mongo.service.update_one({"_id": LATCH}, closed, upsert=True)
        self._latched = True
        self._open.end()
        # unscoped: whoever registered a runner without a key has to come with one
        await self._mongo.keys.delete_many({"runner": {"$ne": None}, "parent": None})
        # unscoped: of any tenant
        if await self._mongo.keys.find_one({"runner": None}) is None:
            await asyncio.sleep(OPEN_SECONDS * 1.1)

    async def _look_at_latch(self) -> None:
        asked = self._clock.monotonic()
        # unscoped: the latch is the whole service's
        self._latched = await self._mongo.service.find_one({"_id": LATCH}) is not None
        if self._latched:
            self._open.end()
        else:
            self._open.extend(asked, OPEN_SECONDS)

    async def _without_key(self) -> Scope:
        if await self.required():
            raise Unauthenticated("Send a key: 'Authorization: Bearer <key>'.")
        return ANONYMOUS

    async def _verified(self, token: str) -> KeyRecord:
        match = _TOKEN.match(token)
        record = await self._looked_up(match[1]) if match else None
        if match is None or record is None or not _fits(record, match[2]):
            raise Unauthenticated("This key is not known here, or it was revoked.")
        return record

    async def _looked_up(self, key: str) -> KeyRecord | None:
        known = self._known.get(key)
        if known is not None and self._clock.monotonic() < known.admission.until:
            return known.record
        return await self._fetch(key)

    async def _fetch(self, key: str) -> KeyRecord | None:
        asked = self._clock.monotonic()
        # unscoped: the key itself tells the tenant
        found = await self._mongo.keys.find_one({"_id": key, "revoked_at": None})
        if found is None:
            self._forget(key)
            return None
        return self._keep(KeyRecord.model_validate(found), asked)

    def _keep(self, record: KeyRecord, asked: float) -> KeyRecord:
        known = self._known.get(record.id)
        if known is None or known.record != record:
            if len(self._known) >= _CACHE:
                self._known.clear()
            known = self._known[record.id] = _Known(record, Admission(record.scope()))
        known.admission.extend(asked, CACHED_SECONDS)
        return record

    def _forget(self, key: str) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            known.admission.end()


def _fits(record: KeyRecord, secret: str) -> bool:
    return hmac.compare_digest(record.digest, _digest(secret))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
