"""Where effects lie among those of matched controls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from langneurons.effects.estimation import difference, holm
from langneurons.effects.resampling import SIGNIFICANCE
from langneurons.errors import EffectError
from langneurons.settings import Testing, TestingOptions, with_options

ALL = "all"
LEVEL = 0.95
MEASURES = ("mean", "sd", "low", "high", "position", "p", "draws")  # of a placement, as columns of a table
LanguageRows = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Placement:
    """A value among its controls.

    Attributes:
        value: The value that is placed.
        draws: Number of controls.
        position: Share of the controls below the value.
        mean: Mean of the controls.
        sd: Standard deviation of the controls; None for one control.
        low: Lower end of the interval in which one more control would lie; None for one control.
        high: Upper end.
        p: Two-sided rank p-value; None where the number of controls could not give one of 0.05 (fewer than 19).
        level: Confidence of the interval.
    """

    value: float
    draws: int
    position: float
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    p: float | None
    level: float


def placed(value: float, controls: Sequence[float] | Float[np.ndarray, " draw"], level: float = LEVEL) -> Placement:
    """Place a value among its controls.

    The interval predicts one more control (mean +- t x SD x sqrt(1 + 1/m)). The rank p-value counts the controls at
    least as far as the value from the mean of all, the value included: each of them is treated alike, so the p-value is
    exact where the value is one of them.

    Args:
        value: A value such as the effect of patching some neurons.
        controls: The same measure of each control draw.
        level: Confidence of the prediction interval.

    Raises:
        EffectError: If there are no controls, or one is not finite.

    Example:
        >>> where = placed(5.0, [0.1 * draw for draw in range(19)])
        >>> where.position, where.p
        (1.0, 0.05)
    """
    draws = np.asarray(controls, dtype=float)
    if not len(draws):
        raise EffectError("A value can be placed among one control or more, none was given.")
    if not np.isfinite([value, *draws]).all():
        raise EffectError(f"Only finite values can be placed: given {value} among {len(draws)} controls.")
    mean, count = float(draws.mean()), len(draws)
    sd = float(draws.std(ddof=1)) if count > 1 else None
    reach = None if sd is None else float(stats.t.ppf((1 + level) / 2, count - 1) * sd * np.sqrt(1 + 1 / count))
    return Placement(
        value=float(value),
        draws=count,
        position=float((draws < value).mean()),
        mean=mean,
        sd=sd,
        low=None if reach is None else mean - reach,
        high=None if reach is None else mean + reach,
        p=_rank_p(float(value), draws) if 1 / (count + 1) <= SIGNIFICANCE else None,
        level=level,
    )


def placement_columns(
    estimates: Sequence[float],
    controls: Sequence[Sequence[float]],
    level: float = LEVEL,
    adjust: Callable[[np.ndarray], np.ndarray] = holm,
) -> dict[str, Float[np.ndarray, " row"]]:
    """Say in columns of a table where each of its estimates lies among its controls; NaN where it has none.

    Args:
        estimates: The estimate of each row.
        controls: The estimates of each row's control draws.
        level: Confidence of the prediction intervals.
        adjust: Adjusts the rank p-values for their number: ``holm`` or ``benjamini_hochberg``.

    Returns:
        control_mean, control_sd, control_low, control_high, control_position, control_p, control_draws, and
        control_p_adjusted, the rank p-values adjusted over the rows as one family.
    """
    places = [
        placed(value, draws, level) if len(draws) else None for value, draws in zip(estimates, controls, strict=True)
    ]
    columns = {
        f"control_{name}": np.array(
            [np.nan if place is None else getattr(place, name) for place in places], dtype=float
        )
        for name in MEASURES
    }
    return columns | {"control_p_adjusted": adjust(columns["control_p"])}


def _rank_p(value: float, draws: Float[np.ndarray, " draw"]) -> float:
    centre = (draws.sum() + value) / (len(draws) + 1)
    tolerance = 1e-12 * max(abs(value), float(np.abs(draws).max()))
    extreme = np.count_nonzero(np.abs(draws - centre) >= abs(value - centre) - tolerance)
    return (1 + int(extreme)) / (len(draws) + 1)


def relative_changes(rows: LanguageRows, baseline: LanguageRows) -> dict[str, float]:
    """Change of each language's summed negative log-likelihood, as a share of its own baseline.

    Example:
        >>> before = {"hi": pd.DataFrame({"item": [0, 1], "cluster": [0, 1], "nll": [2.0, 2.0]})}
        >>> relative_changes({"hi": before["hi"].assign(nll=[2.0, 3.0])}, before)
        {'hi': 0.25}
    """
    return {language: difference(rows[language], unpatched) for language, unpatched in baseline.items()}


def selectivity(
    patched: Mapping[str, LanguageRows],
    baseline: LanguageRows,
    controls: pd.DataFrame,
    *,
    testing: Testing = Testing(),
    **options: Unpack[TestingOptions],
) -> pd.DataFrame:
    """Compare the diagonal of a perplexity matrix with the rest of its rows.

    The index of label i is the relative change of i's own loss minus the mean over the other measured languages;
    ``all`` is the mean over labels. Above 0, the patch hurts its own language most.

    Args:
        patched: Label -> language -> rows scored under the label's patch.
        baseline: Language -> rows of the unpatched model.
        controls: What controls did (``EffectTable.controls``): the index of each matched draw is the control
            distribution.
        testing: The intervals' level and the resampling: documents of each language are drawn anew, the same ones for
            every patch.
        options: Single fields of ``Testing``, such as ``resamples=1000``.

    Returns:
        One row per label, and ``all``: selectivity, low, high, and of the matched draws mean, sd, low, high, position
        and rank p. Empty where no label is measured, or only one language is.
    """
    (testing,) = with_options(options, testing)
    languages = list(baseline)
    labels = [label for label in patched if label in languages]
    if not labels or len(languages) < 2:
        return pd.DataFrame()
    changes = pd.DataFrame({label: relative_changes(patched[label], baseline) for label in labels}).T[languages]
    indices = _index(changes.to_numpy()[None], labels, languages)[0]
    samples = _index(_resampled(patched, baseline, labels, testing), labels, languages)
    low, high = np.quantile(samples, [(1 - testing.level) / 2, (1 + testing.level) / 2], axis=0)
    table = pd.DataFrame({"language": [*labels, ALL], "selectivity": indices, "low": low, "high": high})
    matched = controls[controls["control"] == "matched"]
    if matched.empty:
        return table
    draws = [
        part.pivot(index="patched", columns="measured", values="estimate").loc[labels, languages].to_numpy()
        for _, part in matched.groupby("draw", sort=False)
    ]
    of_controls = _index(np.stack(draws), labels, languages)
    return table.assign(**placement_columns(indices.tolist(), of_controls.T.tolist(), testing.level))


def _index(changes: np.ndarray, labels: list[str], languages: list[str]) -> np.ndarray:
    """From "sample label language" changes to "sample label" indices, the mean over labels last."""
    own = np.array([[label == language for language in languages] for label in labels])
    diagonal = (changes * own).sum(-1)
    elsewhere = (changes * ~own).sum(-1) / (len(languages) - 1)
    by_label = diagonal - elsewhere
    return np.concatenate([by_label, by_label.mean(-1, keepdims=True)], axis=-1)


def _resampled(
    patched: Mapping[str, LanguageRows], baseline: LanguageRows, labels: list[str], testing: Testing
) -> np.ndarray:
    """Bootstrap the matrix of changes: "sample label language"."""
    generator = np.random.default_rng(testing.seed)
    columns = []
    for language, rows in baseline.items():
        before = _by_cluster(rows)
        after = np.stack([_by_cluster(patched[label][language]) for label in labels], axis=1)
        weights = generator.multinomial(len(before), np.full(len(before), 1 / len(before)), size=testing.samples)
        columns.append(weights @ after / (weights @ before)[:, None] - 1)
    return np.stack(columns, axis=-1)


def _by_cluster(rows: pd.DataFrame) -> np.ndarray:
    """Sum the loss of each cluster, in the order of the clusters' names."""
    return np.bincount(np.unique(rows["cluster"], return_inverse=True)[1], weights=rows["nll"].to_numpy())
