import pytest
import torch

import langneurons as ln
from langneurons.models import view
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
    (folder / "text").mkdir()
    for language in ("en", "hi"):
        for split, first in (("train", 0), ("heldout", 40)):
            words = [[f"w{4 + (7 * line + place) % 97}" for place in range(6)] for line in range(first, first + 40)]
            lines = map(" ".join, words)
            (folder / "text" / f"{language}.{split}.txt").write_text("\n".join(lines), "utf-8")
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
    assert "seeds cannot give a p-value" in said
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


def on_text(files, command, *more):
    common = [
        "--neurons",
        str(files / "neurons.json"),
        "--kind",
        "text",
        "--test-split",
        "heldout",
        "--test-items",
        "4",
    ]
    return [command, str(files / "model"), str(files / "text"), *common, "--steps", "2", "--batch-size", "1", *more]


def test_neurons_are_trained_on_text_and_its_loss_is_printed(capsys, monkeypatch, files, tmp_path):
    command = on_text(files, "finetune", "--language", "hi", "--attention", "", "--out", str(tmp_path))
    status, said, error = run(capsys, monkeypatch, *command)
    assert status == 0, error
    assert [line.split()[0] for line in said.splitlines()[-3:]] == ["language", "en", "hi"]
    tuned = Finetuned.load(tmp_path / "finetuned")
    assert len(tuned.update.neurons) == 4
    assert tuned.head is None


def test_conditions_are_compared_on_text(capsys, monkeypatch, files, tmp_path):
    options = ["--targets", "hi", "--conditions", "none,source", "--seeds", "2", "--form", "rows", "--attention", ""]
    status, said, error = run(
        capsys, monkeypatch, *on_text(files, "transfer-experiment", *options, "--out", str(tmp_path))
    )
    assert status == 0, error
    assert "bits per byte" in said
    assert Transfer.load(tmp_path / "transfer").settings["task"] == "text"


def test_text_that_is_trained_on_is_not_tested_on(capsys, monkeypatch, files, tmp_path):
    options = ["--targets", "hi", "--conditions", "none,source", "--test-split", "train", "--out", str(tmp_path)]
    status, _, error = run(capsys, monkeypatch, *on_text(files, "transfer-experiment", *options, "--test-items", "40"))
    assert status == 2
    assert "hold some out" in error


def test_bake_writes_what_was_trained_and_what_is_patched(capsys, monkeypatch, files, tmp_path):
    run(capsys, monkeypatch, *asked(files, "finetune", "--language", "hi", "--out", str(tmp_path)))
    model, adapter, neurons = str(files / "model"), str(tmp_path / "finetuned"), str(files / "neurons.json")
    command = ["bake", model, "--update", adapter, "--neurons", neurons, "--language", "hi", "--patch", "scale:2"]
    status, said, error = run(capsys, monkeypatch, *command, "--patch", "0", "--out", str(tmp_path / "baked"))
    assert status == 0, error
    assert said == f"Baked(model: 2 patches, 1 update) in {tmp_path / 'baked'}\n"
    loaded, baked = ln.load_model(model), ln.load_model(tmp_path / "baked")
    tokens = torch.arange(4, 30)[None]
    with Finetuned.load(adapter).attach(loaded), torch.no_grad():
        trained = view(loaded).forward(tokens)
        with ln.intervene(loaded, ln.SetTo(ln.NeuronSet.load(neurons)["hi"], 0.0)):
            expected = view(loaded).forward(tokens)
    assert not torch.allclose(trained, expected, atol=1e-3)
    torch.testing.assert_close(view(baked).forward(tokens), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], "Give --neurons, or --update alone"),
        (["--language", "hi"], "Give --neurons, or --update alone"),
        (["--neurons", "neurons.json", "--patch", "mean"], "'mean' is a value of one language: give --language"),
        (["--neurons", "neurons.json", "--patch", "1"], "(MistralForCausalLM) can have none there"),
        (["--neurons", "neurons.json", "--out", "model"], "exists already"),
        (["--update", "xnli"], "holds no update"),
    ],
)
def test_what_cannot_be_baked_is_a_sentence(capsys, monkeypatch, files, more, sentence):
    monkeypatch.chdir(files)
    status, _, said = run(capsys, monkeypatch, "bake", "model", "--out", "baked", *more)
    assert status == 2
    assert sentence in said
    assert not (files / "baked").exists()


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
