"""Numbers that are given by themselves are checked as those of settings are."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from langneurons.errors import LanguageError, TaskError
from langneurons.settings import finite_number, whole_number


def test_no_function_takes_or_raises_anything_but_a_sentence_for_what_is_no_number():
    program = [sys.executable, "-m", "tests.robustness.single_numbers"]
    ended = subprocess.run(program, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stderr
    assert not ended.stdout.strip(), ended.stdout


@pytest.mark.parametrize("value", [2, 2.0, np.int64(2), np.float64(2)])
def test_a_whole_number_is_one_whatever_writes_it(value):
    assert whole_number(value, "count", TaskError, least=2) == 2
    assert finite_number(value, "count", TaskError) == 2


@pytest.mark.parametrize("value", [1.5, True, np.False_, "2", None, [2], float("inf"), 1, np.float32(2), "9" * 10_000])
def test_what_is_no_whole_number_is_named_with_what_is_possible(value):
    with pytest.raises(LanguageError, match="count must be a whole number of at least 2, given ") as error:
        whole_number(value, "count", LanguageError, least=2)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("value", [float("nan"), -float("inf"), True, "2", b"2", None, [2], 10**400])
def test_what_is_no_finite_number_is_named(value):
    with pytest.raises(LanguageError, match="share must be a finite number, given ") as error:
        finite_number(value, "share", LanguageError)
    assert len(str(error.value)) < 300
