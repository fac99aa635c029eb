"""The neurons that are furthest ahead in their own language, as many of each label as of the others."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Int

from langneurons.corpora.languages import spelled
from langneurons.recording.statistics import ActivationStats

Members = Mapping[str, Int[np.ndarray, " _"]]


def furthest_ahead(members: Members, stats: ActivationStats, count: int) -> dict[str, Int[np.ndarray, " _"]]:
    """Keep at most ``count`` neurons, of each label those furthest ahead (of one that was not recorded, the first)."""
    probability = stats.probability().flatten(1)
    ordered = {}
    for label, flat in members.items():
        ordered[label] = flat
        if (language := spelled(label, stats.languages)) and len(stats.languages) > 1:
            own = stats.languages.index(language)
            others = torch.cat([probability[:own], probability[own + 1 :]]).amax(0)
            ahead = (probability[own] - others).numpy()[flat]
            ordered[label] = flat[np.argsort(-ahead, kind="stable")]
    return _in_turn(ordered, count)


def _in_turn(ordered: Members, count: int) -> dict[str, Int[np.ndarray, " _"]]:
    """Take from each label in turn until ``count`` different neurons are taken."""
    taken: set[int] = set()
    members: dict[str, list[int]] = {label: [] for label in ordered}
    for rank in range(max(map(len, ordered.values()), default=0)):
        for label, flat in ordered.items():
            if rank < len(flat) and (len(taken) < count or int(flat[rank]) in taken):
                taken.add(int(flat[rank]))
                members[label].append(int(flat[rank]))
    return {label: np.array(sorted(flat), np.int64) for label, flat in members.items()}
