"""The error tree and the table that gives each of its branches a status."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.api.problems import STATUS
from models import errors
from models.errors import HoldfastError


def descendants(kind: type[HoldfastError]) -> Iterator[type[HoldfastError]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


EVERY_ERROR = sorted(set(descendants(HoldfastError)), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", EVERY_ERROR)
def test_every_error_has_a_status_and_a_title(kind: type[HoldfastError]) -> None:
    """The title is the class's own docstring, one sentence."""
    assert 400 <= STATUS[kind] <= 503
    assert kind.__doc__ is not None
    assert kind.__doc__ != HoldfastError.__doc__
    assert kind.title().endswith(".")


def test_codes_are_unique_slugs() -> None:
    """No two errors look the same to a caller."""
    codes = [kind.code for kind in EVERY_ERROR]
    assert len(set(codes)) == len(codes)
    assert all(code.replace("-", "").isalpha() and code.islower() for code in codes)


def test_table_holds_no_error_that_is_not_there() -> None:
    """Nor the root of the tree."""
    assert set(STATUS) == set(EVERY_ERROR)


def test_every_error_is_drawn_in_the_tree() -> None:
    """The picture at the top of the file is complete."""
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in EVERY_ERROR)
