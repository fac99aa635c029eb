"""Findings that a test makes up: planted statistics, hostile and right-to-left texts, and every kind of result."""

import numpy as np
import pandas as pd
import torch

from langneurons.analysis.ablation import Ablation
from langneurons.analysis.profiles import Profiles
from langneurons.effects.estimation import effect
from langneurons.effects.table import EffectTable
from langneurons.evaluation.results import Evaluation
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import ActivationStats
from langneurons.views.report import Findings
from tests.planted.statistics import statistics_from

HOSTILE = "<script>alert(1)</script>"
PIECES = {
    "en": [HOSTILE, " and", " <b>bold</b>", " & more", " words" * 3],
    "hi": ["यह", " हि", "न्", "दी", "", " है"],
    "ur": ["یہ", " ارد", "و", " ہے", "۔"],
}
SHAPE = (3, 40)
MODEL = "planted0" * 4


def statistics() -> ActivationStats:
    generator = torch.Generator().manual_seed(0)
    raw = {
        language: torch.randn(300, *SHAPE, generator=generator) + shift
        for shift, language in enumerate(PIECES, start=-1)
    }
    return statistics_from(raw, act_fn=torch.nn.functional.silu)


def neuron_set(count: int = 12) -> NeuronSet:
    flat = np.arange(count) * (SHAPE[0] * SHAPE[1] // count)
    members = {language: flat[place :: len(PIECES)].copy() for place, language in enumerate(PIECES)}
    return NeuronSet(members, SHAPE, "act", MODEL, "made up")


def profiles(neurons: NeuronSet, k: int = 2) -> Profiles:
    chosen = [(int(layer), int(index)) for layer, index in neurons.indices().tolist()]
    texts = pd.DataFrame(
        [
            {"text": number, "language": language, "document": number, "pieces": pieces, "cut": False}
            for number, (language, pieces) in enumerate(PIECES.items())
        ]
    )
    examples = [
        {
            "language": language,
            "layer": layer,
            "neuron": index,
            "kind": kind,
            "rank": rank,
            "activation": 2.5,
            "text": number,
            "values": np.linspace(-1, 2.5, len(pieces)).tolist(),
        }
        for layer, index in chosen
        for number, (language, pieces) in enumerate(PIECES.items())
        for kind in ("top", "median", "random")
        for rank in range(k)
    ]
    tokens = [(" the", "Latin"), (HOSTILE, "Latin"), ("नी", "Devanagari"), ("\x07", "other")]
    outputs = [
        (layer, index, kind, rank, token, script, 0.5 if kind == "promoted" else -0.5)
        for layer, index in chosen
        for kind in ("promoted", "suppressed")
        for rank, (token, script) in enumerate(tokens)
    ]
    similar = [
        (layer, index, by, 0, *chosen[place - 1], 0.9)
        for place, (layer, index) in enumerate(chosen)
        for by in ("activity", "direction")
    ]
    settings = {
        "model": "planted <model>",
        "fingerprint": MODEL,
        "dtype": "float32",
        "site": "act",
        "gated": True,
        "shape": list(SHAPE),
        "method": "made up",
        "neurons": [list(one) for one in chosen],
        "languages": list(PIECES),
        "corpus": "c" * 32,
        "k": k,
        "context_length": 16,
        "documents": 10,
        "seed": 0,
    }
    return Profiles(
        texts,
        pd.DataFrame(examples),
        pd.DataFrame(outputs, columns=["layer", "neuron", "effect", "rank", "token", "script", "change"]),
        pd.DataFrame(similar, columns=["layer", "neuron", "by", "rank", "other_layer", "other_neuron", "similarity"]),
        settings,
    )


def rows(change: float, noise: float = 0.01) -> tuple[pd.DataFrame, pd.DataFrame]:
    before = pd.DataFrame({"item": range(40), "cluster": [item // 2 for item in range(40)], "nll": 2.0})
    wobble = noise * (np.arange(40) % 7 - 3)
    return before.assign(nll=2.0 + change + wobble), before


def matrix(own: float = 0.4, noise: float = 0.01) -> EffectTable:
    effects = {
        (patched, measured): effect(*rows(own if patched == measured else 0.0, noise), resamples=400)
        for patched in PIECES
        for measured in PIECES
    }
    return EffectTable.of(effects, ("patched", "measured"), "made up: 9 effects")


def ablation(neurons: NeuronSet) -> Ablation:
    effects = {
        (label, int(layer), int(index), 1, language): effect(*rows(0.2 if label == language else 0.0), resamples=400)
        for label in neurons.languages
        for layer, index in neurons[label].indices().tolist()[:2]
        for language in PIECES
    }
    keys = ["label", "layer", "neuron", "neurons", "language"]
    settings = {"model": "planted", "site": "act", "metric": "nll", "per": "baseline", "margin": 0.01}
    settings |= {"patch": "each neuron alone set to 0", "min_effect": 0.0, "each": "neuron", "resamples": 400}
    return Ablation.of(effects, keys, None, settings)


def findings(count: int = 12, **more) -> Findings:
    neurons = neuron_set(count)
    given = {"stats": statistics(), "neurons": {"made <up>": neurons}, "profiles": profiles(neurons)}
    given |= {"matrix": matrix(), "ablation": ablation(neurons), "config": f"# {HOSTILE}\nseed = 0\n"}
    return Findings(f"Which neurons? {HOSTILE}", **(given | more))


def evaluation() -> Evaluation:
    rows = [
        ("xnli", "head", patch, "hi", item, item // 2, "accuracy", float(item % 3 < right), "", "")
        for patch, right in (("unpatched", 1), ("zero", 2))
        for item in range(60)
    ]
    names = ["task", "protocol", "patch", "language", "item", "cluster", "metric", "value", "prediction", "gold"]
    references = pd.DataFrame(columns=["task", "protocol", "metric", "language", "reference", "value"])
    settings = {"model": "made up", "options": {"margin": 0.01, "resamples": 1000, "seed": 0}}
    return Evaluation(pd.DataFrame(rows, columns=names), references, None, settings)
