"""What the tables and settings of each kind of result must hold; checked once for all kinds, when a result is read."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype

from langneurons.errors import CorruptArtefactError

LARGEST = 2**53  # larger numbers are no count, and floats do not tell them apart


@dataclass(frozen=True)
class Layout:
    """Names of columns or settings, and the kind of values of each.

    Attributes:
        kinds: Name -> kind, one of ``KINDS``, or the texts that are possible.
        optional: Names that may be missing.
    """

    kinds: Mapping[str, str | tuple[str, ...]]
    optional: frozenset[str]

    def check(self, place: str, values: pd.DataFrame | Mapping[str, object]) -> None:
        """Refuse a table or settings that lack something, or hold values of another kind.

        Args:
            place: What is checked, for the message: "runs/x/ablation.json: the table rows".
            values: The table, or the settings.

        Raises:
            CorruptArtefactError: If something is missing, or of another kind.
        """
        for name, kind in self.kinds.items():
            optional = name in self.optional
            if name in values and not (optional and values[name] is None):
                rows: Any = values[name]
                column = rows if isinstance(values, pd.DataFrame) else pd.Series([rows], dtype=object)
                _check_column(place, name, column, kind)
            elif not optional:
                raise CorruptArtefactError(f"{place} has no {name!r:.60}; it needs {', '.join(self._needed):.200}.")

    @property
    def _needed(self) -> list[str]:
        return [name for name in self.kinds if name not in self.optional]


def layout(choices: Mapping[str, tuple[str, ...]] | None = None, **names: str) -> Layout:
    """Say what a table or settings must hold.

    Args:
        choices: Name -> the texts that are possible.
        names: Kind, one of ``KINDS`` -> names, separated by spaces; a question mark follows those that may be missing.

    Example:
        >>> layout(text="language", number="low? high?").optional == {"low", "high"}
        True
    """
    kinds: dict[str, str | tuple[str, ...]] = dict(choices or {})
    kinds |= {name: kind for kind, listed in names.items() for name in listed.split()}
    bare = {name.removesuffix("?"): kind for name, kind in kinds.items()}
    return Layout(bare, frozenset(name[:-1] for name in kinds if name.endswith("?")))


def all_of(kind: str, names: Iterable[str]) -> Layout:
    """Say that some columns or settings, whatever their names hold, must be there and be of one kind.

    Example:
        >>> all_of("number", ["a b", ""]).kinds
        {'a b': 'number', '': 'number'}
    """
    return Layout(dict.fromkeys(names, kind), frozenset())


def check_fields(file: Path, layouts: Mapping[str, Layout], fields: Mapping[str, object]) -> None:
    """Refuse what was read of a result where it is not laid out as its kind is.

    Args:
        file: The JSON file of the result, for messages.
        layouts: Attribute -> layout of the table or settings that it holds.
        fields: Attribute -> what was read.

    Raises:
        CorruptArtefactError: If a table or a setting is missing, or of another kind.
    """
    for attribute, value in fields.items():
        expected, place = layouts.get(attribute), f"{file}: {attribute}"
        if isinstance(value, pd.DataFrame):
            _check_single(place, value, expected)
        if expected is not None and isinstance(value, pd.DataFrame | Mapping):
            expected.check(place, value)


def _check_single(place: str, table: pd.DataFrame, expected: Layout | None) -> None:
    """Refuse columns of one name, and lists in columns that hold single values."""
    if not table.columns.is_unique:
        raise CorruptArtefactError(
            f"{place} has several columns of one name: {', '.join(map(str, table.columns)):.200}."
        )
    lists = () if expected is None else [name for name, kind in expected.kinds.items() if kind in ("texts", "numbers")]
    for name in table.columns.difference(lists):
        if infer_dtype(table[name]) == "mixed" and any(map(pd.api.types.is_list_like, table[name])):
            raise CorruptArtefactError(f"{place} holds lists in {name!r:.60}, where every row has one value.")


def _check_column(place: str, name: str, values: pd.Series, kind: str | tuple[str, ...]) -> None:
    words, fits = (f"one of {', '.join(kind)}", None) if isinstance(kind, tuple) else KINDS[kind]
    if not (values.isin(list(kind)).all() if fits is None else fits(values)):
        raise CorruptArtefactError(f"{place} holds {_example(values)} in {name!r:.60}, which must be {words}.")


def _example(values: pd.Series) -> str:
    """The first value, and the number of values where there are several."""
    return f"{values.iloc[0]!r:.60}" + (f" and {len(values) - 1:,} more" if len(values) > 1 else "")


def _is_text(values: pd.Series) -> bool:
    return _is_note(values) and not values.hasnans


def _is_note(values: pd.Series) -> bool:
    return infer_dtype(values, skipna=True) in ("string", "empty")


def _is_number(values: pd.Series) -> bool:
    if infer_dtype(values, skipna=False) not in ("floating", "integer", "mixed-integer-float", "empty"):
        return False
    return all(abs(value) <= LARGEST for value in values if isinstance(value, int)) if values.dtype == object else True


def _is_share(values: pd.Series) -> bool:
    return _is_number(values) and bool((values.isna() | values.between(0, 1)).all())


def _is_finite(values: pd.Series) -> bool:
    return _is_number(values) and bool(np.isfinite(values.astype(float)).all())


def _is_whole(values: pd.Series) -> bool:
    return _is_finite(values) and bool((values.between(0, LARGEST) & (values % 1 == 0)).all())


def _is_flag(values: pd.Series) -> bool:
    return infer_dtype(values, skipna=False) in ("boolean", "empty")


def _is_tick(values: pd.Series) -> bool:
    return infer_dtype(values, skipna=True) in ("boolean", "empty")


def _is_mark(values: pd.Series) -> bool:
    return infer_dtype(values, skipna=False) in ("string", "integer", "floating", "boolean", "empty")


def _lists_of(fits: Callable[[pd.Series], bool]) -> Callable[[pd.Series], bool]:
    """Whether every value is a list of values of one kind."""
    return lambda values: all(
        isinstance(value, list | tuple | np.ndarray) and fits(pd.Series(value, dtype=object)) for value in values
    )


def _is_mapping(values: pd.Series) -> bool:
    return all(isinstance(value, Mapping) for value in values)


# Kind -> what it is called, and the check of a column; a setting is checked as a column of one value.
KINDS: dict[str, tuple[str, Callable[[pd.Series], bool]]] = {
    "text": ("text", _is_text),
    "note": ("text, or missing", _is_note),
    "number": ("a number, or NaN in a table", _is_number),
    "finite": ("a finite number", _is_finite),
    "share": ("a number from 0 to 1, or NaN in a table", _is_share),
    "whole": ("a whole number from 0 on", _is_whole),
    "flag": ("true or false", _is_flag),
    "tick": ("true or false, or missing", _is_tick),
    "mark": ("text or a number", _is_mark),
    "texts": ("a list of texts", _lists_of(_is_text)),
    "numbers": ("a list of numbers", _lists_of(_is_number)),
    "mapping": ("a table of settings", _is_mapping),
}
