"""Methods side by side: do they choose the same neurons, choose them again, and find nothing where nothing is?

And do the neurons matter: does patching them hurt their language most, and do scores agree with exact ablation?
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from langneurons.analysis.ablating import ablate
from langneurons.analysis.screening import rank_correlation, uniform_sample
from langneurons.analysis.validity import reliability
from langneurons.analysis.validity.checks import nulls_of
from langneurons.analysis.validity.recordings import Recordings, inside, record_nulls
from langneurons.analysis.validity.reliability import Halves, Selection, known_mean, known_quantiles, whole
from langneurons.corpora import Corpus
from langneurons.effects.placement import ALL
from langneurons.effects.table import EffectTable
from langneurons.errors import LangNeuronsWarning, LanguageError, StatisticsError, TaskError, warn_user
from langneurons.evaluation.heldout_text import HeldoutText
from langneurons.evaluation.matrix import perplexity_matrix
from langneurons.identification import Method, NeuronSet
from langneurons.patches.patch import Value
from langneurons.recording.records import check_optional
from langneurons.recording.statistics import ActivationStats
from langneurons.run import alone_in_out
from langneurons.settings import (
    ControlledOptions,
    Controls,
    Recording,
    RecordingOptions,
    Run,
    Testing,
    controls_of,
    with_options,
)
from langneurons.storage import Column, Result, Table, all_of, layout
from langneurons.storage.layouts import Layout

RESAMPLES = 500


class ComparisonOptions(RecordingOptions, ControlledOptions, total=False):
    """Single options of ``Recording``, ``Controls``, ``Testing`` and ``Run``."""


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result, kind="comparison", tables={"rows": "methods", "overlap": "overlap"}):
    """Several methods on one recording.

    Attributes:
        rows: One row per method: ``chosen`` (neurons with any label); ``spearman`` and ``jaccard`` of two halves of the
            documents with what chance gives, ``jaccard_chance``; ``null_<name>``, the estimated share of false
            discoveries under each null; ``selectivity``, how much more patching a language's neurons hurts it than the
            others, in points of the loss, with ``_low`` and ``_high``, and of matched controls ``_control``;
            ``ablation``, rank correlation over sampled neurons of the score with the size of the neuron's own exact
            effect on the loss of the language, and ``ablation_selective`` with its effect there minus the mean of the
            others, each with ``_low`` and ``_high`` (bootstrap over neurons); ``ablated``, how many were sampled.
            Missing where something was not, or cannot be, measured.
        overlap: One row per pair of methods and language: ``first``, ``second``, ``language``, ``jaccard``, and what
            two random sets of these sizes share, ``jaccard_chance``.
        settings: How it was measured, and ``notes`` on what could not be.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {
        "rows": layout(text="method"),
        "overlap": layout(text="first second", mark="language", number="jaccard jaccard_chance?"),
        "settings": layout(text="site", texts="notes"),
    }

    rows: pd.DataFrame
    overlap: pd.DataFrame
    settings: Mapping[str, Any]

    def jaccard(self) -> pd.DataFrame:
        """Overlap of every pair of methods, the mean over languages: a symmetric table with ones on the diagonal."""
        names = list(self.rows["method"])
        matrix = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
        for first, second in itertools.combinations(names, 2):
            pair = (self.overlap["first"] == first) & (self.overlap["second"] == second)
            matrix.loc[first, second] = matrix.loc[second, first] = self.overlap.loc[pair, "jaccard"].mean()
        return matrix

    def table(self) -> Table:
        """One line per method: everything that was measured."""
        frame = self.rows.dropna(axis=1, how="all")
        columns = {
            name: Column(bounds=(f"{name}_low", f"{name}_high"))
            for name in frame.columns
            if {f"{name}_low", f"{name}_high"} <= set(frame.columns)
        }
        points = {name: "points" for name in ("selectivity", "selectivity_control")}
        columns |= {name: replace(columns.get(name, Column()), unit=unit) for name, unit in points.items()}
        title = f"{len(self.rows)} methods at {self.settings['site']} (with 95 % intervals where there are any)"
        return Table(frame, columns, title, "\n".join(self.settings["notes"]))

    def overlap_table(self) -> Table:
        """Share of neurons that every pair of methods has in common."""
        frame = self.jaccard().rename_axis("method").reset_index()
        return Table(frame, title="Shared neurons (Jaccard, mean over languages)")

    def _check_parts(self) -> None:
        figures = self.rows.drop(columns="method").dropna(axis=1, how="all")
        all_of("number", figures.columns).check("the methods", figures)
        methods = set(self.rows["method"])
        if len(methods) < len(self.rows) or not set(self.overlap["first"]) | set(self.overlap["second"]) <= methods:
            raise ValueError("every method has one row, and only those overlap")

    def __repr__(self) -> str:
        return f"{self.table()}\n{self.overlap_table()}"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_() + self.overlap_table()._repr_html_()


