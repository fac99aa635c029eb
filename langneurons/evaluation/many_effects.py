"""Effects of very many conditions on the same rows, such as one ablated neuron each: the numbers of ``ln.effect``.

Every condition is resampled alike, so one product of matrices serves many of them at a time.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from langneurons.errors import EffectError
from langneurons.evaluation.effects import LOSSES, Effect, Options, effects_of
from langneurons.evaluation.pairing import BASELINE, pair

TOGETHER = 64  # conditions whose resamples are held at once


def many_effects(
    conditions: Float[np.ndarray, "condition row"],
    baseline: pd.DataFrame,
    value: str = "nll",
    per: str = BASELINE,
    lower_is_better: bool | None = None,
    delta: float | int = 0.01,
    level: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> list[Effect]:
    """Compare many untrained conditions with one baseline.

    Args:
        conditions: The value of each row of the baseline, in its order, under every condition.
        baseline: Rows with ``item``, ``cluster`` and the value, of one language.
        value: As for ``effect``, like all that follow.
        per: What summed differences are divided by.
        lower_is_better: None knows that it is for losses.
        delta: Differences within +-delta are of no interest.
        level: Confidence of the intervals.
        resamples: Bootstrap samples, and sign patterns.
        seed: Of the resampling.

    Returns:
        What ``effect`` gives for each condition alone.

    Raises:
        EffectError: As ``effect``; also if a value is not finite.

    Example:
        >>> before = pd.DataFrame({"item": range(40), "cluster": [i // 2 for i in range(40)], "nll": 2.0})
        >>> worse, same = many_effects(np.stack([np.linspace(2.1, 2.3, 40), np.full(40, 2.0)]), before)
        >>> round(worse.estimate, 3), worse.verdict, same.verdict
        (0.1, 'worse', 'equivalent')
    """
    lower_is_better = value in LOSSES if lower_is_better is None else lower_is_better
    options = Options(value, per, lower_is_better, float(delta), level, resamples, seed)
    unchanged = pair(baseline, baseline, value, per)
    if wrong := np.argwhere(~np.isfinite(conditions)).tolist():
        affected, (condition, row) = len({one for one, _ in wrong}), wrong[0]
        raise EffectError(
            f"{affected} of {len(conditions)} conditions hold values of {value!r} that are no finite number, such as "
            f"condition {condition} at item {baseline['item'].tolist()[row]!r}."
        )
    found = []
    for start in range(0, len(conditions), TOGETHER):
        part = conditions[start : start + TOGETHER].astype(float)
        found += effects_of([replace(unchanged, condition=one) for one in part], options)
    return found
