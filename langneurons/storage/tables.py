"""Tables as parquet."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet
from pyarrow.compute import call_function

from langneurons.errors import CorruptArtefactError, in_short
from langneurons.storage.checksums import check_whole, write_summed
from langneurons.storage.files import said_plainly

EXPANSION, LEAST_LIMIT = 100, 2**28  # times its size in bytes, and at least so many, that a table may unpack to
ROWS_AT_ONCE = 256


def write_table(path: Path, table: pd.DataFrame, sidecar: bool = False) -> str:
    """Write a DataFrame as parquet atomically.

    Args:
        path: The file.
        table: The rows; their index is left out.
        sidecar: Whether to write the checksum into a file beside it, for files whose checksum nothing else records.

    Returns:
        The checksum of the file.
    """
    return write_summed(path, lambda file: table.to_parquet(file, index=False), sidecar)


def read_table(path: Path, expected_checksum: str | None = None, foreign: bool = False) -> pd.DataFrame:
    """Read a parquet table, after verifying every byte.

    Args:
        path: The file.
        expected_checksum: The checksum that was recorded; by default it is read from the file beside it.
        foreign: Whether another program may have written the file: without a recorded checksum, none is needed.

    Raises:
        StorageError: If the file is missing.
        CorruptArtefactError: If it is truncated, differs from its checksum, or has none.
    """
    check_whole(path, expected_checksum, foreign)
    with said_plainly(path, "read"), path.open("rb") as file:
        try:
            check_expansion(path)
            table = pd.read_parquet(file)
        except CorruptArtefactError:
            raise
        except Exception as error:  # a damaged file of another program: its reader has no one kind of error
            raise CorruptArtefactError(f"{path} is not a whole parquet file ({in_short(error)}).") from error
    table.attrs.pop("langneurons", None)  # 0.1.0 kept the checksum there
    return table


def check_expansion(path: Path) -> None:
    """Refuse a parquet file that unpacks to far more than it holds, before it is unpacked.

    Text that repeats is stored once, and a number that repeats as how often: a few bytes can stand for any size.

    Raises:
        CorruptArtefactError: If it does.
    """
    limit = max(LEAST_LIMIT, EXPANSION * path.stat().st_size)
    with pyarrow.parquet.ParquetFile(path) as file:
        about, fields = file.metadata, list(file.schema_arrow)
    rows, leaves = about.num_rows, range(about.num_columns)
    groups = map(about.row_group, range(about.num_row_groups))
    expanded = 8 * sum(group.column(leaf).num_values for group in groups for leaf in leaves)
    texts = [column.path for column in map(about.schema.column, leaves) if column.physical_type == "BYTE_ARRAY"]
    long = [field.name for field in fields if not pyarrow.types.is_primitive(field.type)]
    if expanded <= limit and long:
        with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=long):
                expanded += sum(map(_bytes, batch.columns))
                if expanded > limit:
                    break
    if expanded > limit:
        raise CorruptArtefactError(
            f"{path} unpacks to over {limit / 1e6:,.0f} MB ({rows:,} rows) from {path.stat().st_size / 1e6:,.1f} MB, "
            "which no table of measurements or texts does: write it anew from its source."
        )


def _bytes(column: pyarrow.Array) -> int:
    """How much the values of a column take, each by itself."""
    if isinstance(column, pyarrow.ListArray | pyarrow.LargeListArray):
        return _bytes(column.flatten())
    if isinstance(column, pyarrow.StructArray):
        return sum(map(_bytes, column.flatten()))
    if not isinstance(column, pyarrow.DictionaryArray):
        return int(column.nbytes)
    lengths = call_function("binary_length", [column.dictionary])
    return call_function("sum", [lengths.take(column.indices)]).as_py() or 0
