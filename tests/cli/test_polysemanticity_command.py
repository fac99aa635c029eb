import numpy as np
import pandas as pd
import pytest

import langneurons as ln
from langneurons import storage
from langneurons.analysis.polysemanticity import Polysemanticity
from tests.test_cli import run
from tests.tiny_models import save_tiny

FEW = ("--controls", "2", "--permutations", "100", "--probe-sizes", "1")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny model, neurons of two languages, and labelled texts in both."""
    folder = tmp_path_factory.mktemp("files")
    save_tiny(folder / "model", "mistral")
    ln.NeuronSet.of({"en": [(0, 1), (1, 5)], "hi": [(0, 7)]}, (2, 48), "act").save(folder / "neurons.json")
    draw = np.random.default_rng(0)
    rows = [
        (language, item, item // 2, " ".join(f"w{word}" for word in draw.integers(4, 100, 6)), "ab"[item % 2])
        for language in ("en", "hi")
        for item in range(12)
    ]
    table = pd.DataFrame(rows, columns=["language", "item", "cluster", "text", "label"])
    storage.write_table(folder / "texts.parquet", table)
    return folder


def asked(files, tmp_path, *more):
    return ["polysemanticity", str(files / "model"), str(files / "neurons.json"), "--out", str(tmp_path), *FEW, *more]


def test_polysemanticity_prints_counts_neurons_and_probes_and_keeps_the_result(capsys, monkeypatch, files, tmp_path):
    command = asked(files, tmp_path, "--texts", str(files / "texts.parquet"), "--items", "10")
    status, said, error = run(capsys, monkeypatch, *command)
    assert status == 0, error
    assert "12 items in 6 clusters" not in said
    assert "10 items in 5 clusters" in said
    assert "Probes on items left out" in said
    kept = Polysemanticity.load(tmp_path / "polysemanticity")
    assert kept.languages == ("en", "hi")
    assert len(kept.rows) == 3


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ((), "exactly one of --task and --texts, not 0"),
        (("--xnli", "a", "--xquad", "b"), "not 2"),
        (("--texts", "{folder}/texts.parquet", "--position", "first"), "Unknown position 'first'"),
        (
            ("--texts", "{folder}/texts.parquet", "--probe-sizes", "1,x"),
            "probe_sizes must be whole numbers of at least 1",
        ),
        (("--texts", "{folder}/texts.parquet", "--languages", "en"), "at least two"),
        (("--texts", "{folder}/nothing.parquet"), "no such file"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence_and_status_two(capsys, monkeypatch, files, tmp_path, more, sentence):
    more = [part.format(folder=files) for part in more]
    status, _, error = run(capsys, monkeypatch, *asked(files, tmp_path, *more))
    assert status == 2
    assert sentence in error
