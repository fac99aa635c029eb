"""Where neurons stand: the languages in which each is above a method's bar, or highest; and how tables say it."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

NO_NEURONS = np.empty(0, np.int64)
SEPARATOR = ", "  # of the languages that a cell of a table names
ByLanguage = Mapping[str, Int[np.ndarray, " _"]]  # each as many as it has


def highest_in(members: ByLanguage, values: Mapping[str, Float[np.ndarray, " unit"]]) -> ByLanguage:
    """Language -> the members, of whatever label, whose value is highest there; of equal ones each language has it.

    Args:
        members: Label -> flat indices.
        values: Language -> the values of all neurons, by which languages are compared.

    Example:
        >>> values = {"hi": np.array([0.1, 0.9]), "ur": np.array([0.3, 0.2])}
        >>> {language: flat.tolist() for language, flat in highest_in({"hi": np.array([0, 1])}, values).items()}
        {'hi': [1], 'ur': [0]}
    """
    flat = neurons_of(members)
    own = {language: of_language[flat] for language, of_language in values.items()}
    largest = np.max(list(own.values()), axis=0)
    return {language: flat[of_language == largest] for language, of_language in own.items()}


def neurons_of(members: ByLanguage) -> Int[np.ndarray, " n"]:
    """Flat indices of the neurons of any language, sorted, each once."""
    return np.unique(np.concatenate([NO_NEURONS, *members.values()]))


def from_texts(flat: Int[np.ndarray, " row"], texts: Iterable[str], languages: Iterable[str] = ()) -> ByLanguage:
    """Language -> neurons, of a table's column that names the languages of each row's neuron.

    Args:
        flat: The neuron of each row.
        texts: The languages of each row, as ``as_texts`` names them.
        languages: Languages that come first, in this order, as far as a row names them.

    Example:
        >>> by_language = from_texts(np.array([3, 10]), ["ur, hi", "ur"], ["hi", "ur", "zh"])
        >>> {language: flat.tolist() for language, flat in by_language.items()}
        {'hi': [3], 'ur': [3, 10]}
    """
    rows = pd.DataFrame({"flat": flat, "language": [text.split(SEPARATOR) if text else [] for text in texts]})
    parts = dict(list(rows.explode("language").dropna().groupby("language", sort=False)["flat"]))
    order = dict.fromkeys((*languages, *map(str, parts)))
    return {language: np.unique(parts[language].to_numpy(np.int64)) for language in order if language in parts}


def as_texts(by_language: ByLanguage, flat: Int[np.ndarray, " row"]) -> list[str]:
    """The languages of each of some neurons as a table's cell names them, what ``from_texts`` reads."""
    inside = {language: np.isin(flat, own) for language, own in by_language.items()}
    return [SEPARATOR.join(name for name, mask in inside.items() if mask[row]) for row in range(len(flat))]
