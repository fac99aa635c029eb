"""Quadrants: the signs of a gated neuron's two factors, the gate and ``up``, and what it is given them by.

Such a neuron writes act(gate) x up times its output direction. Where up is negative, it suppresses the tokens that its
direction promotes, and where the gate is negative, it still writes a little, the other way round.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

SIGNS = ("+", "-")
QUADRANTS = ["language", "layer", "neuron", "gate", "up", "tokens", "mean_up", "value", "text", "start", "end"]
OF_MLP = ("pre", "act", "post", "up")
BEFORE, AFTER = 80, 60  # letters that are kept around the strongest token


class Tally:
    """Counts, token by token, in which quadrant some neurons of a gated MLP are; ``examples(watch=)`` takes it.

    Args:
        indices: Layer and index of each neuron.
    """

    sites = ("pre", "up", "post")

    def __init__(self, indices: Int[np.ndarray, "n 2"]) -> None:
        self._indices, shape = indices, (len(SIGNS) ** 2, len(indices))
        self._tokens, self._up = np.zeros(shape, np.int64), np.zeros(shape)
        self._value, self._text = np.full(shape, np.nan), np.full(shape, "", object)
        self._start, self._end = np.zeros(shape, np.int64), np.zeros(shape, np.int64)

    def __call__(
        self, text: str, offsets: Sequence[tuple[int, int]], values: Float[np.ndarray, "site token n"]
    ) -> None:
        """Count the tokens of a text, and remember the strongest of each quadrant.

        Args:
            text: The text.
            offsets: Where each token starts and ends.
            values: What the neurons are at ``sites``.
        """
        pre, up, post = values
        quadrant, columns = 2 * (pre <= 0) + (up <= 0), np.arange(pre.shape[1])
        for number in range(len(self._tokens)):
            inside = quadrant == number
            self._tokens[number] += inside.sum(0)
            self._up[number] += np.where(inside, up, 0.0).sum(0, dtype=np.float64)
            strength = np.where(inside, np.abs(post), -1.0)
            best = strength.argmax(0)
            strongest = np.nan_to_num(np.abs(self._value[number]), nan=-1.0)
            for column in np.flatnonzero(strength[best, columns] > strongest).tolist():
                self._remember(number, column, float(post[best[column], column]), text, offsets[best[column]])

    def _remember(self, number: int, column: int, value: float, text: str, place: tuple[int, int]) -> None:
        first = max(0, place[0] - BEFORE)
        at = (number, column)
        self._value[at], self._text[at] = value, text[first : place[1] + AFTER]
        self._start[at], self._end[at] = place[0] - first, place[1] - first

    def rows(self, language: str) -> pd.DataFrame:
        """Four rows per neuron, as ``Profiles.quadrants`` has them."""
        parts = []
        for number, (gate, up) in enumerate((gate, up) for gate in SIGNS for up in SIGNS):
            tokens = self._tokens[number]
            columns = {
                "layer": self._indices[:, 0],
                "neuron": self._indices[:, 1],
                "tokens": tokens,
                "mean_up": np.where(tokens > 0, self._up[number] / np.maximum(tokens, 1), np.nan),
                "value": self._value[number],
                "text": self._text[number],
                "start": self._start[number],
                "end": self._end[number],
            }
            parts.append(pd.DataFrame(columns).assign(language=language, gate=gate, up=up))
        return pd.concat(parts, ignore_index=True).reindex(columns=QUADRANTS)


def shares(quadrants: pd.DataFrame) -> pd.DataFrame:
    """Share of each language's tokens in each of one neuron's quadrants, named as in "+-", gate first.

    Args:
        quadrants: One neuron's rows of ``Profiles.quadrants``.

    Returns:
        One row per language.

    Example:
        >>> rows = pd.DataFrame({"language": "hi", "gate": ["+", "+"], "up": ["+", "-"], "tokens": [1, 3]})
        >>> shares(rows).loc["hi"].tolist()
        [0.25, 0.75]
    """
    names = quadrants["gate"] + quadrants["up"]
    tokens = quadrants.assign(quadrant=names).pivot_table("tokens", "language", "quadrant", "sum", sort=False)
    return tokens.div(tokens.sum(axis=1).clip(lower=1), axis=0)


def mean_up(quadrants: pd.DataFrame) -> dict[str, float]:
    """Language -> mean of ``up`` over the tokens on which one neuron's gate is positive, where there are any.

    Its sign says whether the neuron, when it is active in the language, promotes the tokens of its output direction.

    Args:
        quadrants: One neuron's rows of ``Profiles.quadrants``.

    Example:
        >>> rows = pd.DataFrame({"language": "hi", "gate": ["+", "+"], "tokens": [1, 3], "mean_up": [1.0, -1.0]})
        >>> mean_up(rows)
        {'hi': -0.5}
    """
    active = quadrants.query("gate == '+' and tokens > 0")
    sums = active.assign(total=active["mean_up"] * active["tokens"]).groupby("language", sort=False)
    return {
        str(language): part["total"].to_numpy().sum().item() / part["tokens"].to_numpy().sum().item()
        for language, part in sums
    }
