"""Documents per language: loaded, split, judged for purity, and packed into blocks of counted tokens."""

from langneurons.corpora.blocks import Blocks, PackedCorpus
from langneurons.corpora.corpus import Corpus
from langneurons.corpora.languages import SET1, SET2, SET3, SET4, SET5, SET6, SET_XNLI
from langneurons.corpora.loading import load_corpus
from langneurons.corpora.packing import pack
from langneurons.corpora.purity import purity, purity_warnings

__all__ = [
    "SET1",
    "SET2",
    "SET3",
    "SET4",
    "SET5",
    "SET6",
    "SET_XNLI",
    "Blocks",
    "Corpus",
    "PackedCorpus",
    "load_corpus",
    "pack",
    "purity",
    "purity_warnings",
]
