"""Transfer experiments with a known truth: scores of models that were never trained."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from langneurons.training.conditions import CONTROL_OF, needs_target
from langneurons.training.transfer_table import ROWS, TRAININGS, Transfer

SOURCE, TARGETS = "en", ("hi", "zh")


def simulated(
    shifts: Mapping[str, float],
    seed: int = 0,
    seeds: int = 6,
    clusters: int = 60,
    draws: int = 1,
    patches: Mapping[str, float] | None = None,
    level: float = 0.6,
    noise: tuple[float, float, float] = (0.02, 0.02, 0.02),
    resamples: int = 1000,
) -> Transfer:
    """Make a transfer experiment whose conditions shift the mean score of every item by what was planted.

    Args:
        shifts: Condition -> the true change of the score, in every language.
        seed: Seed of the simulation.
        seeds: Training seeds.
        clusters: Clusters of three items.
        draws: Random draws per seed.
        patches: Patch -> the true change of every trained model's score.
        level: The mean score without any change.
        noise: SD of what a training seed, a cluster (the same in every training of a condition) and a single item of a
            single training add.
        resamples: Resamples of each effect.
    """
    generator = np.random.default_rng(seed)
    item = np.arange(3 * clusters)
    easy = {name: generator.normal(level, 0.15, len(item)) for name in (SOURCE, *TARGETS)}
    seed_sd, cluster_sd, row_sd = noise
    parts, trainings = [], []
    for condition, shift in shifts.items():
        for target in TARGETS if needs_target(condition) else [""]:
            liking = {name: generator.normal(0, cluster_sd, clusters)[item // 3] for name in easy}
            for number in range(seeds):
                for draw in range(draws if condition in CONTROL_OF.values() else 1):
                    trainings.append((condition, target, number, draw, 30, 300, 0.5))
                    luck = generator.normal(0, seed_sd)
                    for language in (SOURCE, target) if target else easy:
                        for patch, change in {"unpatched": 0.0, **(patches or {})}.items():
                            own = generator.normal(0, row_sd, len(item))
                            value = easy[language] + liking[language] + shift + luck + own + change
                            parts.append(((condition, target, number, draw, patch, language), value))
    references = [(name, "chance", 1 / 3) for name in easy]
    return Transfer(
        _rows(parts, item),
        pd.DataFrame(trainings, columns=TRAININGS),
        pd.DataFrame(references, columns=["language", "reference", "value"]),
        {
            "model": "made up",
            "task": "xnli",
            "protocol": "head",
            "source": SOURCE,
            "targets": list(TARGETS),
            "options": {"margin": 0.01, "seed": 0, "resamples": resamples},
        },
    )


def _rows(parts: list[tuple[tuple, np.ndarray]], item: np.ndarray) -> pd.DataFrame:
    names = ["condition", "target", "seed", "draw", "patch", "language"]
    about = pd.DataFrame([about for about, _ in parts], columns=names)
    rows = about.loc[about.index.repeat(len(item))].reset_index(drop=True)
    items = np.tile(item, len(parts))
    measured = {"item": items, "cluster": items // 3, "value": np.concatenate([value for _, value in parts])}
    return rows.assign(**measured, metric="accuracy", prediction="", gold="").reindex(columns=ROWS)
