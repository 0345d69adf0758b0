"""The program `holdfast`. Messages for people go to stderr, the answer to stdout; a failure is one sentence and a code."""

from app.cli.main import main

__all__ = ["main"]
