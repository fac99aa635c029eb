"""What was recorded of one language at one site, how two recordings add, and how they are stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons import storage
from langneurons.errors import StatisticsError
from langneurons.recording import optional
from langneurons.recording.accumulation import Accumulators, Grid, count_dtype
from langneurons.recording.distributions import ActivationFunction

COUNTS = ("histogram", "active")
SUMS = ("sum", "absolute", "squares")
LOWS, HIGHS = ("minimum", "coordinate_minimum"), ("maximum", "coordinate_maximum")
GRID = ("width", "first", "scale")


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
        tokens = self.tokens + other.tokens
        count = count_dtype(int(tokens.sum()))
        merged = {name: self.tensors[name] for name in GRID if name in self.tensors}
        merged |= {n: (self.tensors[n].long() + other.tensors[n]).to(count) for n in COUNTS if n in self.tensors}
        merged |= {name: _added(self.tensors[name], other.tensors[name]) for name in SUMS if name in self.tensors}
        merged |= {n: torch.minimum(self.tensors[n], other.tensors[n]) for n in LOWS if n in self.tensors}
        merged |= {n: torch.maximum(self.tensors[n], other.tensors[n]) for n in HIGHS if n in self.tensors}
        merged |= optional.added(self.tensors, other.tensors)
        return LanguageRecord(tokens, merged, _merged_sources(self.sources, other.sources))

    def grid(self) -> Grid:
        """The histogram's bins."""
        return Grid(self.tensors["width"], self.tensors["first"], self.tensors.get("scale"))

    def fold(self, members: Sequence[int]) -> "LanguageRecord":
        """Only some document folds: counts above zero, sums and what is optional, without histograms."""
        rows = list(members)
        tensors = optional.of_folds(self.tensors, rows)
        tensors |= {name: self.tensors[name][rows] for name in ("active", "sum") if name in self.tensors}
        tensors |= {name: self.tensors[name] for name in GRID if name in self.tensors}
        return LanguageRecord(self.tokens[rows], tensors)


def _added(left: Tensor, right: Tensor) -> Tensor:
    total = left + right
    if bool((((left ^ total) & (right ^ total)) < 0).any()):
        raise StatisticsError("A sum of activations left the 64-bit integers: record fewer tokens a language.")
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
        name: As it was loaded.
        fingerprint: Of its weights.
        dtype: It computed in.
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

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to store."""
        tensors = dict(self.output_norm)
        if self.act_fn is not None:
            tensors |= {"act_fn.inputs": self.act_fn.inputs, "act_fn.outputs": self.act_fn.outputs}
        return tensors


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of one file, verified and memory-mapped at first use."""

    def __init__(self, path: Path, checksum: str):
        self.path, self.checksum = path, checksum

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Everything in the file."""
        return storage.read_tensors(self.path, self.checksum)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
