"""Tables as parquet, and results: tables with the settings they belong to."""

import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from langneurons.errors import CorruptArtefactError, in_short
from langneurons.storage.objects import read_json, write_json
from langneurons.storage.sealing import read_sealed, write_sealed


def write_table(path: Path, table: pd.DataFrame) -> str:
    """Write a DataFrame as parquet atomically, with a seal.

    Returns:
        The checksum of the file.
    """

    def write(file: Path, metadata: Mapping[str, str]) -> None:
        sealed = table.copy(deep=False)
        sealed.attrs = {**table.attrs, **metadata}
        sealed.to_parquet(file, index=False)

    return write_sealed(path, write)


def read_table(path: Path, expected_checksum: str | None = None, foreign: bool = False) -> pd.DataFrame:
    """Read a parquet table, after verifying every byte.

    Args:
        path: The file.
        expected_checksum: Stored elsewhere; its seal is enough.
        foreign: Whether another program may have written it, which leaves no seal.

    Raises:
        CorruptArtefactError: If the file is truncated, or differs from its checksum or seal.
    """
    return read_sealed(path, _read, expected_checksum, foreign)


def write_result(path: Path, schema: str, settings: Mapping[str, Any], tables: Mapping[str, Any]) -> Path:
    """Write a result: a parquet file a table, and last a JSON file with the settings and the tables' checksums.

    Args:
        path: The JSON file; the tables are written beside it.
        schema: Of the JSON file.
        settings: What JSON can hold.
        tables: Name -> table; those that are None are left out.

    Returns:
        The folder.
    """
    kept = {name: path.parent / f"{name}.parquet" for name, table in tables.items() if table is not None}
    checksums = {name: write_table(file, tables[name]) for name, file in kept.items()}
    write_json(path, schema, {"settings": dict(settings), "checksums": checksums})
    return path.parent


def read_result(path: Path, schema: str, needed: Iterable[str]) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Read what ``write_result`` wrote.

    Args:
        path: The JSON file.
        schema: Of the JSON file.
        needed: Tables without which it is no such result.

    Returns:
        The settings, and the tables by name.

    Raises:
        StorageError: If a file is missing.
        CorruptArtefactError: If a file is truncated or changed, or the JSON file lacks a table.
    """
    content = read_json(path, schema)
    checksums, settings = content.get("checksums"), content.get("settings")
    if not isinstance(checksums, dict) or not isinstance(settings, dict) or not set(needed) <= set(checksums):
        raise CorruptArtefactError(f"{path} does not name {', '.join(needed)} and the settings: save it again.")
    if odd := [one for one in checksums.items() if not re.fullmatch(r"\w+", one[0]) or not isinstance(one[1], str)]:
        raise CorruptArtefactError(f"{path} does not name tables and their checksums: {odd[0]!r:.60}. Save it again.")
    return settings, {name: read_table(path.parent / f"{name}.parquet", one) for name, one in checksums.items()}


def _read(path: Path) -> tuple[pd.DataFrame, dict[Hashable, Any]]:
    with path.open("rb") as file:
        try:
            table = pd.read_parquet(file)
        except Exception as error:  # a damaged file of another program: its reader has no one kind of error
            raise CorruptArtefactError(f"{path} is not a whole parquet file ({in_short(error)}).") from error
    return table, table.attrs
