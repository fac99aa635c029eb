"""Every file langneurons writes or reads back: JSON, safetensors and parquet, atomic, versioned, checked.

A file appears whole under its name or not at all. JSON artefacts carry a ``schema`` such as
``"langneurons/neuron-set/1"``. Every file carries a seal, the hash of what it holds, which reading verifies before
anything else looks at it. What other programs write, and JSON that was edited by hand, has none.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from langneurons.errors import CorruptArtefactError, StaleArtefactError, StorageError, in_short

DISK_FULL = "the disk is full. Free some space and run again; nothing was lost"
_SEAL = b"langneurons-seal:"  # in a file, followed by its hash, in which these digits count as zeros
_DIGITS = 32
_BLANK = (_SEAL + b"0" * _DIGITS).decode()
_MARKED = "langneurons"  # the file's metadata of this name: its seal, and the name under which it was written
_LARGEST_TOML = 1 << 20
_DEEP_KEY = re.compile(r"(?<![\w\"'-])(?:[\w\"'-]++[ \t]*\.[ \t]*){50}")
_WINDOW = 1 << 20  # the seal is this near to a safetensors file's beginning, to a parquet file's end


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
    """Hash a file's bytes (BLAKE2b, 32 hexadecimal digits); its seal, which is this hash, counts as zeros."""
    with _said_plainly(path, "read"), path.open("rb") as file:
        return _hash_and_seal(file)[0]


def write_json(path: Path, schema: str, content: Mapping[str, Any]) -> None:
    """Write a JSON artefact atomically, keys sorted, with its schema and seal."""
    stored = json.loads(_dumped({"schema": schema, **content}))  # keys as texts, in which order they are sealed
    write_text(path, _dumped({**stored, "seal": _seal_of(stored)}) + "\n")


