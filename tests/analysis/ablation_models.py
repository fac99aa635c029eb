"""Tiny models, texts and tasks that neurons are ablated on."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

import langneurons as ln
from langneurons.models import load_model, view
from langneurons.tasks.batching import scoring
from langneurons.tasks.task import Task
from tests.tiny_models import tiny_model, tiny_tokenizer

PAIRS = [("llama", "hooked"), ("llama", "bridge"), ("gpt2", "hooked"), ("opt", "bridge"), ("gemma2", "bridge")]
UNITS = {"head": [(0, 0), (0, 3), (1, 2)], "resid_post": [(0, 1), (0, 30), (1, 7)]}
MLP_UNITS = [(0, 1), (0, 5), (0, 6), (0, 47), (1, 0), (1, 20)]
QUICK: dict[str, Any] = {"resamples": 100, "progress": False}


@functools.cache
def tiny(architecture: str, backend: str) -> Any:
    return load_model(architecture, hf_model=tiny_model(architecture), tokenizer=tiny_tokenizer(), backend=backend)


def neurons_at(model, site="act", languages=("hi",), units=None) -> ln.NeuronSet:
    seen = view(model)
    chosen = UNITS.get(site, MLP_UNITS) if units is None else units
    shape = (seen.n_layers, seen.width(site))
    return ln.NeuronSet.of(dict.fromkeys(languages, chosen), shape, site, seen.fingerprint)


@functools.cache
def texts() -> ln.Corpus:
    random = np.random.default_rng(0)
    return ln.load_corpus(
        {
            language: [
                " ".join(f"w{word}" for word in random.integers(4, 101, size)) for size in (9, 20, 15, 8, 22, 12)
            ]
            for language in ("en", "hi")
        }
    )


@dataclass(frozen=True)
class NextWord(Task):
    """Is w7 likelier than w8 after some words? The score is right or wrong, the label's likelihood moves smoothly."""

    generates: bool = False
    name: str = "next word"
    protocol: str = "likelihood"
    metrics: tuple[str, ...] = ("accuracy",)
    fingerprint: str = "next word 1"

    @property
    def languages(self) -> tuple[str, ...]:
        return ("en", "hi")

    def measure(self, model, language, batch_size=8) -> pd.DataFrame:
        tokens = torch.randint(4, 101, (12, 16), generator=torch.Generator().manual_seed(len(language)))
        with scoring(model) as seen:
            logits = torch.cat([seen.logits_at(part, [11])[:, 0, 7:9] for part in tokens.split(batch_size)])
        log_p = logits.log_softmax(1).numpy()
        rows = {"item": range(12), "cluster": [item // 2 for item in range(12)], "gold": ["seven"] * 12}
        accuracy = (log_p[:, 0] > log_p[:, 1]).astype(float)
        return pd.DataFrame(
            {**rows, "prediction": "", "accuracy": accuracy, "score_seven": log_p[:, 0], "score_eight": log_p[:, 1]}
        )

    def references(self, language) -> dict[str, float]:
        return {"chance": 0.5}
