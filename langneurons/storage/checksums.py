"""Checksums: hashes of what files hold, verified before anything else looks at a file.

The checksum of a table or of tensors is recorded by the JSON file of the result they belong to, or in a file beside it
(``rows.parquet.sum`` beside ``rows.parquet``) where there is no such result. JSON files carry the hash of their own
content.
"""

import hashlib
import json
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from langneurons.errors import CorruptArtefactError
from langneurons.storage.files import check_regular, replacing, said_plainly, write_text

_BYTES = 16
_SEAL = b"langneurons-seal:"  # in files of 0.1.0, before their own checksum, in which its digits count as zeros


def fingerprint(*parts: str | bytes) -> str:
    """Hash text or bytes to 32 hexadecimal digits (BLAKE2b); parts are kept apart by their lengths.

    Example:
        >>> fingerprint("ab", "c") == fingerprint("a", "bc")
        False
    """
    digest = hashlib.blake2b(digest_size=_BYTES)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def checksum(path: Path) -> str:
    """Hash a file's bytes (BLAKE2b, 32 hexadecimal digits), as ``b2sum -l 128`` does."""
    with said_plainly(path, "read"):
        check_regular(path)
    with said_plainly(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_BYTES)).hexdigest()


def verify(path: Path, expected_checksum: str) -> None:
    """Compare a file with its recorded checksum.

    Raises:
        StorageError: If the file is missing.
        CorruptArtefactError: If they differ.
    """
    if checksum(path) != expected_checksum and _checksum_of_0_1(path) != expected_checksum:
        raise _changed(path)


def check_whole(path: Path, expected_checksum: str | None, foreign: bool) -> None:
    """Compare a file with its checksum, recorded elsewhere or beside it.

    Args:
        path: The file.
        expected_checksum: The checksum that was recorded; None where it is in the file beside it.
        foreign: Whether another program may have written the file, which needs no checksum then.

    Raises:
        StorageError: If the file is missing.
        CorruptArtefactError: If they differ, or there is none.
    """
    if expected_checksum is not None:
        verify(path, expected_checksum)
    elif not foreign and checksum(path) not in _sums_beside(path) and _checksum_of_0_1(path) is None:
        raise _changed(path)


def write_summed(path: Path, write: Callable[[Path], Any], sidecar: bool) -> str:
    """Write a file atomically and hash it.

    Args:
        path: The file.
        write: Writes a file at the path it is given.
        sidecar: Whether to write the checksum into a file beside it.

    Returns:
        The checksum of the file.
    """
    with replacing(path) as temporary:
        write(temporary)
        digest = checksum(temporary)
        if sidecar:
            _write_sidecar(path, digest)
    return digest


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its own checksum, under ``seal``."""
    return {**content, "seal": fingerprint(json.dumps(content, sort_keys=True))}


def unseal(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object without its checksum, which is verified where there is one.

    Args:
        path: The file it was read from.
        content: The object.

    Raises:
        CorruptArtefactError: If it was changed since it was sealed.
    """
    inside = {name: value for name, value in content.items() if name != "seal"}
    if "seal" in content and content["seal"] != seal(inside)["seal"]:
        raise _changed(path)
    return inside


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sum")


def _write_sidecar(path: Path, digest: str) -> None:
    """Announce a file before it is moved into place; the file that stands there until then stays announced, too."""
    digests = {digest}
    if path.is_file() and (current := checksum(path)) in _sums_beside(path):
        digests.add(current)
    write_text(_sidecar(path), "".join(f"{each}  {path.name}\n" for each in sorted(digests)))


def _sums_beside(path: Path) -> set[str]:
    """The checksums in the file beside another, as ``b2sum`` writes them: checksum, two spaces, name."""
    sidecar = _sidecar(path)
    if not sidecar.is_file():
        return set()
    with said_plainly(sidecar, "read"):
        lines = (line.split("  ", 1) for line in sidecar.read_text("utf-8", "replace").splitlines())
        return {digest for digest, *names in lines if names == [path.name]}


def _checksum_of_0_1(path: Path) -> str | None:
    """The checksum of a parquet or safetensors file of 0.1.0, which it carries itself; None of any other file."""
    if not path.stat().st_size:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.rfind(_SEAL) if data[:4] == b"PAR1" else data.find(_SEAL)
        if place < 0:
            return None
        start, stop = place + len(_SEAL), place + len(_SEAL) + 2 * _BYTES
        digest = hashlib.blake2b(digest_size=_BYTES)
        with memoryview(data) as view:
            digest.update(view[:start])
            digest.update(b"0" * (stop - start))
            digest.update(view[stop:])
        return digest.hexdigest() if data[start:stop] == digest.hexdigest().encode() else None


def _changed(path: Path) -> CorruptArtefactError:
    return CorruptArtefactError(f"{path} does not fit its checksum: it is truncated, or was changed. Write it again.")
