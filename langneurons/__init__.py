"""langneurons: find, patch, train and judge the language-specific neurons of multilingual language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langneurons.analysis.ablation.ablating import ablate as ablate
    from langneurons.analysis.ablation.result import Ablation as Ablation
    from langneurons.analysis.comparison import Comparison as Comparison
    from langneurons.analysis.comparison import compare_methods as compare_methods
    from langneurons.analysis.profiles.profiling import profile as profile
    from langneurons.analysis.profiles.result import Profiles as Profiles
    from langneurons.analysis.screening import Screen as Screen
    from langneurons.analysis.screening import screen as screen
    from langneurons.analysis.selectivity.polysemanticity import polysemanticity as polysemanticity
    from langneurons.analysis.selectivity.reading import decompose as decompose
    from langneurons.analysis.selectivity.result import Polysemanticity as Polysemanticity
    from langneurons.analysis.selectivity.texts import LabelledTexts as LabelledTexts
    from langneurons.analysis.validity import nulls as nulls
    from langneurons.analysis.validity import rerun as rerun
    from langneurons.analysis.validity import split_half as split_half
    from langneurons.corpora import Corpus as Corpus
    from langneurons.corpora import load_corpus as load_corpus
    from langneurons.effects.estimation import effect as effect
    from langneurons.effects.table import EffectTable as EffectTable
    from langneurons.errors import LangNeuronsError as LangNeuronsError
    from langneurons.errors import LangNeuronsWarning as LangNeuronsWarning
    from langneurons.evaluation.dose import dose as dose
    from langneurons.evaluation.dose import equal_dose as equal_dose
    from langneurons.evaluation.evaluating import evaluate as evaluate
    from langneurons.evaluation.evaluation import Evaluation as Evaluation
    from langneurons.evaluation.factorial import Factorial as Factorial
    from langneurons.evaluation.factorial import factorial as factorial
    from langneurons.evaluation.heldout_text import HeldoutText as HeldoutText
    from langneurons.evaluation.matrix import perplexity_matrix as perplexity_matrix
    from langneurons.evaluation.perplexity import perplexity as perplexity
    from langneurons.evaluation.sweep import Dose as Dose
    from langneurons.evaluation.sweep import sweep as sweep
    from langneurons.identification import AUROC as AUROC
    from langneurons.identification import LAPE as LAPE
    from langneurons.identification import SET1 as SET1
    from langneurons.identification import SET2 as SET2
    from langneurons.identification import SET3 as SET3
    from langneurons.identification import SET4 as SET4
    from langneurons.identification import SET5 as SET5
    from langneurons.identification import SET6 as SET6
    from langneurons.identification import SET_XNLI as SET_XNLI
    from langneurons.identification import ActivationProbability as ActivationProbability
    from langneurons.identification import Contrast as Contrast
    from langneurons.identification import EntropyLambda as EntropyLambda
    from langneurons.identification import GradientRelevance as GradientRelevance
    from langneurons.identification import MeanActivation as MeanActivation
    from langneurons.identification import MeanDifference as MeanDifference
    from langneurons.identification import NeuronSet as NeuronSet
    from langneurons.identification import Random as Random
    from langneurons.identification import Scores as Scores
    from langneurons.identification import SentenceAP as SentenceAP
    from langneurons.identification import TokenAP as TokenAP
    from langneurons.models import describe as describe
    from langneurons.models import load_model as load_model
    from langneurons.models.features.dictionaries import SparseDictionary as SparseDictionary
    from langneurons.models.features.dictionaries import add_dictionary as add_dictionary
    from langneurons.models.features.dictionaries import remove_dictionary as remove_dictionary
    from langneurons.patches import Add as Add
    from langneurons.patches import Clamp as Clamp
    from langneurons.patches import DiffMean as DiffMean
    from langneurons.patches import Patch as Patch
    from langneurons.patches import Scale as Scale
    from langneurons.patches import Set as Set
    from langneurons.patches import intervene as intervene
    from langneurons.patches import unreachable as unreachable
    from langneurons.recording.caches import record_caches as record_caches
    from langneurons.recording.looking import activations as activations
    from langneurons.recording.looking import examples as examples
    from langneurons.recording.recorder import record as record
    from langneurons.recording.site_values import SiteValues as SiteValues
    from langneurons.recording.statistics import ActivationStats as ActivationStats
    from langneurons.run import RayExecutor as RayExecutor
    from langneurons.study.study import Study as Study
    from langneurons.tasks.completing import completions as completions
    from langneurons.tasks.generation import Generation as Generation
    from langneurons.tasks.heads import ClassificationHead as ClassificationHead
    from langneurons.tasks.xnli import XNLI as XNLI
    from langneurons.tasks.xquad import XQuAD as XQuAD
    from langneurons.training.finetuned import Finetuned as Finetuned
    from langneurons.training.finetuning import finetune as finetune
    from langneurons.training.lora import MaskedIA3 as MaskedIA3
    from langneurons.training.lora import MaskedLoRA as MaskedLoRA
    from langneurons.training.lora import MaskedRows as MaskedRows
    from langneurons.training.transfer import transfer_experiment as transfer_experiment
    from langneurons.training.transfer_table import Transfer as Transfer
    from langneurons.views import plot as plot
    from langneurons.views.explorer import explore as explore
    from langneurons.views.neuron_page import neuron_page as neuron_page
    from langneurons.views.report import Findings as Findings
    from langneurons.views.report import write_report as write_report

_PLACES = {
    "analysis.ablation.ablating": ("ablate",),
    "analysis.ablation.result": ("Ablation",),
    "analysis.comparison": (
        "Comparison",
        "compare_methods",
    ),
    "analysis.profiles.profiling": ("profile",),
    "analysis.profiles.result": ("Profiles",),
    "analysis.screening": (
        "Screen",
        "screen",
    ),
    "analysis.selectivity.polysemanticity": ("polysemanticity",),
    "analysis.selectivity.reading": ("decompose",),
    "analysis.selectivity.result": ("Polysemanticity",),
    "analysis.selectivity.texts": ("LabelledTexts",),
    "models.features.dictionaries": (
        "add_dictionary",
        "remove_dictionary",
        "SparseDictionary",
    ),
    "analysis.validity": ("nulls", "rerun", "split_half"),
    "corpora": ("Corpus", "load_corpus"),
    "errors": ("LangNeuronsError", "LangNeuronsWarning"),
    "evaluation.dose": ("dose", "equal_dose"),
    "effects.table": ("EffectTable",),
    "effects.estimation": ("effect",),
    "evaluation.evaluating": ("evaluate",),
    "evaluation.evaluation": ("Evaluation",),
    "evaluation.factorial": ("Factorial", "factorial"),
    "evaluation.matrix": ("perplexity_matrix",),
    "evaluation.heldout_text": ("HeldoutText",),
    "evaluation.perplexity": ("perplexity",),
    "evaluation.sweep": ("Dose", "sweep"),
    "tasks.completing": ("completions",),
    "tasks.generation": ("Generation",),
    "tasks.heads": ("ClassificationHead",),
    "tasks.xnli": ("XNLI",),
    "tasks.xquad": ("XQuAD",),
    "identification": (
        "AUROC",
        "ActivationProbability",
        "Contrast",
        "EntropyLambda",
        "GradientRelevance",
        "LAPE",
        "SET1",
        "SET2",
        "SET3",
        "SET4",
        "SET5",
        "SET6",
        "SET_XNLI",
        "MeanActivation",
        "MeanDifference",
        "NeuronSet",
        "Random",
        "Scores",
        "SentenceAP",
        "TokenAP",
    ),
    "run": ("RayExecutor",),
    "models": ("describe", "load_model"),
    "patches": ("Add", "Clamp", "DiffMean", "Patch", "Scale", "Set", "intervene", "unreachable"),
    "recording.caches": ("record_caches",),
    "recording.looking": ("activations", "examples"),
    "recording.recorder": ("record",),
    "recording.site_values": ("SiteValues",),
    "recording.statistics": ("ActivationStats",),
    "training.finetuned": ("Finetuned",),
    "training.finetuning": ("finetune",),
    "training.lora": ("MaskedIA3", "MaskedLoRA", "MaskedRows"),
    "training.transfer": ("transfer_experiment",),
    "training.transfer_table": ("Transfer",),
    "views": ("plot",),
    "views.neuron_page": ("neuron_page",),
    "views.report": ("Findings", "write_report"),
    "study.study": ("Study",),
    "views.explorer": ("explore",),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__version__ = "0.1.0"
__all__ = ["__version__", *sorted(_PLACE_OF)]


def __getattr__(name: str) -> Any:
    """Import a public name from its room when it is first used."""
    if name not in _PLACE_OF:
        raise AttributeError(f"module 'langneurons' has no attribute {name!r}")
    value = getattr(import_module(f"langneurons.{_PLACE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
