"""The command line."""

from langneurons.cli import training_commands
from langneurons.cli.commands import main

__all__ = ["main", "training_commands"]
