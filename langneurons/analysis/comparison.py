"""Methods side by side: do they choose the same neurons, choose them again, and find nothing where nothing is?

And do the neurons matter: does patching them hurt their language most, and do scores agree with exact ablation?
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import torch
from jaxtyping import Float, Int

from langneurons import storage
from langneurons.analysis.ablation.ablating import ablate
from langneurons.analysis.validity import Recordings, chance_jaccard, nulls_of, record_nulls, split_half
from langneurons.analysis.validity.reliability import Halves, Selection, deciding, high_ones, selections, whole
from langneurons.corpora import Corpus
from langneurons.effects.placement import ALL
from langneurons.errors import LangNeuronsWarning, LanguageError, StatisticsError, TaskError
from langneurons.evaluation.heldout_text import HeldoutText, as_heldout_text
from langneurons.evaluation.matrix import perplexity_matrix
from langneurons.identification.controls import random_stream
from langneurons.identification.neurons import NeuronSet
from langneurons.identification.selection import Method
from langneurons.patches.patch import Value
from langneurons.recording.records import check_optional
from langneurons.recording.statistics import ActivationStats

SCHEMA = "langneurons/comparison/1"


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Several methods on one recording.

    Attributes:
        table: One row a method: ``chosen`` (neurons with any label); ``spearman`` and ``jaccard`` of two halves of the
            documents with what chance gives, ``jaccard_chance``; ``null_<name>``, the estimated share of false
            discoveries under each null; ``selectivity``, how much more patching a language's neurons hurts it than the
            others, in points of the loss, with ``_low`` and ``_high``, and of matched controls ``_control``;
            ``ablation``, rank correlation over sampled neurons of the score with the size of the neuron's own exact
            effect on the loss of the language, and ``ablation_selective`` with its effect there minus the mean of the
            others, each with ``_low`` and ``_high`` (bootstrap over neurons); ``ablated``, how many were sampled. NaN
            where something was not, or cannot be, measured.
        overlap: One row a pair of methods and language: ``first``, ``second``, ``language``, ``jaccard``, and what two
            random sets of these sizes share, ``jaccard_chance``.
        settings: How it was measured, and ``notes`` on what could not be.
    """

    table: pd.DataFrame
    overlap: pd.DataFrame
    settings: Mapping[str, Any]

    def jaccard(self) -> pd.DataFrame:
        """Overlap of every pair of methods, the mean over languages: a symmetric table with ones on the diagonal."""
        names = list(self.table["method"])
        matrix = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
        for first, second in itertools.combinations(names, 2):
            pair = (self.overlap["first"] == first) & (self.overlap["second"] == second)
            matrix.loc[first, second] = matrix.loc[second, first] = self.overlap.loc[pair, "jaccard"].mean()
        return matrix

    def __repr__(self) -> str:
        known = self.table.set_index("method").dropna(axis=1, how="all")
        shown = known[[name for name in known.columns if not name.endswith(("_low", "_high"))]].round(3).astype(object)
        for name in shown.columns.intersection([one.removesuffix("_low") for one in known.columns]):
            if f"{name}_low" in known.columns:
                ends = known[[name, f"{name}_low", f"{name}_high"]].to_numpy(float)
                shown[name] = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in ends]
        parts = [
            f"{len(self.table)} methods at {self.settings['site']} (with 95 % intervals where there are any)",
            shown.to_string(),
            "Shared neurons (Jaccard, mean over languages)",
            self.jaccard().round(2).to_string(),
            *self.settings["notes"],
        ]
        return "\n".join(parts)

    def save(self, folder: str | Path) -> Path:
        """Write ``comparison.json`` and one parquet file a table.

        Returns:
            The folder.
        """
        tables = {"methods": self.table, "overlap": self.overlap}
        return storage.write_result(Path(folder) / "comparison.json", SCHEMA, self.settings, tables)

    @classmethod
    def load(cls, folder: str | Path) -> "Comparison":
        """Read a saved comparison.

        Raises:
            StorageError: If there is none.
        """
        path = Path(folder) / "comparison.json"
        settings, tables = storage.read_result(path, SCHEMA, ("methods", "overlap"))
        return cls(tables["methods"], tables["overlap"], settings)


