"""The command line."""

from langneurons.cli.commands import main

__all__ = ["main"]