@alone_in_out
def compare_methods(
    methods: Mapping[str, object] | Sequence[object],
    model: torch.nn.Module,
    recorded: Corpus | Recordings | ActivationStats,
    text: object = None,
    *,
    nulls: Sequence[str] = ("shuffled",),
    value: Value = 0.0,
    controls: int | Controls = 0,
    sample: int = 200,
    recording: Recording = Recording(),
    run: Run = Run(),
    **options: Unpack[ComparisonOptions],
) -> Comparison:
    """Compare methods on the same text, and by what the neurons they choose, or score, do.

    Args:
        methods: Methods by name; without names, by what they are.
        model: A model returned by ``load_model``.
        recorded: Text to record in halves, with its nulls and all that the methods need; or the result of
            ``record_nulls``; or plain statistics, which have no nulls and whose halves some methods cannot score.
        text: A corpus, which is packed as ``HeldoutText.of`` does, or a ``HeldoutText`` on which neurons are patched
            and ablated; None leaves that out.
        nulls: Nulls to record, among "shuffled", "source", "topic".
        value: The value that patched and ablated neurons are set to.
        controls: Draws of matched controls for the perplexity matrix; their seed is that of everything drawn.
        sample: Neurons to ablate, drawn at random from all, the same for every method; 0 ablates none.
        recording: What is recorded, from how much text; at one site.
        run: Where it runs, and the folder for recordings and measurements.
        options: Single fields of ``Recording``, ``Controls``, ``Testing`` and ``Run``, such as ``sites=("head",)``.

    Returns:
        The comparison.

    Raises:
        StatisticsError: If there is no method, two have one name, or a method lacks what it needs.
        TaskError: If the held-out text is none.
        LanguageError: If it has no language in common with what is recorded.
        LangNeuronsError: If ``record_nulls``, ``perplexity_matrix`` or ``ablate`` refuses something.

    Example:
        >>> methods = {"LAPE": ln.LAPE(top=0.01), "mean": ln.identification.MeanActivation(top=0.01)}
        >>> ln.compare_methods(methods, model, stats).rows["method"].tolist()
        ['LAPE', 'mean']
    """
    current: Mapping[str, Any] = options
    if "site" in current:
        warn_user("The option site= is called sites=, a list of one.")
        current = {"sites": [current["site"]], **{name: part for name, part in current.items() if name != "site"}}
    controls, testing, recording, run = with_options(current, controls_of(controls), Testing(), recording, run)
    by_name = _named(methods)
    heldout = None if text is None else _checked_text(text, recorded)
    if sample < 0:
        raise StatisticsError(f"The number of neurons to ablate cannot be negative, given {sample}.")
    site, *more = recording.sites
    if more:
        raise StatisticsError(f"Methods are compared at one site, not at {', '.join(recording.sites)}.")
    seed = controls.seed
    testing = testing.model_copy(update={"seed": seed})
    if isinstance(recorded, Corpus):
        also = check_optional([*recording.also, *(need for method in by_name.values() for need in method.needs)])
        recording = recording.model_copy(update={"also": also})
        recorded = record_nulls(
            model, recorded, which=nulls, seed=seed, recording=recording, run=inside(run, "recordings")
        )
    real, null = (recorded.real, recorded.nulls) if isinstance(recorded, Recordings) else (recorded.at(site), {})
    stats, notes = whole(real), []
    rows = {name: {"method": name, **_on_paper(name, method, real, null, notes)} for name, method in by_name.items()}
    if heldout is not None:
        heldout, ablated = HeldoutText.of(model, heldout), None
        if sample:
            every = NeuronSet({}, stats.shape, stats.site, stats.model.fingerprint, "a uniform random sample")
            neurons = uniform_sample(every, sample, seed, "compared")
            # A batch of texts of the other measurements is no number of rows of this one.
            alone = inside(run, "ablation").model_copy(update={"batch_size": None})
            rows_of_neurons = ablate(model, neurons, heldout, value=value, testing=testing, run=alone).rows
            flat = rows_of_neurons["layer"] * stats.shape[1] + rows_of_neurons["neuron"]
            table = rows_of_neurons.assign(flat=flat).pivot(index="flat", columns="language", values="effect")
            ablated = table.reindex(columns=[language for language in stats.languages if language in table.columns])
        matched, folder = controls.model_copy(update={"stats": controls.stats or stats}), inside(run, "matrix")
        for name, method in by_name.items():
            neurons, matrix = _identified(method, stats), None
            patched = [label for label, flat in neurons.members.items() if len(flat) and label in heldout.languages]
            if patched and len(heldout.languages) > 1:
                matrix = perplexity_matrix(
                    model, heldout, neurons, value, controls=matched, testing=testing, run=folder
                )
            rows[name] |= _selectivity(matrix)
            if ablated is not None:
                rows[name] |= agreement(ablated, reliability.deciding(method, stats), seed)
    settings = {
        "site": site,
        "model": stats.model.fingerprint,
        "languages": list(stats.languages),
        "tokens": stats.tokens.tolist(),
        "methods": {name: repr(method) for name, method in by_name.items()},
        "value": repr(value),
        "seed": seed,
        "notes": notes,
    }
    return Comparison(pd.DataFrame(list(rows.values())), _overlap(by_name, stats), settings)


