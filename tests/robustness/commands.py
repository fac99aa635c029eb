"""Every command on a tiny model, run in this process."""

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

import langneurons as ln
from langneurons.cli import main
from tests.robustness.artefacts import DOCUMENTS, _make_xquad
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.training.small import pairs

STUDY = """
name = "tiny"
models.tiny.name = "{model}"
sets.two = ["en", "hi"]
methods.lape = {{method = "lape", top = 0.1, filter_quantile = 0.5}}
patches.zero.write = 0
text = {{source = "{texts}", heldout = 0.3, heldout_tokens = 40, heldout_context = 16}}
recording.context_length = 16
matrix.controls = 0
"""


@dataclass(frozen=True)
class Ran:
    """What a command ended with and said."""

    status: int
    said: str


def ran(arguments: Sequence[object]) -> Ran:
    """Run a command as the shell would."""
    said, before = io.StringIO(), sys.argv
    sys.argv = ["langneurons", *map(str, arguments)]
    try:
        with (
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
            pytest.raises(SystemExit) as end,
        ):
            main()
    finally:
        sys.argv = before
    return Ran(int(end.value.code or 0), said.getvalue())


def prepared(folder: Path) -> Path:
    """Make what commands start from: a model, texts, items, statistics and neurons."""
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for language, documents in DOCUMENTS.items():
        for split in ("train", "heldout"):
            file = folder / "texts" / f"{language}.{split}.txt"
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n".join(documents))
    for split in ("train", "test"):
        for language, table in pairs(9, seed=len(split)).items.items():
            file = folder / "items" / f"{split}-{language}.parquet"
            file.parent.mkdir(exist_ok=True)
            table[["premise", "hypothesis", "label"]].to_parquet(file)
    (folder / "questions").mkdir()
    _make_xquad(folder / "questions", "json")
    labelled = pd.DataFrame([{"item": i, "cluster": i, "text": f"w{i} w5", "label": "ab"[i % 2]} for i in range(12)])
    pd.concat([labelled.assign(language=one) for one in DOCUMENTS]).to_parquet(folder / "labelled.parquet")
    model = ln.load_model(folder / "model")
    stats = ln.record(model, ln.load_corpus(folder / "texts"), context_length=16, progress=False)
    stats.save(folder / "statistics")
    ln.LAPE(top=0.1, filter_quantile=0.5).identify(stats).save(folder / "neurons.json")
    (folder / "study.toml").write_text(STUDY.format(model=folder / "model", texts=folder / "texts"))
    return folder


def commands(at: Path, out: Path) -> dict[str, list[object]]:
    """Every command that writes, by name, with its arguments; ``at`` is a prepared folder."""
    model, texts, neurons, items = at / "model", at / "texts", at / "neurons.json", at / "items"
    at_neurons, small = ["--neurons", neurons, "--out", out], ["--context-length", 16]
    training = ["--train-split", "train", "--steps", 1, "--attention", "", "--neurons", neurons, "--batch-size", 3]
    without, to_hindi = ["--out", out, "--controls", 0], ["--out", out, "--targets", "hi", "--seeds", 1]
    return {
        "record": ["record", model, texts, "--out", out, *small],
        "identify": ["identify", at / "statistics", "--out", out / "n.json", "--set", "filter_quantile=0.5"],
        "perplexity-matrix": ["perplexity-matrix", model, texts, *at_neurons, "--controls", 1, *small],
        "evaluate": ["evaluate", model, "--task", f"xquad={at / 'questions'}", *at_neurons, "--max-new-tokens", 4],
        "ablate": ["ablate", model, texts, *at_neurons, "--controls", 0, "--tokens-per-language", 30, *small],
        "polysemanticity": ["polysemanticity", model, neurons, "--texts", at / "labelled.parquet", *without],
        "finetune": ["finetune", model, items, "--out", out, *training],
        "transfer-experiment": ["transfer-experiment", model, items, *to_hindi, *training],
        "profile": ["profile", model, texts, *at_neurons, "--context-length", 16],
        "report": ["report", at / "statistics", "--out", out / "report.html"],
        "study": ["study", at / "study.toml", "--out", out],
    }
