"""`--long`: each fault run many times over (`make test-long`). HOLDFAST_TEST_ROUNDS sets how many times exactly."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run each fault many times over")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--long", default=False):
        os.environ.setdefault("HOLDFAST_TEST_ROUNDS", "20")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long", default=False):
        for item in items:
            item.add_marker(pytest.mark.timeout(3600))
