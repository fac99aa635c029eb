"""screen(): which neurons are worth an exact ablation, guessed for the whole model from one backward pass.

Attribution patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348) takes the loss for linear in every neuron: its
ablation then changes it by (value - a) dL/da, summed over tokens. How far that is right is measured, not assumed:
neurons drawn at random are ablated exactly.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats as scipy_stats
from torch import Tensor

from langneurons import storage
from langneurons.analysis.ablating import ablate, with_current_options
from langneurons.analysis.metrics import AblationValue, measured_languages
from langneurons.analysis.validity.reliability import known_quantiles
from langneurons.corpora import Blocks, Corpus
from langneurons.errors import FINITE_ADVICE, EffectError, TaskError
from langneurons.evaluation.heldout_text import HeldoutText, losses
from langneurons.evaluation.measuring import Job, measure_jobs
from langneurons.identification import NeuronSet
from langneurons.identification.controls import random_stream
from langneurons.models import ModelView, view
from langneurons.models.finite import check_finite, units_in_words
from langneurons.patches.intervening import check_fits
from langneurons.patches.patch import SetTo, Value
from langneurons.recording.statistics import ActivationStats
from langneurons.run import Progress, alone_in_out
from langneurons.settings import Run, RunOptions, with_options
from langneurons.storage import Column, JsonObject, Result, Table, layout
from langneurons.storage.layouts import Layout
from langneurons.tasks.batching import scoring

SHARE = 0.1  # of the sample that counts as its top
LEAST_SAMPLE = 20
BATCH_SIZE = 8
PROCEDURE = "langneurons/screened/1"  # part of the name under which predictions are kept
RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True, eq=False, repr=False)
class Screen(Result, kind="screen", tables=("agreement", "sample")):
    """What a gradient predicts of every neuron's ablation, and how well that agrees with exact ablation.

    Attributes:
        predicted: The predicted change of each language's loss, relative to the unpatched one.
        agreement: One row per language: spearman between predicted and exact effects of the sample, with its bootstrap
            interval (low, high); recall, the share of the k neurons of the largest exact effects that are among the k
            of the largest predicted ones, with its exact binomial interval (recall_low, recall_high); k; n, the size of
            the uniform random sample.
        sample: The sample: language, layer, neuron, predicted, exact.
        settings: How it was made: model, site, languages, value, top, seed.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {
        "agreement": layout(text="language", number="spearman low high recall recall_low recall_high", whole="k n"),
        "sample": layout(text="language", whole="layer neuron", number="predicted exact"),
        "settings": layout(text="model site value", texts="languages", whole="top seed"),
    }

    predicted: Float[Tensor, "language layer neuron"]
    agreement: pd.DataFrame
    sample: pd.DataFrame
    settings: Mapping[str, Any]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the predictions."""
        return tuple(self.settings["languages"])

    @cached_property
    def neurons(self) -> NeuronSet:
        """The neurons of each language with the largest predicted effects, either way."""
        top, settings = self.settings["top"], self.settings
        members = {
            language: np.sort(np.argsort(-effects.abs().flatten().numpy(), kind="stable")[:top])
            for language, effects in zip(self.languages, self.predicted, strict=True)
        }
        layers, width = self.predicted.shape[1:]
        method = f"gradient screen, {settings['value']}, top {top}"
        return NeuronSet(members, (layers, width), settings["site"], settings["model"], method)

    def table(self) -> Table:
        """The agreement of the predictions with exact ablation, per language."""
        columns = {
            "spearman": Column(bounds=("low", "high")),
            "recall": Column(unit="%", scale=100, bounds=("recall_low", "recall_high")),
        }
        n = int(self.agreement["n"].iloc[0])
        title = f"{self.neurons!r}\nAgreement of the screen with exact ablation of {n} neurons drawn at random:"
        caption = f"Spearman: rank correlation; recall: of the k largest effects; [{LEVEL:.0%} intervals]."
        return Table(self.agreement, columns, title, caption)

    def _check_parts(self) -> None:
        languages, shape = self.languages, self.predicted.shape
        for_each_language = len(shape) == 3 and len(languages) == len(set(languages)) == shape[0]
        if not for_each_language or self.agreement.empty or not self.settings["top"]:
            raise ValueError("it needs predictions of every neuron for each language, and their agreement")
        if not self.predicted.is_floating_point() or not bool(self.predicted.isfinite().all()):
            raise ValueError("a prediction is not finite")

    def _write(self, folder: Path) -> JsonObject:
        checksum = storage.write_tensors(folder / "predicted.safetensors", {"predicted": self.predicted})
        return {**super()._write(folder), "predicted": checksum}

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        tensors = storage.read_tensors(folder / "predicted.safetensors", str(content["predicted"]))
        return {**super()._read(folder, content), "predicted": tensors["predicted"]}


@alone_in_out
def screen(
    model: torch.nn.Module,
    text: object,
    value: Value | str = 0.0,
    top: int = 100,
    *,
    sample: int = 200,
    site: str = "act",
    stats: ActivationStats | None = None,
    languages: Iterable[str] | None = None,
    seed: int = 0,
    run: Run = Run(),
    **options: Unpack[RunOptions],
) -> Screen:
    """Predict the effect of ablating each neuron of a model from one backward pass, and check it on a sample.

    Neurons named for large effects on a text look larger on that text than they are: ablate them on another.

    Args:
        model: A model returned by ``load_model``.
        text: Held-out text: a corpus, which is packed as ``HeldoutText.of`` does, or a ``HeldoutText``.
        value: What ablated neurons are set to: a number, ``"mean"`` (their mean in the measured language, from
            ``stats``), SiteValues, or a tensor with one number per neuron of the model.
        top: Number of neurons to name per language, for ``ablate``.
        sample: Neurons, drawn uniformly from the whole model, that are ablated exactly to see how well the screen does;
            all where there are fewer.
        site: Site of the neurons.
        stats: Statistics that ``"mean"`` is read from.
        languages: Languages to screen; by default all of the text's.
        seed: Seed for the sample and the intervals.
        run: Where it runs and what keeps it; texts per backward pass, 8 by default, and rows per forward pass of the
            ablation, 32 by default.
        options: Single fields of ``Run``, such as ``out="runs/x"``.

    Returns:
        Predictions, the top neurons, and the agreement.

    Raises:
        EffectError: If ``top`` or ``sample`` is out of range.
        TaskError: If the data is not a text.
        LangNeuronsError: If ``ablate`` refuses the value, the languages or the text.

    Example:
        >>> text = ln.load_corpus("babel", ["hi"]).take(12)
        >>> screened = ln.screen(model, text, top=5, sample=20, progress=False)
        >>> len(screened.neurons["hi"]), screened.agreement["n"].tolist()
        (5, [20])
    """
    (run,) = with_options(with_current_options(options), run)
    model_view = view(model)
    shape, total = model_view.shape(site), int(np.prod(model_view.shape(site)))
    if not 1 <= top <= total or sample < min(LEAST_SAMPLE, total):
        raise EffectError(
            f"A screen of {total:,} neurons names 1 or more of them (top={top}), and is checked on at least "
            f"{min(LEAST_SAMPLE, total)} (sample={sample})."
        )
    if not isinstance(text, Corpus | HeldoutText):
        raise TaskError(f"A model is screened on a corpus or a HeldoutText, not on a {type(text).__name__}.")
    text = HeldoutText.of(model, text)
    languages = measured_languages(text.languages, languages)
    fingerprint = model_view.fingerprint_at(site)
    every = NeuronSet({"all": np.arange(total)}, shape, site, fingerprint, "every neuron")
    ablation_value = AblationValue.of(value, stats, every)
    jobs = {}
    for language in languages:
        patch = ablation_value.patch(every, language)
        check_fits(patch, model_view)
        about = storage.fingerprint(PROCEDURE, text.fingerprint, language, patch.fingerprint)
        jobs[(language,)] = Job((), about, partial(_predicted, model, text, language, patch, run))
    predictions = measure_jobs(model, jobs, run)
    predicted = {name: torch.tensor(table["predicted"]).view(shape) for (name,), table in predictions.items()}
    sampled = uniform_sample(replace(every, method="uniform sample"), sample, seed, "screened sample")
    rows = ablate(model, sampled, text, "nll", value, languages=languages, run=run, stats=stats).rows
    places = zip(rows["language"], rows["layer"], rows["neuron"], strict=True)
    guesses = [float(predicted[language][layer, unit]) for language, layer, unit in places]
    sampled_neurons = rows[["language", "layer", "neuron"]].assign(predicted=guesses, exact=rows["effect"])
    agreement = pd.DataFrame([_agreement(language, sampled_neurons, seed) for language in languages])
    about = {"model": fingerprint, "site": site, "languages": languages, "value": str(ablation_value)}
    settings = {**about, "top": top, "seed": seed}
    return Screen(torch.stack(list(predicted.values())), agreement, sampled_neurons.reset_index(drop=True), settings)


def uniform_sample(every: NeuronSet, size: int, seed: int, purpose: str) -> NeuronSet:
    """Draw neurons uniformly from all of a model; all where there are fewer.

    Args:
        every: A neuron set of the model's shape and site.
        size: Number of neurons.
        seed: Seed of the draw.
        purpose: What the sample is for; other purposes draw independently.
    """
    total = int(np.prod(every.shape))
    flat = random_stream(seed, purpose).choice(total, min(size, total), replace=False)
    return replace(every, members={"sampled": np.sort(flat)})


def _predicted(model: torch.nn.Module, text: HeldoutText, language: str, patch: SetTo, run: Run) -> pd.DataFrame:
    """Sum (value - a) dL/da over a language's text, relative to its loss: a row per neuron of the model."""
    values = {layer: patch.values_of(layer)["value"] for layer in patch.by_layer}
    total, loss = torch.zeros(patch.neurons.shape, dtype=torch.float64), 0.0
    batches = text.batches(language, run.batch_size or BATCH_SIZE)
    with scoring(model) as model_view, torch.inference_mode(False), torch.enable_grad():
        for _, blocks in Progress(batches, desc=language, unit="batch", shown=run.progress):
            change, nll = _first_order(model_view, blocks, patch.neurons, values)
            total += change
            loss += nll
    return pd.DataFrame({"predicted": (total / loss).float().flatten().numpy()})


