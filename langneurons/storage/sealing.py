"""Seals: the hash of what a file holds, inside the file, verified before anything else looks at it."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, MutableMapping
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from langneurons.errors import CorruptArtefactError
from langneurons.storage.faults import said_plainly
from langneurons.storage.writing import replacing

Content = TypeVar("Content")

_SEAL = b"langneurons-seal:"  # in a file, followed by its hash, in which these digits count as zeros
_DIGITS = 32
_BLANK = (_SEAL + b"0" * _DIGITS).decode()
_MARKED = "langneurons"  # the file's metadata of this name: its seal, and the name under which it was written
_WINDOW = 1 << 20  # the seal is this near to a safetensors file's beginning, to a parquet file's end


def fingerprint(*parts: str | bytes) -> str:
    """Hash text or bytes to 32 hexadecimal digits (BLAKE2b); parts are kept apart by their lengths.

    Example:
        >>> fingerprint("ab", "c") == fingerprint("a", "bc")
        False
    """
    digest = hashlib.blake2b(digest_size=_DIGITS // 2)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def checksum(path: Path) -> str:
    """Hash a file's bytes (BLAKE2b, 32 hexadecimal digits); its seal, which is this hash, counts as zeros."""
    return _hash_and_seal(path)[0]


def verify(path: Path, expected_checksum: str) -> None:
    """Compare a file with its stored checksum.

    Raises:
        CorruptArtefactError: If they differ.
    """
    _compare(path, checksum(path), expected_checksum)


def write_sealed(path: Path, write: Callable[[Path, dict[str, str]], Any]) -> str:
    """Write a file atomically, with a seal.

    Args:
        path: The file.
        write: Writes a file at the path it is given, with the metadata it is given.

    Returns:
        The checksum of the file.
    """
    with replacing(path) as temporary:
        write(temporary, {_MARKED: f"{_BLANK} {path.name}"})
        with temporary.open("rb+") as file:
            place, found = _place_of_seal(file), _hash_and_digits(file)[0]
            if place is not None:
                file.seek(place)
                file.write(found.encode())
        return found


def read_sealed(
    path: Path,
    read: Callable[[Path], tuple[Content, MutableMapping[Any, Any]]],
    expected_checksum: str | None,
    foreign: bool,
) -> Content:
    """Read a file after verifying every byte.

    Args:
        path: The file.
        read: Reads it: the content, and the file's metadata, from which the seal is taken.
        expected_checksum: Stored elsewhere; its seal is enough.
        foreign: Whether another program may have written it, which leaves no seal.

    Raises:
        CorruptArtefactError: If the file is truncated, differs from its checksum or seal, or is another file of ours.
    """
    _check_seal(path, expected_checksum, foreign)
    with said_plainly(path, "read"):
        content, metadata = read(path)
    name = str(metadata.pop(_MARKED, None)).partition(" ")[2]
    if expected_checksum is None and not foreign and name != path.name:  # nothing but its name says what it holds
        raise CorruptArtefactError(f"{path} is another file, written as {name!r:.100}. Write it again.")
    return content


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its seal."""
    return {**content, "seal": _seal_of(content)}


def unseal(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object without its seal, which is checked where there is one.

    Args:
        path: Where it was read.
        content: The object.

    Raises:
        CorruptArtefactError: If it was changed since it was sealed.
    """
    inside = {name: value for name, value in content.items() if name != "seal"}
    if "seal" in content:
        _compare(path, _seal_of(inside), content["seal"])
    return inside


def _seal_of(content: Mapping[str, Any]) -> str:
    return fingerprint(json.dumps(content, sort_keys=True))


def _check_seal(path: Path, expected_checksum: str | None, foreign: bool) -> None:
    found, digits = _hash_and_seal(path)
    promised = [one for one in (digits, expected_checksum) if one is not None]
    for one in promised or ([] if foreign else [None]):
        _compare(path, found, one)


def _compare(path: Path, found: str, promised: object) -> None:
    if found != promised:
        raise CorruptArtefactError(
            f"{path} does not fit its checksum: it is truncated, or was changed. Write it again."
        )


def _hash_and_seal(path: Path) -> tuple[str, str | None]:
    with said_plainly(path, "read"), path.open("rb") as file:
        return _hash_and_digits(file)


def _hash_and_digits(file: BufferedReader | BufferedRandom) -> tuple[str, str | None]:
    """A file's hash, the digits of its seal counted as zeros, and these digits; None where it has no seal."""
    place, digits, digest = _place_of_seal(file), None, hashlib.blake2b(digest_size=_DIGITS // 2)
    file.seek(0)
    if place is not None:
        digest.update(file.read(place))
        digits = file.read(_DIGITS).decode("latin-1")
        digest.update(b"0" * _DIGITS)
    return hashlib.file_digest(file, lambda: digest).hexdigest(), digits


def _place_of_seal(file: BufferedReader | BufferedRandom) -> int | None:
    """Where the digits of a file's seal begin: behind the first mark, in parquet behind the last."""
    file.seek(0)
    parquet = file.read(4) == b"PAR1"
    start = max(0, file.seek(0, os.SEEK_END) - _WINDOW) if parquet else 0
    file.seek(start)
    window = file.read(_WINDOW)
    at = window.rfind(_SEAL) if parquet else window.find(_SEAL)
    return None if at < 0 else start + at + len(_SEAL)
