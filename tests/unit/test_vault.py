"""Sealed secrets: they open for their agent, under any of the keys, and for nothing else."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest

from app.vault import SecretKeyProblem, Vault, open_vault

OLD, NEW = b"o" * 32, b"n" * 32


def test_sealed_secret_opens_again() -> None:
    """Each sealing looks different and shows nothing."""
    vault = Vault((OLD,))
    first, second = vault.seal("sécret", "t:a"), vault.seal("sécret", "t:a")
    assert first != second
    assert "sécret".encode() not in first
    assert vault.open(first, "t:a") == vault.open(second, "t:a") == "sécret"


def test_any_changed_byte_is_noticed() -> None:
    """Key id, nonce, text and tag."""
    vault = Vault((OLD,))
    sealed = vault.seal("secret", "t:a")
    for place in range(len(sealed)):
        altered = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        with pytest.raises(SecretKeyProblem):
            vault.open(altered, "t:a")
    for cut in (0, 5, 19, 20, len(sealed) - 1):
        with pytest.raises(SecretKeyProblem):
            vault.open(sealed[:cut], "t:a")


def test_secret_of_another_agent_does_not_open() -> None:
    """A sealed value that was moved to another document is worth nothing."""
    vault = Vault((OLD,))
    with pytest.raises(SecretKeyProblem):
        vault.open(vault.seal("secret", "t:a"), "t:b")


def test_unknown_key_is_named() -> None:
    """So that the operator knows which one to add."""
    with pytest.raises(SecretKeyProblem, match="HOLDFAST_SECRET_KEYS"):
        Vault((NEW,)).open(Vault((OLD,)).seal("secret", "t:a"), "t:a")


def test_keys_rotate() -> None:
    """The first seals, all open; what the old one sealed does not count as sealed by the new."""
    both = Vault((NEW, OLD))
    sealed = Vault((OLD,)).seal("secret", "t:a")
    assert both.open(sealed, "t:a") == "secret"
    assert Vault((NEW,)).open(both.seal("secret", "t:a"), "t:a") == "secret"
    assert not both.holds(sealed, "secret", "t:a")
    assert both.holds(both.seal("secret", "t:a"), "secret", "t:a")
    assert not both.holds(both.seal("secret", "t:a"), "other", "t:a")
    assert not both.holds(both.seal("secret", "t:b"), "secret", "t:a")


def test_generated_key_is_private_and_stays(tmp_path: Path) -> None:
    """One for all processes of the data directory."""
    sealed = open_vault((), tmp_path / "data").seal("secret", "t:a")
    assert open_vault((), tmp_path / "data").open(sealed, "t:a") == "secret"
    assert stat.S_IMODE((tmp_path / "data" / "secret.key").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "key", ["", "x", base64.b64encode(b"x" * 31).decode(), base64.b64encode(b"x" * 33).decode(), "ä" * 44]
)
def test_unusable_key_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(SecretKeyProblem, match="base64"):
        open_vault((key,), tmp_path)
