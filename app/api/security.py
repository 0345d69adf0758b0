"""Who may call: keys become scopes, routes name the rights that open them, browsers are kept to known origins.

Guarantee: a route under `/v1` without declared rights can't be registered (`create_app` refuses to start).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from app.config import Settings
from app.tenancy import Keys
from models.errors import Forbidden, HoldfastError, InvalidRequest, Unauthenticated
from models.tenant import Right, Scope

_HOSTS_REMEMBERED = 100
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


async def authenticate(headers: Mapping[str, str], keyring: Keys, ticket: str | None = None) -> Scope:
    """The scope of the caller, by key or by ticket. Raises Unauthenticated; Unavailable without a database."""
    if ticket is not None:
        return await keyring.redeem_ticket(ticket)
    sent = headers.get("authorization")
    return await keyring.authenticate(None if sent is None else token_of(sent))


def token_of(authorization: str) -> str:
    """The key in an Authorization header. Raises Unauthenticated for what is none."""
    kind, _, token = authorization.partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise Unauthenticated("Send the key as 'Authorization: Bearer <key>'.")
    return token.strip()


async def require_right(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Guard of every route: finds the scope, and demands one of the rights that the route declares."""
    wanted: frozenset[Right] | None = handler.opt.get("rights")
    if wanted is None:
        return
    keyring: Keys = connection.app.state.keyring
    ticket = connection.query_params.get("ticket") if handler.opt.get("ticket") else None
    connection.state["caller"] = require_any(wanted, await authenticate(connection.headers, keyring, ticket))


def require_any(wanted: frozenset[Right], scope: Scope) -> Scope:
    """The scope itself, if it has one of the rights. Raises Forbidden."""
    if not wanted & scope.rights:
        raise Forbidden(f"This needs a key with the right {' or '.join(sorted(wanted))}.")
    return scope


class Doorkeeper:
    """Knows which hosts and origins are served, so that a page of elsewhere can't use a visitor's loopback."""

    def __init__(self, settings: Settings) -> None:
        self._hosts = _LOOPBACK | {settings.host.lower(), *(host.lower() for host in settings.allowed_hosts)}
        self._origins = frozenset(origin.rstrip("/").lower() for origin in settings.allowed_origins)
        self._any_host = "*" in settings.allowed_hosts
        self._known: set[bytes] = set()

    def knows(self, host: bytes) -> bool:
        """Whether a Host is certainly served; asked again for the same one, the answer costs nothing."""
        if host in self._known:
            return True
        try:
            self.check(host.decode("latin-1"), None)
        except HoldfastError:
            return False
        if len(self._known) < _HOSTS_REMEMBERED:
            self._known.add(host)
        return True

    def check(self, host: str | None, origin: str | None) -> None:
        """Raise InvalidRequest for a missing or odd Host, Forbidden for one (or an Origin) that is not served."""
        name = _host_name(host)
        if not (self._any_host or name in self._hosts):
            raise Forbidden(f"The host '{name[:128]}' is not served here: add it to HOLDFAST_ALLOWED_HOSTS.")
        if origin is None or origin.rstrip("/").lower() in self._origins:
            return
        if _netloc(origin) != (host or "").lower():
            raise Forbidden("Pages of this origin are not served: add it to HOLDFAST_ALLOWED_ORIGINS.")


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _host_name(host: str | None) -> str:
    try:
        name = urlsplit(f"//{host or ''}").hostname
    except ValueError:
        name = None
    if not name:
        raise InvalidRequest("The Host header is missing or is no host.")
    return name
