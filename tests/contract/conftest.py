"""The same replicas and callers as in the tests of the API."""

from tests.api.conftest import (
    api,
    data,
    keyed,
    keyed_settings,
    mongo,
    new_database,
    new_key,
    open_settings,
    other_keyed,
    other_replica,
    pytest_collection_modifyitems,
    tenant,
)

__all__ = [
    "api",
    "data",
    "keyed",
    "keyed_settings",
    "mongo",
    "new_database",
    "new_key",
    "open_settings",
    "other_keyed",
    "other_replica",
    "pytest_collection_modifyitems",
    "tenant",
]
