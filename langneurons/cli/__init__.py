"""The command line."""

from langneurons.cli.entry import app, main, register

__all__ = ["app", "main", "register"]
