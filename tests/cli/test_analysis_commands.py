import pytest

import langneurons as ln
from langneurons.analysis.ablation import Ablation
from langneurons.cli import measuring
from tests.analysis.ablation_models import texts
from tests.test_cli import run
from tests.tiny_models import save_tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny model, held-out text in two languages, and neurons of both."""
    folder = tmp_path_factory.mktemp("files")
    save_tiny(folder / "model", "mistral")
    (folder / "texts").mkdir()
    for language in ("en", "hi"):
        (folder / "texts" / f"{language}.heldout.txt").write_text("\n".join(texts()[language]), "utf-8")
    ln.NeuronSet.of({"en": [(0, 1)], "hi": [(0, 2), (1, 7)]}, (2, 48), "act").save(folder / "neurons.json")
    return folder


def asked(files, *more):
    return ["ablate", str(files / "model"), str(files / "texts"), "--context-length", "32", *more]


def test_effects_are_printed_beside_controls_and_kept(capsys, monkeypatch, files, tmp_path):
    more = ["--neurons", str(files / "neurons.json"), "--controls", "3", "--out", str(tmp_path)]
    latex = ["--latex", str(tmp_path / "table.tex")]
    status, said, error = run(capsys, monkeypatch, *asked(files, *more, *latex))
    assert status == 0, error
    assert "among controls" in said
    assert "each neuron alone set to 0" in said
    assert len(Ablation.load(tmp_path / "ablation").rows) == 6
    assert "tabular" in (tmp_path / "table.tex").read_text()


def test_a_model_is_screened_where_no_neurons_are_given(capsys, monkeypatch, files):
    monkeypatch.setattr(measuring, "SCREENED", 20)
    status, said, error = run(capsys, monkeypatch, *asked(files, "--top", "2", "--controls", "0", "--label", "hi"))
    assert status == 0, error
    assert "Agreement of the screen with exact ablation of 20 neurons" in said
    assert "NeuronSet of" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "Whose neurons"),
        (["--top", "2", "--xnli"], "Whose neurons"),
        (["--top", "2", "--kind", "xnli"], "Whose neurons"),
        (["--neurons", "neurons.json", "--value", "median"], "Possible: mean"),
        (["--neurons", "neurons.json", "--label", "fr"], "Possible: en, hi"),
    ],
)
def test_a_wrong_call_says_what_is_possible(capsys, monkeypatch, files, more, message):
    more = [str(files / one) if one.endswith(".json") else one for one in more]
    status, _, error = run(capsys, monkeypatch, *asked(files, *more))
    assert status == 2
    assert message in error