def _first_order(
    model_view: ModelView, blocks: Blocks, every: NeuronSet, values: Mapping[int, Tensor | float]
) -> tuple[Float[Tensor, "layer neuron"], float]:
    """One forward and one backward pass."""
    with differentiable(model_view, every) as (before, addends):
        nll = losses(model_view, blocks).sum()
        check_finite(model_view, nll, blocks.tokens)
        slopes = torch.autograd.grad(nll, [addends[layer] for layer in range(every.shape[0])])
    change = torch.zeros(every.shape, dtype=torch.float64)
    for layer, slope in enumerate(slopes):
        after = values[layer]
        if isinstance(after, Tensor):
            after = after.to(slope).view(-1, *[1] * (slope.ndim - 3))
        moved = ((after - before[layer]) * slope).double()
        change[layer] = moved.sum([0, 1, *range(3, slope.ndim)]).cpu()
        if (sentence := units_in_words(change[layer])) is not None:
            raise EffectError(f"Predicted effects are not finite: in layer {layer}, {sentence}. {FINITE_ADVICE}")
    return change, float(nll.detach())


@contextmanager
def differentiable(model_view: ModelView, every: NeuronSet) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
    """Give every neuron an addend of zero inside the block, whose gradient is the neuron's own.

    Args:
        model_view: View of the model.
        every: All neurons of a site.

    Yields:
        Layer -> the values of the last forward, and layer -> the addends.
    """
    before: dict[int, Tensor] = {}
    addends: dict[int, Tensor] = {}

    def add(layer: int, current: Tensor) -> Tensor:
        before[layer] = current.detach()
        addends[layer] = torch.zeros_like(current, requires_grad=True)
        return current + addends[layer]

    with model_view.writing(every.site, every.per_layer(), add):
        yield before, addends