def read_json(path: Path, schema: str) -> dict[str, Any]:
    """Read a JSON artefact and check its schema.

    Raises:
        StorageError: If the file is missing or unreadable.
        CorruptArtefactError: If it is not JSON of the expected kind.
        StaleArtefactError: If it was written in another schema version.
    """
    content = _parsed(path)
    if "schema" not in content:
        raise CorruptArtefactError(f"{path} is not an artefact of langneurons: it lacks the schema {schema!r}.")
    if (found := content["schema"]) != schema:
        raise StaleArtefactError(f"{path} holds {found!r:.100}, but this version of langneurons reads {schema!r}.")
    return {name: one for name, one in _opened(path, content).items() if name != "schema"}


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, of ours or of another program; one of ours is verified by its seal.

    Raises:
        StorageError: If the file is missing or unreadable.
        CorruptArtefactError: If it is no JSON object, or was changed since it was sealed.
    """
    return _opened(path, _parsed(path))


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, before anything is computed for it.

    Raises:
        StorageError: If it is a file, or must not be written.
    """
    with _said_plainly(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file that somebody wrote.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no TOML, no UTF-8, too large for a file written by hand, or nested too deep.
    """
    if path.stat().st_size > _LARGEST_TOML:
        raise ValueError(f"it has more than {_LARGEST_TOML:,} bytes")
    text = path.read_text("utf-8")
    if _DEEP_KEY.search(text):
        raise ValueError("a key has more than 50 parts")  # for which tomllib takes the square of their number
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def schema_of(path: Path) -> str:
    """The schema that a JSON file carries, "" where it is no artefact of ours.

    Raises:
        StorageError: If the file is missing or unreadable.
    """
    try:
        schema = _parsed(path).get("schema", "")
    except CorruptArtefactError:
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


@contextmanager
def alone(folder: Path, doing: str) -> Iterator[None]:
    """Keep other processes from working in a folder inside the block; the lock ends with the process.

    Args:
        folder: It is made.
        doing: What is done there, for the message: "recording".

    Raises:
        StorageError: If another process, or another block of this one, works there.
    """
    with locked(folder / ".lock") as free:
        if not free:
            raise StorageError(f"Another process is {doing} in {folder}: wait for it, or use another folder.")
        yield


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write tensors as safetensors atomically, sorted by name, with a seal.

    Returns:
        The checksum of the file.
    """
    with replacing(path) as temporary:
        by_name = {name: tensors[name].contiguous() for name in sorted(tensors)}
        save_file(by_name, temporary, {_MARKED: f"{_BLANK} {path.name}"})
        return _sealed(temporary)


def read_tensors(path: Path, expected_checksum: str | None = None, foreign: bool = False) -> dict[str, torch.Tensor]:
    """Read safetensors, memory-mapped, after verifying every byte.

    Args:
        path: The file.
        expected_checksum: Stored elsewhere; its seal is enough.
        foreign: Whether another program may have written it, which leaves no seal.

    Raises:
        CorruptArtefactError: If the file is truncated, or differs from its checksum or seal.
    """
    _check_seal(path, expected_checksum, foreign)
    with _said_plainly(path, "read"):
        try:
            with safe_open(path, framework="pt") as file:
                if expected_checksum is None and not foreign:
                    _check_name(path, (file.metadata() or {}).get(_MARKED))
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
        raise _changed(path)


def make_temporary_folder() -> Path:
    """Make a folder where the system keeps temporary files.

    Raises:
        StorageError: If that is full or cannot be written.
    """
    with _said_plainly(Path(tempfile.gettempdir()), "write"):
        return Path(tempfile.mkdtemp(prefix="langneurons-"))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder that is removed at the end of the block.

    Raises:
        StorageError: As ``make_temporary_folder``.
    """
    folder = make_temporary_folder()
    try:
        yield folder
    finally:
        remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Delete a folder of ours with everything in it."""
    if folder.exists():
        with _said_plainly(folder, "remove"):
            shutil.rmtree(folder)


def write_table(path: Path, table: pd.DataFrame) -> str:
    """Write a DataFrame as parquet atomically, with a seal.

    Returns:
        The checksum of the file.
    """
    sealed = table.copy(deep=False)
    sealed.attrs = {**table.attrs, _MARKED: f"{_BLANK} {path.name}"}
    with replacing(path) as temporary:
        sealed.to_parquet(temporary, index=False)
        return _sealed(temporary)


def read_table(path: Path, expected_checksum: str | None = None, foreign: bool = False) -> pd.DataFrame:
    """Read a parquet table, after verifying every byte.

    Args:
        path: The file.
        expected_checksum: Stored elsewhere; its seal is enough.
        foreign: Whether another program may have written it, which leaves no seal.

    Raises:
        CorruptArtefactError: If the file is truncated, or differs from its checksum or seal.
    """
    _check_seal(path, expected_checksum, foreign)
    with _said_plainly(path, "read"), path.open("rb") as file:
        try:
            table = pd.read_parquet(file)
        except Exception as error:  # a damaged file of another program: its reader has no one kind of error
            raise CorruptArtefactError(f"{path} is not a whole parquet file ({in_short(error)}).") from error
    mark = table.attrs.pop(_MARKED, None)
    if expected_checksum is None and not foreign:
        _check_name(path, mark)
    return table


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Say that a file is not laid out as it should be, whichever way reading it goes wrong inside the block.

    Raises:
        CorruptArtefactError: If it does.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise CorruptArtefactError(f"{path} is not laid out as it should be ({in_short(error)}).") from error


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


def _dumped(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _parsed(path: Path) -> dict[str, Any]:
    with _said_plainly(path, "read"):
        data = path.read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptArtefactError(f"{path} is not whole JSON ({error}). Write it again.") from error
    if not isinstance(content, dict):
        raise CorruptArtefactError(f"{path} holds no JSON object but {content!r:.40}.")
    return content


def _opened(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The content without its seal, which is checked where there is one."""
    if "seal" in content and content.pop("seal") != _seal_of(content):
        raise _changed(path)
    return content


def _seal_of(content: Mapping[str, Any]) -> str:
    return fingerprint(json.dumps(content, sort_keys=True))


def _sealed(path: Path) -> str:
    """Write a file's hash where its blank seal stands."""
    with path.open("rb+") as file:
        place, (found, _) = _place_of_seal(file), _hash_and_seal(file)
        if place is not None:
            file.seek(place)
            file.write(found.encode())
    return found


def _check_seal(path: Path, expected_checksum: str | None, foreign: bool) -> None:
    with _said_plainly(path, "read"), path.open("rb") as file:
        found, seal = _hash_and_seal(file)
    promised = [one for one in (seal, expected_checksum) if one is not None]
    if any(one != found for one in promised) or not (promised or foreign):
        raise _changed(path)


def _hash_and_seal(file: BufferedReader | BufferedRandom) -> tuple[str, str | None]:
    """A file's hash, the digits of its seal counted as zeros, and these digits; None where it has no seal."""
    place, seal, digest = _place_of_seal(file), None, hashlib.blake2b(digest_size=_DIGITS // 2)
    file.seek(0)
    if place is not None:
        digest.update(file.read(place))
        seal = file.read(_DIGITS).decode("latin-1")
        digest.update(b"0" * _DIGITS)
    return hashlib.file_digest(file, lambda: digest).hexdigest(), seal


def _place_of_seal(file: BufferedReader | BufferedRandom) -> int | None:
    """Where the digits of a file's seal begin: behind the first mark, in parquet behind the last."""
    file.seek(0)
    parquet = file.read(4) == b"PAR1"
    start = max(0, file.seek(0, os.SEEK_END) - _WINDOW) if parquet else 0
    file.seek(start)
    window = file.read(_WINDOW)
    at = window.rfind(_SEAL) if parquet else window.find(_SEAL)
    return None if at < 0 else start + at + len(_SEAL)


def _check_name(path: Path, mark: object) -> None:
    """Refuse another file of ours in this one's place, where nothing but its name says what it holds."""
    name = str(mark).partition(" ")[2]
    if name != path.name:
        raise CorruptArtefactError(f"{path} is another file, written as {name!r:.100}. Write it again.")


def _changed(path: Path) -> CorruptArtefactError:
    return CorruptArtefactError(f"{path} does not fit its checksum: it is truncated, or was changed. Write it again.")


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
