"""Puts NaN, infinity and overflow into a model and calls every verb: refused, or what comes out is unchanged."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pandas as pd
import torch

import langneurons as ln
from langneurons.analysis.reading import decompose
from langneurons.errors import LangNeuronsError
from langneurons.evaluation.dosing import dose
from langneurons.models import load_model, view
from langneurons.models.sites import SITES
from langneurons.replication.statistics import published_statistics
from langneurons.tasks.heads import ClassificationHead
from langneurons.tasks.likelihood import LABELS, Template
from tests.tiny_models import save_tiny
from tests.training.small import pairs, questions

DTYPES = ("float32", "bfloat16", "float16")
DAMAGES = {"nan": torch.nan, "infinity": torch.inf, "-infinity": -torch.inf, "overflow": None}
WEIGHTS = {"embedding": "embed.W_E", "norm": "ln_final.w", "unembedding": "unembed.W_U"}
DAMAGED = ("pre", "act", "post", "v", "head", "resid_post")
PLACES = (*(f"{site} {layer}" for site in DAMAGED for layer in (0, 1)), *WEIGHTS)
WORD = 21  # a token of most texts
DOCUMENTS = {
    language: [" ".join(f"w{word}" for word in (WORD, *range(at, at + 5 + at % 7))) for at in range(first, first + 30)]
    for language, first in (("en", 4), ("hi", 50))
}
TEMPLATE = Template("w21 {premise} {hypothesis} {label}", dict(zip(LABELS, ("w5", "w6 w21", "w7"), strict=True)))
ALONE = ("dose", "equal_dose")  # verbs that refuse a model to which something is attached
QUIET: dict[str, Any] = {"progress": False}


@dataclass
class Outcome:
    """What came of some damages: how many were refused, how many changed nothing or stayed finite; what failed."""

    counts: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Setting:
    """A tiny model, and what its verbs need that was made while it was whole."""

    model: Any
    corpus: ln.Corpus
    stats: ln.ActivationStats
    neurons: ln.NeuronSet
    head: ClassificationHead

    @property
    def text(self) -> ln.HeldoutText:
        return ln.HeldoutText.of(self.model, self.corpus, context_length=16)


@cache
def setting(dtype: str) -> Setting:
    model = load_model(str(_folder()), dtype=dtype)
    corpus = ln.load_corpus(DOCUMENTS)
    stats = ln.record(model, corpus, sites=("act",), context_length=16, **QUIET)
    neurons = ln.NeuronSet.of({"en": [(0, 3), (1, 7)], "hi": [(0, 4), (1, 9)]}, (2, 48), "act", stats.fingerprint)
    return Setting(model, corpus, stats, neurons, ClassificationHead.fit(model, pairs(24)))


@cache
def _folder() -> str:
    return str(save_tiny(mkdtemp(), "llama"))  # pyright: ignore[reportArgumentType]


def record(at: Setting) -> object:
    return ln.record(at.model, at.corpus, sites=SITES, also=("sentence", "gradient"), context_length=16, **QUIET)


def record_caches(at: Setting) -> object:
    tokens = at.model.to_tokens("w21 w5 w6 w21 w9")
    _, caches = at.model.run_with_cache(tokens)
    return ln.recording.record_caches(at.model, {"en": [(tokens, caches)]}, SITES)


def sweep(at: Setting) -> object:
    return ln.sweep(at.model, at.text, at.neurons, [ln.evaluation.Dose("scale", 2)], resamples=100, **QUIET).rows


def evaluate(task: Callable[[Setting], Any]) -> Callable[[Setting], object]:
    def verb(at: Setting) -> object:
        patch = {"zero": ln.SetTo(at.neurons["hi"], 0.0)}
        return ln.evaluate(at.model, task(at), ["en", "hi"], patches=patch, resamples=100, **QUIET).rows

    return verb


def finetune(at: Setting) -> object:
    update = ln.MaskedLoRA(at.neurons["hi"], rank=1, targets=("gate",), attention=())
    return ln.finetune(at.model, pairs(12), update, steps=2, batch_size=4, **QUIET).history["loss"]


def equal_dose(at: Setting) -> object:
    return ln.equal_dose(at.model, lambda k: ln.Add(at.neurons["hi"], k), at.text, 0.1, between=(0.0, 5.0))


VERBS: dict[str, Callable[[Setting], object]] = {
    "record": record,
    "record_caches": record_caches,
    "activations": lambda at: ln.activations(at.model, "w21 w5 w6", at.neurons),
    "examples": lambda at: ln.examples(at.model, at.corpus, at.neurons, k=1, context_length=16, **QUIET),
    "perplexity": lambda at: ln.perplexity(at.model, at.text, **QUIET),
    "matrix": lambda at: ln.perplexity_matrix(at.model, at.text, at.neurons, controls=0, resamples=100, **QUIET).rows,
    "sweep": sweep,
    "evaluate by likelihood": evaluate(lambda at: replace(pairs(9), templates=dict.fromkeys(["en", "hi"], [TEMPLATE]))),
    "evaluate by head": evaluate(lambda at: pairs(9).with_head(at.head)),
    "evaluate generation": evaluate(lambda at: questions(6)),
    "fit a head": lambda at: ClassificationHead.fit(at.model, pairs(24)).weight,
    "ablate": lambda at: ln.ablate(at.model, at.neurons["hi"], at.corpus, resamples=100, **QUIET).rows,
    "ablate a group": lambda at: (
        ln.ablate(at.model, at.neurons["hi"], at.corpus, each="group", controls=0, resamples=100, **QUIET).rows
    ),
    "screen": lambda at: ln.screen(at.model, at.corpus, top=3, sample=20, **QUIET).predicted,
    "polysemanticity": lambda at: (
        ln.polysemanticity(
            at.model, at.neurons, pairs(24), controls=0, permutations=100, probe_sizes=(1,), **QUIET
        ).sets
    ),
    "decompose": lambda at: decompose(at.model, pairs(24), **QUIET).table().frame,
    "profile": lambda at: ln.profile(at.model, at.neurons, at.corpus, k=1, context_length=16, **QUIET).outputs,
    "finetune": finetune,
    "dose": lambda at: dose(at.model, ln.SetTo(at.neurons["hi"], 0.0), at.text),
    "equal_dose": equal_dose,
    "published statistics": lambda at: (
        published_statistics(at.model, at.corpus, context_length=16, **QUIET).mean_p90_act
    ),
}


@contextmanager
def damaged(model: Any, place: str, damage: str) -> Iterator[None]:
    """Put a value that no right model computes into a unit of a site, or into a weight, inside the block."""
    model_view = view(model)
    value = DAMAGES[damage]
    if value is None:
        value = torch.finfo(model_view.dtype).max / 2
    if place not in WEIGHTS:
        site, layer = place.split()
        with model_view.writing(site, {int(layer): torch.tensor([1])}, lambda _, now: torch.full_like(now, value)):
            yield
        return
    weight = model.get_parameter(WEIGHTS[place])
    row = weight.data[WORD] if place == "embedding" else weight.data[..., 1]
    before = row.clone()
    row.fill_(value)
    try:
        yield
    finally:
        row.copy_(before)


def attempt(verb: str, dtype: str, place: str, damage: str, outcome: Outcome) -> None:
    """Call a verb on a damaged model: NaN and infinity are refused or change nothing; an overflow may stay finite."""
    if verb in ALONE and place not in WEIGHTS:
        return
    at = setting(dtype)
    case = f"{verb}, {dtype}, {damage} at {place}"
    try:
        with damaged(at.model, place, damage):
            result = _numbers(verb, at)
    except LangNeuronsError as error:
        said = str(error)
        plain = len(said) < 900 and ("finite" in said or "too large" in said or "does not lie between" in said)
        outcome.counts["refused" if plain else "failed"] += 1
        if not plain:
            outcome.failures.append(f"{case}: refused, but not for that: {said[:200]}")
        return
    except Exception as error:
        outcome.counts["failed"] += 1
        outcome.failures.append(f"{case}: {type(error).__name__}: {str(error)[:200]}")
        return
    expected = _whole(verb, dtype)
    unchanged = len(result) == len(expected) and np.array_equal(result, expected, equal_nan=True)
    stays = damage == "overflow" and np.isfinite(result).sum() >= min(len(result), np.isfinite(expected).sum())
    outcome.counts["unchanged" if unchanged else "finite" if stays else "failed"] += 1
    if not unchanged and not stays:
        outcome.failures.append(f"{case}: gave other numbers")


@cache
def _whole(verb: str, dtype: str) -> np.ndarray:
    return _numbers(verb, setting(dtype))


def _numbers(verb: str, at: Setting) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return numbers(VERBS[verb](at))


def numbers(result: object) -> np.ndarray:
    """Every number of a result, one after the other."""
    if isinstance(result, ln.ActivationStats):
        values = (result.at(site).mean().flatten() for site in result.sites)
        return torch.cat([torch.cat(list(values)), result.quantile(0.9).double().flatten()]).numpy()
    if isinstance(result, torch.Tensor):
        return result.detach().double().flatten().numpy()
    if isinstance(result, pd.DataFrame):
        return result.select_dtypes("number").to_numpy(float).ravel()
    return np.atleast_1d(np.asarray(result, float))
