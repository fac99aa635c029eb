"""Likelihoods of answers beside the harness' own model for transformers, on the same weights, items and batch size."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

import langneurons as ln
from benchmarks.llama import BACKENDS, loaded, of_processors, random_llama
from benchmarks.measuring import Settings, medians
from benchmarks.record import NARROW
from benchmarks.rows import Row

BATCH, HOLD = 8, 1.15
Request = tuple[tuple[str, str], list[int], list[int]]


@dataclass(frozen=True)
class Items:
    """What a task asks.

    Attributes:
        shared: Mean number of tokens that an item's alternatives begin with.
        answer: Mean number of tokens of an alternative after them.
        alternatives: Alternatives of an item.
        count: Items.
    """

    shared: int
    answer: int
    alternatives: int
    count: int

    def requests(self, vocabulary: int) -> list[Request]:
        """Random tokens of random lengths, as the harness hands them to a model."""
        draw, requests = np.random.default_rng(0), []
        for _ in range(self.count):
            shared = draw.integers(3, vocabulary, int(self.shared * draw.uniform(0.7, 1.3))).tolist()
            for _ in range(self.alternatives):
                answer = draw.integers(3, vocabulary, max(1, round(self.answer * draw.uniform(0.7, 1.3)))).tolist()
                requests.append((("", ""), [1, *shared], answer))
        return requests


TASKS = {
    "three labels inside of a text (as XNLI)": Items(34, 16, 3, 48),
    "two endings (as XCOPA)": Items(22, 10, 2, 96),
    "four letters (as Belebele)": Items(180, 1, 4, 24),
}


def rows(settings: Settings) -> Iterator[Row]:
    """Compare on both backends of a model with many narrow layers and a large vocabulary."""
    if find_spec("lm_eval") is None:
        print("likelihood: lm-eval is not installed (pip install 'langneurons[harness]')", file=sys.stderr)
        return
    for backend, name in BACKENDS.items():
        hf_model = random_llama(of_processors(settings.tiny)[NARROW])
        model = loaded(hf_model, backend)
        for task, items in TASKS.items():
            yield of_task(f"{task}, {NARROW}, {name}", hf_model, model, items, settings)


def of_task(name: str, hf_model: Any, model: Any, items: Items, settings: Settings) -> Row:
    """Compare on one kind of items."""
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415 (seconds, and an extra)

    if settings.tiny:
        items = Items(10, min(items.answer, 4), items.alternatives, 2)
    requests = items.requests(hf_model.config.vocab_size)
    theirs = HFLM(hf_model, tokenizer=model.tokenizer, batch_size=BATCH)
    ours = ln.tasks.HarnessModel(model, BATCH)
    taken = medians(
        {
            "theirs": lambda: theirs._loglikelihood_tokens(requests, disable_tqdm=True),
            "ours": lambda: ours._loglikelihood_tokens(requests),
        },
        settings.rounds,
    )
    runs = {(*before, *answer[:-1]) for _, before, answer in requests}
    one_token = all(len(answer) == 1 for _, _, answer in requests)
    beginnings = {tuple(before): len(before) for _, before, _ in requests}
    distinct = sum(beginnings.values()) + sum(len(answer) - 1 for _, _, answer in requests)
    share = 1.0 if one_token else distinct / sum(map(len, runs))  # theirs runs answers of one token once, too
    limit = taken["theirs"] * share
    detail = f"{share:.2f} of the tokens are distinct; {taken['ours'] / taken['theirs']:.2f} x their time"
    return Row(
        f"likelihoods, {name}",
        "lm-eval's HFLM, its time x distinct tokens",
        taken["ours"] / limit,
        at_most=HOLD,
        detail=detail,
    )
