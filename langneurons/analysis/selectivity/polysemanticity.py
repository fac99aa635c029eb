"""Do language neurons carry the task too? Every neuron decomposed; a set's tested, probed, held against controls."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

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
from langneurons.errors import NeuronSetError, StatisticsError
from langneurons.identification.controls import matched_by
from langneurons.identification.neurons import NeuronSet
from langneurons.models import view
from langneurons.patches.intervening import check_fits
from langneurons.patches.patch import SetTo
from langneurons.recording.statistics import ActivationStats
from langneurons.settings import Controls

FINEST = 10_000  # exchanges of one neuron: enough for a family of 250 in which it stands alone
PROBE_COLUMNS = ["language", "predicts", "k", "accuracy", "chance"]
AUROC_COLUMNS = ["language", "layer", "neuron", "factor", "level", "auroc"]


def polysemanticity(
    model: torch.nn.Module,
    neurons: NeuronSet,
    task: Any,
    languages: Iterable[str] | None = None,
    position: str = "mean",
    controls: int = 20,
    permutations: int = 1000,
    stats: ActivationStats | None = None,
    max_items: int | None = None,
    probe_sizes: Sequence[int] = (1, 2, 4, 8, 16),
    least_share: float = 0.01,
    batch_size: int = 8,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Polysemanticity:
    """Ask of every neuron how much language and a task's labels explain of it, and of a set whether it carries both.

    Every neuron's variance over texts is divided among language, label and their interaction (type II). The set's
    neurons and matched controls are tested by exchanging labels among items, all translations together, and languages
    within clusters. A neuron is judged within its set (FDR 5 %); a control draw is judged as a set of its own, so that
    counts compare. Probes predict label and language from few neurons of a set, on items they were not fitted on.

    Args:
        model: From ``load_model``; whatever is attached to it counts.
        neurons: The neurons, such as each language's; they say at which site activations are read.
        task: ``XNLI``, ``XQuAD`` or ``LabelledTexts``, in at least two languages; see ``LabelledTexts.of``.
        languages: Which; None is all of the task's.
        position: A neuron's value on a text: its "mean" over counted tokens, or what it is on the "last" one.
        controls: Draws of matched controls.
        permutations: Exchanges a test, at first; neurons that need finer p-values get more.
        stats: Match controls by magnitude too, not by layer alone.
        max_items: Draw clusters at random until there are so many items; None takes all.
        probe_sizes: Neurons a probe reads; none to leave probes away.
        least_share: What explains less, beyond chance, of the variance that the other sources leave, is taken for
            nothing.
        batch_size: Texts a forward.
        seed: Of items, controls, exchanges and the division of items for probes.
        out: Folder that keeps what was read; the same call goes on there.
        progress: Show a progress bar on standard error.

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
        >>> from langneurons.analysis.selectivity.texts import LabelledTexts
        >>> texts = {"en": ["It rains.", "It is dry.", "Rain falls.", "The sun shines."],
        ...          "fr": ["Il pleut.", "Il fait sec.", "La pluie tombe.", "Le soleil brille."]}
        >>> task = LabelledTexts.parallel(texts, ["wet", "dry", "wet", "dry"], name="weather")
        >>> neurons = ln.LAPE(top=0.001).identify(stats)
        >>> found = polysemanticity(model, neurons, task, controls=2, permutations=100, probe_sizes=(), progress=False)
        >>> list(found.sets["carries"].unique())
        ['language', 'task', 'both']
    """
    _check_options(controls, permutations, probe_sizes, least_share)
    texts = chosen_texts(task, languages, max_items, seed)
    kept = _without_empty(neurons)
    check_fits(SetTo(kept, 0.0), view(model))
    probes = {factor: Probes(Design.of(texts, factor), seed) for factor in FACTORS} if probe_sizes else {}
    how = Controls(draws=controls, stats=stats, seed=seed)
    drawn = [kept.matched_control(how, draw) for draw in range(controls)]
    chosen = np.unique(np.concatenate([flat for one in (kept, *drawn) for flat in one.members.values()]))
    readings = read(model, texts, neurons.site, position, chosen, batch_size, out, progress)
    decomposition = readings.decomposition()
    needed = round(TESTS_A_TASK * max(map(len, kept.members.values())) / SIGNIFICANCE)
    finest = max(permutations, min(needed, FINEST))
    known, told = neuron_evidence(readings, decomposition, chosen, permutations, finest, seed, progress)
    own, *others = (families(one.members, known, least_share) for one in (kept, *drawn))
    return Polysemanticity(
        rows=pd.concat(own.values(), keys=own, names=["language"]).reset_index("language").reset_index(drop=True),
        sets=counted(own, others),
        probes=_probed(probes, readings, kept, drawn, chosen, probe_sizes, progress),
        auroc=_levels_told(kept, known, told),
        decomposition=decomposition,
        settings={
            **_about(readings),
            "neurons": neurons.method,
            "position": position,
            "controls": controls,
            "match": matched_by(how),
            "permutations": permutations,
            "finest": finest,
            "least_share": float(least_share),
            "seed": seed,
        },
    )


def _about(readings: Readings) -> dict[str, Any]:
    texts = readings.texts
    return {
        "model": readings.model,
        "site": readings.site,
        "task": texts.name,
        "texts": texts.fingerprint,
        "items": len(texts.known),
        "clusters": len(set(texts.known["cluster"])),
        "cut": readings.cut,
    }


def _probed(
    probes: Mapping[str, Probes],
    readings: Readings,
    neurons: NeuronSet,
    controls: Sequence[NeuronSet],
    chosen: Int[np.ndarray, " chosen"],
    sizes: Sequence[int],
    progress: bool,
) -> pd.DataFrame:
    """Predict language and label from few neurons of each set, and of each of its controls."""
    rows, drawn, least = [], [], []
    sets = list(product(probes, neurons.languages))
    for factor, label in tqdm(sets, unit="set", disable=not (progress and sets)):
        probe = probes[factor]
        own, *others = (
            probe.accuracy(all_values(readings, np.searchsorted(chosen, one.members[label])), sizes)
            for one in (neurons, *controls)
        )
        for size, accuracy in own.items():
            rows.append(
                {"language": label, "predicts": factor, "k": size, "accuracy": accuracy, "chance": probe.chance}
            )
            drawn.append([other[size] for other in others])
            least.append(1 / len(readings.texts.known))
    return beside_controls(pd.DataFrame(rows, columns=PROBE_COLUMNS), "accuracy", drawn, least)


def _levels_told(neurons: NeuronSet, known: pd.DataFrame, told: pd.DataFrame) -> pd.DataFrame:
    """One row a label, neuron, factor and level."""
    long = told.melt(ignore_index=False, value_name="auroc")
    parts = [long.loc[flat].assign(language=label) for label, flat in neurons.members.items()]
    joined = pd.concat(parts).join(known[["layer", "neuron"]])
    return joined.reindex(columns=AUROC_COLUMNS).reset_index(drop=True)


def _without_empty(neurons: NeuronSet) -> NeuronSet:
    members = {label: flat for label, flat in neurons.members.items() if len(flat)}
    if not members:
        raise NeuronSetError(f"No label of {neurons!r} has a neuron: there is nothing to ask.")
    return replace(neurons, members=members, scores={})


def _check_options(controls: int, permutations: int, probe_sizes: Sequence[int], least_share: float) -> None:
    if controls < 0 or permutations < 100:
        raise StatisticsError(
            f"There are 0 control draws or more and at least 100 permutations, given {controls} and {permutations}."
        )
    if any(size < 1 for size in probe_sizes):
        raise StatisticsError(f"A probe reads at least one neuron, given probe_sizes={tuple(probe_sizes)}.")
    if not 0 <= least_share < 1:
        raise StatisticsError(f"least_share is a share of the variance from 0 to below 1, given {least_share}.")


AT_ONCE = 128  # neurons
FACTORS: tuple[Factor, ...] = ("language", "task")
# By which exchanges each source is tested: the interaction by those of labels, as the label itself.
TEST_OF = {"language": ("language", 0), "task": ("task", 0), "interaction": ("task", 1)}


def neuron_evidence(
    readings: Readings,
    decomposition: Decomposition,
    chosen: Int[np.ndarray, " chosen"],
    permutations: int,
    finest: int,
    seed: int,
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test neurons against exchanges of languages and labels, and measure what their values tell.

    Args:
        readings: With the values of these neurons.
        decomposition: Of the readings.
        chosen: Flat indices, as they were read.
        permutations: As for ``ExchangeTest``.
        finest: As for ``ExchangeTest``.
        seed: Of the exchanges.
        progress: Show a progress bar on standard error.

    Returns:
        Two tables indexed by flat index. The first has layer, neuron and shares as ``Decomposition.table`` gives them;
        of language, task and interaction the p-value (language_p, ...) and the partial share beyond what chance
        explains (language_excess, ...); language_detectable and task_detectable, the partial shares that one 5 % test
        finds with 80 % power; language_bits and task_bits. The second has the AUROC of every language and label, a
        column each.
    """
    designs = {factor: Design.of(readings.texts, factor) for factor in FACTORS}
    tests = {factor: ExchangeTest(design, permutations, finest, seed) for factor, design in designs.items()}
    columns: dict[str, list[np.ndarray]] = {}
    with tqdm(total=len(chosen), unit="neuron", disable=not progress) as bar:
        for values in _columns(readings, decomposition, chosen):
            for name, found in _measured(designs, tests, values, seed).items():
                columns.setdefault(name, []).append(found)
            bar.update(values.shape[1])
    measured = {name: np.concatenate(parts, axis=-1) for name, parts in columns.items()}
    tells = {(factor, level): measured[f"{factor}_auroc"][place] for factor, place, level in _levels(readings)}
    index = pd.Index(chosen, name="flat")
    told = pd.DataFrame(tells, index=index)
    told.columns = pd.MultiIndex.from_tuples(tells, names=["factor", "level"])
    squares = {name: values.ravel()[chosen] for name, values in decomposition.squares.items()}
    table = decomposition.table().loc[chosen].assign(**_compared(squares, measured))
    return table.set_index(index), told


