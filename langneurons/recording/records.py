"""What was recorded of one language at one site, how two recordings add, and how they are stored."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from langneurons import storage
from langneurons.errors import CorruptArtefactError, StatisticsError, unknown
from langneurons.recording.accumulation import FOLDS, Accumulators, Grid, count_dtype
from langneurons.recording.distributions import ActivationFunction
from langneurons.storage.layouts import layout

COUNTS = ("histogram", "active")
SUMS = ("sum", "absolute", "squares")
WRITTEN = "written"  # not in what version 0.1.0 recorded
LOWS, HIGHS = ("minimum", "coordinate_minimum"), ("maximum", "coordinate_maximum")
GRID = ("width", "first", "scale")
ACT_FN = ("act_fn.inputs", "act_fn.outputs")
ROUTER_SITES = ("router", "router_logits")  # where a unit is an expert, active where it is chosen


@dataclass(frozen=True, eq=False)
class LanguageRecord:
    """What was recorded of one language at one site.

    Attributes:
        tokens: Counted tokens of each document fold.
        tensors: Accumulators and grid by name.
        sources: Fingerprint of the packed corpus -> recorded block ranges, so that nothing is counted twice.
    """

    tokens: Int[Tensor, " fold"]
    tensors: Mapping  # of str to Tensor; unsaid, because checking an item at run time would read a stored file
    sources: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        sums: Accumulators,
        grid: Grid,
        tokens: Int[Tensor, " fold"],
        sources: Mapping[str, tuple[tuple[int, int], ...]],
        also: Mapping[str, Tensor] | None = None,
    ) -> "LanguageRecord":
        """Make a record of finished sums, and of optional tensors; what can be derived from the rest is dropped."""
        tensors = {name: getattr(sums, name).cpu() for name in (*COUNTS, *SUMS, *LOWS, *HIGHS)}
        if len(sums.post_absolute):
            tensors[WRITTEN] = sums.post_absolute.cpu()
        tensors |= {name: value for name in GRID if (value := getattr(grid, name)) is not None}
        return cls(tokens, {**tensors, **(also or {})}, sources)

    def __add__(self, other: "LanguageRecord") -> "LanguageRecord":
        for name in GRID:
            mine, theirs = self.tensors.get(name), other.tensors.get(name)
            if (mine is None) != (theirs is None) or (mine is not None and not torch.equal(mine, theirs)):  # pyright: ignore
                raise StatisticsError(
                    "These statistics have different histogram edges and cannot be added: "
                    "record the second part with like=<the first statistics>."
                )
        tokens = _added(self.tokens, other.tokens)
        count = count_dtype(int(tokens.sum()))
        merged = {name: self.tensors[name] for name in GRID if name in self.tensors}
        merged |= {n: _added(self.tensors[n].long(), other.tensors[n]).to(count) for n in COUNTS if n in self.tensors}
        merged |= {name: _added(self.tensors[name], other.tensors[name]) for name in SUMS if name in self.tensors}
        merged |= {n: torch.minimum(self.tensors[n], other.tensors[n]) for n in LOWS if n in self.tensors}
        merged |= {n: torch.maximum(self.tensors[n], other.tensors[n]) for n in HIGHS if n in self.tensors}
        if WRITTEN in self.tensors and WRITTEN in other.tensors:
            merged[WRITTEN] = _added(self.tensors[WRITTEN], other.tensors[WRITTEN])
        merged |= added(self.tensors, other.tensors)
        return LanguageRecord(tokens, merged, _merged_sources(self.sources, other.sources))

    def grid(self) -> Grid:
        """The histogram's bins."""
        return Grid(self.tensors["width"], self.tensors["first"], self.tensors.get("scale"))

    def about(self) -> dict[str, Any]:
        """What the JSON file says: tokens of each fold, and what was counted."""
        sources = {source: [list(pair) for pair in pairs] for source, pairs in self.sources.items()}
        return {"tokens": self.tokens.tolist(), "sources": sources}

    def fold(self, members: Sequence[int]) -> "LanguageRecord":
        """Only some document folds: counts above zero, sums and what is optional, without histograms."""
        rows = list(members)
        tensors = of_folds(self.tensors, rows)
        tensors |= {name: self.tensors[name][rows] for name in ("active", "sum") if name in self.tensors}
        tensors |= {name: self.tensors[name] for name in GRID if name in self.tensors}
        return LanguageRecord(self.tokens[rows], tensors)


