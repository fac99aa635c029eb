import pytest

from langneurons.study.config import as_toml
from tests.study.small import small
from tests.test_cli import alone, run


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
    assert (status, "at 1.6e+14 operations per second" in printed) == (0, True)
    status, printed, _ = run(capsys, monkeypatch, "study", str(out), "--compare", str(out))
    assert printed.count("same") == 4
    page = tmp_path / "page.html"
    status, printed, _ = run(capsys, monkeypatch, "report", str(out), "--out", str(page), "--question", "Whose?")
    assert (status, f"Report: {page} (open it in a browser)" in printed) == (0, True)
    assert "Whose?</h1>" in page.read_text("utf-8")
    assert "Which neurons belong to which language" in page.read_text("utf-8")


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


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (None, "No such file"),
        (("context_length", "contextlength"), "did you mean 'context_length'?"),
        (("margin = 0.01", "margin = -1"), "testing: margin must be above 0 and finite, given -1."),
        (
            ('write = "mean"', 'write = "meen"'),
            "A value is a number, mean, or a percentile from p0 to p100, not 'meen'.",
        ),
        (('source = "babel"', ""), "text.source is missing"),
        (
            ("[patches.zero]", "[patches.zero.also]\nfr = 0\n[patches.zero]"),
            "Unknown language in patches.zero.also 'fr'",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_before_anything_heavy_is_imported(file, tmp_path, changes, sentence):
    bad = tmp_path / "bad.toml"
    if changes is not None:
        text = file.read_text("utf-8")
        assert changes[0] in text
        bad.write_text(text.replace(*changes), "utf-8")
    said, status, heavy, _ = alone("study", str(bad))
    assert sentence in said
    assert (status, heavy) == (2, [])


def test_every_default_is_shown(file, monkeypatch, capsys):
    status, printed, _ = run(capsys, monkeypatch, "study", str(file), "--show")
    assert status == 0
    assert "margin = 0.01" in printed
    assert "# batch_size is not set" in printed