def _named(methods: Mapping[str, object] | Sequence[object]) -> dict[str, Method]:
    pairs = methods.items() if isinstance(methods, Mapping) else [(repr(method), method) for method in methods]
    by_name = {}
    for name, method in pairs:
        if not isinstance(method, Method):
            raise StatisticsError(f"{name!r} is not a method such as ln.LAPE(top=0.01), but a {type(method).__name__}.")
        by_name[name] = method
    if not by_name or len(by_name) < len(methods):
        raise StatisticsError(f"A comparison needs methods, each with a name of its own, not {list(methods)}.")
    return by_name


def _checked_text(text: object, recorded: Corpus | Recordings | ActivationStats) -> Corpus | HeldoutText:
    """Refuse text on which nothing could be compared, before anything is recorded."""
    if not isinstance(text, Corpus | HeldoutText):
        raise TaskError(f"Methods are compared on a held-out corpus or HeldoutText, not on a {type(text).__name__}.")
    languages = whole(recorded.real).languages if isinstance(recorded, Recordings) else recorded.languages
    if not set(languages) & set(text.languages):
        raise LanguageError(
            f"The held-out text is in {', '.join(text.languages)}, what is recorded in {', '.join(languages)}: they "
            "need a language in common."
        )
    return text


def _identified(method: Method, stats: ActivationStats) -> NeuronSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangNeuronsWarning)
        return method.identify(stats)


