"""Folders: whether they can be written, who works in them, temporary ones."""

import fcntl
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from langneurons.errors import StorageError
from langneurons.storage.faults import said_plainly

_LONGEST = 100  # bytes, of the 255 that a file system gives a name


def names_a_file(name: str) -> bool:
    """Whether a file or folder can have this name, with a prefix and an ending: one visible part of a path, not long.

    Example:
        >>> [names_a_file(name) for name in ("zh-Hant", "a/b", "..", "")]
        [True, False, False, False]
    """
    return re.fullmatch(r"(?!\.)[^/\\\0\ud800-\udfff]+", name) is not None and len(name.encode()) <= _LONGEST


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, before anything is computed for it.

    Raises:
        StorageError: If it is a file, or must not be written.
    """
    with said_plainly(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Try to hold a lock inside the block; it ends with the process, however that ends.

    Yields:
        Whether it is held; False where another process, or another block of this one, holds it.
    """
    with said_plainly(path, "write"):
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


def make_temporary_folder() -> Path:
    """Make a folder where the system keeps temporary files.

    Raises:
        StorageError: If that is full or cannot be written.
    """
    with said_plainly(Path(tempfile.gettempdir()), "write"):
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
        with said_plainly(folder, "remove"):
            shutil.rmtree(folder)
