"""A neuron's page in the field names of Neuronpedia (github.com/hijohnnylin/neuronpedia, schema.prisma)."""

import re
from typing import Any

import numpy as np
import pandas as pd

from langneurons.analysis.profiles import Profiles
from langneurons.recording.statistics import ActivationStats


def neuron_record(
    profiles: Profiles, neuron: tuple[int, int], stats: ActivationStats | None, model_id: str | None
) -> dict[str, Any]:
    """The fields of a ``Neuron`` and its ``activations``; see ``Profiles.to_neuronpedia``."""
    profile = profiles[neuron]
    model_id = model_id or re.sub(r"[^a-z0-9_-]+", "-", str(profiles.settings["model"]).lower().rpartition("/")[2])
    names = {"modelId": model_id, "layer": str(int(neuron[0])), "index": str(int(neuron[1]))}
    activations = [_activation(profiles, row) for _, row in profile.examples.iterrows()]
    record: dict[str, Any] = dict(names)
    for sign, effect in (("pos", "promoted"), ("neg", "suppressed")):
        rows = profile.outputs.loc[profile.outputs["effect"] == effect].sort_values("rank")
        record |= {f"{sign}_str": rows["token"].tolist(), f"{sign}_values": rows["change"].tolist()}
    if activations:
        record["maxActApprox"] = max(activation["maxValue"] for activation in activations)
    if stats is not None:
        stats = stats.at(profiles.site)
        profiles.check(stats)
        stats.check_neuron(neuron)
        share = stats.probability()[:, neuron[0], neuron[1]]
        record["frac_nonzero"] = float((share * stats.tokens).sum() / stats.tokens.sum())
    return record | {"activations": [names | activation for activation in activations]}


def _activation(profiles: Profiles, row: pd.Series) -> dict[str, Any]:
    values = np.asarray(row["values"], dtype=float)
    return {
        "tokens": profiles.pieces(row["text"]),
        "values": values.tolist(),
        "maxValue": float(values.max()),
        "maxValueTokenIndex": int(values.argmax()),
        "minValue": float(values.min()),
        "dataIndex": str(profiles.texts["document"].iloc[int(row["text"])]),
        "dataSource": f"{profiles.settings['corpus']} {row['language']} {row['kind']} {row['rank']}",
    }
