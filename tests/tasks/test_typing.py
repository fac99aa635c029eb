"""A user's type checker takes every task for a ``Task``."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USER = """
import langneurons as ln

def score(task: ln.tasks.Task) -> str:
    return task.name

def score_all(xnli: ln.XNLI, xquad: ln.XQuAD, prompts: ln.tasks.Generation) -> list[str]:
    kinds: list[type[ln.tasks.Task]] = [ln.XNLI, ln.XQuAD, ln.tasks.Generation]
    return [score(xnli), score(xquad), score(prompts), str(kinds)]
"""
WRONG = "score(ln.Training())"


@pytest.mark.slow
@pytest.mark.parametrize(("text", "errors"), [(USER, 0), (f"{USER}\n{WRONG}\n", 1)])
def test_a_type_checker_takes_tasks_for_tasks_and_nothing_else(tmp_path, text, errors):
    pytest.importorskip("pyright")
    (tmp_path / "user.py").write_text(text)
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(tmp_path / "user.py")]
    checked = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert checked.returncode == errors, checked.stdout + checked.stderr
    assert f"{errors} error" in checked.stdout
