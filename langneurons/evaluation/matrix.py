"""The perplexity matrix: patch one language's neurons, measure every language, and compare with controls."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from langneurons.corpora import Corpus
from langneurons.effects.placement import placement_columns, relative_changes, selectivity
from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError, PatchError, StatisticsError
from langneurons.evaluation.heldout_text import HeldoutText, as_heldout_text
from langneurons.evaluation.measuring import loss_effects, measure, split_by_language
from langneurons.identification.controls import matched_by
from langneurons.identification.neurons import NeuronSet
from langneurons.patches.patch import Patch, SetTo, Value
from langneurons.recording.statistics import ActivationStats
from langneurons.run import Executor
from langneurons.settings import Controls

UNPATCHED = ("unpatched",)
MakePatch = Callable[[NeuronSet, str], Patch]


def perplexity_matrix(
    model: torch.nn.Module,
    heldout: Corpus | HeldoutText,
    neurons: NeuronSet,
    value: Value = 0.0,
    controls: int = 20,
    stats: ActivationStats | None = None,
    patch: MakePatch | None = None,
    layers: Iterable[int] | None = None,
    delta: float = 0.01,
    seed: int = 0,
    resamples: int = 5000,
    tokens_per_language: int | None = None,
    context_length: int | None = None,
    batch_size: int = 8,
    out: str | Path | None = None,
    progress: bool = True,
    executor: str | Executor | None = None,
) -> EffectTable:
    """Patch each language's neurons and measure the loss in every language, beside matched and other controls.

    The effect of patching i on j is the change of j's summed negative log-likelihood, as a share of j's own unpatched
    one, so that languages can be compared (Tang et al. 2024 print this matrix without baseline, pairing or interval).

    Args:
        model: From ``load_model``.
        heldout: Text the model was not trained on, and the neurons were not found on.
        neurons: Whose labels are patched, one after the other; a label without neurons is left out.
        value: What to write: a number or SiteValues, for every label; see ``patch`` for one that depends on the label.
        controls: Draws of matched controls a label: as many neurons a layer and, with ``stats``, a decile of mean
            magnitude x output norm. SiteValues are read at the control's own neurons.
        stats: Statistics of the same model, for controls matched in magnitude and for frequent neutral neurons.
        patch: Makes the patch of some neurons in place of ``value``:
            ``lambda neurons, language: ln.SetTo(neurons, stats[language].mean())``.
        layers: Only these layers; for ``value``.
        delta: A change below this share of the baseline counts as none.
        seed: Of the controls and the resampling.
        resamples: Bootstrap and sign-flip samples.
        tokens_per_language: Counted tokens of each language; None takes as many as the smallest language has.
        context_length: Positions a block; None takes 512, or the model's.
        batch_size: Blocks a forward.
        out: Folder that keeps every condition measured; the same call goes on there.
        progress: Show a progress bar on standard error.
        executor: Where to run, as for ``ln.record``.

    Returns:
        Effects by ``patched`` and ``measured``, all one Holm family. On each row also what the matched controls did
        (mean, SD, prediction interval, position, rank p where their number allows one), on the diagonal what patching
        the other languages' sets did to this language, and, with ``stats`` at a site where the sign means something,
        what frequent neutral neurons did. ``.controls`` lists every draw,
        ``.selectivity`` the diagonal against the off-diagonal with its control distribution.

    Raises:
        NeuronSetError: If a layer has too few neurons for a control: nothing is padded.
        PatchError: If the patch does not fit, or ``patch`` is given beside ``value`` or ``layers``.
        EffectError: If a language's text is one document: clusters cannot be resampled.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> text = ln.load_corpus("babel", ["en", "hi"]).take(40)
        >>> matrix = ln.perplexity_matrix(
        ...     model, text, neurons, controls=0, context_length=64, resamples=200, progress=False
        ... )
        >>> list(matrix.matrix().columns)
        ['en', 'hi']
    """
    how = Controls(draws=controls, stats=stats, seed=seed)
    if patch is not None and (layers is not None or not isinstance(value, int | float) or value != 0):
        raise PatchError("Give either patch=, which says what is written where, or value= and layers=.")
    make = patch or (lambda chosen, language: SetTo(chosen, value, layers=layers))
    labels = [label for label in neurons.languages if len(neurons[label])]
    sets = _sets(neurons, labels, how)
    conditions = {UNPATCHED: []} | {name: [make(chosen, name[1])] for name, chosen in sets.items()}
    text = as_heldout_text(model, heldout, tokens_per_language, context_length)
    rows = measure(model, text, conditions, out, batch_size, progress, executor)
    by_language = {name: split_by_language(one) for name, one in rows.items()}
    baseline = by_language.pop(UNPATCHED)
    options = {"margin": delta, "seed": seed, "resamples": resamples}
    patched = {label: by_language["set", label] for label in labels}
    settings = {
        "patch": repr(conditions["set", labels[0]][0]),
        "patches": {label: conditions["set", label][0].fingerprint for label in labels},
        "neurons": neurons.method,
        "controls": controls,
        "match": matched_by(how),
    }
    scored = {(label,): rows for label, rows in patched.items()}
    table = loss_effects(model, text, scored, baseline, ("patched", "measured"), settings, **options)
    drawn = _drawn(by_language, baseline, text.languages)
    return replace(
        table,
        rows=_beside_controls(table.rows, drawn),
        controls=drawn,
        selectivity=selectivity(patched, baseline, drawn, seed=seed, resamples=resamples),
    )


def _sets(neurons: NeuronSet, labels: Sequence[str], controls: Controls) -> dict[tuple, NeuronSet]:
    """Every set to patch: ("set", label), ("matched", label, draw) and ("neutral", label)."""
    if not labels:
        raise EffectError(f"No label of {neurons!r} has a neuron: there is nothing to patch.")
    kept = replace(neurons, members={label: neurons.members[label] for label in labels}, scores={})
    draws = [kept.matched_control(controls, draw) for draw in range(controls.draws)]
    sets: dict[tuple, NeuronSet] = {("set", label): kept[label] for label in labels}
    sets |= {("matched", label, draw): one[label] for draw, one in enumerate(draws) for label in labels}
    if controls.draws and controls.stats is not None:
        try:
            neutral = kept.neutral_control(controls.stats)
        except StatisticsError:
            return sets  # where the sign means nothing, no neuron can be called frequent
        sets |= {("neutral", label): neutral[label] for label in labels}
    return sets


def _drawn(
    by_language: Mapping[tuple, Mapping[str, pd.DataFrame]],
    baseline: Mapping[str, pd.DataFrame],
    measured: Sequence[str],
) -> pd.DataFrame:
    """What every control did: patched, measured, control, draw, estimate."""
    rows = []
    for (kind, label, *draw), scored in by_language.items():
        changes = relative_changes(scored, baseline)
        if kind == "set":
            rows += [(other, other, "other language", label, changes[other]) for other in measured if other != label]
        else:
            rows += [(label, other, kind, str(draw[0] if draw else 0), changes[other]) for other in measured]
    return pd.DataFrame(rows, columns=["patched", "measured", "control", "draw", "estimate"])


def _beside_controls(table: pd.DataFrame, drawn: pd.DataFrame) -> pd.DataFrame:
    """Add what the controls of each cell did to its row."""
    grouped = {keys: part["estimate"].tolist() for keys, part in drawn.groupby(["patched", "measured", "control"])}
    cells = list(zip(table["patched"], table["measured"], strict=True))
    others = [grouped.get((*cell, "other language"), []) for cell in cells]
    neutral = [grouped.get((*cell, "neutral"), [None])[0] for cell in cells]
    return table.assign(
        **placement_columns(table["estimate"].tolist(), [grouped.get((*cell, "matched"), []) for cell in cells]),
        other_languages_mean=np.array([np.mean(one) if one else np.nan for one in others]),
        neutral=np.array(neutral, dtype=float),
    )
