"""Where effects lie among those of matched controls."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from langneurons.effects.estimation import difference, effect, holm, verdict_of
from langneurons.effects.pairing import BASELINE, resampled_unit
from langneurons.effects.resampling import SIGNIFICANCE
from langneurons.errors import EffectError
from langneurons.settings import Testing, TestingOptions, with_options

ALL = "all"
LEVEL = 0.95
MEASURES = ("mean", "sd", "low", "high", "position", "p", "draws")  # of a placement, as columns of a table
UNPATCHED = "unpatched"  # the column of what the unpatched model's values are
BEYOND = ("estimate", "low", "high", "p", "within_margin")
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


def placed(
    value: float,
    controls: Sequence[float] | Float[np.ndarray, " draw"],
    level: float = LEVEL,
    spread: float | None = 1.0,
) -> Placement:
    """Place a value among its controls.

    The interval predicts one more control (mean +- t x SD x sqrt(spread^2 + 1/m)). The rank p-value counts the controls
    at least as far as the value from the mean of all, the value included: each of them is treated alike, so the p-value
    is exact where the value is one of them. Draws that share neurons vary less than one more set would, so their
    distances from their mean are multiplied by ``spread`` first.

    Args:
        value: A value such as the effect of patching some neurons.
        controls: The same measure of each control draw.
        level: Confidence of the prediction interval.
        spread: How much more one more set varies than the draws do, see ``balance_of``; 1 where draws share nothing.
            None or infinite where all draws are the same: then there is neither interval nor p-value.

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
    spread = float("inf") if spread is None else spread
    reach = None
    if sd is not None and np.isfinite(spread):
        reach = float(stats.t.ppf((1 + level) / 2, count - 1) * sd * np.sqrt(spread**2 + 1 / count))
    ranked = np.isfinite(spread) and 1 / (count + 1) <= SIGNIFICANCE
    return Placement(
        value=float(value),
        draws=count,
        position=float((draws < value).mean()),
        mean=mean,
        sd=sd,
        low=None if reach is None else mean - reach,
        high=None if reach is None else mean + reach,
        p=_rank_p(float(value), mean + spread * (draws - mean)) if ranked else None,
        level=level,
    )


def placement_columns(
    estimates: Sequence[float],
    controls: Sequence[Sequence[float]],
    level: float = LEVEL,
    adjust: Callable[[np.ndarray], np.ndarray] = holm,
    spreads: Sequence[float | None] | None = None,
) -> dict[str, Float[np.ndarray, " row"]]:
    """Say in columns of a table where each of its estimates lies among its controls; NaN where it has none.

    Args:
        estimates: The estimate of each row.
        controls: The estimates of each row's control draws.
        level: Confidence of the prediction intervals.
        adjust: Adjusts the rank p-values for their number: ``holm`` or ``benjamini_hochberg``.
        spreads: How much more one more set varies than its draws do, for each row; 1 by default. See ``placed``.

    Returns:
        control_mean, control_sd, control_low, control_high, control_position, control_p, control_draws, and
        control_p_adjusted, the rank p-values adjusted over the rows as one family.
    """
    places = [
        placed(value, draws, level, spread) if len(draws) else None
        for value, draws, spread in zip(estimates, controls, spreads or [1.0] * len(estimates), strict=True)
    ]
    columns = {f"control_{name}": [getattr(place, name, np.nan) for place in places] for name in MEASURES}
    columns = {name: np.array(values, dtype=float) for name, values in columns.items()}
    return columns | {"control_p_adjusted": adjust(columns["control_p"])}


def draws_needed(rows: pd.DataFrame) -> str:
    """Say how many control draws a family of rank p-values needs, where it has fewer; else nothing."""
    if not {"control_p", "control_draws"} <= set(rows.columns):
        return ""
    draws_of, p = (rows[name].to_numpy(float) for name in ("control_draws", "control_p"))
    if np.isnan(draws_of).all():
        return ""
    tests, draws = int(np.isfinite(p).sum()), int(np.nanmax(draws_of))
    needed = math.ceil(max(tests, 1) / SIGNIFICANCE) - 1
    if draws >= needed:
        return ""
    if not tests:
        return f" A p among controls needs at least {needed:,} control draws (here {draws})."
    of_family = f" among {tests} tests" if tests > 1 else ""
    return (
        f" With {draws} control draws, p among controls is at least {1 / (draws + 1):.2g}; "
        f"a significant one{of_family} takes {needed:,} draws."
    )


def _rank_p(value: float, draws: Float[np.ndarray, " draw"]) -> float:
    centre = (draws.sum() + value) / (len(draws) + 1)
    tolerance = 1e-12 * max(abs(value), float(np.abs(draws).max()))
    extreme = np.count_nonzero(np.abs(draws - centre) >= abs(value - centre) - tolerance)
    return (1 + int(extreme)) / (len(draws) + 1)


