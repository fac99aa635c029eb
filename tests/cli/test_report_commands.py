import pytest

import langneurons as ln
from tests.test_cli import run
from tests.tiny_models import save_tiny
from tests.views.report import made_up


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder with results of several kinds."""
    folder, given = tmp_path_factory.mktemp("run"), made_up.findings()
    given.stats.save(folder)
    given.neurons["made <up>"].save(folder / "neurons.lape.json")
    given.matrix.save(folder / "matrix")
    given.ablation.save(folder / "ablation")
    given.profiles.save(folder / "profiles")
    return folder


def test_a_report_holds_what_the_folder_holds(capsys, monkeypatch, folder, tmp_path):
    out = tmp_path / "my.html"
    status, said, error = run(capsys, monkeypatch, "report", str(folder), "--out", str(out), "--question", "Why?")
    assert status == 0, error
    assert "Report: " in said
    html = out.read_text("utf-8")
    for part in ('<h1 dir="auto">Why?', "lape names 12 of 120", "matrix", "ablations", 'id="L0N0"'):
        assert part in html


def test_several_results_of_a_kind_are_told_apart_by_their_folders(capsys, monkeypatch, folder, tmp_path):
    matrix = made_up.findings().matrix
    for name in ("zero", "mean"):
        matrix.save(tmp_path / name / "matrix")
    status, said, _ = run(capsys, monkeypatch, "report", str(tmp_path))
    html = (tmp_path / "report.html").read_text("utf-8")
    assert status == 0
    assert "left out" not in said
    assert "zero/matrix" in html
    assert "mean/matrix" in html


def test_of_two_statistics_the_upper_ones_are_taken_and_the_others_named(capsys, monkeypatch, folder, tmp_path):
    made_up.statistics().save(tmp_path / "a")
    made_up.statistics().save(tmp_path / "a" / "b")
    status, said, _ = run(capsys, monkeypatch, "report", str(tmp_path))
    assert status == 0
    assert "is left out" in said
    assert (tmp_path / "report.html").exists()


def test_a_folder_without_results_is_one_sentence(capsys, monkeypatch, tmp_path):
    (tmp_path / "other.json").write_text("[1, 2]")
    for given, sentence in ((tmp_path, "holds no result"), (tmp_path / "nowhere", "no such folder")):
        status, _, said = run(capsys, monkeypatch, "report", str(given))
        assert status == 2
        assert sentence in said


def test_profiles_are_written_where_report_finds_them(capsys, monkeypatch, tmp_path):
    save_tiny(tmp_path / "model", "mistral")
    (tmp_path / "texts").mkdir()
    for language in ("en", "hi"):
        (tmp_path / "texts" / f"{language}.txt").write_text("w5 w6 w7 w8\nw9 w10 w11\n", "utf-8")
    ln.NeuronSet.of({"en": [(0, 1)], "hi": [(1, 7)]}, (2, 48), "act").save(tmp_path / "neurons.json")
    command = ["profile", str(tmp_path / "model"), str(tmp_path / "texts"), "--neurons", str(tmp_path / "neurons.json")]
    status, said, error = run(capsys, monkeypatch, *command, "--out", str(tmp_path / "run"), "--texts", "1")
    assert status == 0, error
    assert "Next: langneurons report" in said
    assert len(ln.analysis.Profiles.load(tmp_path / "run" / "profiles")) == 2
    status, _, said = run(capsys, monkeypatch, *command, "--out", str(tmp_path / "run"), "--most", "1")
    assert status == 2
    assert "give --statistics or --most" in said
    assert run(capsys, monkeypatch, "report", str(tmp_path / "run"))[0] == 0
