"""The package where nothing but the working folder can be written to: containers without HOME."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import langneurons as ln
from langneurons.recording import accumulation
from langneurons.recording.accumulation import _sum_magnitudes

PACKAGE = Path(ln.__file__).parent
CHECKED = """
import torch
import langneurons as ln
assert ln.__file__.startswith({place!r}), ln.__file__
from langneurons.recording.accumulation import Accumulators, Grid
z = torch.randn(50, 3)
sums = Accumulators.zeros(1, 3, 50, z.device)
sums.add(0, z, z, torch.zeros(50, dtype=torch.long), Grid.covering(z.amin(0)[None], z.amax(0)[None]))
print(int(sums.histogram.sum()))
"""


def test_recording_works_where_package_and_caches_are_read_only(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "langneurons", ignore=shutil.ignore_patterns("__pycache__", "babel"))
    for folder in [tmp_path / "langneurons", *(tmp_path / "langneurons").rglob("*/")]:
        (folder / "__pycache__").touch()  # a file where a folder would be: root may write to any folder
    nowhere = str(tmp_path / "langneurons" / "errors.py" / "cache")
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "IPYTHONDIR")}
    environment |= dict.fromkeys(("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME"), nowhere)
    environment |= {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", CHECKED.format(place=str(tmp_path))]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == ["150"]


def test_importing_compiles_nothing():
    command = "import sys, langneurons.recording.accumulation as a; print(a._compiled.cache_info().currsize)"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["0"]


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.Cache.save_overload", full)
    accumulation._compiled.cache_clear()
    values, totals = np.full((3, 2), -2.0, np.float32), np.zeros(2, np.int64)
    try:
        for _ in range(2):
            assert accumulation._run(_sum_magnitudes, values, np.zeros(3, np.int64), np.ones(2, np.float32), totals)
    finally:
        accumulation._compiled.cache_clear()
    assert totals.tolist() == [12, 12]