def _added(left: Tensor, right: Tensor) -> Tensor:
    total = left + right
    if bool((((left ^ total) & (right ^ total)) < 0).any()):
        raise StatisticsError("A sum does not fit into 64 bits: add statistics of fewer tokens.")
    return total


def _merged_sources(
    left: Mapping[str, tuple[tuple[int, int], ...]], right: Mapping[str, tuple[tuple[int, int], ...]]
) -> dict[str, tuple[tuple[int, int], ...]]:
    merged = dict(left)
    for source, ranges in right.items():
        joined: list[tuple[int, int]] = []
        for start, end in sorted((*left.get(source, ()), *ranges)):
            if joined and start < joined[-1][1]:
                raise StatisticsError(
                    f"Both statistics hold block {start} of the same corpus: adding them would count it twice."
                )
            if joined and start == joined[-1][1]:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        merged[source] = tuple(joined)
    return merged


@dataclass(frozen=True)
class RecordedModel:
    """What statistics must know of the model they came from.

    Attributes:
        name: Name under which it was loaded.
        fingerprint: Fingerprint of its weights.
        dtype: Type of numbers that it computed in.
        gated: Whether its MLP has a gate (then ``post`` is act x up).
        output_norm: Per site, the norm of each neuron's output weights.
        act_fn: Its activation function, tabulated; None for published counts.
        of_features: Per site of features, the fingerprint of weights and dictionaries together.
    """

    name: str
    fingerprint: str
    dtype: str
    gated: bool
    output_norm: Mapping[str, Float[Tensor, "layer neuron"]] = field(default_factory=dict)
    act_fn: ActivationFunction | None = None
    of_features: Mapping[str, str] = field(default_factory=dict)

    def fingerprint_at(self, site: str) -> str:
        """What values at a site come from: the weights, at a site of features with the dictionaries."""
        return self.of_features.get(site, self.fingerprint)

    @classmethod
    def of(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "RecordedModel":
        """Rebuild it from what was stored: ``about``, and ``tensors``."""
        output_norm = {name: values for name, values in tensors.items() if name not in ACT_FN}
        act_fn = ActivationFunction(*(tensors[name] for name in ACT_FN)) if tensors.keys() >= set(ACT_FN) else None
        return cls(**about, output_norm=output_norm, act_fn=act_fn)

    def about(self) -> dict[str, Any]:
        """What the JSON file says, features aside."""
        return {name: getattr(self, name) for name in ("name", "fingerprint", "dtype", "gated")}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to store."""
        tensors = dict(self.output_norm)
        if self.act_fn is not None:
            tensors |= zip(ACT_FN, (self.act_fn.inputs, self.act_fn.outputs), strict=True)
        return tensors


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of one file, verified and memory-mapped at first use."""

    def __init__(self, path: Path, checksum: str, folds: int):
        self.path, self.checksum, self.folds = path, checksum, folds

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Everything in the file."""
        tensors = storage.read_tensors(self.path, self.checksum)
        shape = tensors["active"].shape[1:] if "active" in tensors else ()
        expected = {"active": (self.folds, *shape), "sum": (self.folds, *shape)}
        expected |= dict.fromkeys(("absolute", "squares", WRITTEN, *LOWS, *HIGHS, *GRID), shape)
        if len(shape) != 2 or any(tensors[name].shape != size for name, size in expected.items() if name in tensors):
            raise CorruptArtefactError(f"{self.path} holds no counts of {self.folds} folds, or sums of other neurons.")
        if any(name in tensors and tensors[name].is_floating_point() for name in (*COUNTS, *SUMS, WRITTEN)):
            raise CorruptArtefactError(f"{self.path} holds counts or sums that are no whole numbers.")
        if (histogram := tensors.get("histogram")) is not None and histogram.shape[:-1] != shape:
            raise CorruptArtefactError(f"{self.path} holds histograms of other neurons than it counts.")
        return tensors

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def stored_record(path: Path, checksum: str, about: Mapping[str, Any]) -> LanguageRecord:
    """The record of a saved file, which is opened when it is first used."""
    sources = {source: tuple((start, stop) for start, stop in ranges) for source, ranges in about["sources"].items()}
    tokens = torch.tensor(about["tokens"])
    return LanguageRecord(tokens, StoredTensors(path, checksum, len(tokens)), sources)


def check_manifest(about: storage.JsonObject) -> None:
    """Refuse a manifest of statistics that leads out of its folder, or does not say what was counted.

    Raises:
        CorruptArtefactError: If a part is missing, or of another kind.
        ValueError: If a language or a site cannot be a file's name, or counts do not fit each other.
    """
    layout(texts="sites order", whole="context_length", mapping="model languages checksums").check("it", about)
    layout(text="name fingerprint dtype", flag="gated", mapping="of_features?").check("its model", about["model"])
    for names in (about["order"], about["sites"]):
        if not names or len(set(names)) < len(names) or not all(map(storage.names_a_file, names)):
            raise ValueError(f"{names!r:.100} are no names of files, each once")
    folds = set()
    for language in about["order"]:
        layout(numbers="tokens", mapping="sources").check(language, about["languages"][language])
        tokens = about["languages"][language]["tokens"]
        folds.add(len(tokens))
        if any(not isinstance(count, int) or count < 0 for count in tokens):
            raise ValueError(f"the tokens of {language!r} are no counts")
    if len(folds) != 1 or folds == {0}:
        raise ValueError("languages have different numbers of folds, or none")


def weighted_mean(
    per_fold: Float[Tensor, "fold layer neuron"], tokens: Int[Tensor, " fold"]
) -> Float[Tensor, "layer neuron"]:
    """The mean over all tokens, from the means of the document folds; a fold without tokens counts nothing."""
    per_fold = per_fold.nan_to_num(nan=0.0)
    return einsum(per_fold, tokens.double(), "fold layer neuron, fold -> layer neuron") / tokens.sum()


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
    names = set(also)
    for name in sorted(names - set(OPTIONAL)):
        raise StatisticsError(unknown("optional statistic", name, OPTIONAL))
    return tuple(name for name in OPTIONAL if name in names)


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
        count = min(documents, at_most)
        return cls(source, torch.arange(count) * documents // max(count, 1))

    def rows(self, document: Int[Tensor, "*token"]) -> Int[Tensor, "*token"]:
        """Which sentence each token is part of, given its document; -1 where that is none of these."""
        place = torch.searchsorted(self.ordinals, document).clamp(max=len(self.ordinals) - 1)
        return torch.where(self.ordinals[place] == document, place, -1)

    def tensors(
        self, tokens: Int[Tensor, " sentence"], sums: Int[Tensor, "sentence layer neuron"]
    ) -> dict[str, Tensor]:
        """What is kept of the sentences that have tokens."""
        counted = tokens > 0
        key = (int(self.source[:8], 16) >> 1) << _ORDINAL_BITS
        return {
            "sentence": (key | self.ordinals)[counted],
            "sentence_tokens": tokens[counted],
            "sentence_sum": sums[counted],
        }


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
        merged["relevance_sum"] = _added(left["relevance_sum"], right["relevance_sum"])
    return merged


def of_folds(tensors: Mapping, members: Sequence[int]) -> dict[str, Tensor]:
    """The optional statistics of some document folds."""
    part = {}
    if SENTENCE in held(tensors):
        fold = (tensors["sentence"] & (2**_ORDINAL_BITS - 1)) % FOLDS
        is_member = torch.isin(fold, torch.tensor(members))
        part |= {name: tensors[name][is_member] for name in ("sentence", "sentence_tokens", "sentence_sum")}
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
