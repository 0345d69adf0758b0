"""The HTTP edge: decode, one call, encode. Nothing in this package decides anything about agents."""

from app.api.application import create_app

__all__ = ["create_app"]
