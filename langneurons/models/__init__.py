"""Models: HookedTransformer or TransformerBridge behind one vocabulary.

``load_model`` gives the TransformerLens object itself; ``view`` gives what the other rooms need of it. Only this room
knows how the two classes differ and what their hook points are called.
"""

from langneurons.models.description import ModelDescription, describe
from langneurons.models.features.dictionaries import SparseDictionary, add_dictionary, remove_dictionary
from langneurons.models.features.sites import Dictionary, FeatureSite
from langneurons.models.loading import load_model
from langneurons.models.projections import Projection
from langneurons.models.running import Following
from langneurons.models.sites import SITES
from langneurons.models.view import ModelView, view

__all__ = [
    "SITES",
    "Dictionary",
    "FeatureSite",
    "Following",
    "ModelDescription",
    "ModelView",
    "Projection",
    "SparseDictionary",
    "add_dictionary",
    "describe",
    "load_model",
    "remove_dictionary",
    "view",
]
