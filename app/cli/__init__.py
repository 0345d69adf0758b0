"""The program `holdfast`: messages for people on stderr, the answer on stdout, a failure as one sentence and a code."""

from app.cli.main import main

__all__ = ["main"]
