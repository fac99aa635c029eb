"""Bars at a terminal, lines elsewhere."""

import io
import sys
from collections.abc import Callable

import pytest

from langneurons.run import Progress, say
from langneurons.run import progress as progress_module


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[Progress, float], None]:
    """Do a piece of work that takes some seconds."""
    seconds = [0.0]
    monkeypatch.setattr(progress_module, "monotonic", lambda: seconds[0])

    def piece(bar: Progress, duration: float) -> None:
        seconds[0] += duration
        bar.update()
        bar.refresh()

    return piece


def test_a_log_gets_nothing_from_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Progress(range(5), unit="batch")) == list(range(5))
    assert capsys.readouterr().err == ""


def test_a_log_gets_whole_lines_from_long_work(
    capsys: pytest.CaptureFixture[str], work: Callable[[Progress, float], None]
) -> None:
    bar = Progress(total=4, unit="step")
    for _ in range(4):
        work(bar, 120)
    bar.close()
    log = capsys.readouterr().err
    assert log.endswith("\n")
    assert "\r" not in log
    lines = log.splitlines()
    assert [line.partition(" after")[0] for line in lines] == [f"{number} of 4 steps" for number in (1, 2, 3, 4)]


def test_a_log_gets_its_first_line_within_seconds_and_later_ones_each_minute(
    capsys: pytest.CaptureFixture[str], work: Callable[[Progress, float], None]
) -> None:
    with Progress(total=40, unit="step") as bar:
        for _ in range(40):
            work(bar, 3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("2 of 40 steps after ")
    assert " left" in lines[0]
    assert len(lines) == 2


def test_the_first_piece_which_takes_longer_does_not_count_for_the_time_that_is_left(
    capsys: pytest.CaptureFixture[str], work: Callable[[Progress, float], None]
) -> None:
    with Progress(total=11, unit="batch") as bar:
        work(bar, 40)
        assert capsys.readouterr().err == ""
        work(bar, 2)
    assert capsys.readouterr().err == "2 of 11 batches after 00:00, 00:18 left\n"


def test_a_log_names_several_units_in_the_plural(
    capsys: pytest.CaptureFixture[str], work: Callable[[Progress, float], None]
) -> None:
    for total, unit in ((2, "batch"), (2, "text"), (1, "batch")):
        with Progress(total=total, unit=unit) as bar:
            work(bar, 120)
    lines = capsys.readouterr().err.splitlines()
    assert [" ".join(line.split()[:4]) for line in lines] == ["1 of 2 batches", "1 of 2 texts", "1 of 1 batch"]


def test_a_log_gets_no_line_before_anything_is_done(
    capsys: pytest.CaptureFixture[str], work: Callable[[Progress, float], None]
) -> None:
    with Progress(total=4, unit="step", initial=1) as bar:
        bar.refresh()
        assert capsys.readouterr().err == ""
        work(bar, 120)
    assert capsys.readouterr().err.startswith("2 of 4 steps")


def test_work_within_other_work_writes_its_first_line_only_after_a_minute(
    capsys: pytest.CaptureFixture[str], work: Callable[[Progress, float], None]
) -> None:
    with Progress(total=2, unit="condition"), Progress(total=40, unit="batch") as inner:
        for _ in range(5):
            work(inner, 10)
        assert capsys.readouterr().err == ""
        work(inner, 10)
    assert capsys.readouterr().err.startswith("6 of 40 batches after")


def test_what_is_said_stands_on_its_own_line_of_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=2) as bar:
        say("Half is done.")
        bar.update()
    assert capsys.readouterr().err == "Half is done.\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    list(Progress(range(3), unit="batch"))
    assert "3/3" in terminal.getvalue()


def test_nothing_is_shown_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    list(Progress(range(3), shown=False))
    assert terminal.getvalue() == ""
