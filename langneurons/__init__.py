"""langneurons: find, patch, train and judge the language-specific neurons of multilingual language models."""

import warnings
from importlib import import_module
from typing import Any

import lazy_loader

from langneurons.errors import LangNeuronsWarning

__version__ = "0.2.0"

_public_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_ROOMS = ("analysis", "corpora", "evaluation", "models", "patches", "recording", "run", "training", "views")

# Names of version 0.1.0 that are reached through their rooms, or are called differently; they go on working until 1.0.
_OLD_NAMES = {
    "Set": "SetTo",
    "RayExecutor": "run.RayExecutor",
    "Dose": "evaluation.Dose",
    "SiteValues": "recording.SiteValues",
    "SparseDictionary": "models.SparseDictionary",
    "add_dictionary": "models.add_dictionary",
    "remove_dictionary": "models.remove_dictionary",
    "decompose": "analysis.decompose",
    "dose": "evaluation.dose",
    "neuron_page": "views.neuron_page",
    "rerun": "analysis.rerun",
    "unreachable": "patches.unreachable",
    "effect": "effects.effect",
    "EffectTable": "effects.EffectTable",
    "Patch": "patches.Patch",
    "Scores": "identification.Scores",
    **{f"SET{number}": f"corpora.SET{number}" for number in range(1, 7)},
    "SET_XNLI": "corpora.SET_XNLI",
    **{
        name: f"identification.{name}"
        for name in (
            "Contrast",
            "EntropyLambda",
            "GradientRelevance",
            "MeanActivation",
            "SentenceAP",
            "TokenAP",
        )
    },
    "completions": "tasks.completions",
    "Generation": "tasks.Generation",
    "ClassificationHead": "tasks.ClassificationHead",
    "Ablation": "analysis.Ablation",
    "Comparison": "analysis.Comparison",
    "Evaluation": "evaluation.Evaluation",
    "Factorial": "evaluation.Factorial",
    "Finetuned": "training.Finetuned",
    "LabelledTexts": "analysis.LabelledTexts",
    "Polysemanticity": "analysis.Polysemanticity",
    "Profiles": "analysis.Profiles",
    "Screen": "analysis.Screen",
    "Transfer": "training.Transfer",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its room, or a room, when it is first used."""
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _OLD_NAMES:
        return _public_name(name)
    place = _OLD_NAMES[name]
    warnings.warn(f"ln.{name} is called ln.{place}; the old name goes with 1.0.", LangNeuronsWarning, stacklevel=2)
    room, _, attribute = place.rpartition(".")
    return getattr(import_module(f"{__name__}.{room}" if room else __name__), attribute)
