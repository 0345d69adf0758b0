"""Ids and names, and the field paths that they become."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidRequest, NotFound
from models.ids import agent_key, check_id, check_name, field_name, plain_name

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@given(texts)
def test_field_name_is_one_safe_segment_and_comes_back(name: str) -> None:
    """No dot, no dollar, no NUL, only ASCII."""
    field = field_name(name)
    assert plain_name(field) == name
    assert field.isascii()
    assert not set(field) & set(".$\0@/ ~")


@given(texts, texts)
def test_different_names_are_different_fields(left: str, right: str) -> None:
    """Injective."""
    assert (field_name(left) == field_name(right)) == (left == right)


@pytest.mark.parametrize("good", ["a", "A-b_9", "x" * 64, "Root"])
def test_good_id(good: str) -> None:
    assert check_id(good) == good
    assert agent_key("t", good) == f"t:{good}"


@pytest.mark.parametrize("bad", ["", "root\n", "a\n", "a b", "a.b", "x" * 65, "ä", "٣", "$", "a:b"])
def test_bad_id(bad: str) -> None:
    """Refused where it is chosen, not found where it is asked for."""
    with pytest.raises(InvalidRequest):
        check_id(bad)
    with pytest.raises(NotFound):
        agent_key("t", bad)


def test_root_is_no_id_to_choose() -> None:
    with pytest.raises(InvalidRequest):
        check_id("root")


@pytest.mark.parametrize("bad", ["", "a/b", "a\n", "\0", "\x7f", "x" * 129])
def test_bad_name(bad: str) -> None:
    with pytest.raises(InvalidRequest):
        check_name(bad)
