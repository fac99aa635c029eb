"""Is the score real? Reliability, and nulls that can be failed."""

from langneurons.analysis.validity.controls import (
    DocumentHeterogeneity,
    OwnQuantile,
    RedrawnRandom,
    pseudo_languages,
    shuffled_languages,
)
from langneurons.analysis.validity.recordings import (
    NULLS,
    Nulls,
    Recordings,
    nulls,
    nulls_of,
    record_halves,
    record_nulls,
)
from langneurons.analysis.validity.reliability import SplitHalf, chance_jaccard, rerun, split_half
from langneurons.analysis.validity.table import CHECKS, Check, Evidence, ValidityTable, validity_table

__all__ = [
    "CHECKS",
    "NULLS",
    "Check",
    "DocumentHeterogeneity",
    "Evidence",
    "Nulls",
    "OwnQuantile",
    "Recordings",
    "RedrawnRandom",
    "SplitHalf",
    "ValidityTable",
    "chance_jaccard",
    "nulls",
    "nulls_of",
    "pseudo_languages",
    "record_halves",
    "record_nulls",
    "rerun",
    "shuffled_languages",
    "split_half",
    "validity_table",
]
