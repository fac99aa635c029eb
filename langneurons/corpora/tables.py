"""Tables and lists in memory as the data set of one language's texts, with the documents that these stand in."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import cast

import pandas as pd
import pyarrow
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from datasets.utils import logging as datasets_logging

from langneurons.corpora.corpus import batches
from langneurons.corpora.files import PLACES, Row, missing_column, place_columns, row_of, rows_of_columns
from langneurons.errors import CorpusError

Table = pd.DataFrame | Dataset | IterableDataset
FEATURES = Features({name: Value("string") for name in ("text", *PLACES)})
_TEXT = Features({"text": Value("string")})
_LANGUAGE_COLUMNS = ("language", "lang")


def by_language(table: object) -> dict[str, Table]:
    """The rows of one table of several languages, by the column ``language`` or ``lang`` that says which.

    Raises:
        CorpusError: If there is no such column, or a row leaves it out.
    """
    table = pd.DataFrame(list(table)) if isinstance(table, IterableDataset) else table
    if not isinstance(table, pd.DataFrame | Dataset):
        raise CorpusError(f"A table of several languages is a DataFrame or data set, not {type(table).__name__}.")
    names = list(table.columns if isinstance(table, pd.DataFrame) else table.column_names)
    column = next((name for name in _LANGUAGE_COLUMNS if name in names), None)
    if column is None:
        raise CorpusError(
            f"A table of several languages needs a column 'language', beside {', '.join(map(repr, names[:10]))}; give "
            f"{{'en': table}} where it holds one language."
        )
    labels = pd.Series(list(table[column]))
    if nameless := int(labels.isna().sum()):
        raise CorpusError(f"{nameless} of {len(labels)} rows have no {column}.")
    places = {str(label): rows.index.to_numpy() for label, rows in labels.groupby(labels)}
    if isinstance(table, pd.DataFrame):
        return {label: table.iloc[rows] for label, rows in places.items()}
    return {label: table.select(rows) for label, rows in places.items()}


def split_of(splits: DatasetDict | IterableDatasetDict, split: str, where: str) -> Dataset | IterableDataset:
    """One split of a data set.

    Raises:
        CorpusError: If it has no such split.
    """
    if split not in splits:
        raise CorpusError(f"{where} has no split {split!r}, only {', '.join(map(repr, splits))}: name one with split=.")
    return splits[split]


def table_of(language: str, documents: object, text_column: str, split: str) -> Dataset:
    """The texts of a language that stand in a list or a table.

    Args:
        language: The language, for messages.
        documents: A list of texts, rows as dicts, columns, or a table of pandas or ``datasets``.
        text_column: The column that holds the texts.
        split: The split to take of a ``DatasetDict``.

    Returns:
        A data set with the column ``text``, and those of ``PLACES`` that are known.

    Raises:
        CorpusError: If there are no such texts in it.
    """
    where = f"the documents of {language!r}"
    if isinstance(documents, str | bytes):
        raise CorpusError(f"The documents of {language!r} are one text; give a list of documents, or a Path.")
    if isinstance(documents, DatasetDict | IterableDatasetDict):
        return table_of(language, split_of(documents, split, repr(language)), text_column, split)
    if isinstance(documents, Dataset):
        return text_of(documents.with_format(None), where, text_column)
    if isinstance(documents, pd.DataFrame):
        if text_column not in documents.columns:
            raise missing_column(where, text_column, map(str, documents.columns))
        documents = documents.astype(object).where(documents.notna(), None).to_dict("records")
    elif isinstance(documents, pd.Series):
        documents = ["" if pd.api.types.is_scalar(text) and pd.isna(text) else text for text in documents]
    elif isinstance(documents, Mapping):
        if text_column not in documents:
            raise missing_column(where, text_column, map(str, documents))
        documents = rows_of_columns(documents, text_column, where)
    elif not isinstance(documents, Iterable):
        raise CorpusError(f"The documents of {language!r} are no list but of type {type(documents).__name__}.")
    entries = ({text_column: entry} if isinstance(entry, str) else entry for entry in documents)
    rows = [row_of(entry, text_column, f"document {index} of {language!r}") for index, entry in enumerate(entries)]
    rows = [row for row in rows if str(row["text"]).strip()]
    if not any(row.keys() & PLACES for row in rows):
        return Dataset.from_dict({"text": [row["text"] for row in rows]}, features=_TEXT)
    columns = {name: [row.get(name) for row in rows] for name in FEATURES}
    return with_known_places(Dataset.from_dict(columns, features=FEATURES))


def text_of(table: Dataset, name_of_set: str, text_column: str) -> Dataset:
    """The texts of a data set that are not blank, and where they stand.

    Raises:
        CorpusError: If the column is missing, or holds something else than text.
    """
    if text_column not in table.column_names:
        raise missing_column(name_of_set, text_column, table.column_names)
    if table.features[text_column] not in (Value("string"), Value("large_string")):
        raise CorpusError(f"The column {text_column!r} of {name_of_set} is not text; name another with text_column=.")
    columns = {
        text_column: "text",
        **{column: name for name, column in place_columns(table.column_names, text_column).items()},
    }
    texts = table.select_columns(list(columns)).rename_columns(columns)
    for name in PLACES:
        if name in texts.column_names:
            texts = texts.cast_column(name, Value("string"))
    documents = chain.from_iterable(batches(texts))
    filled = [index for index, text in enumerate(documents) if text and text.strip()]
    return with_known_places(texts if len(filled) == len(texts) else texts.select(filled))


def with_known_places(table: Dataset) -> Dataset:
    """Drop ids and sources that some texts lack; a text without document, where others have one, is its own."""
    absent = dict.fromkeys([name for name in PLACES if name in table.column_names], 0)
    for batch in cast(Iterable[pyarrow.Table], table.with_format("arrow").iter(10_000)):
        absent = {name: count + batch[name].null_count for name, count in absent.items()}
    dropped = [name for name, count in absent.items() if count and (name != "document" or count == len(table))]
    table = table.remove_columns(dropped)
    if not absent.get("document") or "document" in dropped:
        return table
    with quiet():
        return table.map(_with_document, with_indices=True)


def _with_document(row: Mapping[str, str | None], index: int) -> Row:
    return {**row, "document": f"text {index}" if row["document"] is None else row["document"]}


@contextmanager
def quiet() -> Iterator[None]:
    """Let ``datasets`` draw no progress bar and log nothing inside the block."""
    bars, verbosity = not are_progress_bars_disabled(), datasets_logging.get_verbosity()
    datasets_logging.set_verbosity(datasets_logging.CRITICAL)
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        datasets_logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()