def compare_methods(
    methods: Mapping[str, Any] | Sequence[Any],
    model: torch.nn.Module,
    recorded: Corpus | Recordings | ActivationStats,
    heldout: Any = None,
    site: str = "act",
    tokens_per_language: int | None = None,
    context_length: int = 512,
    batch_size: int = 8,
    nulls: Sequence[str] = ("shuffled",),
    value: Value = 0.0,
    controls: int = 0,
    sample: int = 200,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare methods on the same text, and by what the neurons they choose, or score, do.

    Args:
        methods: Methods by name; without names, by what they are.
        model: From ``load_model``.
        recorded: Text to record in halves, with its nulls and all that the methods need; or what ``record_nulls`` gave;
            or plain statistics, which have no nulls and whose halves some methods cannot score.
        heldout: A corpus or ``HeldoutText`` on which neurons are patched and ablated; None leaves that out.
        site: Of the neurons.
        tokens_per_language: Counted tokens of each language to record.
        context_length: Positions a block to record.
        batch_size: Blocks a forward.
        nulls: Among "shuffled", "source", "topic".
        value: What patched and ablated neurons are given.
        controls: Draws of matched controls for the perplexity matrix.
        sample: Neurons to ablate, drawn at random from all, the same for every method; 0 ablates none.
        seed: Of nulls, controls, sample and resampling.
        out: Folder for recordings and measurements; the same call goes on there.
        progress: Show progress on standard error.

    Returns:
        The comparison.

    Raises:
        StatisticsError: If there is no method, two have one name, or a method lacks what it needs.
        TaskError: If the held-out text is none.
        LanguageError: If it has no language in common with what is recorded.
        LangNeuronsError: As ``record_nulls``, ``perplexity_matrix`` and ``ablate``.

    Example:
        >>> methods = {"LAPE": ln.LAPE(top=0.01), "mean": ln.identification.MeanActivation(top=0.01)}
        >>> compare_methods(methods, model, stats).table["method"].tolist()
        ['LAPE', 'mean']
    """
    named = _named(methods)
    if heldout is not None:
        _check_heldout(heldout, recorded)
    if sample < 0:
        raise StatisticsError(f"The number of neurons to ablate cannot be negative, given {sample}.")
    folder = None if out is None else Path(out)
    if isinstance(recorded, Corpus):
        also = check_optional(one for method in named.values() for one in method.needs)
        recorded = record_nulls(
            model, recorded, tokens_per_language, context_length, batch_size, nulls, None, seed,
            _inside(folder, "recordings"), progress, (site,), also,
        )  # fmt: skip
    real, null = (recorded.real, recorded.nulls) if isinstance(recorded, Recordings) else (recorded.at(site), {})
    stats, notes = whole(real), []
    rows = {name: {"method": name, **_on_paper(name, one, real, null, notes)} for name, one in named.items()}
    if heldout is not None:
        text = as_heldout_text(model, heldout)
        options = {"value": value, "seed": seed, "progress": progress}
        ablated = AblatedSample.of(model, text, stats, sample, _inside(folder, "ablation"), options) if sample else None
        matrix = {**options, "controls": controls, "stats": stats, "batch_size": batch_size}
        for name, method in named.items():
            rows[name] |= _selectivity(model, text, _identified(method, stats), _inside(folder, "matrix"), matrix)
            rows[name] |= ablated.agreement(deciding(method, stats), seed) if ablated else {}
    settings = {
        "site": site,
        "model": stats.model.fingerprint,
        "languages": list(stats.languages),
        "tokens": stats.tokens.tolist(),
        "methods": {name: repr(method) for name, method in named.items()},
        "value": repr(value),
        "seed": seed,
        "notes": notes,
    }
    return Comparison(pd.DataFrame(list(rows.values())), _overlap(named, stats), settings)


def _inside(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / name


def _named(methods: Mapping[str, Any] | Sequence[Any]) -> dict[str, Method]:
    named = dict(methods) if isinstance(methods, Mapping) else {repr(method): method for method in methods}
    if not named or len(named) < len(methods):
        raise StatisticsError(f"A comparison needs methods, each with a name of its own, not {list(methods)}.")
    for name, method in named.items():
        if not isinstance(method, Method):
            raise StatisticsError(f"{name!r} is no method such as ln.LAPE(top=0.01), but a {type(method).__name__}.")
    return named


def _check_heldout(heldout: Any, recorded: Corpus | Recordings | ActivationStats) -> None:
    """Refuse text on which nothing could be compared, before anything is recorded."""
    if not isinstance(heldout, Corpus | HeldoutText):
        raise TaskError(f"Methods are compared on a held-out corpus or HeldoutText, not on a {type(heldout).__name__}.")
    known = whole(recorded.real).languages if isinstance(recorded, Recordings) else recorded.languages
    if not set(known) & set(heldout.languages):
        raise LanguageError(
            f"The held-out text is in {', '.join(heldout.languages)}, what is recorded in {', '.join(known)}: they "
            "need a language in common."
        )


def _identified(method: Method, stats: ActivationStats) -> NeuronSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangNeuronsWarning)
        return method.identify(stats)


def _on_paper(
    name: str, method: Method, real: ActivationStats | Halves, null: Mapping[str, Halves], notes: list[str]
) -> dict[str, float]:
    """What is known of a method without running the model again."""
    row = {"chosen": float(len(_identified(method, whole(real))))}
    try:
        found = split_half(method, real).overall
    except StatisticsError as error:
        if isinstance(real, tuple):
            raise
        notes.append(f"{name} cannot be split in halves: {error}")
        found = {}
    row |= {figure: found.get(figure, np.nan) for figure in ("spearman", "jaccard", "jaccard_chance")}
    checked = nulls_of(method, real, null) if null else None
    return row | {f"null_{one}": checked.share(one) for one in null if checked is not None}


def _overlap(methods: Mapping[str, Method], stats: ActivationStats) -> pd.DataFrame:
    neurons = int(np.prod(stats.shape))
    chosen = {name: selections(method, stats) for name, method in methods.items()}
    rows = []
    for first, second in itertools.combinations(methods, 2):
        for language in stats.languages:
            one, other = chosen[first][language].chosen, chosen[second][language].chosen
            either = len(np.union1d(one, other))
            jaccard = len(np.intersect1d(one, other)) / either if either else np.nan
            rows.append((first, second, language, jaccard, chance_jaccard(len(one), len(other), neurons)))
    return pd.DataFrame(rows, columns=pd.Index(["first", "second", "language", "jaccard", "jaccard_chance"]))


def _selectivity(
    model: torch.nn.Module, text: HeldoutText, neurons: NeuronSet, out: Path | None, options: Mapping[str, Any]
) -> dict[str, float]:
    """How selective patching is, in points of the loss."""
    measured = [language for language in neurons.languages if len(neurons[language]) and language in text.languages]
    if not measured or len(text.languages) < 2:
        return {"selectivity": np.nan}
    found = perplexity_matrix(model, text, neurons, out=out, **options).selectivity
    assert found is not None
    row = found.set_index("language").loc[ALL]
    columns = {"selectivity": "selectivity", "selectivity_low": "low", "selectivity_high": "high"}
    columns |= {"selectivity_control": "control_mean"} if "control_mean" in found.columns else {}
    return {name: 100 * float(row[column]) for name, column in columns.items()}


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
