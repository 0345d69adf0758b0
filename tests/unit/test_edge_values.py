"""Cursors, headers and settings of the environment: read exactly or refused."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.api.headers import freshness, guard, matches
from app.api.paging import agent_after, agents_cursor, steps_cursor, steps_window
from app.config import Settings
from models.errors import InvalidRequest
from models.listing import Window

numbers = st.integers(0, 2**53)
ids = st.text("abcXYZ-_019", min_size=1, max_size=64)


@given(st.none() | ids, st.none() | ids, numbers, st.none() | numbers)
def test_cursor_of_steps_comes_back(leaf: str | None, turn: str | None, after: int, until: int | None) -> None:
    """And is opaque text that needs no escaping."""
    window = Window(leaf, turn, after, until)
    cursor = steps_cursor(window)
    assert steps_window(cursor) == window
    assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(ids)
def test_cursor_of_agents_comes_back(agent: str) -> None:
    assert agent_after(agents_cursor(agent)) == agent


@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_foreign_cursor_is_refused(cursor: str) -> None:
    """Whatever it is, it is told, or it is one."""
    for read in (steps_window, agent_after):
        try:
            read(cursor)
        except InvalidRequest:
            continue


@pytest.mark.parametrize(("tag", "version"), [('"7"', 7), ("7", 7), (' "7" ', 7), ("*", None), (None, None)])
def test_if_match_is_a_version(tag: str | None, version: int | None) -> None:
    assert guard(tag, None).version == version


@pytest.mark.parametrize("tag", ["", '"', 'W/"7"', "seven", '"7", "8"', "-1", "٣", "7.0", "1" * 19])
def test_if_match_that_is_none_is_refused(tag: str) -> None:
    with pytest.raises(InvalidRequest):
        guard(tag, None)


@pytest.mark.parametrize("token", ["", "-1", '"7"', "٣", "7.0", "1" * 19, "*"])
def test_fencing_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequest):
        guard(None, token)


def test_freshness_is_what_was_asked_for() -> None:
    """`no-cache` among other directives, in any case; nothing that only looks like it."""
    assert freshness("max-age=0, No-Cache", 3).strong
    assert not freshness("no-cache-please", 0).strong
    assert not freshness(None, 0).strong
    assert freshness(None, 3).min_version == 3


@pytest.mark.parametrize(
    ("sent", "held"), [(None, False), ('"7"', True), ('W/"7"', True), ('"1", "7"', True), ("*", True), ('"77"', False)]
)
def test_if_none_match_knows_its_version(sent: str | None, held: bool) -> None:
    assert matches(sent, '"7"') is held


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their documented names; lists are split at commas."""
    monkeypatch.setenv("MONGODB_URI", "mongodb://db")
    monkeypatch.setenv("MONGODB_DATABASE", "other")
    monkeypatch.setenv("HOLDFAST_DATA", "/data")
    monkeypatch.setenv("HOLDFAST_ALLOWED_HOSTS", "a.example, b.example,")
    read = Settings()
    assert (read.mongodb_uri, read.mongodb_database, read.data) == ("mongodb://db", "other", Path("/data"))
    assert read.allowed_hosts == ("a.example", "b.example")


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "70000"), ("JSON_DEPTH", "0"), ("LOG_FORMAT", "xml"), ("BODY_LIMIT_BYTES", "many")]
)
def test_setting_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"HOLDFAST_{name}", value)
    with pytest.raises(ValidationError):
        Settings()
