"""Every file langneurons writes or reads back: JSON, safetensors and parquet, atomic, versioned, checked.

A file appears whole under its name or not at all. JSON artefacts carry a ``schema`` such as
``"langneurons/neuron-set/1"``; tensors and tables are covered by the checksum their JSON stores.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from langneurons.errors import CorruptArtefactError, StaleArtefactError, StorageError

DISK_FULL = "the disk is full. Free some space and run again; nothing was lost"


def fingerprint(*parts: str | bytes) -> str:
    """Hash text or bytes to 32 hexadecimal digits (BLAKE2b); parts are kept apart by their lengths.

    Example:
        >>> fingerprint("ab", "c") == fingerprint("a", "bc")
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def checksum(path: Path) -> str:
    """Hash a file's bytes (BLAKE2b, 32 hexadecimal digits)."""
    with _said_plainly(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_json(path: Path, schema: str, content: Mapping[str, Any]) -> None:
    """Write a JSON artefact atomically, keys sorted, with its schema."""
    text = json.dumps({"schema": schema, **content}, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path, schema: str) -> dict[str, Any]:
    """Read a JSON artefact and check its schema.

    Raises:
        StorageError: If the file is missing or unreadable.
        CorruptArtefactError: If it is not JSON of the expected kind.
        StaleArtefactError: If it was written in another schema version.
    """
    with _said_plainly(path, "read"):
        data = path.read_bytes()
    try:
        content = json.loads(data)
        found = content.pop("schema")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CorruptArtefactError(
            f"{path} is not an artefact of langneurons: expected JSON with schema {schema!r}."
        ) from error
    if found != schema:
        raise StaleArtefactError(f"{path} holds {found!r}, but this version of langneurons reads {schema!r}.")
    return content


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, before anything is computed for it.

    Raises:
        StorageError: If it is a file, or must not be written.
    """
    with _said_plainly(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def schema_of(path: Path) -> str:
    """The schema that a JSON file carries, "" where it is no artefact of ours.

    Raises:
        StorageError: If the file is missing or unreadable.
    """
    with _said_plainly(path, "read"):
        data = path.read_bytes()
    try:
        schema = json.loads(data)["schema"]
    except (ValueError, KeyError, TypeError):
        return ""
    return schema if isinstance(schema, str) else ""


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file, in one write."""
    with _said_plainly(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Try to hold a lock inside the block; it ends with the process, however that ends.

    Yields:
        Whether it is held; False where another process, or another block of this one, holds it.
    """
    with _said_plainly(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write tensors as safetensors atomically, sorted by name.

    Returns:
        The checksum of the file.
    """
    with replacing(path) as temporary:
        save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, temporary)
        return checksum(temporary)


def read_tensors(path: Path, expected_checksum: str | None = None) -> dict[str, torch.Tensor]:
    """Read safetensors, memory-mapped; with a checksum, verify every byte first.

    Raises:
        CorruptArtefactError: If the file is truncated or differs from its checksum.
    """
    if expected_checksum is not None:
        verify(path, expected_checksum)
    with _said_plainly(path, "read"):
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except SafetensorError as error:
            raise CorruptArtefactError(
                f"{path} is not a whole safetensors file ({error}); record or save it again."
            ) from error


def verify(path: Path, expected_checksum: str) -> None:
    """Compare a file with its stored checksum.

    Raises:
        CorruptArtefactError: If they differ.
    """
    if checksum(path) != expected_checksum:
        raise CorruptArtefactError(
            f"{path} differs from the checksum stored beside it: truncated or changed. Write it again."
        )


def remove_folder(folder: Path) -> None:
    """Delete a folder of ours with everything in it."""
    if folder.exists():
        with _said_plainly(folder, "remove"):
            shutil.rmtree(folder)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a DataFrame as parquet atomically."""
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet table.

    Raises:
        CorruptArtefactError: If the file is truncated or changed.
    """
    with _said_plainly(path, "read"):
        try:
            return pd.read_parquet(path)
        except pyarrow.ArrowException as error:
            raise CorruptArtefactError(f"{path} is not a whole parquet file ({error}).") from error


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
    for name, file in kept.items():
        write_table(file, tables[name])
    checksums = {name: checksum(file) for name, file in kept.items()}
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
    checksums = content.get("checksums")
    if not isinstance(checksums, dict) or not set(needed) <= set(checksums) or "settings" not in content:
        raise CorruptArtefactError(f"{path} does not name {', '.join(needed)} and the settings: save it again.")
    files = {name: path.parent / f"{name}.parquet" for name in checksums}
    for name, file in files.items():
        verify(file, checksums[name])
    return content["settings"], {name: read_table(file) for name, file in files.items()}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder, moved to ``path`` when the block ends without an exception.

    Raises:
        StorageError: If the disk is full or the folder cannot be written; what stood at ``path`` still does.
    """
    with _said_plainly(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _said_plainly(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"Cannot {verb} {path}: there is no such file or folder.") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageError(
                f"Cannot {verb} {path}: the disk is full. Free some space and run again; nothing was lost."
            ) from error
        raise StorageError(f"Cannot {verb} {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        full = "no space left" in str(error).lower() or "StorageFull" in str(error)
        raise StorageError(f"Cannot {verb} {path}: {DISK_FULL if full else error}.") from error
