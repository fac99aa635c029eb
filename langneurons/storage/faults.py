"""What the system and other libraries raise about files, said as errors of langneurons."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from langneurons.errors import CorruptArtefactError, StorageError, in_short

DISK_FULL = "the disk is full. Free some space and run again; nothing was lost"


@contextmanager
def said_plainly(path: Path, verb: str) -> Iterator[None]:
    """Say why something cannot be done with a file or folder, where the system refuses it inside the block.

    Args:
        path: The file or folder.
        verb: What is done with it: "read", "write" or "remove".

    Raises:
        StorageError: If the system refuses.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"Cannot {verb} {path}: there is no such file or folder.") from error
    except OSError as error:
        why = DISK_FULL if error.errno == errno.ENOSPC else error.strerror or error
        raise StorageError(f"Cannot {verb} {path}: {why}.") from error
    except SafetensorError as error:
        full = "no space left" in str(error).lower() or "StorageFull" in str(error)
        raise StorageError(f"Cannot {verb} {path}: {DISK_FULL if full else error}.") from error


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
