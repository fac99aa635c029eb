"""Numbers that are given by themselves, of every kind that is none: refused in a sentence, or taken for what they are.

Run as a program, because tests check types at every call and users do not.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import torch

import langneurons as ln
from langneurons.errors import LangNeuronsError
from tests.robustness.artefacts import DOCUMENTS, model
from tests.training.small import pairs, questions

# Whether each is a whole number of at least 1, and whether it is a finite number.
NUMBERS: dict[str, tuple[Any, bool, bool]] = {
    "2": (2, True, True),
    "numpy's 2": (np.int64(2), True, True),
    "torch's 2": (torch.tensor(2), True, True),
    "2.0": (2.0, True, True),
    "1.5": (1.5, False, True),
    "numpy's 1.5": (np.float32(1.5), False, True),
    "Decimal": (Decimal("1.5"), False, True),
    "-1": (-1, False, True),
    "true": (True, False, False),
    "numpy's true": (np.True_, False, False),
    "a text": ("2", False, False),
    "NaN": (float("nan"), False, False),
    "NA": (pd.NA, False, False),
    "several": (np.array([1, 2]), False, False),
    "several of torch": (torch.tensor([1, 2]), False, False),
}


def calls() -> dict[str, tuple[bool, Callable[[Any], Any]]]:
    """Functions of one number by name, and whether it must be whole and positive."""
    tiny, corpus, xnli, xquad = model(), ln.load_corpus(DOCUMENTS), pairs(9), questions(4)
    stats = ln.record(tiny, corpus, context_length=16, progress=False)
    neurons = ln.NeuronSet.of({"en": [(0, 1), (1, 3)], "hi": [(0, 3)]}, (2, 48), "act")
    text, scores = ln.HeldoutText.of(tiny, corpus, context_length=16), ln.LAPE(top=0.1).scores(stats)
    features = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    head = ln.tasks.ClassificationHead.of_features
    whole = {
        "take": corpus.take,
        "first_texts": corpus.first_texts,
        "shuffle": corpus.shuffle,
        "text": lambda number: corpus.text("en", number),
        "purity": corpus.purity,
        "xnli take": xnli.take,
        "xnli seed": lambda number: xnli.take(3, number),
        "xquad take": xquad.take,
        "xquad batch": lambda number: xquad.measure(tiny, "en", number),
        "score batch": lambda number: text.score(tiny, batch_size=number, progress=False),
        "held-out tokens": lambda number: ln.HeldoutText.of(tiny, corpus, number, 16),
        "folds": stats.folds,
        "histogram": lambda number: stats.histogram("en", (0, number)),
        "draw": lambda number: neurons.matched_control(None, number),
        "shape": lambda number: ln.NeuronSet.of({"hi": [(0, 1)]}, (2, number), "act"),
        "rank": lambda number: ln.MaskedLoRA(neurons["en"], rank=number),
        "prompts": lambda number: ln.tasks.Generation.of(corpus, documents=3, prompt_tokens=number),
        "clearest": lambda number: neurons.clearest(stats, number),
        "draws": lambda number: ln.Controls(draws=number),
    }
    finite = {
        "threshold": stats.probability,
        "strength": lambda number: ln.DiffMean(neurons["hi"], stats, "hi", strength=number).values,
        "alpha": lambda number: ln.MaskedLoRA(neurons["en"], rank=1, alpha=number),
        "dose": lambda number: ln.evaluation.Dose("set", number),
        "quantile": lambda number: stats.quantile(abs(number) / 2 if isinstance(number, float) else number),
        "level": lambda number: scores.interval(number / 2 if isinstance(number, float) else number),
        "split": lambda number: corpus.split(number / 2 if isinstance(number, float) else number),
        "penalty": lambda number: head(features, [*"abababab"], penalty=number),
        "margin": lambda number: ln.Testing(margin=number),
    }
    return {name: (True, call) for name, call in whole.items()} | {name: (False, call) for name, call in finite.items()}


def failures() -> Iterator[str]:
    """What a call raised but an error of ours, or took though it was no number of its kind."""
    for name, (must_be_whole, call) in calls().items():
        for kind, (number, is_whole, is_finite) in NUMBERS.items():
            try:
                call(number)
            except LangNeuronsError as error:
                if len(str(error)) > 400:
                    yield f"{name}({kind}) says too much: {error}"
            except Exception as error:
                yield f"{name}({kind}) raises {type(error).__name__}: {error}"
            else:
                if not (is_whole if must_be_whole else is_finite):
                    yield f"{name}({kind}) is taken"


if __name__ == "__main__":
    assert inspect.unwrap(ln.load_corpus) is ln.load_corpus, "types are checked"
    warnings.simplefilter("ignore")
    print(*failures(), sep="\n")
