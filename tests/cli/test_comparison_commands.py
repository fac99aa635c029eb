"""``langneurons compare-methods``, and ``record --also``, give what Python gives."""

import pytest

import langneurons as ln
from langneurons.analysis.comparison import Comparison
from tests.planted.model import planted_model
from tests.test_cli import run


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with the planted model and one with its texts."""
    truth, folder = planted_model(documents=24), tmp_path_factory.mktemp("given")
    truth.hf_model.save_pretrained(folder / "model")
    truth.tokenizer.save_pretrained(folder / "model")
    (folder / "texts").mkdir()
    for language in ("en", "hi"):
        (folder / "texts" / f"{language}.txt").write_text("\n".join(truth.documents[language]) + "\n", "utf-8")
    return folder


def test_compare_prints_and_keeps_every_method_asked_for(capsys, monkeypatch, places, tmp_path):
    methods = ["--method", "contrast:top=0.02", "--method", "sentence-ap:top=5,bottom=0"]
    given = [str(places / "model"), str(places / "texts"), "--out", str(tmp_path), "--context-length", "64"]
    status, said, told = run(capsys, monkeypatch, "compare-methods", *given, *methods)
    assert (status, "2 methods at act" in said) == (0, True), told
    found = Comparison.load(tmp_path / "comparison")
    assert list(found.rows["method"]) == ["contrast:top=0.02", "sentence-ap:top=5,bottom=0"]
    assert (found.rows["null_shuffled"] < 1).all()


def test_record_keeps_what_methods_need_and_identify_uses_it(capsys, monkeypatch, places, tmp_path):
    given = [str(places / "model"), str(places / "texts"), "--out", str(tmp_path / "run"), "--context-length", "64"]
    status, _, told = run(capsys, monkeypatch, "record", *given, "--also", "sentence", "--sentences", "9")
    assert status == 0, told
    stats = ln.ActivationStats.load(tmp_path / "run")
    assert stats.also == ("sentence",)
    assert len(stats.sentence_means("hi", 0)) == 9
    chosen = ["identify", str(tmp_path / "run"), "--method"]
    assert run(capsys, monkeypatch, *chosen, "sentence-ap", "--set", "top=4", "--set", "bottom=3")[0] == 0
    assert len(ln.NeuronSet.load(tmp_path / "run" / "neurons.sentence-ap.json")["hi"]) == 7
    status, _, told = run(capsys, monkeypatch, *chosen, "gradient-relevance")
    assert status == 2
    assert "also=('gradient',)" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "lap"], "did you mean 'lape'"),
        (["--method", "lape:tops=1"], "did you mean 'top'"),
        (["--value", "mean"], "--value: value must be a finite number, given 'mean'"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(capsys, monkeypatch, places, tmp_path, arguments, message):
    given = [str(places / "model"), str(places / "texts"), "--out", str(tmp_path)]
    status, _, told = run(capsys, monkeypatch, "compare-methods", *given, *arguments)
    assert status == 2
    assert message in told
