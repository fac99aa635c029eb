"""Is the score real? Reliability, nulls that can be failed, and language against token and script."""

from langneurons.analysis.validity.conditioning import condition, conditioned
from langneurons.analysis.validity.controls import DocumentHeterogeneity, OwnQuantile, RedrawnRandom
from langneurons.analysis.validity.firing import TokenFiring, firing_by_token
from langneurons.analysis.validity.recordings import NULLS, Recordings, nulls, record_halves, record_nulls
from langneurons.analysis.validity.regrouping import (
    Nulls,
    halves_by_source,
    nulls_of,
    pseudo_languages,
    shuffled_languages,
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
    "TokenFiring",
    "ValidityTable",
    "chance_jaccard",
    "condition",
    "conditioned",
    "firing_by_token",
    "halves_by_source",
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
