"""How much of each neuron's variance language, label and their interaction explain: type II sums of squares."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Float32, Int
from torch import Tensor

from langneurons import storage
from langneurons.errors import StatisticsError, unknown
from langneurons.storage import Column, JsonObject, Result, Table


@dataclass(frozen=True, eq=False)
class Moments:
    """What is left of many values: enough for every sum of squares.

    Sums of squared deviations are kept rather than of squares: nothing cancels, however far the values are from zero.

    Attributes:
        counts: Number of values in each cell.
        means: Mean of each cell and neuron; 0 where a cell is empty.
        squares: Sum of squared deviations from the cell's mean.
    """

    counts: Int[np.ndarray, " cell"]
    means: Float[np.ndarray, "cell neuron"]
    squares: Float[np.ndarray, "cell neuron"]

    @classmethod
    def of(
        cls,
        values: Float32[np.ndarray, "row neuron"] | Float[np.ndarray, "row neuron"],
        cells: Int[np.ndarray, " row"],
        count: int,
    ) -> "Moments":
        """Take the moments of some rows.

        Args:
            values: One row per text.
            cells: Number of each row's cell, from 0.
            count: Number of cells.
        """
        exact = values.astype(float)
        belongs = (cells == np.arange(count)[:, None]).astype(float)
        counts = belongs.sum(1).astype(np.int64)
        means = belongs @ exact / np.maximum(counts, 1)[:, None]
        return cls(counts, means, belongs @ np.square(exact - means[cells]))

    def __add__(self, other: "Moments") -> "Moments":
        """Both together (Chan, Golub, LeVeque 1983)."""
        counts = self.counts + other.counts
        share = (other.counts / np.maximum(counts, 1))[:, None]
        apart = other.means - self.means
        squares = self.squares + other.squares + np.square(apart) * share * self.counts[:, None]
        return Moments(counts, self.means + apart * share, squares)

    @classmethod
    def stacked(cls, parts: Sequence["Moments"]) -> "Moments":
        """The cells of several, one after the other."""
        columns = zip(*((part.counts, part.means, part.squares) for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


SOURCES = ("language", "task", "interaction")
# A neuron whose values differ by less than this share of their size differs by the rounding of single precision.
CONSTANT = 1e-5


@dataclass(frozen=True, eq=False, repr=False)
class Decomposition(Result, kind="decomposition"):
    """The variance of every neuron, divided among language, task label, their interaction and the rest.

    ``squares`` has type II sums of squares: "language" (given the label), "task" (the label, given the language),
    "interaction" (given both) and "residual"; "total"; and type I, entered first: "language_first" and "task_first".
    The two types are equal where cells are balanced. A neuron that never changes has none of anything.

    Attributes:
        languages: The languages.
        labels: The task's labels.
        counts: Number of texts of each language and label.
        site: Site of the neurons.
        squares: Name -> sum of squares of every neuron.

    Example:
        >>> values = np.array([[1.0], [2.0], [5.0], [6.0]])
        >>> moments = Moments.of(values, np.arange(4), 4)
        >>> decomposition = Decomposition.of(moments, ("en", "hi"), ("no", "yes"), (1, 1), "act")
        >>> [round(float(decomposition.share(source)), 3) for source in ("language", "task", "interaction")]
        [0.941, 0.059, 0.0]
    """

    languages: tuple[str, ...]
    labels: tuple[str, ...]
    counts: Int[np.ndarray, "language label"]
    site: str
    squares: dict[str, Float[np.ndarray, "layer neuron"]]

    @classmethod
    def of(
        cls, moments: Moments, languages: tuple[str, ...], labels: tuple[str, ...], shape: tuple[int, int], site: str
    ) -> "Decomposition":
        """Decompose the variance that moments hold.

        Args:
            moments: Moments of every language and label: a cell each, languages one after the other.
            languages: The languages.
            labels: The labels.
            shape: Number of layers, and of neurons per layer.
            site: Site at which the values were read.
        """
        counts = rearrange(moments.counts, "(language label) -> language label", language=len(languages))
        grand = moments.counts @ moments.means / moments.counts.sum()
        apart = moments.means - grand
        sums = moments.counts[:, None] * apart
        residual = moments.squares.sum(0)
        total = residual + (sums * apart).sum(0)
        changes = total > moments.counts.sum() * np.square(CONSTANT) * (np.square(grand) + total / moments.counts.sum())
        forms = quadratic_forms(counts[None].astype(float))
        squares = {name: np.maximum((sums * (form[0] @ sums)).sum(0), 0.0) for name, form in forms.items()}
        squares |= {"residual": residual, "total": total}
        squares = {name: np.where(changes, values, 0.0).reshape(shape) for name, values in squares.items()}
        return cls(languages, labels, counts, site, squares)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of layers, and of neurons per layer."""
        layers, width = self.squares["total"].shape
        return layers, width

    @property
    def balanced(self) -> bool:
        """Whether languages have equal shares of every label, so that the order of factors does not matter."""
        expected = self.counts.sum(1, keepdims=True) * self.counts.sum(0) / self.counts.sum()
        return bool(np.allclose(self.counts, expected, rtol=0, atol=1e-9))

    def share(self, source: str) -> Float[Tensor, "layer neuron"]:
        """Share of a neuron's variance that a source explains (eta squared); 0 where the neuron never changes.

        Args:
            source: "language", "task" or "interaction", or entered first, "language_first" or "task_first".

        Raises:
            StatisticsError: If the source is unknown.
        """
        return torch.from_numpy(ratio(self._of(source), self.squares["total"]))

    def partial(self, source: str) -> Float[Tensor, "layer neuron"]:
        """Share that a source explains of what the other sources leave (partial eta squared); 0 where nothing changes.

        Args:
            source: "language", "task" or "interaction".

        Raises:
            StatisticsError: If the source is unknown.
        """
        own = self._of(source)
        return torch.from_numpy(ratio(own, own + self.squares["residual"]))

    @property
    def rows(self) -> pd.DataFrame:
        """One row per neuron: layer, neuron, and shares of every kind."""
        layer, neuron = np.divmod(np.arange(self.squares["total"].size), self.shape[1])
        names = [*SOURCES, "language_first", "task_first"]
        shares = {f"{name}_share": self.share(name).numpy().ravel() for name in names}
        partials = {f"{name}_partial": self.partial(name).numpy().ravel() for name in SOURCES}
        return pd.DataFrame({"layer": layer, "neuron": neuron, **shares, **partials})

    def table(self) -> Table:
        """The mean over each layer's neurons of the variance that every source explains."""
        columns = {f"{source}_share": Column(source, "%", 100) for source in SOURCES}
        frame = pd.DataFrame(self.rows.groupby("layer", as_index=False)[list(columns)].mean())
        layers, width = self.shape
        title = (
            f"Decomposition of {layers} layers x {width} at {self.site}: {', '.join(self.languages)} by "
            f"{', '.join(self.labels)}, {int(self.counts.sum()):,} texts"
        )
        caption = "Share of a neuron's variance over texts that each source explains, the mean over a layer's neurons."
        return Table(frame, columns, title, caption)

    def _check_parts(self) -> None:
        layers, width = self.squares["total"].shape
        texts = all(isinstance(name, str) for name in (*self.languages, *self.labels, self.site))
        if not texts or self.counts.shape != (len(self.languages), len(self.labels)) or (self.counts < 0).any():
            raise ValueError("it needs a count of texts for each language and label")
        for name in ("total", "residual", *SOURCES, "language_first", "task_first"):
            values = self.squares[name]
            if values.shape != (layers, width) or values.dtype.kind != "f" or not np.isfinite(values).all():
                raise ValueError(
                    f"the squares {name!r} are not finite numbers, one for each of {layers} x {width} neurons"
                )

    def _write(self, folder: Path) -> JsonObject:
        tensors = {name: torch.from_numpy(values) for name, values in self.squares.items()}
        return {
            "languages": list(self.languages),
            "labels": list(self.labels),
            "counts": self.counts.tolist(),
            "site": self.site,
            "checksum": storage.write_tensors(folder / "decomposition.safetensors", tensors),
        }

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        tensors = storage.read_tensors(folder / "decomposition.safetensors", str(content["checksum"]))
        return {
            "languages": tuple(content["languages"]),
            "labels": tuple(content["labels"]),
            "counts": np.array(content["counts"], np.int64),
            "site": content["site"],
            "squares": {name: tensor.numpy() for name, tensor in tensors.items()},
        }

    def _of(self, source: str) -> Float[np.ndarray, "layer neuron"]:
        if source not in self.squares:
            raise StatisticsError(unknown("source", source, SOURCES))
        return self.squares[source]


