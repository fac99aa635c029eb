"""Models: HookedTransformer or TransformerBridge behind one vocabulary.

``load_model`` returns the TransformerLens object itself; ``view`` returns what the other rooms need of it. Only this
room knows how the two classes differ, and the names of their hook points.
"""

from langneurons.models.description import ModelDescription, describe
from langneurons.models.features.dictionaries import SparseDictionary, add_dictionary, remove_dictionary
from langneurons.models.features.sites import Dictionary, FeatureSite
from langneurons.models.loading import load_model
from langneurons.models.projections import ATTENTION_TARGETS, MLP_TARGETS, HuggingFaceModule, Projection, rows_of
from langneurons.models.running import Following
from langneurons.models.sites import SITES
from langneurons.models.view import ModelView, view

__all__ = [
    "ATTENTION_TARGETS",
    "MLP_TARGETS",
    "SITES",
    "Dictionary",
    "FeatureSite",
    "Following",
    "HuggingFaceModule",
    "ModelDescription",
    "ModelView",
    "Projection",
    "SparseDictionary",
    "add_dictionary",
    "describe",
    "load_model",
    "remove_dictionary",
    "rows_of",
    "view",
]