def _on_paper(
    name: str, method: Method, real: ActivationStats | Halves, null: Mapping[str, Halves], notes: list[str]
) -> dict[str, float]:
    """What can be said of a method without running the model again."""
    row = {"chosen": float(len(_identified(method, whole(real))))}
    try:
        figures = reliability.split_half(method, real).overall
    except StatisticsError as error:
        if isinstance(real, tuple):
            raise
        notes.append(f"{name} cannot be split in halves: {error}")
        figures = {}
    row |= {figure: figures.get(figure, np.nan) for figure in ("spearman", "jaccard", "jaccard_chance")}
    null_shares = nulls_of(method, real, null) if null else None
    return row | {f"null_{kind}": null_shares.share(kind) for kind in null if null_shares is not None}


def _overlap(methods: Mapping[str, Method], stats: ActivationStats) -> pd.DataFrame:
    neurons = int(np.prod(stats.shape))
    selected = {name: reliability.selections(method, stats) for name, method in methods.items()}
    rows = []
    for first, second in itertools.combinations(methods, 2):
        for language in stats.languages:
            left, right = selected[first][language].neurons, selected[second][language].neurons
            either = len(np.union1d(left, right))
            jaccard = len(np.intersect1d(left, right)) / either if either else np.nan
            rows.append((first, second, language, jaccard, reliability.chance_jaccard(len(left), len(right), neurons)))
    return pd.DataFrame(rows, columns=pd.Index(["first", "second", "language", "jaccard", "jaccard_chance"]))


def _selectivity(matrix: EffectTable | None) -> dict[str, float]:
    """How selective patching is, in points of the loss; missing without a matrix."""
    table = None if matrix is None else matrix.selectivity
    if table is None:
        return {"selectivity": np.nan}
    row = table.set_index("language").loc[ALL]
    columns = {"selectivity": "selectivity", "selectivity_low": "low", "selectivity_high": "high"}
    columns |= {"selectivity_control": "control_mean"} if "control_mean" in table.columns else {}
    return {name: 100 * float(row[column]) for name, column in columns.items()}


def agreement(effects: pd.DataFrame, decided: Mapping[str, Selection], seed: int) -> dict[str, float]:
    """Rank correlation of a method's scores with exact effects, mean over languages, and intervals.

    Args:
        effects: Relative change of every language's loss without each of some neurons: a row per flat index, a column
            per language.
        decided: Selections by which the method decides, see ``deciding``.
        seed: Seed of the bootstrap over neurons.

    Returns:
        ``ablated``, ``ablation`` and ``ablation_selective``, as ``Comparison.rows`` has them.
    """
    by_language = {name: selection for name, selection in decided.items() if name in effects.columns} or decided
    scores = np.stack([_strength(selection)[effects.index] for selection in by_language.values()])
    draws = np.random.default_rng(seed).integers(0, len(effects), (RESAMPLES, len(effects)))
    row, values = {"ablated": float(len(effects))}, effects.to_numpy(dtype=float)
    sizes = np.abs(values)
    beyond = values - (values.sum(1, keepdims=True) - values) / max(values.shape[1] - 1, 1)
    measures = {"ablation": (sizes, sizes.mean(1)), "ablation_selective": (beyond, beyond.max(1))}
    for name, (of_languages, overall) in measures.items():
        of_language = dict(zip(effects.columns, of_languages.T, strict=True))
        # A score that knows no language should agree with the effects over all of them.
        targets = np.stack([of_language.get(language, overall) for language in by_language])
        # Over neurons, the mean over languages; missing where nothing varies.
        mean = known_mean(rank_correlation(scores, targets), 0)
        resampled = known_mean(rank_correlation(scores[:, draws], targets[:, draws]), 0)
        low, high = known_quantiles(resampled, [0.025, 0.975])
        row |= {name: float(mean), f"{name}_low": low, f"{name}_high": high}
    return row


def _strength(selection: Selection) -> Float[np.ndarray, " neuron"]:
    """Scores turned so that what the method looks for is high, at one end or at both."""
    high, middle = reliability.high_ones(selection), float(np.median(selection.scores))
    if high.any() and not high.all():
        return np.abs(selection.scores - middle)
    return selection.scores if high.any() or not len(high) else -selection.scores
