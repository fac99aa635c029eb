"""langneurons: find, patch, train and judge the language-specific neurons of multilingual language models."""

from importlib import import_module
from typing import Any

import lazy_loader

from langneurons.errors import warn_user

__version__ = "0.2.0"

_public_name, _, __all__ = lazy_loader.attach_stub(__name__, __file__)

# Rooms that can be reached, but are not among the names that are shown.
_ROOMS = {
    "analysis",
    "babel",
    "baking",
    "cli",
    "corpora",
    "errors",
    "evaluation",
    "models",
    "patches",
    "recording",
    "run",
}
_ROOMS |= {"storage", "study", "training", "views"}
__all__[:] = [name for name in __all__ if name not in _ROOMS]

# Names of version 0.1.0 that are reached through their rooms; they go on working until 1.0.
_MOVED = {
    "analysis": "Ablation Comparison LabelledTexts Polysemanticity Profiles Screen decompose rerun",
    "corpora": "SET1 SET2 SET3 SET4 SET5 SET6 SET_XNLI",
    "effects": "EffectTable effect",
    "evaluation": "Dose Evaluation Factorial dose",
    "identification": "Contrast EntropyLambda GradientRelevance MeanActivation Scores SentenceAP TokenAP",
    "models": "SparseDictionary add_dictionary remove_dictionary",
    "patches": "Patch unreachable",
    "recording": "SiteValues record_caches",
    "run": "RayExecutor",
    "tasks": "ClassificationHead Generation completions",
    "training": "Finetuned Transfer",
    "views": "neuron_page",
}
_OLD_NAMES = {"Set": "SetTo", **{name: f"{room}.{name}" for room, names in _MOVED.items() for name in names.split()}}


def __dir__() -> list[str]:
    return list(__all__)


def __getattr__(name: str) -> Any:
    """Import a public name from its room, or a room, when it is first used."""
    if name not in _OLD_NAMES:
        return _public_name(name)
    place = _OLD_NAMES[name]
    warn_user(f"ln.{name} is called ln.{place}; the old name goes with 1.0.")
    room, _, attribute = place.rpartition(".")
    return getattr(import_module(f"{__name__}.{room}" if room else __name__), attribute)
