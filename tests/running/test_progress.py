"""Bars at a terminal, lines elsewhere."""

import io
import sys

import pytest

from langneurons.run import Progress, say
from langneurons.run import progress as progress_module


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _pass_minutes(monkeypatch: pytest.MonkeyPatch, minutes_per_look: float) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(progress_module, "monotonic", lambda: 60.0 * minutes_per_look * next(clock))


def test_a_log_gets_nothing_from_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Progress(range(5), unit="batch")) == list(range(5))
    assert capsys.readouterr().err == ""


def test_a_log_gets_whole_lines_from_long_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _pass_minutes(monkeypatch, 1)
    bar = Progress(total=4, unit="step")
    for _ in range(4):
        bar.update()
        bar.refresh()
    bar.close()
    log = capsys.readouterr().err
    assert log.endswith("\n")
    assert "\r" not in log
    lines = log.splitlines()
    assert lines[-1].startswith("4 of 4 steps after 00:00, ")
    assert "" not in lines


def test_a_log_gets_its_first_line_within_seconds_and_later_ones_each_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _pass_minutes(monkeypatch, 3 / 60)
    with Progress(total=40, unit="step") as bar:
        for _ in range(40):
            bar.update()
            bar.refresh()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("2 of 40 steps after ")
    assert " left" in lines[0]
    assert 2 <= len(lines) <= 3


def test_a_log_names_several_units_in_the_plural(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _pass_minutes(monkeypatch, 2)
    for total, unit in ((2, "batch"), (2, "text"), (1, "batch")):
        with Progress(total=total, unit=unit) as bar:
            bar.update()
            bar.refresh()
    lines = capsys.readouterr().err.splitlines()
    assert [" ".join(line.split()[:4]) for line in lines] == ["1 of 2 batches", "1 of 2 texts", "1 of 1 batch"]


def test_a_log_gets_no_line_before_anything_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _pass_minutes(monkeypatch, 2)
    with Progress(total=4, unit="step", initial=1) as bar:
        bar.refresh()
        assert capsys.readouterr().err == ""
        bar.update()
        bar.refresh()
    assert capsys.readouterr().err.startswith("2 of 4 steps")


def test_work_within_other_work_writes_its_first_line_only_after_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _pass_minutes(monkeypatch, 10 / 60)
    with Progress(total=2, unit="condition"), Progress(total=40, unit="batch") as inner:
        for _ in range(4):
            inner.update()
            inner.refresh()
        assert capsys.readouterr().err == ""
        for _ in range(8):
            inner.update()
            inner.refresh()
    assert "of 40 batches after" in capsys.readouterr().err


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
