"""The service. Imports flow one way; `pyproject.toml` holds the contract and `make check` proves it."""
