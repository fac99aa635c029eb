"""Small tasks, models and an update to train in tests."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import AutoTokenizer

from langneurons import storage
from langneurons.errors import TrainingError
from langneurons.identification import NeuronSet
from langneurons.models import load_model, view
from langneurons.tasks.likelihood import LABELS
from langneurons.tasks.xnli import XNLI
from langneurons.tasks.xquad import XQuAD
from tests.tiny_models import tiny_model, tiny_tokenizer


def tiny(tmp_path_factory, architecture="llama", backend="auto", **overrides):
    """A tiny random model of any architecture, loaded as either class."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = tiny_model(architecture, **overrides)
    return load_model(architecture, hf_model=model, tokenizer=tokenizer, backend=backend)


def pairs(count: int, seed: int = 0, languages=("en", "hi")) -> XNLI:
    """Pairs of random words, whose label is told by one word of the hypothesis."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        label = number % 3
        words = [f"w{word}" for word in random.integers(20, 100, size=int(random.integers(3, 12)))]
        told = f"w{4 + label}"
        rows.append((" ".join(words), f"w{random.integers(20, 100)} {told}", LABELS[label]))
    table = pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])
    return XNLI.load({language: table.copy() for language in languages})


def questions(count: int, seed: int = 0) -> XQuAD:
    """Questions whose answer is one of two, whatever is asked."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        context = [f"w{word}" for word in random.integers(20, 100, size=int(random.integers(3, 9)))]
        rows.append(
            {
                "item": f"q{number}",
                "cluster": number // 2,
                "context": " ".join(context),
                "question": f"w{random.integers(20, 100)}",
                "answers": [f"w{4 + number % 2} w6"],
            }
        )
    prompts = {"en": "{context} w11 {question} w12", "hi": "{context} w13 {question} w14"}
    table = pd.DataFrame(rows)
    return XQuAD({"en": table, "hi": table.copy()}, prompts, max_new_tokens=4)


class Shift:
    """Adds a trained number to the gate of chosen neurons: the smallest thing that is an Update."""

    def __init__(self, neurons: NeuronSet, start: float = 0.0) -> None:
        self.neurons, self._start = neurons, start
        self._deltas: dict[str, nn.Parameter] = {}
        self.attached = 0

    @property
    def name(self) -> str:
        return f"Shift(from {self._start})"

    def prepare(self, model: nn.Module) -> None:
        device, per_layer = view(model).device, self.neurons.per_layer()
        if not self._deltas:
            self._deltas = {
                f"{layer}.delta": nn.Parameter(torch.full((len(units),), self._start, device=device))
                for layer, units in per_layer.items()
                if len(units)
            }

    def parameters(self) -> list[nn.Parameter]:
        return list(self._deltas.values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._deltas)

    def count(self) -> int:
        return sum(parameter.numel() for parameter in self._deltas.values())

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[None]:
        self.prepare(model)
        seen, per_layer = view(model), self.neurons.per_layer()
        self.attached += 1
        with seen.writing("pre", per_layer, lambda layer, values: values + self._deltas[f"{layer}.delta"]):
            try:
                yield
            finally:
                self.attached -= 1

    def merge(self, model: nn.Module) -> None:
        raise NotImplementedError

    def unmerge(self, model: nn.Module) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._deltas.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        if set(state) != set(self._deltas):
            raise TrainingError("These are not the values of this update.")
        with torch.no_grad():
            for name, parameter in self._deltas.items():
                parameter.copy_(state[name])

    def save(self, folder: str | Path) -> Path:
        storage.write_tensors(Path(folder) / "shift.safetensors", self.state_dict())
        return Path(folder)


def shift(model: nn.Module, seed: int = 0, start: float = 0.0, units: int = 6) -> Shift:
    """A shift of a few neurons of every layer."""
    seen = view(model)
    shape, random = (seen.n_layers, seen.width("act")), np.random.default_rng(seed)
    chosen = [(layer, int(unit)) for layer in range(shape[0]) for unit in random.permutation(shape[1])[:units]]
    return Shift(NeuronSet.of({"hi": chosen}, shape, "act"), start)
