"""The demo, as ``make demo`` runs it once langneurons is installed."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.measuring import Settings
from benchmarks.rows import Row

COMMAND = (sys.executable, "-c", "from langneurons.cli import main; main()", "demo", "--out")


def rows(settings: Settings) -> Iterator[Row]:
    """Time it once, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([*COMMAND, f"{folder}/demo"], check=True, capture_output=True)
        yield Row("`make demo` after install", "", time.perf_counter() - start, "s", at_most=180.0)
