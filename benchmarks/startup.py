"""Starting: what the first import and the first model cost in a fresh process."""

import statistics
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.measuring import Settings
from benchmarks.rows import Row

TIMED = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def seconds_of(statement: str) -> float:
    """Give the seconds of a statement in a fresh process, the interpreter's own start aside."""
    done = subprocess.run([sys.executable, "-c", TIMED.format(statement)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def rows(settings: Settings) -> Iterator[Row]:
    """Time the import, which is lazy, and what a user waits for before a first forward."""
    statements = {"import langneurons": 1.0, "import langneurons; langneurons.load_model('babel', device='cpu')": None}
    for statement, hold in statements.items():
        taken = statistics.median(seconds_of(statement) for _ in range(settings.rounds))
        yield Row(f"`{statement}`, fresh process", "", taken, "s", at_most=hold)
