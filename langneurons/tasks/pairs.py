"""Pairs of a premise and a hypothesis with a label, as XNLI has them: read, checked and put beside each other."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from langneurons.babel.miniature import mini_xnli
from langneurons.corpora.files import json_objects
from langneurons.corpora.languages import by_canonical_code, distinct
from langneurons.errors import TaskError, unknown, warn_user
from langneurons.tasks.likelihood import LABELS
from langneurons.tasks.reading import check_table, read_items, table_of, text_of

COLUMNS = ("premise", "hypothesis", "label")
# Other names of labels: the hub's numbers, and that of the translated training files.
RENAMED = {**{str(number): label for number, label in enumerate(LABELS)}, "contradictory": "contradiction"}
DISPUTED = "-"  # the gold label of a pair on which annotators did not agree
# Columns of the official files, and what they are called here.
ITEM, CLUSTER = "pairID", "promptID"
_COLUMNS = {"sentence1": "premise", "sentence2": "hypothesis", "hypo": "hypothesis", "gold_label": "label"}


def read_pairs(
    source: str | Path | Mapping[str, pd.DataFrame],
    languages: Iterable[str] | None,
    split: str,
    revision: str | None = None,
) -> dict[str, pd.DataFrame]:
    """Read the pairs of several languages, which are translations of each other.

    Args:
        source: What ``XNLI.load`` takes.
        languages: Languages to read; the first gives the order of items.
        split: Name of the split.
        revision: Branch, tag or commit of a hub data set.

    Returns:
        Language -> one row per pair: item, premise, hypothesis, label and cluster, the same items in all.

    Raises:
        TaskError: If files, columns, labels or texts are missing or malformed, or languages are not parallel.
        LanguageError: If a language is not there.
        CorpusError: If a hub data set cannot be read.
    """
    if isinstance(source, Mapping):
        names = source if languages is None else distinct(languages, source)
        tables = {code: table_of(source, name) for code, name in by_canonical_code(names, "The source").items()}
    else:
        readers = {".tsv": _read_tsv, ".jsonl": _read_jsonl}
        tables = read_items(source, languages, split, readers, COLUMNS, mini_xnli, revision)
    for language, table in tables.items():
        check_table(language, table, COLUMNS)
    return _parallel(_agreed({language: _checked(language, table) for language, table in tables.items()}))


def _read_tsv(path: Path) -> pd.DataFrame:
    lines = text_of(path, "a table of tab-separated text").split("\n")
    header, *rows = [line.removesuffix("\r").split("\t") for line in lines if line.strip()] or [[]]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise TaskError(f"Row {number} of {path} has {len(row)} fields, its header {len(header)}.")
    return _named(path, pd.DataFrame(rows, columns=header))


def _read_jsonl(path: Path) -> pd.DataFrame:
    lines = text_of(path, "a JSON object per line").split("\n")
    try:
        return _named(path, pd.DataFrame([row for _, row in json_objects(path, lines, TaskError)]))
    except UnicodeEncodeError as error:
        raise TaskError(f"{path} is not valid Unicode: it holds half a surrogate pair.") from error


def _named(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """A table whose official columns have the names by which they are read."""
    if "gold_label" in table:
        for column in ("sentence1", "sentence2", ITEM, CLUSTER):
            if column not in table:
                raise TaskError(f"{path} lacks a column. {unknown('column', column, table)}")
    return table.rename(columns={old: name for old, name in _COLUMNS.items() if name not in table})


def _checked(language: str, table: pd.DataFrame) -> pd.DataFrame:
    """A language's items, named or numbered, with labels by name; every row is checked."""
    labels = [RENAMED.get(str(label), str(label)) for label in table["label"]]
    for row, label in enumerate(labels):
        if label == "-1":
            raise TaskError(f"Row {row} of {language!r} has no label (-1): this split cannot be scored.")
        if label not in (*LABELS, DISPUTED):
            raise TaskError(f"Row {row} of {language!r}: {unknown('label', label, LABELS)}")
    for column in ("premise", "hypothesis"):
        for row, text in enumerate(table[column]):
            if not isinstance(text, str) or not text.strip():
                raise TaskError(f"Row {row} of {language!r} has an empty {column}.")
    for column in {"id", ITEM} & set(table.columns):
        if len(twice := table[table[column].duplicated()]):
            raise TaskError(f"Two items of {language!r} have the {column} {twice[column].tolist()[0]!r}.")
    texts = {"premise": list(table["premise"]), "hypothesis": list(table["hypothesis"]), "label": labels}
    items = list(table[ITEM].astype(str)) if ITEM in table else range(len(table))
    cluster = list(table[CLUSTER].astype(str)) if CLUSTER in table else pd.factorize(table["premise"])[0]
    return pd.DataFrame({"item": items, **texts, "cluster": cluster})


def _agreed(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The items on whose label annotators agreed."""
    items = {item for table in tables.values() for item in table["item"]}
    disputed = {item for table in tables.values() for item in table["item"][table["label"] == DISPUTED]}
    if disputed == items and items:
        raise TaskError(f"No item has a gold label: all {len(items)} are {DISPUTED!r}.")
    if disputed:
        warn_user(
            f"{len(disputed)} of {len(items)} items have the gold label {DISPUTED!r}, because their annotators did not "
            "agree: they are left out, in all languages."
        )
    agreed = {language: [item not in disputed for item in table["item"]] for language, table in tables.items()}
    return {language: table.loc[agreed[language]].reset_index(drop=True) for language, table in tables.items()}


def _parallel(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Pair items between languages: in one order, in the clusters of one language, with the same label in all.

    Raises:
        TaskError: If they are not translations of each other.
    """
    if not tables:
        return tables
    first, gold = next(iter(tables.items()))
    for language, table in tables.items():
        if len(table) != len(gold):
            raise TaskError(f"{language!r} has {len(table)} items and {first!r} {len(gold)}: they are not parallel.")
        if alone := sorted(set(table["item"]) - set(gold["item"]), key=str):
            raise TaskError(
                f"{language!r} has {len(alone)} items that {first!r} has not, such as {alone[0]!r}: they are not "
                "parallel."
            )
        tables[language] = table = table.set_index("item").loc[gold["item"]].reset_index()
        if len(rows := np.flatnonzero(table["label"] != gold["label"])):
            row = int(rows[0])
            raise TaskError(
                f"Row {row} is {table['label'][row]!r} in {language!r} and {gold['label'][row]!r} in {first!r}: the "
                "languages are not parallel."
            )
    cluster = tables["en" if "en" in tables else first]["cluster"]
    return {language: table.assign(cluster=cluster) for language, table in tables.items()}
