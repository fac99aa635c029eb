"""screen(): which neurons are worth an exact ablation, guessed for the whole model from one backward pass.

Attribution patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348) takes the loss for linear in every neuron: its
ablation then changes it by (value - a) dL/da, summed over tokens. How far that is right is measured, not assumed:
neurons drawn at random are ablated exactly.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats as scipy_stats
from torch import Tensor
from tqdm import tqdm

from langneurons.analysis.ablation.ablating import ablate
from langneurons.analysis.ablation.conditions import Written
from langneurons.analysis.ablation.measured import check_languages, measured
from langneurons.corpora import Blocks, Corpus
from langneurons.errors import EffectError, TaskError
from langneurons.evaluation.heldout_text import HeldoutText, as_heldout_text, losses
from langneurons.identification.controls import random_stream
from langneurons.identification.neurons import NeuronSet
from langneurons.models import ModelView, view
from langneurons.patches.intervening import check_fits
from langneurons.patches.patch import Value
from langneurons.recording.statistics import ActivationStats
from langneurons.tasks.batching import scoring

SHARE = 0.1  # of the sample that counts as its top
LEAST_SAMPLE = 20
RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True, eq=False, repr=False)
class Screen:
    """What a gradient predicts of every neuron's ablation, and how well that agrees with exact ablation.

    Attributes:
        predicted: The predicted change of each language's loss, relative to the unpatched one.
        languages: What the first axis stands for.
        neurons: Of each language, the neurons with the largest predicted effects, either way.
        agreement: One row a language: spearman between predicted and exact effects of the sample, with its bootstrap
            interval (low, high); recall, the share of the k neurons of the largest exact effects that are among the k
            of the largest predicted ones, with its exact binomial interval (recall_low, recall_high); k; n, the size of
            the uniform random sample.
        sample: The sample: language, layer, neuron, predicted, exact.
    """

    predicted: Float[Tensor, "language layer neuron"]
    languages: tuple[str, ...]
    neurons: NeuronSet
    agreement: pd.DataFrame
    sample: pd.DataFrame

    def __repr__(self) -> str:
        n = int(self.agreement["n"].iloc[0])
        title = f"Agreement of the screen with exact ablation of {n} neurons drawn at random:"
        return f"{self.neurons!r}\n{title}\n{self.agreement.round(3).to_string(index=False)}"


def screen(
    model: torch.nn.Module,
    data: Any,
    value: Value | str = 0.0,
    top: int = 100,
    sample: int = 200,
    site: str = "act",
    stats: ActivationStats | None = None,
    languages: Iterable[str] | None = None,
    batch_size: int = 8,
    rows: int = 32,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Screen:
    """Predict the effect of ablating each neuron of a model from one backward pass, and check it on a sample.

    Neurons named for large effects on a text look larger on that text than they are: ablate them on another.

    Args:
        model: From ``load_model``.
        data: Held-out text: a corpus or a ``HeldoutText``.
        value: What ablated neurons are given, as for ``ablate``.
        top: How many neurons a language to name, for ``ablate``.
        sample: Neurons, drawn uniformly from the whole model, that are ablated exactly to see how well the screen does;
            all where there are fewer.
        site: Where neurons are.
        stats: Statistics that ``"mean"`` is read from.
        languages: Which; None is all of the text's.
        batch_size: Blocks a backward pass.
        rows: Rows a forward of the exact ablation.
        seed: Of the sample and the intervals.
        out: Folder that keeps the exact ablation of the sample.
        progress: Show progress bars on standard error.

    Returns:
        Predictions, the top neurons, and the agreement.

    Raises:
        EffectError: If ``top`` or ``sample`` is out of range.
        TaskError: If the data is no text.
        LangNeuronsError: As ``ablate``.

    Example:
        >>> text = ln.load_corpus("babel", ["hi"]).take(12)
        >>> found = screen(model, text, top=5, sample=20, progress=False)
        >>> len(found.neurons["hi"]), found.agreement["n"].tolist()
        (5, [20])
    """
    seen = view(model)
    shape = seen.shape(site)
    total = shape[0] * shape[1]
    if not 1 <= top <= total or sample < min(LEAST_SAMPLE, total):
        raise EffectError(
            f"A screen of {total:,} neurons names 1 or more of them (top={top}), and is checked on at least "
            f"{min(LEAST_SAMPLE, total)} (sample={sample})."
        )
    if not isinstance(data, Corpus | HeldoutText):
        raise TaskError(f"A model is screened on a corpus or a HeldoutText, not on a {type(data).__name__}.")
    text = as_heldout_text(model, data)
    chosen = check_languages(measured(model, text, "nll"), languages)
    every = _set({"all": np.arange(total)}, shape, site, seen, "every neuron")
    written = Written.of(value, stats, every, controls=0)
    predicted = torch.stack(
        [_predicted(seen, text, language, every, written, batch_size, progress) for language in chosen]
    )
    named = {
        language: np.sort(np.argsort(-one.abs().flatten().numpy(), kind="stable")[:top])
        for language, one in zip(chosen, predicted, strict=True)
    }
    drawn = random_stream(seed, "screened sample").choice(total, min(sample, total), replace=False)
    sampled = _set({"sample": np.sort(drawn)}, shape, site, seen, "uniform sample")
    exact = ablate(
        model, sampled, text, "nll", value, stats=stats, languages=chosen, rows=rows, out=out, progress=progress
    )
    table = _beside(exact.rows, dict(zip(chosen, predicted, strict=True)))
    return Screen(
        predicted=predicted,
        languages=tuple(chosen),
        neurons=_set(named, shape, site, seen, f"gradient screen, {written.said}, top {top}"),
        agreement=pd.DataFrame([_agreement(language, table, seed) for language in chosen]),
        sample=table,
    )


def _set(members: dict[str, np.ndarray], shape: tuple[int, int], site: str, seen: ModelView, method: str) -> NeuronSet:
    return NeuronSet(members, shape, site, seen.fingerprint_at(site), method)


def _predicted(
    seen: ModelView,
    text: HeldoutText,
    language: str,
    every: NeuronSet,
    written: Written,
    batch_size: int,
    progress: bool,
) -> Float[Tensor, "layer neuron"]:
    """Sum (value - a) dL/da over a language's text, relative to its loss."""
    patch = written.patch(every, language)
    check_fits(patch, seen)
    values = {layer: patch.values_of(layer)["value"] for layer in patch.by_layer}
    total, loss = torch.zeros(every.shape, dtype=torch.float64), 0.0
    batches = tqdm(text.batches(language, batch_size), desc=language, unit="batch", disable=not progress)
    with scoring(seen.model), torch.inference_mode(False), torch.enable_grad():
        for _, blocks in batches:
            found, nll = _first_order(seen, blocks, every, values)
            total += found
            loss += nll
    return (total / loss).float()


