"""What record() keeps only when asked: sums of single sentences, and of gradients. How they add, and split into folds.

Pure: tensors in, tensors out. They stand beside the others in a language's record, under the names below.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons.errors import StatisticsError, unknown
from langneurons.recording.accumulation import FOLDS

SENTENCE, GRADIENT = "sentence", "gradient"
OPTIONAL = (SENTENCE, GRADIENT)
SENTENCES = 500
TENSORS = {
    "sentence": SENTENCE,  # key: source and ordinal of the document
    "sentence_tokens": SENTENCE,
    "sentence_sum": SENTENCE,
    "relevance_sum": GRADIENT,
    "relevance_unit": GRADIENT,
}
_ORDINAL_BITS = 32
_FINEST = 2.0**-100  # a power of two that float32 still holds with all its digits
_LEAST_SHARE = 2.0**-20  # of the layer's mean relevance, which a silent neuron's unit is taken from


def check_optional(also: Iterable[str]) -> tuple[str, ...]:
    """Return the names asked for in a fixed order, each once.

    Raises:
        StatisticsError: If one is unknown.

    Example:
        >>> check_optional(["gradient", "sentence"])
        ('sentence', 'gradient')
    """
    given = set(also)
    for name in sorted(given - set(OPTIONAL)):
        raise StatisticsError(unknown("optional statistic", name, OPTIONAL))
    return tuple(name for name in OPTIONAL if name in given)


def held(tensors: Iterable[str]) -> tuple[str, ...]:
    """Which optional statistics are among the names of tensors."""
    return check_optional({TENSORS[name] for name in tensors if name in TENSORS})


def check_held(needed: Iterable[str], tensors: Iterable[str]) -> None:
    """Refuse to go on without optional statistics.

    Raises:
        StatisticsError: If one was not recorded; it says which option of record() gives it.
    """
    missing = tuple(name for name in needed if name not in held(tensors))
    if missing:
        raise StatisticsError(
            f"These statistics hold nothing of {' and '.join(map(repr, missing))}: record them with "
            f"record(..., also={missing})."
        )


@dataclass(frozen=True)
class Sentences:
    """The documents of a language that are kept by themselves, and what they are called.

    Attributes:
        source: Fingerprint of the packed text they are part of.
        ordinals: Increasing.
    """

    source: str
    ordinals: Int[Tensor, " sentence"]

    @classmethod
    def spread(cls, source: str, documents: int, at_most: int) -> "Sentences":
        """Choose documents spread evenly over the text, or all where there are no more.

        Example:
            >>> Sentences.spread("0" * 32, 10, 3).ordinals.tolist()
            [0, 3, 6]
        """
        kept = min(documents, at_most)
        return cls(source, torch.arange(kept) * documents // max(kept, 1))

    def rows(self, document: Int[Tensor, "*token"]) -> Int[Tensor, "*token"]:
        """Which sentence each token is part of, given its document; -1 where that is none of these."""
        place = torch.searchsorted(self.ordinals, document).clamp(max=len(self.ordinals) - 1)
        return torch.where(self.ordinals[place] == document, place, -1)

    def tensors(
        self, tokens: Int[Tensor, " sentence"], sums: Int[Tensor, "sentence layer neuron"]
    ) -> dict[str, Tensor]:
        """What is kept of the sentences that have tokens."""
        seen = tokens > 0
        key = (int(self.source[:8], 16) >> 1) << _ORDINAL_BITS
        return {"sentence": (key | self.ordinals)[seen], "sentence_tokens": tokens[seen], "sentence_sum": sums[seen]}


def relevance_unit(mean: Float[Tensor, "layer neuron"]) -> Float[Tensor, "layer neuron"]:
    """The power of two that a neuron's sums of relevance are counted in: about its own mean in the first blocks."""
    least = (mean.mean(1, keepdim=True) * _LEAST_SHARE).clamp(min=_FINEST)
    return torch.exp2(torch.floor(torch.log2(torch.maximum(mean, least)))).float()


def added(left: Mapping, right: Mapping) -> dict[str, Tensor]:
    """Add the optional statistics of two records.

    Raises:
        StatisticsError: If only one record holds them, or they are counted in different units.
    """
    if held(left) != held(right):
        differing = tuple(sorted({*held(left)} ^ {*held(right)}))
        raise StatisticsError(f"Only one of these statistics was recorded with also={differing}: record both with it.")
    merged = {}
    if SENTENCE in held(left):
        merged |= _added_sentences(left, right)
    if GRADIENT in held(left):
        if not torch.equal(left["relevance_unit"], right["relevance_unit"]):
            raise StatisticsError(
                "The relevance of these statistics is counted in different units and cannot be added: record the "
                "second part with like=<the first statistics>."
            )
        merged["relevance_unit"] = left["relevance_unit"]
        merged["relevance_sum"] = left["relevance_sum"] + right["relevance_sum"]
    return merged


def of_folds(tensors: Mapping, members: Sequence[int]) -> dict[str, Tensor]:
    """The optional statistics of some document folds."""
    part = {}
    if SENTENCE in held(tensors):
        fold = (tensors["sentence"] & (2**_ORDINAL_BITS - 1)) % FOLDS
        chosen = torch.isin(fold, torch.tensor(members))
        part |= {name: tensors[name][chosen] for name in ("sentence", "sentence_tokens", "sentence_sum")}
    if GRADIENT in held(tensors):
        part |= {"relevance_sum": tensors["relevance_sum"][list(members)], "relevance_unit": tensors["relevance_unit"]}
    return part


def _added_sentences(left: Mapping, right: Mapping) -> dict[str, Tensor]:
    """Sentences of both; one that a boundary between shards cut in two is put together."""
    keys, place = torch.cat([left["sentence"], right["sentence"]]).unique(return_inverse=True)
    merged = {"sentence": keys}
    for name in ("sentence_tokens", "sentence_sum"):
        both = torch.cat([left[name], right[name]])
        merged[name] = both.new_zeros(len(keys), *both.shape[1:]).index_add_(0, place, both)
    return merged
