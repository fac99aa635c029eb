"""Scores: one number per neuron, or per language and neuron, with the uncertainty that the documents leave."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor

from langneurons.corpora.languages import label_of
from langneurons.errors import StatisticsError
from langneurons.settings import finite_number


@dataclass(frozen=True, eq=False)
class Scores:
    """The score that a method gives every neuron.

    Attributes:
        values: One score per (language, layer, neuron), or per (layer, neuron) where ``languages`` is None.
        languages: Languages of the first axis, or None.
        method: The method and its options.
        uncertainty: Description of the standard error, which says where it is an approximation.
        degrees_of_freedom: Degrees of freedom of the interval: document folds - 1.
        bounds: The lowest and highest score there can be.

    Example:
        >>> scores = Scores(torch.zeros(2, 3), None, "example", "known", 19, lambda: torch.ones(2, 3))
        >>> [round(float(end[0, 0]), 2) for end in scores.interval(0.95)]
        [-2.09, 2.09]
    """

    values: Float[Tensor, "*language layer neuron"]
    languages: tuple[str, ...] | None
    method: str
    uncertainty: str
    degrees_of_freedom: int
    compute_standard_error: Callable[[], Tensor] = field(repr=False)
    bounds: tuple[float, float] = (-np.inf, np.inf)

    def __repr__(self) -> str:
        return f"Scores of {self.method}: {tuple(self.values.shape)}; standard error: {self.uncertainty}"

    def __getitem__(self, language: str) -> Float[Tensor, "layer neuron"]:
        """One language's scores; a score that belongs to no language is every language's.

        Raises:
            LanguageError: If the language was not scored.
        """
        return self._of(self.values, language)

    def standard_error(self) -> Float[Tensor, "*language layer neuron"]:
        """Standard error of every score, computed when asked.

        Raises:
            StatisticsError: If the statistics carry no document folds (published counts).
        """
        return self.compute_standard_error()

    def interval(
        self, level: float = 0.95
    ) -> tuple[Float[Tensor, "*language layer neuron"], Float[Tensor, "*language layer neuron"]]:
        """Confidence interval of every score: Student's t on the document folds, cut at the score's bounds.

        Args:
            level: Share of such intervals that hold the truth, between 0 and 1.

        Returns:
            Lower and upper ends.

        Raises:
            StatisticsError: If ``level`` is no share, or the statistics carry no document folds.
        """
        level = finite_number(level, "level", StatisticsError)
        if not 0 < level < 1:
            raise StatisticsError(f"The level of an interval lies between 0 and 1, not at {level}.")
        error = self.standard_error()
        margin = float(scipy.stats.t.ppf((1 + level) / 2, max(self.degrees_of_freedom, 1))) * error
        return (self.values - margin).clamp(*self.bounds), (self.values + margin).clamp(*self.bounds)

    def looked_up(
        self, values: Tensor, languages: Iterable[str], layers: Iterable[int], neurons: Iterable[int]
    ) -> Float[np.ndarray, " row"]:
        """Entries of ``values`` (shaped as the scores are) at rows of (language, layer, neuron)."""
        where = (torch.from_numpy(np.array(layers)), torch.from_numpy(np.array(neurons)))
        if self.languages is None:
            return values[where].double().numpy()
        order = [self._position(language) for language in languages]
        return values[(torch.tensor(order, dtype=torch.long), *where)].double().numpy()

    def _of(self, values: Tensor, language: str) -> Tensor:
        return values if self.languages is None else values[self._position(language)]

    def _position(self, language: str) -> int:
        languages = self.languages or ()
        return languages.index(label_of(language, languages))
