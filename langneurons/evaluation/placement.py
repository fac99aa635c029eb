"""Placement: where a value lies among what matched controls gave."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from langneurons.errors import EffectError
from langneurons.evaluation.resampling import SIGNIFICANCE


@dataclass(frozen=True)
class Placement:
    """A value among its controls.

    Attributes:
        value: What was placed.
        draws: How many controls.
        position: Share of the controls below the value.
        mean: Of the controls.
        sd: Of the controls; None for one control.
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
    value: float | int, controls: Sequence[float | int] | Float[np.ndarray, " draw"], level: float = 0.95
) -> Placement:
    """Place a value among its controls.

    The interval predicts one more control (mean +- t x SD x sqrt(1 + 1/m)). The rank p-value counts the controls at
    least as far as the value from the mean of all, the value included: each of them is treated alike, so the p-value is
    exact where the value is one of them.

    Args:
        value: Such as the effect of patching the neurons found.
        controls: The same of each control draw.
        level: Confidence of the prediction interval.

    Raises:
        EffectError: If there are no controls, or one is not finite.

    Example:
        >>> where = placed(5.0, [0.1 * draw for draw in range(19)])
        >>> where.position, where.p
        (1.0, 0.05)
    """
    drawn = np.asarray(controls, dtype=float)
    if not len(drawn):
        raise EffectError("A value can be placed among one control or more, none was given.")
    if not np.isfinite([value, *drawn]).all():
        raise EffectError(f"Only finite values can be placed: given {value} among {len(drawn)} controls.")
    mean, count = float(drawn.mean()), len(drawn)
    sd = float(drawn.std(ddof=1)) if count > 1 else None
    reach = None if sd is None else float(stats.t.ppf((1 + level) / 2, count - 1) * sd * np.sqrt(1 + 1 / count))
    return Placement(
        value=float(value),
        draws=count,
        position=float((drawn < value).mean()),
        mean=mean,
        sd=sd,
        low=None if reach is None else mean - reach,
        high=None if reach is None else mean + reach,
        p=_rank_p(float(value), drawn) if 1 / (count + 1) <= SIGNIFICANCE else None,
        level=level,
    )


def placement_columns(
    estimates: Sequence[float | int], controls: Sequence[Sequence[float | int]]
) -> dict[str, Float[np.ndarray, " row"]]:
    """Say in columns of a table where each of its estimates lies among its controls; NaN where it has none.

    Args:
        estimates: One a row.
        controls: Of each row.

    Returns:
        control_mean, control_sd, control_low, control_high, control_position, control_p, control_draws.
    """
    found = [placed(value, drawn) if len(drawn) else None for value, drawn in zip(estimates, controls, strict=True)]
    names = ("mean", "sd", "low", "high", "position", "p", "draws")
    return {
        f"control_{name}": np.array([np.nan if one is None else getattr(one, name) for one in found], dtype=float)
        for name in names
    }


def _rank_p(value: float, drawn: Float[np.ndarray, " draw"]) -> float:
    centre = (drawn.sum() + value) / (len(drawn) + 1)
    tolerance = 1e-12 * max(abs(value), float(np.abs(drawn).max()))
    extreme = np.count_nonzero(np.abs(drawn - centre) >= abs(value - centre) - tolerance)
    return (1 + int(extreme)) / (len(drawn) + 1)
