"""Secrets at rest: sealed with AES-256-GCM under a named key, bound to the agent that they belong to.

Guarantee: what `seal` returns tells nothing of the secret without the keys, and opens only for the same agent.
Nothing here reads or writes the database.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from bson.binary import Binary
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SEALED_SUBTYPE = 0x81
"""BSON subtype of sealed values: user-defined, so that no JSON of a caller can pass for one."""

KEY_FILE = "secret.key"
"""In the data directory: the key that was generated because none was configured."""

_KEY_BYTES = 32
_ID_BYTES = 8
_NONCE_BYTES = 12


class SecretKeyProblem(Exception):
    """The configured secret keys can't be used; the message says which and what one looks like."""


class Vault:
    """Seals with its first key, opens with any. The sealed form is `key id (8) | nonce (12) | ciphertext and tag`."""

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        self._ciphers = {hashlib.sha256(key).digest()[:_ID_BYTES]: AESGCM(key) for key in keys}
        self._first = next(iter(self._ciphers))

    def seal(self, secret: str, owner: str) -> Binary:
        """The secret, sealed for the agent key `owner`."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._ciphers[self._first].encrypt(nonce, secret.encode(), owner.encode())
        return Binary(self._first + nonce + sealed, SEALED_SUBTYPE)

    def open(self, sealed: bytes, owner: str) -> str:
        """What was sealed for `owner`. Raises SecretKeyProblem when none of the keys opens it."""
        key, nonce, text = sealed[:_ID_BYTES], sealed[_ID_BYTES : _ID_BYTES + _NONCE_BYTES], sealed[20:]
        cipher = self._ciphers.get(key)
        if cipher is None:
            raise SecretKeyProblem(
                f"No key of HOLDFAST_SECRET_KEYS has the id {key.hex()}: add the one it was sealed with."
            )
        try:
            return cipher.decrypt(nonce, text, owner.encode()).decode()
        except InvalidTag:
            raise SecretKeyProblem("A sealed value was altered, or belongs to another agent.") from None

    def holds(self, sealed: bytes, secret: str, owner: str) -> bool:
        """Whether `sealed` is this secret, sealed for `owner` under the first key."""
        if sealed[:_ID_BYTES] != self._first:
            return False
        try:
            return hmac.compare_digest(self.open(sealed, owner).encode(), secret.encode())
        except SecretKeyProblem:
            return False


def open_vault(configured: tuple[str, ...], data: Path) -> Vault:
    """The vault of the configured keys, else of the data directory's own key, which is made on first use."""
    if configured:
        return Vault(tuple(_decoded(key) for key in configured))
    return Vault((_decoded(_generated(data / KEY_FILE)),))


def key_of_secret(sealed: bytes) -> str:
    """The id of the key that a secret was sealed with."""
    return sealed[:_ID_BYTES].hex()


def known_keys(configured: tuple[str, ...], data: Path) -> set[str]:
    """The ids of the keys that there are, looking only. Raises SecretKeyProblem."""
    kept = data / KEY_FILE
    keys = configured or ((kept.read_text().strip(),) if kept.exists() else ())
    return {hashlib.sha256(_decoded(key)).digest()[:_ID_BYTES].hex() for key in keys}


def configured_keys(configured: tuple[str, ...], data: Path) -> int:
    """How many keys there are, looking only: 0 when the first use will make one. Raises SecretKeyProblem."""
    return len(known_keys(configured, data))


def _decoded(key: str) -> bytes:
    try:
        decoded = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if len(decoded) != _KEY_BYTES:
        raise SecretKeyProblem(
            "HOLDFAST_SECRET_KEYS must hold base64 keys of 32 bytes, separated by commas; "
            "make one with: head -c 32 /dev/urandom | base64"
        )
    return decoded


def _generated(path: Path) -> str:
    """The key in the file; of processes that create it at once, all get the same."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    if not path.exists():
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_text().strip()
