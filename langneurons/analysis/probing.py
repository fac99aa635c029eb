"""Do language neurons carry the task too? Every neuron decomposed; a set's tested, probed, held against controls."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from langneurons.analysis.decomposition import Decomposition, ratio
from langneurons.analysis.permutation import Design, ExchangeTest, Factor, auroc, bits
from langneurons.analysis.polysemanticity import TESTS_A_TASK, Polysemanticity, beside_controls, counted, judged
from langneurons.analysis.reading import Readings, chosen_texts, read
from langneurons.effects.resampling import SIGNIFICANCE
from langneurons.effects.table import spreads_of
from langneurons.errors import NeuronSetError, TaskError
from langneurons.identification.controls import matched_by
from langneurons.identification.neurons import NeuronSet, report_balance, united
from langneurons.models import view
from langneurons.patches.intervening import check_fits
from langneurons.patches.patch import SetTo
from langneurons.run import Progress, alone_in_out
from langneurons.settings import Controls, Probing, ProbingOptions, Run, controls_of, with_options

FINEST = 10_000  # exchanges of one neuron: enough for a family of 250 in which it stands alone
AT_ONCE = 128  # neurons
FACTORS: tuple[Factor, ...] = ("language", "task")
# By which exchanges each source is tested: the interaction by those of labels, as the label itself.
TEST_OF = {"language": ("language", 0), "task": ("task", 0), "interaction": ("task", 1)}
PROBE_COLUMNS = ["language", "predicts", "k", "accuracy", "chance"]
AUROC_COLUMNS = ["language", "layer", "neuron", "factor", "level", "auroc"]


@alone_in_out
def polysemanticity(
    model: torch.nn.Module,
    neurons: NeuronSet,
    task: object,
    languages: Iterable[str] | None = None,
    *,
    controls: int | Controls = 20,
    probing: Probing = Probing(),
    run: Run = Run(),
    **options: Unpack[ProbingOptions],
) -> Polysemanticity:
    """Ask of every neuron how much language and a task's labels explain of it, and of a set whether it carries both.

    Every neuron's variance over texts is divided among language, label and their interaction (type II). The set's
    neurons and matched controls are tested by exchanging labels among items, all translations together, and languages
    within clusters. A neuron is judged within its set (FDR 5 %); a control draw is judged as a set of its own, so that
    counts compare. Probes predict label and language from few neurons of a set, on items they were not fitted on.

    Args:
        model: A model returned by ``load_model``; whatever is attached to it counts.
        neurons: The neurons, such as each language's; they say at which site activations are read.
        task: ``XNLI``, ``XQuAD`` or ``LabelledTexts``, in at least two languages; see ``LabelledTexts.of``.
        languages: Languages to compare; by default all of the task's.
        controls: Draws of matched controls.
        probing: How values are read and tested; neurons that need finer p-values get more exchanges than these.
        run: Where texts are read, one language by itself, and the folder that keeps what was read; texts per forward
            pass, 8 by default.
        options: Single fields of ``Probing``, ``Controls`` and ``Run``, such as ``position="last"``.

    Returns:
        Shares, tests and verdict of every neuron of the set; counts and probes of each label beside its controls.

    Raises:
        TaskError: If texts or labels are malformed, there is only one language, languages share no label, or there are
            too few clusters for probes.
        LanguageError: If the task, or the statistics of a label to match, lack a language.
        NeuronSetError: If the set is empty, or a layer has too few neurons for a control.
        PatchError: If the set is of another model's shape, or something is attached while ``out`` is given.
        SiteMismatchError: If it is of a model with other weights.
        StatisticsError: If an option is out of range.

    Example:
        >>> texts = {"en": ["It rains.", "It is dry.", "Rain falls.", "The sun shines."],
        ...          "fr": ["Il pleut.", "Il fait sec.", "La pluie tombe.", "Le soleil brille."]}
        >>> task = ln.analysis.LabelledTexts.parallel(texts, ["wet", "dry", "wet", "dry"], name="weather")
        >>> neurons, few = ln.LAPE(top=0.001).identify(stats), {"permutations": 100, "probe_sizes": ()}
        >>> carried = ln.polysemanticity(model, neurons, task, controls=2, progress=False, **few)
        >>> list(carried.sets["carries"].unique())
        ['language', 'task', 'both']
    """
    controls, probing, run = with_options(options, controls_of(controls), probing, run)
    texts, members = chosen_texts(task, languages, probing), {k: v for k, v in neurons.members.items() if len(v)}
    if not members:
        raise NeuronSetError(f"No label of {neurons!r} has a neuron: there is nothing to ask.")
    neurons = replace(neurons, members=members, scores={})
    check_fits(SetTo(neurons, 0.0), view(model))
    designs = {factor: Design.of(texts, factor) for factor in FACTORS}
    probes = {factor: Probes(design, probing.seed) for factor, design in designs.items() if probing.probe_sizes}
    draws = [neurons.matched_control(controls, draw) for draw in range(controls.draws)]
    flat = united([neurons, *draws]).members["all"]
    readings = read(model, texts, neurons.site, probing.position, flat, run)
    decomposition = readings.decomposition()
    needed = round(TESTS_A_TASK * max(map(len, neurons.members.values())) / SIGNIFICANCE)
    finest = max(probing.permutations, min(needed, FINEST))
    tests = {
        factor: ExchangeTest(design, probing.permutations, finest, probing.seed) for factor, design in designs.items()
    }
    evidence, aurocs = neuron_evidence(readings, decomposition, flat, tests, bool(run.progress))
    own, *others = (
        {label: judged(evidence.loc[flat], probing.least_share) for label, flat in neuron_set.members.items()}
        for neuron_set in (neurons, *draws)
    )
    balance = report_balance(neurons, controls, draws=draws)
    spreads = spreads_of(balance)
    return Polysemanticity(
        rows=pd.concat(own.values(), keys=own, names=["language"]).reset_index("language").reset_index(drop=True),
        sets=counted(own, others, spreads),
        probes=_probed(probes, readings, [neurons, *draws], flat, probing.probe_sizes, spreads, bool(run.progress)),
        auroc=_by_level(neurons, evidence, aurocs),
        decomposition=decomposition,
        settings={
            "model": readings.model,
            "site": readings.site,
            "task": texts.name,
            "texts": texts.fingerprint,
            "items": len(texts.known),
            "clusters": len(set(texts.known["cluster"])),
            "cut": readings.cut,
            "neurons": neurons.method,
            "controls": controls.draws,
            "match": matched_by(controls),
            **balance,
            "finest": finest,
            **probing.model_dump(include={"position", "permutations", "least_share", "seed"}),
        },
    )


def _probed(
    probes: Mapping[str, "Probes"],
    readings: Readings,
    sets: Sequence[NeuronSet],
    flat: Int[np.ndarray, " neuron"],
    sizes: Sequence[int],
    spreads: Mapping[str, float | None],
    progress: bool,
) -> pd.DataFrame:
    """Predict language and label from few neurons of the first set's labels, and of each of its controls."""
    rows, control_accuracies = [], []
    labels = list(product(probes, sets[0].languages))
    for factor, label in Progress(labels, unit="set", shown=progress and labels):
        probe = probes[factor]
        own, *others = (
            probe.accuracy(all_values(readings, np.searchsorted(flat, neurons.members[label])), sizes)
            for neurons in sets
        )
        rows += [(label, factor, size, accuracy, probe.chance) for size, accuracy in own.items()]
        control_accuracies += [[other[size] for other in others] for size in own]
    least = [1 / len(readings.texts.known)] * len(rows)
    table = pd.DataFrame(rows, columns=PROBE_COLUMNS)
    return beside_controls(table, "accuracy", control_accuracies, least, spreads)