def all_values(readings: Readings, columns: Int[np.ndarray, " column"]) -> Float[np.ndarray, "text column"]:
    """Read what some of the chosen neurons were on every text, languages one after the other."""
    parts = [readings.values[language][:, columns] for language in readings.texts.languages]
    return np.concatenate(parts).astype(float)


def _columns(
    readings: Readings, decomposition: Decomposition, chosen: Int[np.ndarray, " chosen"]
) -> Iterator[Float[np.ndarray, "text neuron"]]:
    """Values of a few neurons at a time; of those that differ by rounding only, zeros."""
    changes = decomposition.squares["total"].ravel()[chosen] > 0
    for first in range(0, len(chosen), AT_ONCE):
        columns = np.arange(first, min(first + AT_ONCE, len(chosen)))
        yield all_values(readings, columns) * changes[columns]


def _measured(
    designs: Mapping[str, Design],
    tests: Mapping[str, ExchangeTest],
    values: Float[np.ndarray, "text neuron"],
    seed: int,
) -> dict[str, np.ndarray]:
    found = {}
    for factor, design in designs.items():
        test = tests[factor](values)
        found |= {
            f"{factor}_p": test.p,
            f"{factor}_null": test.null,
            f"{factor}_least": test.detectable,
            f"{factor}_bits": bits(design, values, seed),
            f"{factor}_auroc": auroc(design, values),
        }
    return found


def _compared(squares: Mapping[str, np.ndarray], measured: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turn sums of squares and tests of both factors into columns."""
    found, residual = {}, squares["residual"]
    for source, (factor, part) in TEST_OF.items():
        found[f"{source}_p"] = measured[f"{factor}_p"][part]
        chance = measured[f"{factor}_null"][part]
        found[f"{source}_excess"] = ratio(squares[source] - chance, squares[source] + residual)
    for factor in FACTORS:
        least = measured[f"{factor}_least"]
        reachable = np.isfinite(least)
        finite = np.where(reachable, least, 0)
        found[f"{factor}_detectable"] = np.where(reachable, ratio(finite, finite + residual), np.inf)
        found[f"{factor}_bits"] = measured[f"{factor}_bits"]
    return found


def _levels(readings: Readings) -> list[tuple[str, int, str]]:
    named = {"language": readings.texts.languages, "task": readings.texts.labels}
    return [(factor, place, level) for factor in FACTORS for place, level in enumerate(named[factor])]