def quadratic_forms(counts: Float[np.ndarray, "draw language label"]) -> dict[str, Float[np.ndarray, "draw cell cell"]]:
    """Matrices that turn a neuron's cell sums s into sums of squares, s' Q s, one for each way the cells are filled.

    A model's sum of squares is s' X (X'NX)^+ X' s; every source's is the difference of two models'. Cells may be empty.

    Args:
        counts: Number of texts in each cell.

    Returns:
        Source -> matrices: "language", "task", "interaction", "language_first", "task_first".
    """
    languages, labels = counts.shape[1:]
    by_language = np.kron(np.eye(languages), np.ones((labels, 1)))
    by_label = np.kron(np.ones((languages, 1)), np.eye(labels))
    filled = rearrange(counts, "draw language label -> draw (language label)")
    designs = np.ones((filled.shape[1], 1)), by_language, by_label, np.hstack([by_language, by_label])
    mean, language, label, both = (_projection(design, filled) for design in designs)
    every = np.divide(1, filled, where=filled > 0, out=np.zeros_like(filled))[:, :, None] * np.eye(filled.shape[1])
    return {
        "language": both - label,
        "task": both - language,
        "interaction": every - both,
        "language_first": language - mean,
        "task_first": label - mean,
    }


def _projection(
    design: Float[np.ndarray, "cell column"], counts: Float[np.ndarray, "draw cell"]
) -> Float[np.ndarray, "draw cell cell"]:
    normal = np.einsum("ca,dc,cb->dab", design, counts, design, optimize=True)
    return design @ np.linalg.pinv(normal, rcond=1e-10, hermitian=True) @ design.T


def ratio(part: Float[np.ndarray, "*shape"], whole: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Divide, with 0 where there is nothing to be a part of."""
    return np.divide(part, whole, where=whole > 0, out=np.zeros_like(whole))