def _agreement(language: str, table: pd.DataFrame, seed: int) -> dict[str, Any]:
    part = table.loc[table["language"] == language]
    predicted, exact = part["predicted"].to_numpy(), part["exact"].to_numpy()
    n, k = len(part), max(1, round(SHARE * len(part)))
    largest, guessed = (set(np.argsort(-np.abs(values), kind="stable")[:k].tolist()) for values in (exact, predicted))
    recalled = len(largest & guessed)
    interval = scipy_stats.binomtest(recalled, k).proportion_ci(LEVEL)
    draws = np.random.default_rng([seed, n]).integers(n, size=(RESAMPLES, n))
    correlations = rank_correlation(predicted[draws], exact[draws])
    low, high = known_quantiles(correlations, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    correlation = {"spearman": float(rank_correlation(predicted, exact)), "low": low, "high": high}
    recall = {"recall": recalled / k, "recall_low": interval.low, "recall_high": interval.high}
    return {"language": language, **correlation, **recall, "k": k, "n": n}


def rank_correlation(
    first: Float[np.ndarray, "*batch n"], second: Float[np.ndarray, "*batch n"]
) -> Float[np.ndarray, "*batch"]:
    """Spearman's rank correlation over the last axis; NaN where nothing varies.

    Example:
        >>> rank_correlation(np.array([[1.0, 2.0, 9.0], [1.0, 1.0, 1.0]]), np.array([[3.0, 2.0, 1.0]] * 2)).tolist()
        [-1.0, nan]
    """
    left, right = (scipy_stats.rankdata(values, axis=-1) for values in (first, second))
    left, right = left - left.mean(-1, keepdims=True), right - right.mean(-1, keepdims=True)
    spread = np.sqrt((left**2).sum(-1) * (right**2).sum(-1))
    return np.divide((left * right).sum(-1), spread, out=np.full(spread.shape, np.nan), where=spread > 0)