def beyond_controls(
    patched: pd.DataFrame,
    mean_control: pd.DataFrame,
    changes: Sequence[float],
    baseline: pd.DataFrame,
    write_ratio: float = 1.0,
    value: str = "nll",
    per: str = BASELINE,
    *,
    spread: float | None = 1.0,
    testing: Testing = Testing(),
    **options: Unpack[TestingOptions],
) -> dict[str, float]:
    """Estimate what a set of neurons changed beyond its controls, with an interval for documents and draws together.

    Were the set one more control, the difference would vary with the documents and with the draw of neurons; the
    variances of both are added (Student's t, Satterthwaite).

    Args:
        patched: Rows measured under the patch of the set.
        mean_control: Rows of the same items, each the mean over the control draws.
        changes: What each draw changed, as ``difference`` gives it; at least two.
        baseline: Rows of the unpatched model.
        write_ratio: What the controls write over what the set writes; effects of controls are divided by it, so that
            both are compared at the same dose.
        value: The column to compare.
        per: What summed differences are divided by, see ``effect``.
        spread: How much more one more set varies than the draws do, see ``placed``.
        testing: The margin, the interval's level and the resampling.
        options: Single fields of ``Testing``.

    Returns:
        estimate, low, high, p, and within_margin (1 or 0).

    Raises:
        EffectError: If there are fewer than two draws, or ``effect`` would refuse the rows.
    """
    (testing,) = with_options(options, testing)
    if len(changes) < 2:
        raise EffectError(f"Effects beyond controls need at least two draws of them, given {len(changes)}.")
    before = baseline[value].to_numpy(float)
    control = mean_control.set_index("item")[value].reindex(baseline["item"]).to_numpy(float)
    as_controls = baseline.assign(**{value: before + (control - before) / write_ratio, UNPATCHED: before})
    change = effect(patched, as_controls, value, UNPATCHED if per == BASELINE else per, testing=testing)
    if spread is None or not np.isfinite(spread):
        return dict(zip(BEYOND, (change.estimate, -np.inf, np.inf, 1.0, 0.0), strict=True))
    draw_variance = float(np.var(np.array(changes) / write_ratio, ddof=1)) * (spread**2 + 1 / len(changes))
    of_documents = change.standard_error**2
    error = float(np.sqrt(of_documents + draw_variance))
    if error == 0:
        same = change.estimate == 0
        return dict(zip(BEYOND, (change.estimate,) * 3 + (float(same), float(same)), strict=True))
    degrees = error**4 / (of_documents**2 / change.degrees + draw_variance**2 / (len(changes) - 1))
    reach, inner = (float(stats.t.ppf(share, degrees)) * error for share in ((1 + testing.level) / 2, 1 - SIGNIFICANCE))
    within = abs(change.estimate) + inner <= testing.margin
    p = float(2 * stats.t.sf(abs(change.estimate) / error, degrees))
    bounds = change.estimate - reach, change.estimate + reach
    return dict(zip(BEYOND, (change.estimate, *bounds, p, float(within)), strict=True))


def beyond_columns(
    cells: Sequence[Mapping[str, float] | None], lower_is_better: bool, name: str = "beyond"
) -> dict[str, np.ndarray | list[str | None]]:
    """Columns of a table for effects beyond controls, judged as one family (Holm).

    Args:
        cells: What ``beyond_controls`` gave for each row; None where a row has no controls.
        lower_is_better: Whether a smaller value is better.
        name: First part of the columns' names.

    Returns:
        ``<name>``, ``<name>_low``, ``<name>_high``, ``<name>_p_holm`` and ``<name>_verdict``.
    """
    frame = pd.DataFrame([cell or dict.fromkeys(BEYOND, np.nan) for cell in cells], columns=list(BEYOND), dtype=float)
    adjusted = holm(frame["p"].to_numpy())
    parts = zip(frame["estimate"], adjusted, frame["within_margin"], strict=True)
    verdicts = [
        None if np.isnan(change) else verdict_of(change, p, within == 1, lower_is_better) for change, p, within in parts
    ]
    bounds = {f"{name}_{bound}": frame[bound].to_numpy() for bound in ("low", "high")}
    return {name: frame["estimate"].to_numpy(), **bounds, f"{name}_p_holm": adjusted, f"{name}_verdict": verdicts}


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
    spreads: Mapping[str, float | None] | None = None,
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
        spreads: Label -> how much more one more set varies than its draws do, see ``placed``; 1 by default.
        testing: The intervals' level and the resampling: documents of each language, or their sources,
            are drawn anew, the same ones for every patch.
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
    of_labels = [(spreads or {}).get(label, 1.0) for label in labels]
    variances, of_all = of_controls[:, :-1].var(axis=0), None
    if None not in of_labels:
        squares = np.array(of_labels, dtype=float) ** 2
        of_all = float(np.sqrt((squares * variances).sum() / variances.sum())) if variances.any() else 1.0
    placements = placement_columns(
        indices.tolist(), of_controls.T.tolist(), testing.level, spreads=[*of_labels, of_all]
    )
    return table.assign(**placements)


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
        units = dict(zip(rows["item"], rows[resampled_unit(rows, testing.resampled)], strict=True))
        before = _summed(rows, units)
        after = np.stack([_summed(patched[label][language], units) for label in labels], axis=1)
        weights = generator.multinomial(len(before), np.full(len(before), 1 / len(before)), size=testing.samples)
        columns.append(weights @ after / (weights @ before)[:, None] - 1)
    return np.stack(columns, axis=-1)


def _summed(rows: pd.DataFrame, units: Mapping[Hashable, Hashable]) -> np.ndarray:
    """Sum the loss of each document or source, in the order of their names; ``units`` says which an item is of."""
    places = np.unique([str(units[item]) for item in rows["item"]], return_inverse=True)[1]
    return np.bincount(places, weights=rows["nll"].to_numpy())
