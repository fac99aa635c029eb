"""The perplexity matrix: patch one language's neurons, measure every language, and compare with controls."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np
import pandas as pd
import torch

from langneurons.corpora import Corpus
from langneurons.corpora.languages import distinct
from langneurons.effects.estimation import difference
from langneurons.effects.placement import (
    beyond_columns,
    beyond_controls,
    placement_columns,
    relative_changes,
    selectivity,
)
from langneurons.effects.table import EffectTable, spreads_of
from langneurons.errors import EffectError, PatchError, StatisticsError
from langneurons.evaluation.heldout_text import HeldoutText
from langneurons.evaluation.measuring import LanguageRows, loss_effects, measure, split_by_language
from langneurons.identification.controls import matched_by, reported_balance, statistics_at
from langneurons.identification.neurons import NeuronSet
from langneurons.patches.patch import Patch, SetTo, Value
from langneurons.run import alone_in_out
from langneurons.settings import ControlledOptions, Controls, Run, Testing, controls_of, with_options

UNPATCHED = ("unpatched",)
MakePatch = Callable[[NeuronSet, str], Patch]


@alone_in_out
def perplexity_matrix(
    model: torch.nn.Module,
    text: HeldoutText | Corpus,
    neurons: NeuronSet,
    value: Value = 0.0,
    *,
    languages: Iterable[str] | None = None,
    controls: int | Controls = 20,
    patch: MakePatch | None = None,
    layers: Iterable[int] | None = None,
    testing: Testing = Testing(),
    run: Run = Run(),
    **options: Unpack[ControlledOptions],
) -> EffectTable:
    """Patch each language's neurons and measure the loss in every language, beside matched and other controls.

    The effect of patching i on j is the change of j's summed negative log-likelihood, as a share of j's own unpatched
    one, so that languages can be compared (Tang et al. 2024 print this matrix without baseline, pairing or interval).

    Args:
        model: A model returned by ``load_model``.
        text: Text the model was not trained on, and the neurons were not found on; a corpus is packed by
            ``HeldoutText.of``.
        neurons: Neurons whose labels are patched, one after the other; a label without neurons is left out.
        value: A number or SiteValues to write for every label; see ``patch`` for one that depends on the label.
        languages: Labels to patch; by default all. Controls are drawn outside the neurons of every label.
        controls: Draws of matched controls per label: as many neurons per layer and, with ``stats``, per decile of mean
            magnitude x output norm. SiteValues are read at the control's own neurons. Statistics are also needed for
            frequent neutral neurons.
        patch: Makes the patch of some neurons in place of ``value``:
            ``lambda neurons, language: ln.SetTo(neurons, stats[language].mean())``.
        layers: Layers to write ``value`` in; by default all.
        testing: The margin, as a share of the baseline, the interval's level and the resampling.
        run: Where it runs and is kept, texts per forward pass (8 by default), and progress.
        options: Single fields of ``Controls``, ``Testing`` and ``Run``, such as ``margin=0.02`` or ``out="runs/x"``.

    Returns:
        Effects by ``patched`` and ``measured``, all one Holm family. On each row also what the matched controls did
        (mean, SD, prediction interval, position, rank p where their number allows one) and what the set changed beyond
        them (``beyond``, and ``at_equal_dose``, where their effects are scaled to what the set writes), on the diagonal
        what patching
        the other languages' neurons did to this language, and, with ``stats`` at a site where the sign means something,
        what frequent neutral neurons did. ``.controls`` lists every draw, ``.selectivity`` the diagonal against the
        off-diagonal with its control distribution.

    Raises:
        NeuronSetError: If a layer has too few neurons for a control: nothing is padded.
        PatchError: If the patch does not fit, or ``patch`` is given beside ``value`` or ``layers``.
        EffectError: If a language's text is one document: clusters cannot be resampled.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> text = ln.HeldoutText.of(model, ln.load_corpus("babel", ["en", "hi"]).take(40), context_length=64)
        >>> matrix = ln.perplexity_matrix(model, text, neurons, controls=0, resamples=400, progress=False)
        >>> list(matrix.matrix().columns)
        ['en', 'hi']
    """
    controls, testing, run = with_options(options, controls_of(controls), testing, run)
    if patch is not None and (layers is not None or not isinstance(value, int | float) or value != 0):
        raise PatchError("Give either patch=, which says what is written where, or value= and layers=.")
    make = patch or (lambda neurons, language: SetTo(neurons, value, layers=layers))
    text = HeldoutText.of(model, text)
    sets, balance = _neurons_of_conditions(neurons.spelled_like(text.languages), languages, controls)
    patches = {name: make(members, name[1]) for name, members in sets.items()}
    rows = measure(model, text, {UNPATCHED: []} | {name: [patch] for name, patch in patches.items()}, run)
    conditions = {name: split_by_language(rows_of_all) for name, rows_of_all in rows.items()}
    baseline = conditions.pop(UNPATCHED)
    patched = {name[1]: rows for name, rows in conditions.items() if name[0] == "set"}
    settings = {
        "patch": repr(next(iter(patches.values()))),
        "patches": {label: patches["set", label].fingerprint for label in patched},
        "neurons": neurons.method,
        "controls": controls.draws,
        "match": matched_by(controls),
    }
    settings |= {"balance": reported_balance(balance, controls)} if controls.draws else {}
    spreads = spreads_of(settings)
    labels = {(label,): rows for label, rows in patched.items()}
    table = loss_effects(model, text, labels, baseline, ("patched", "measured"), settings, testing)
    changes = _changes_of_controls(conditions, baseline)
    rows_beside = _beside_controls(table.rows, changes, testing.level, spreads)
    if controls.draws > 1:
        ratio_of = dict(zip(balance["language"], balance["write_ratio"].fillna(1.0), strict=True))
        rows_beside = rows_beside.assign(**_beyond_controls(conditions, baseline, ratio_of, spreads, testing))
    return replace(
        table,
        rows=rows_beside,
        controls=changes,
        selectivity=selectivity(patched, baseline, changes, spreads, testing=testing),
    )


def _neurons_of_conditions(
    neurons: NeuronSet, languages: Iterable[str] | None, controls: Controls
) -> tuple[dict[tuple, NeuronSet], pd.DataFrame]:
    """The neurons of every condition, ("set", label), ("matched", label, draw) and ("neutral", label), and balance."""
    labels = list(neurons.languages) if languages is None else distinct(languages, neurons.languages)
    labels = [label for label in labels if len(neurons[label])]
    if not labels:
        raise EffectError(f"No label of {neurons!r} has a neuron: there is nothing to patch.")
    patched = neurons.select(labels)
    conditions: dict[tuple, NeuronSet] = {("set", label): patched[label] for label in labels}
    draws = [patched.matched_control(controls, draw, exclude=neurons) for draw in range(controls.draws)]
    balance = patched.balance(draws, controls, exclude=neurons) if draws else pd.DataFrame()
    for draw, control in enumerate(draws):
        conditions |= {("matched", label, draw): control[label] for label in labels}
    stats = statistics_at(controls, neurons.site) if controls.draws else None
    if stats is not None:
        try:
            neutral = neurons.neutral_control(stats)
        except StatisticsError:
            return conditions, balance  # where the sign means nothing, no neuron can be called frequent
        conditions |= {("neutral", label): neutral[label] for label in labels}
    return conditions, balance


def _beyond_controls(
    conditions: Mapping[tuple, LanguageRows],
    baseline: LanguageRows,
    ratio_of: Mapping[str, float],
    spreads: Mapping[str, float | None],
    testing: Testing,
) -> dict[str, object]:
    """What each set changed beyond its matched controls, as it is and at equal dose, in the order of the effects."""
    as_drawn, at_equal_dose = [], []
    for label in (name[1] for name in conditions if name[0] == "set"):
        draws = [rows for name, rows in conditions.items() if name[:2] == ("matched", label)]
        for language, unpatched in baseline.items():
            of_language = [draw[language] for draw in draws]
            changes = [difference(draw, unpatched) for draw in of_language]
            mean = unpatched.assign(nll=np.mean([draw["nll"].to_numpy() for draw in of_language], axis=0))
            compared = conditions["set", label][language], mean, changes, unpatched
            options = {"spread": spreads[label], "testing": testing}
            as_drawn.append(beyond_controls(*compared, **options))
            at_equal_dose.append(beyond_controls(*compared, ratio_of[label], **options))
    return {
        **beyond_columns(as_drawn, lower_is_better=True),
        **beyond_columns(at_equal_dose, lower_is_better=True, name="at_equal_dose"),
    }


def _changes_of_controls(conditions: Mapping[tuple, LanguageRows], baseline: LanguageRows) -> pd.DataFrame:
    """What every control changed: patched, measured, control, draw, estimate."""
    changes = []
    for (kind, label, *draw), rows in conditions.items():
        for language, estimate in relative_changes(rows, baseline).items():
            if kind != "set":
                changes.append((label, language, kind, str(draw[0] if draw else 0), estimate))
            elif language != label:
                changes.append((language, language, "other language", label, estimate))
    return pd.DataFrame(changes, columns=["patched", "measured", "control", "draw", "estimate"])


def _beside_controls(
    rows: pd.DataFrame, changes: pd.DataFrame, level: float, spreads: Mapping[str, float | None]
) -> pd.DataFrame:
    """Add what the controls of each cell changed to its row."""
    by_cell = {key: part["estimate"].tolist() for key, part in changes.groupby(["patched", "measured", "control"])}

    def of_kind(control: str) -> list[Sequence[float]]:
        cells = zip(rows["patched"], rows["measured"], strict=True)
        return [by_cell.get((*cell, control), []) for cell in cells]

    return rows.assign(
        **placement_columns(
            rows["estimate"].tolist(),
            of_kind("matched"),
            level,
            spreads=[spreads.get(label, 1.0) for label in rows["patched"]],
        ),
        other_languages_mean=[np.mean(draws) if draws else np.nan for draws in of_kind("other language")],
        neutral=[draws[0] if draws else np.nan for draws in of_kind("neutral")],
    )
