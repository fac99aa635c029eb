"""The command line."""

from langneurons.cli import (
    analysis_commands,
    comparison_commands,
    probe_commands,
    report_commands,
    study_commands,
    training_commands,
)
from langneurons.cli.commands import main

__all__ = [
    "analysis_commands",
    "comparison_commands",
    "main",
    "probe_commands",
    "report_commands",
    "study_commands",
    "training_commands",
]
