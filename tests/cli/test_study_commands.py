import pytest

from langneurons.study.config import as_toml
from tests.study.small import small
from tests.test_cli import run


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "small.toml"
    path.write_text(as_toml(small(matrix=None)), "utf-8")
    return path


def test_a_study_runs_and_says_where_its_report_is(file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    status, printed, _ = run(capsys, monkeypatch, "study", str(file), "--out", str(out))
    assert status == 0
    assert "[1/4] record/babel" in printed
    assert "report.html (open it in a browser)" in printed
    status, printed, _ = run(capsys, monkeypatch, "study", str(file), "--out", str(out))
    assert printed.count("done before") == 4
    for option, said in (
        ("--status", "done"),
        ("--check", "is as it was written"),
        ("--dry-run", "0 of 4 steps to run"),
    ):
        status, printed, _ = run(capsys, monkeypatch, "study", str(out), option)
        assert (status, said in printed) == (0, True), printed
    status, printed, _ = run(capsys, monkeypatch, "study", str(file), "--dry-run", "--speed", "160e12")
    assert (status, "at 1.6e+14 operations a second" in printed) == (0, True)
    status, printed, _ = run(capsys, monkeypatch, "study", str(out), "--compare", str(out))
    assert printed.count("same") == 4


def test_what_is_wrong_is_said_in_a_line(file, tmp_path, monkeypatch, capsys):
    bad = tmp_path / "bad.toml"
    bad.write_text(file.read_text("utf-8").replace("context_length", "contextlength"), "utf-8")
    status, _, said = run(capsys, monkeypatch, "study", str(bad))
    assert status == 2
    assert "did you mean 'context_length'?" in said
    bad.write_text(
        file.read_text("utf-8").replace("tokens_per_language = 300", "tokens_per_language = 30000000"), "utf-8"
    )
    status, printed, said = run(capsys, monkeypatch, "study", str(bad), "--out", str(tmp_path / "run"))
    assert status == 2
    assert "FAILED" in printed
    assert "4 of 4 steps are not done: record/babel failed CorpusError" in said.splitlines()[-1]


def test_every_default_is_shown(file, monkeypatch, capsys):
    status, printed, _ = run(capsys, monkeypatch, "study", str(file), "--show")
    assert status == 0
    assert "margin = 0.01" in printed
    assert "# batch_size is not set" in printed
