"""Do scores agree with what single neurons do? Rank correlations with the exact ablation of a random sample."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float, Int

from langneurons.analysis.ablation.ablating import ablate
from langneurons.analysis.validity.selections import Selection, high_ones
from langneurons.evaluation.heldout_text import HeldoutText
from langneurons.identification.matching import random_stream
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import ActivationStats

RESAMPLES = 500
SAMPLED = "sampled"


@dataclass(frozen=True, eq=False)
class AblatedSample:
    """Some neurons' exact effects on the loss of every language.

    Attributes:
        neurons: Flat indices.
        effects: Relative change of the loss.
        languages: What the columns stand for.
    """

    neurons: Int[np.ndarray, " neuron"]
    effects: Float[np.ndarray, "neuron language"]
    languages: tuple[str, ...]

    @classmethod
    def of(
        cls,
        model: torch.nn.Module,
        text: HeldoutText,
        stats: ActivationStats,
        sample: int,
        out: Path | None,
        options: Mapping[str, Any],
    ) -> "AblatedSample":
        """Ablate a uniform random sample of all neurons, one by one."""
        layers, width = stats.shape
        random = random_stream(int(options["seed"]), "compared")
        flat = np.sort(random.choice(layers * width, min(sample, layers * width), replace=False))
        fingerprint = stats.model.fingerprint
        neurons = NeuronSet({SAMPLED: flat}, stats.shape, stats.site, fingerprint, "a uniform random sample")
        rows = ablate(model, neurons, text, metric="nll", each="neuron", out=out, **options).rows
        rows = rows.assign(flat=rows["layer"] * width + rows["neuron"])
        table = rows.pivot(index="flat", columns="language", values="effect").loc[flat]
        languages = tuple(language for language in stats.languages if language in table.columns)
        return cls(flat, table[list(languages)].to_numpy(dtype=float), languages)

    def agreement(self, decided: Mapping[str, Selection], seed: int) -> dict[str, float]:
        """Rank correlation of a method's scores with the effects, mean over languages, and intervals."""
        by_language = {name: one for name, one in decided.items() if name in self.languages} or decided
        scores = np.stack([_strength(one)[self.neurons] for one in by_language.values()])
        draws = np.random.default_rng(seed).integers(0, len(self.neurons), (RESAMPLES, len(self.neurons)))
        row = {"ablated": float(len(self.neurons))}
        for name, effects in (("ablation", self._sizes()), ("ablation_selective", self._selective())):
            targets = np.stack([effects[language] for language in by_language])
            sampled = _spearman(scores[:, draws], targets[:, draws])
            low, high = np.nanquantile(sampled, [0.025, 0.975]) if not np.isnan(sampled).all() else (np.nan, np.nan)
            row |= {name: float(_spearman(scores, targets)), f"{name}_low": low, f"{name}_high": high}
        return row

    def _sizes(self) -> "_Targets":
        sizes = np.abs(self.effects)
        return _Targets(dict(zip(self.languages, sizes.T, strict=True)), sizes.mean(1))

    def _selective(self) -> "_Targets":
        others = (self.effects.sum(1, keepdims=True) - self.effects) / max(len(self.languages) - 1, 1)
        beyond = self.effects - others
        return _Targets(dict(zip(self.languages, beyond.T, strict=True)), beyond.max(1))


@dataclass(frozen=True)
class _Targets:
    """What scores should agree with: per language, and for a score that knows no language."""

    by_language: dict[str, np.ndarray]
    overall: np.ndarray

    def __getitem__(self, label: str) -> np.ndarray:
        return self.by_language.get(label, self.overall)


def _strength(selection: Selection) -> Float[np.ndarray, " neuron"]:
    """Scores turned so that what the method looks for is high, at one end or at both."""
    high, middle = high_ones(selection), float(np.median(selection.scores))
    if high.any() and not high.all():
        return np.abs(selection.scores - middle)
    return selection.scores if high.any() or not len(high) else -selection.scores


def _spearman(
    scores: Float[np.ndarray, "language *draw neuron"], targets: Float[np.ndarray, "language *draw neuron"]
) -> Float[np.ndarray, "*draw"]:
    """Rank correlation over neurons, the mean over languages; NaN where nothing varies."""
    left, right = (scipy.stats.rankdata(one, axis=-1) for one in (scores, targets))
    left, right = left - left.mean(-1, keepdims=True), right - right.mean(-1, keepdims=True)
    spread = np.sqrt((left**2).sum(-1) * (right**2).sum(-1))
    found = np.divide((left * right).sum(-1), spread, out=np.full(spread.shape, np.nan), where=spread > 0)
    known = ~np.isnan(found)
    total = np.where(known, found, 0).sum(0)
    return np.divide(total, known.sum(0), out=np.full(total.shape, np.nan), where=known.sum(0) > 0)