def _first_order(
    seen: ModelView, blocks: Blocks, every: NeuronSet, values: Mapping[int, Any]
) -> tuple[Float[Tensor, "layer neuron"], float]:
    """One forward and one backward: each neuron gets an addend of zero, whose gradient is its own."""
    addends: dict[int, Tensor] = {}
    now: dict[int, Tensor] = {}

    def add(layer: int, current: Tensor) -> Tensor:
        now[layer] = current.detach()
        addends[layer] = torch.zeros_like(current, requires_grad=True)
        return current + addends[layer]

    with seen.writing(every.site, every.per_layer(), add):
        nll = losses(seen, blocks).sum()
        slopes = torch.autograd.grad(nll, [addends[layer] for layer in range(every.shape[0])])
    found = torch.zeros(every.shape, dtype=torch.float64)
    for layer, slope in enumerate(slopes):
        given = values[layer]
        if isinstance(given, Tensor):
            given = given.to(slope)
            given = given.view(-1, *[1] * (slope.ndim - 3))
        moved = ((given - now[layer]) * slope).double()
        found[layer] = moved.sum([0, 1, *range(3, slope.ndim)]).cpu()
    return found, float(nll.detach())


def _beside(rows: pd.DataFrame, predicted: Mapping[str, Tensor]) -> pd.DataFrame:
    """Exact effects beside predicted ones."""
    places = zip(rows["language"], rows["layer"], rows["neuron"], strict=True)
    guesses = [float(predicted[language][layer, unit]) for language, layer, unit in places]
    table = rows[["language", "layer", "neuron"]].assign(predicted=guesses, exact=rows["effect"])
    return table.reset_index(drop=True)


def _agreement(language: str, table: pd.DataFrame, seed: int) -> dict[str, Any]:
    part = table.loc[table["language"] == language]
    predicted, exact = part["predicted"].to_numpy(), part["exact"].to_numpy()
    k = max(1, round(SHARE * len(part)))
    largest, guessed = (set(np.argsort(-np.abs(one), kind="stable")[:k].tolist()) for one in (exact, predicted))
    found = len(largest & guessed)
    interval = scipy_stats.binomtest(found, k).proportion_ci(LEVEL)
    draws = np.random.default_rng([seed, len(part)]).integers(len(part), size=(RESAMPLES, len(part)))
    correlations = [_spearman(predicted[drawn], exact[drawn]) for drawn in draws]
    known = [one for one in correlations if not np.isnan(one)] or [np.nan]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {
        "language": language,
        "spearman": _spearman(predicted, exact),
        "low": low,
        "high": high,
        "recall": found / k,
        "recall_low": interval.low,
        "recall_high": interval.high,
        "k": k,
        "n": len(part),
    }


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    ranks = [scipy_stats.rankdata(values) for values in (one, other)]
    if min(np.ptp(rank) for rank in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
