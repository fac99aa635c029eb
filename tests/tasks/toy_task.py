"""A task of one's own in one file: is the right word likelier than the wrong one after a beginning?

It uses nothing but what is public: ``ln.tasks.Task``, ``ln.tasks.Answering`` and the view of a model. Added to
``ln.tasks.KINDS``, it is a kind of task like any other.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.errors import LanguageError, TaskError
from langneurons.models import ModelView, view

DEFAULTS = ln.Training()
COLUMNS = ["item", "cluster", "beginning", "right", "wrong"]
UNITS = {"en": [(0, 1), (0, 2), (3, 5)], "hi": [(0, 7), (2, 9), (3, 11)]}  # neurons of babel to ask it about


@dataclass(frozen=True)
class Cloze(ln.tasks.Task):
    """Beginnings of texts, each with a right and a wrong next word.

    Args:
        items: Language -> table of item, cluster, beginning, right and wrong.
    """

    items: Mapping[str, pd.DataFrame]
    name: str = "cloze"
    protocol: str = "likelihood"
    metrics: tuple[str, ...] = ("accuracy",)
    generates: bool = False

    @classmethod
    def load(cls, source: str | Path, languages: Iterable[str] | None = None, split: str = "test") -> "Cloze":
        """Read ``<split>-<language>.csv`` of a folder."""
        files = {path.stem.removeprefix(f"{split}-"): path for path in sorted(Path(source).glob(f"{split}-*.csv"))}
        items = {language: pd.read_csv(path, keep_default_na=False) for language, path in files.items()}
        task = cls(items)
        return task if languages is None else task.select(languages)

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.items)

    @property
    def fingerprint(self) -> str:
        return repr([(language, table[COLUMNS].to_dict("list")) for language, table in self.items.items()])

    def measure(self, model: torch.nn.Module, language: str, batch_size: int = 8) -> pd.DataFrame:
        model_view, table = view(model), self.items[language]
        columns = (table["beginning"], table["right"], table["wrong"])
        predictions = [
            max(words, key=lambda word: _log_p(model_view, beginning, word))  # noqa: B023 (called at once)
            for beginning, *words in zip(*columns, strict=True)
        ]
        right = [float(word == gold) for word, gold in zip(predictions, table["right"], strict=True)]
        return table[["item", "cluster"]].assign(prediction=predictions, gold=table["right"], accuracy=right)

    def references(self, language: str) -> dict[str, float]:
        return {"chance": 0.5}

    def objective(self, model_view, languages=None, training=DEFAULTS, head=None) -> ln.tasks.Answering:
        names = self.languages if languages is None else tuple(languages)
        rows = pd.concat([self.select(names).items[name] for name in names])
        examples = [
            (_tokens(model_view, beginning, front=True), _tokens(model_view, f" {word}"))
            for beginning, word in zip(rows["beginning"], rows["right"], strict=True)
        ]
        return ln.tasks.Answering(examples, training, protocol=self.protocol)

    def take(self, count: int, seed: int = 0) -> "Cloze":
        if count < 1:
            raise TaskError(f"Cannot take {count} items: the least is 1.")
        rows = np.sort(np.random.default_rng(seed).permutation(len(next(iter(self.items.values()))))[:count])
        items = {language: table.iloc[rows].reset_index(drop=True) for language, table in self.items.items()}
        return replace(self, items=items)

    def select(self, languages: Iterable[str]) -> "Cloze":
        for language in (names := list(languages)):
            if language not in self.items:
                raise LanguageError(f"There is no {language!r}, only {', '.join(self.items)}.")
        return replace(self, items={language: self.items[language] for language in names})


def write_cloze(folder: Path, languages: Iterable[str] = ("en", "hi"), count: int = 12) -> Path:
    """Write items of which the right word is "yes" in half and "no" in the others; their numbers tell which.

    Args:
        folder: Folder for the files; it is made.
        languages: Languages, each with beginnings of its own.
        count: Items of each split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for start, split in enumerate(("train", "test")):
        for language in languages:
            numbers = range(start * count, (start + 1) * count)
            words = [("yes", "no")[number % 2] for number in numbers]
            columns = {
                "item": numbers,
                "cluster": [number // 2 for number in numbers],
                "beginning": [f"{language} {number} {word}?" for number, word in zip(numbers, words, strict=True)],
                "right": words,
                "wrong": [("no", "yes")[number % 2] for number in numbers],
            }
            pd.DataFrame(columns).to_csv(folder / f"{split}-{language}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def cloze(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of items, of a kind of task that ``ln.tasks.KINDS`` knows meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ln.tasks.KINDS, "cloze", Cloze)
        yield write_cloze(tmp_path_factory.mktemp("cloze"))


def _tokens(model_view: ModelView, text: str, front: bool = False) -> list[int]:
    tokenizer = model_view.tokenizer
    bos = [tokenizer.bos_token_id] if front and tokenizer.bos_token_id is not None else []
    return bos + tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def _log_p(model_view: ModelView, beginning: str, word: str) -> float:
    tokens, answer = _tokens(model_view, beginning, front=True), _tokens(model_view, f" {word}")
    places = range(len(tokens) - 1, len(tokens) + len(answer) - 1)
    log_p = model_view.logits_at(torch.tensor([[*tokens, *answer]]), places)[0].log_softmax(-1)
    return float(log_p[torch.arange(len(answer)), torch.tensor(answer)].sum())
