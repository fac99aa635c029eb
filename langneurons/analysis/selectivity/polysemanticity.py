"""Do language neurons carry the task too? Every neuron decomposed; a set's tested, probed, held against controls."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from tqdm import tqdm

from langneurons.analysis.selectivity.decomposition import Decomposition, ratio
from langneurons.analysis.selectivity.permutation import Design, ExchangeTest, Factor, auroc, bits
from langneurons.analysis.selectivity.probes import Probes
from langneurons.analysis.selectivity.reading import Readings, chosen_texts, read
from langneurons.analysis.selectivity.result import TESTS_A_TASK, Polysemanticity, beside_controls, counted, families
from langneurons.effects.resampling import SIGNIFICANCE
from langneurons.errors import NeuronSetError
from langneurons.identification.controls import matched_by
from langneurons.identification.neurons import NeuronSet, united
from langneurons.models import view
from langneurons.patches.intervening import check_fits
from langneurons.patches.patch import SetTo
from langneurons.settings import Controls, Probing, ProbingOptions, Run, controls_of, with_options

FINEST = 10_000  # exchanges of one neuron: enough for a family of 250 in which it stands alone
AT_ONCE = 128  # neurons
FACTORS: tuple[Factor, ...] = ("language", "task")
# By which exchanges each source is tested: the interaction by those of labels, as the label itself.
TEST_OF = {"language": ("language", 0), "task": ("task", 0), "interaction": ("task", 1)}
PROBE_COLUMNS = ["language", "predicts", "k", "accuracy", "chance"]
AUROC_COLUMNS = ["language", "layer", "neuron", "factor", "level", "auroc"]


def polysemanticity(
    model: torch.nn.Module,
    neurons: NeuronSet,
    task: Any,
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
        run: Texts per forward pass (8 by default), progress, and the folder that keeps what was read.
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
    texts, neurons = chosen_texts(task, languages, probing), _without_empty(neurons)
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
    own, *others = (families(neuron_set.members, evidence, probing.least_share) for neuron_set in (neurons, *draws))
    return Polysemanticity(
        rows=pd.concat(own.values(), keys=own, names=["language"]).reset_index("language").reset_index(drop=True),
        sets=counted(own, others),
        probes=_probed(probes, readings, [neurons, *draws], flat, probing.probe_sizes, bool(run.progress)),
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
            "position": probing.position,
            "controls": controls.draws,
            "match": matched_by(controls),
            "permutations": probing.permutations,
            "finest": finest,
            "least_share": probing.least_share,
            "seed": probing.seed,
        },
    )


def _probed(
    probes: Mapping[str, Probes],
    readings: Readings,
    sets: Sequence[NeuronSet],
    flat: Int[np.ndarray, " neuron"],
    sizes: Sequence[int],
    progress: bool,
) -> pd.DataFrame:
    """Predict language and label from few neurons of the first set's labels, and of each of its controls."""
    rows, control_accuracies = [], []
    labels = list(product(probes, sets[0].languages))
    for factor, label in tqdm(labels, unit="set", disable=not (progress and labels)):
        probe = probes[factor]
        own, *others = (
            probe.accuracy(all_values(readings, np.searchsorted(flat, neurons.members[label])), sizes)
            for neurons in sets
        )
        rows += [(label, factor, size, accuracy, probe.chance) for size, accuracy in own.items()]
        control_accuracies += [[other[size] for other in others] for size in own]
    least = [1 / len(readings.texts.known)] * len(rows)
    return beside_controls(pd.DataFrame(rows, columns=PROBE_COLUMNS), "accuracy", control_accuracies, least)


def _by_level(neurons: NeuronSet, evidence: pd.DataFrame, aurocs: pd.DataFrame) -> pd.DataFrame:
    """One row per label, neuron, factor and level."""
    long = aurocs.melt(ignore_index=False, value_name="auroc")
    parts = [long.loc[flat].assign(language=label) for label, flat in neurons.members.items()]
    rows = pd.concat(parts).join(evidence[["layer", "neuron"]])
    return rows.reindex(columns=AUROC_COLUMNS).reset_index(drop=True)


def _without_empty(neurons: NeuronSet) -> NeuronSet:
    members = {label: flat for label, flat in neurons.members.items() if len(flat)}
    if not members:
        raise NeuronSetError(f"No label of {neurons!r} has a neuron: there is nothing to ask.")
    return replace(neurons, members=members, scores={})


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
    columns: dict[str, list[np.ndarray]] = {}
    with tqdm(total=len(flat), unit="neuron", disable=not progress) as bar:
        for values in _columns(readings, decomposition, flat):
            for name, part in _figures(tests, values).items():
                columns.setdefault(name, []).append(part)
            bar.update(values.shape[1])
    figures = {name: np.concatenate(parts, axis=-1) for name, parts in columns.items()}
    levels = {"language": readings.texts.languages, "task": readings.texts.labels}
    by_level = {
        (factor, level): figures[f"{factor}_auroc"][place]
        for factor in FACTORS
        for place, level in enumerate(levels[factor])
    }
    index = pd.Index(flat, name="flat")
    aurocs = pd.DataFrame(by_level, index=index)
    aurocs.columns = pd.MultiIndex.from_tuples(by_level, names=["factor", "level"])
    squares = {name: values.ravel()[flat] for name, values in decomposition.squares.items()}
    evidence = decomposition.rows.loc[flat].assign(**_compared(squares, figures))
    return evidence.set_index(index), aurocs


def all_values(readings: Readings, columns: Int[np.ndarray, " column"]) -> Float[np.ndarray, "text column"]:
    """Read what some of the neurons were on every text, languages one after the other."""
    parts = [readings.values[language][:, columns] for language in readings.texts.languages]
    return np.concatenate(parts).astype(float)


def _columns(
    readings: Readings, decomposition: Decomposition, flat: Int[np.ndarray, " neuron"]
) -> Iterator[Float[np.ndarray, "text neuron"]]:
    """Values of a few neurons at a time; of those that differ by rounding only, zeros."""
    changes = decomposition.squares["total"].ravel()[flat] > 0
    for first in range(0, len(flat), AT_ONCE):
        columns = np.arange(first, min(first + AT_ONCE, len(flat)))
        yield all_values(readings, columns) * changes[columns]


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


def _compared(squares: Mapping[str, np.ndarray], figures: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turn sums of squares and tests of both factors into columns."""
    columns, residual = {}, squares["residual"]
    for source, (factor, part) in TEST_OF.items():
        columns[f"{source}_p"] = figures[f"{factor}_p"][part]
        chance = figures[f"{factor}_null"][part]
        columns[f"{source}_excess"] = ratio(squares[source] - chance, squares[source] + residual)
    for factor in FACTORS:
        least = figures[f"{factor}_least"]
        reachable = np.isfinite(least)
        finite = np.where(reachable, least, 0)
        columns[f"{factor}_detectable"] = np.where(reachable, ratio(finite, finite + residual), np.inf)
        columns[f"{factor}_bits"] = figures[f"{factor}_bits"]
    return columns
