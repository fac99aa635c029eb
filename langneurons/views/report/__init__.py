"""The report: everything a study found in one HTML file, without server or network."""

from langneurons.views.report.findings import Findings
from langneurons.views.report.writing import write_report

__all__ = ["Findings", "write_report"]
