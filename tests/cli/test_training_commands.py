import pytest

import langneurons as ln
from langneurons.training.finetuned import Finetuned
from langneurons.training.transfer_table import Transfer
from tests.test_cli import run
from tests.tiny_models import save_tiny
from tests.training.test_transfer import SHAPE, table


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny model, XNLI files of two splits, and neurons of two languages."""
    folder = tmp_path_factory.mktemp("files")
    save_tiny(folder / "model", "mistral")
    (folder / "xnli").mkdir()
    parts = {"dev-en": 0, "test-en": 1, "test-hi": 2}
    for name, seed in parts.items():
        rows = table(seed)
        lines = ["\t".join(row) for row in rows.itertuples(index=False, name=None)]
        (folder / "xnli" / f"{name}.tsv").write_text("\n".join(["\t".join(rows.columns), *lines]), "utf-8")
    units = {name: [(layer, 4 * place + layer) for layer in (0, 1) for place in range(2)] for name in ("en", "hi")}
    units["hi"] = [(layer, unit + 2) for layer, unit in units["hi"]]
    ln.NeuronSet.of(units, SHAPE, "act").save(folder / "neurons.json")
    return folder


def asked(files, command, *more):
    common = ["--neurons", str(files / "neurons.json"), "--train-split", "validation", "--rank", "2", "--steps", "2"]
    return [command, str(files / "model"), str(files / "xnli"), *common, "--batch-size", "4", *more]


def test_transfer_prints_scores_effects_and_a_verdict_and_keeps_them(capsys, monkeypatch, files, tmp_path):
    command = asked(
        files, "transfer-experiment", "--targets", "hi", "--conditions", "none,target", "--seeds", "2", "--patch", "0"
    )
    status, said, error = run(capsys, monkeypatch, *command, "--out", str(tmp_path))
    assert status == 0, error
    assert "Against training attention and head only" in said
    assert "seeds give no p-value" in said
    kept = Transfer.load(tmp_path / "transfer")
    assert kept.conditions == ["none", "target"]
    assert len(kept.patch_effects()) == 2


def test_finetune_prints_scores_in_both_languages_and_keeps_the_result(capsys, monkeypatch, files, tmp_path):
    command = asked(files, "finetune", "--language", "hi", "--out", str(tmp_path))
    status, said, error = run(capsys, monkeypatch, *command)
    assert status == 0, error
    assert "masked LoRA on gate, q, k, v, o" in said
    assert "chance" in said
    kept = Finetuned.load(tmp_path / "finetuned")
    assert len(kept.update.neurons) == 4


@pytest.mark.parametrize(
    ("command", "more", "sentence"),
    [
        ("transfer-experiment", ["--targets", "fr"], "'fr'"),
        ("transfer-experiment", ["--targets", "hi", "--conditions", "sorce"], "did you mean 'source'"),
        ("transfer-experiment", ["--targets", "hi", "--kind", "xnly"], "did you mean 'xnli'"),
        ("transfer-experiment", ["--targets", "hi", "--train-split", "test"], "among the training items"),
        ("finetune", ["--condition", "target"], "needs --neurons, and --language"),
        ("finetune", ["--language", "hi", "--rank", "0"], "rank must be"),
    ],
)
def test_what_the_user_can_mend_is_a_sentence(capsys, monkeypatch, files, tmp_path, command, more, sentence):
    status, _, said = run(capsys, monkeypatch, *asked(files, command, *more), "--out", str(tmp_path))
    assert status == 2
    assert sentence in said
    assert "Traceback" not in said
