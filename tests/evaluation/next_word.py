"""A task of the planted model that is scored in a moment."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from langneurons.models import view
from langneurons.tasks.task import Task
from tests.planted.patching import setting


@dataclass(frozen=True)
class NextWord(Task):
    """Is the model's favourite next word what it was when nothing was patched?"""

    gold: dict
    name: str = "next word"
    protocol: str = "likelihood"
    metrics: tuple[str, ...] = ("same", "half")
    generates: bool = False
    counter: list = dataclasses.field(default_factory=list)

    @property
    def languages(self):
        return ("en", "hi", "ur", "zh")

    @property
    def fingerprint(self):
        return str({language: gold.tolist() for language, gold in self.gold.items()})

    @staticmethod
    def texts(language):
        return torch.tensor(
            [[1, *(4 + 60 * LANGUAGE[language] + (np.arange(3) * 7 + item) % 60)] for item in range(40)]
        )

    def measure(self, model, language, batch_size=8):
        self.counter.append(language)
        with torch.no_grad():
            found = view(model).forward(self.texts(language))[:, -1].argmax(-1)
        same = (found == self.gold[language]).double().numpy()
        rows = {"item": range(40), "cluster": [i // 2 for i in range(40)], "prediction": found.numpy().astype(str)}
        return pd.DataFrame({**rows, "gold": self.gold[language].numpy().astype(str), "same": same, "half": same / 2})

    def references(self, language):
        return {"chance": 1 / 244}


LANGUAGE = {"en": 0, "hi": 1, "ur": 2, "zh": 3}


def next_word(wrong=0):
    """A task on which the unpatched model misses the first ``wrong`` of 40 items."""
    model, *_ = setting()
    gold = {}
    for language in LANGUAGE:
        with torch.no_grad():
            gold[language] = view(model).forward(NextWord.texts(language))[:, -1].argmax(-1)
        gold[language][:wrong] += 1
    return NextWord(gold)