def _by_level(neurons: NeuronSet, evidence: pd.DataFrame, aurocs: pd.DataFrame) -> pd.DataFrame:
    """One row per label, neuron, factor and level."""
    long = aurocs.melt(ignore_index=False, value_name="auroc")
    parts = [long.loc[flat].assign(language=label) for label, flat in neurons.members.items()]
    rows = pd.concat(parts).join(evidence[["layer", "neuron"]])
    return rows.reindex(columns=AUROC_COLUMNS).reset_index(drop=True)


def neuron_evidence(
    readings: Readings,
    decomposition: Decomposition,
    flat: Int[np.ndarray, " neuron"],
    tests: Mapping[str, ExchangeTest],
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test neurons against exchanges of languages and labels, and measure what their values tell.

    Args:
        readings: Readings with the values of these neurons.
        decomposition: Decomposition of the readings.
        flat: Flat indices of the neurons, as they were read.
        tests: The test of each factor.
        progress: Whether to show a progress bar on standard error.

    Returns:
        Two tables indexed by flat index. The first has layer, neuron and shares as ``Decomposition.rows`` has them; of
        language, task and interaction the p-value (language_p, ...) and the partial share beyond what chance explains
        (language_excess, ...); language_detectable and task_detectable, the partial shares that one 5 % test finds with
        80 % power; language_bits and task_bits. The second has the AUROC of every language and label, a column each.
    """
    parts, changes = [], decomposition.squares["total"].ravel()[flat] > 0
    with Progress(total=len(flat), unit="neuron", shown=progress) as bar:
        for columns in np.array_split(np.arange(len(flat)), range(AT_ONCE, len(flat), AT_ONCE)):
            # Those that differ by rounding only are taken for zeros.
            parts.append(_figures(tests, all_values(readings, columns) * changes[columns]))
            bar.update(len(columns))
    figures = {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}
    levels = {"language": readings.texts.languages, "task": readings.texts.labels}
    by_level = {
        (factor, level): figures[f"{factor}_auroc"][place]
        for factor in FACTORS
        for place, level in enumerate(levels[factor])
    }
    index = pd.Index(flat, name="flat")
    aurocs = pd.DataFrame(by_level, index=index).rename_axis(columns=["factor", "level"])
    evidence = decomposition.rows.loc[flat].copy()
    residual, *squares = (
        decomposition.squares[name].ravel()[flat] for name in ("residual", "language", "task", "interaction")
    )
    for (source, (factor, part)), own in zip(TEST_OF.items(), squares, strict=True):
        chance = figures[f"{factor}_null"][part]
        evidence[f"{source}_p"] = figures[f"{factor}_p"][part]
        evidence[f"{source}_excess"] = ratio(own - chance, own + residual)
    for factor in FACTORS:
        least = figures[f"{factor}_least"]
        finite = np.where(np.isfinite(least), least, 0)
        evidence[f"{factor}_detectable"] = np.where(np.isfinite(least), ratio(finite, finite + residual), np.inf)
        evidence[f"{factor}_bits"] = figures[f"{factor}_bits"]
    return evidence.set_index(index), aurocs


def all_values(readings: Readings, columns: Int[np.ndarray, " column"]) -> Float[np.ndarray, "text column"]:
    """Read what some of the neurons were on every text, languages one after the other."""
    parts = [readings.values[language][:, columns] for language in readings.texts.languages]
    return np.concatenate(parts).astype(float)


def _figures(tests: Mapping[str, ExchangeTest], values: Float[np.ndarray, "text neuron"]) -> dict[str, np.ndarray]:
    figures = {}
    for factor, test in tests.items():
        tested = test(values)
        figures |= {
            f"{factor}_p": tested.p,
            f"{factor}_null": tested.null,
            f"{factor}_least": tested.detectable,
            f"{factor}_bits": bits(test.design, values, test.seed),
            f"{factor}_auroc": auroc(test.design, values),
        }
    return figures


FOLDS = 3
ATTEMPTS = 10  # at a division of few clusters that keeps every class to be fitted


class Probes:
    """Logistic regressions on few neurons (Gurnee et al. 2023, arXiv 2305.01610), fitted and tested on other clusters.

    A label is predicted within languages: the mean that a neuron has in each language, over the training texts, is
    taken away first, as type II sums of squares do. The k neurons are those, of the set, that differ most between the
    classes (F) in the training texts alone.

    Args:
        design: Design of what is predicted: language or task label.
        seed: Seed of the division into three parts, each tested by what the other two fitted; a cluster is in one part.

    Attributes:
        chance: The accuracy of a probe that knows nothing.

    Raises:
        TaskError: If some class is in fewer than two clusters, or clusters cannot be divided so that every class is
            there to be fitted.
    """

    def __init__(self, design: Design, seed: int = 0) -> None:
        self._design = design
        self.chance = 1 / design.shape[0]
        classes, clusters = design.observed, design.blocks[design.units]
        least = min(len(np.unique(clusters[classes == level])) for level in np.unique(classes))
        if least < 2:
            raise TaskError(
                f"A probe needs every class of {design.factor} in two clusters, one has {least}: give more clusters, "
                "or probe_sizes=() to leave probes out."
            )
        for attempt in range(ATTEMPTS):
            splits = StratifiedGroupKFold(min(FOLDS, least), shuffle=True, random_state=seed + attempt)
            self._folds = list(splits.split(classes[:, None], classes, clusters))
            if all(len(np.unique(classes[train])) == design.shape[0] for train, _ in self._folds):
                return
        raise TaskError(
            f"The {len(np.unique(clusters))} clusters cannot be divided so that every class of {design.factor} is "
            "there to be fitted: give more clusters, or probe_sizes=() to leave probes out."
        )

    def accuracy(self, values: Float[np.ndarray, "text neuron"], sizes: Sequence[int]) -> dict[int, float]:
        """Fit and test probes of several sizes.

        Args:
            values: One row per text, one column per neuron of the set.
            sizes: Numbers of neurons that probes read.

        Returns:
            Size -> balanced accuracy (the mean over classes of the share found) on the texts left out; sizes beyond the
            set are left out.
        """
        classes = self._design.observed
        fitting = [size for size in sizes if size <= values.shape[1]]
        predicted = {size: np.empty_like(classes) for size in fitting}
        for train, test in self._folds:
            prepared = self._prepared(values, train)
            order = _by_difference(prepared[train], classes[train])
            for size in fitting:
                best = order[:size]
                probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, tol=1e-3))
                probe.fit(prepared[train][:, best], classes[train])
                predicted[size][test] = probe.predict(prepared[test][:, best])
        return {size: float(balanced_accuracy_score(classes, guesses)) for size, guesses in predicted.items()}

    def _prepared(
        self, values: Float[np.ndarray, "text neuron"], train: Int[np.ndarray, " train"]
    ) -> Float[np.ndarray, "text neuron"]:
        if self._design.factor == "language":
            return values
        others = self._design.others
        among = (others[train] == np.arange(self._design.shape[1])[:, None]).astype(float)
        means = among @ values[train] / np.maximum(among.sum(1, keepdims=True), 1)
        return values - means[others]


def _by_difference(
    values: Float[np.ndarray, "text neuron"], classes: Int[np.ndarray, " text"]
) -> Int[np.ndarray, " neuron"]:
    """Neurons in the order of how much they differ between classes, those that never change last."""
    changes = np.ptp(values, axis=0) > 0
    difference = np.full(values.shape[1], -1.0)
    if changes.any():
        difference[changes] = np.nan_to_num(f_classif(values[:, changes], classes)[0], posinf=np.finfo(float).max)
    return np.argsort(-difference, kind="stable")
