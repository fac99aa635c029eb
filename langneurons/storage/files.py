"""Files and folders: written whole or not at all, locked, and what the system refuses said in one sentence."""

import errno
import glob
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError

from langneurons.errors import CorruptArtefactError, LangNeuronsError, StorageError, in_short

DISK_FULL = "the disk is full. Free some space and run again; nothing was lost"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system without locks says
_LONGEST = 100  # bytes, of the 255 that a file system allows for a name
_PARTIAL = ".partial"  # ends the hidden name under which a file is written before it is whole
# Drives that no other machine writes to. Network drives keep the lock of a folder on each machine apart.
LOCAL_DRIVES = ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs")
_WRITER = re.compile(r"\.([0-9a-f-]{36}-\d+)-(\d+)-(\d+)(?:\.\w{8})?" + re.escape(_PARTIAL))


def path_of(given: object, error: type[LangNeuronsError] = StorageError) -> Path:
    """The path that a user gave; ``~`` is the home folder.

    Args:
        given: What was given.
        error: Class of the error.

    Raises:
        LangNeuronsError: If no file or folder can be called so, as when a text is given in a path's place.
    """
    if not isinstance(given, str | Path):
        raise error(f"A path is a text or a Path, not {given!r:.60}.")
    try:
        parts = [len(os.fsencode(part)) for part in Path(given).parts]
        if "\0" not in str(given) and max(parts, default=0) <= 255 and sum(parts) + len(parts) <= 4096:
            return Path(given).expanduser()
    except (UnicodeEncodeError, RuntimeError):  # the second for the home folder of nobody
        pass
    raise error(f"No file or folder can be called {str(given)!r:.60} ({len(str(given)):,} letters): give a path.")


@contextmanager
def said_plainly(path: Path, verb: str) -> Iterator[None]:
    """Turn what the system refuses inside the block into a sentence.

    Args:
        path: The file or folder that is worked on.
        verb: What is done with it: "read", "write" or "remove".

    Raises:
        StorageError: If the system refuses, or the name is no UTF-8, which not every library here can open.
    """
    path_of(path)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise StorageError(f"Cannot {verb} {os.fsencode(path)!r:.200}: give a name that is UTF-8.") from error
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"Cannot {verb} {path}: there is no such file or folder.") from error
    except OSError as error:
        why = DISK_FULL if error.errno == errno.ENOSPC else error.strerror or error
        raise StorageError(f"Cannot {verb} {path}: {why}.") from error
    except SafetensorError as error:
        full = "no space left" in str(error).lower() or "StorageFull" in str(error)
        raise StorageError(f"Cannot {verb} {path}: {DISK_FULL if full else in_short(error)}.") from error


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file's content is interpreted inside the block into a sentence.

    Raises:
        CorruptArtefactError: If something goes wrong.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise CorruptArtefactError(f"{path} is not laid out as it should be ({in_short(error)}).") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder, moved to ``path`` when the block ends without an exception.

    A process that is killed in the block leaves ``.<name>.partial`` behind; the next one to write the file removes it.
    On a drive that several machines may write to, the name says which process of which machine wrote it, and whoever
    opens the folder on that machine removes it.

    Raises:
        StorageError: If the disk is full or the folder cannot be written; what stood at ``path`` still does.
    """
    with said_plainly(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        local = _is_local(path.parent.resolve())
        name = f".{path.name}" if local else f".{path.name}.{_writer()}"
        temporary = path.with_name(f"{name}{_PARTIAL}")
        if local and temporary.exists():
            _remove_orphans_in(path.parent, f".{glob.escape(path.name)}*{_PARTIAL}")
        # Of the folder, not the file: what writes a file may put another one in its place.
        with _folder_held(path.parent, exclusive=False):
            try:
                handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:  # another process writes the same file
                handle, temporary = tempfile.mkstemp(prefix=f"{name}.", suffix=_PARTIAL, dir=path.parent)
                temporary = Path(temporary)
            os.close(handle)
            try:
                yield temporary
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                temporary.chmod(0o644)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``folder`` that takes its name when the block ends without an exception.

    A process that is killed in the block leaves ``.<name>.partial`` behind, which the next one to write it empties.

    Args:
        folder: The folder, which must not exist.

    Raises:
        StorageError: If something stands at ``folder``, another process is writing it, or it cannot be written.
    """
    if folder.exists():
        raise StorageError(f"{folder} exists already: give the name of a folder that does not.")
    temporary = folder.with_name(f".{folder.name}{_PARTIAL}")
    with said_plainly(folder, "write"):
        temporary.mkdir(parents=True, exist_ok=True)
        with _folder_held(temporary, exclusive=True) as held:
            if not held and any(temporary.iterdir()):
                raise StorageError(f"Another process is writing {folder}; if there is none, remove {temporary}.")
            try:
                for orphan in temporary.iterdir():
                    shutil.rmtree(orphan) if orphan.is_dir() else orphan.unlink()
                whole = temporary / folder.name  # inside: a folder that is held cannot be written by ``replacing``
                whole.mkdir()
                yield whole
                for path in filter(Path.is_file, whole.rglob("*")):
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                os.rename(whole, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _folder_held(folder: Path, exclusive: bool) -> Iterator[bool]:
    """Hold a folder inside the block, with others who write in it or alone; whether that succeeded."""
    try:
        from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock  # not on every system

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        try:
            flock(handle, LOCK_EX | LOCK_NB if exclusive else LOCK_SH)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(handle)


def remove_orphans(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder and the folders in it.

    Nothing is deleted in a folder in which a process is writing: that is left to the next one. On a drive that several
    machines may write to, only what a process of this machine left is deleted, if it ended since this machine started.

    Raises:
        StorageError: If the system refuses.
    """
    with said_plainly(folder, "write"):
        for parent in {path.parent for path in folder.rglob(f".*{_PARTIAL}")}:
            _remove_orphans_in(parent, f".*{_PARTIAL}")


def _remove_orphans_in(folder: Path, pattern: str) -> None:
    with _folder_held(folder, exclusive=True) as held:
        unwritten = held and _is_local(folder.resolve())
        for path in folder.glob(pattern):
            with suppress(OSError):  # what another user left stays
                if (unwritten or _writer_ended(path.name)) and path.is_file() and not path.is_symlink():
                    path.unlink(missing_ok=True)


@lru_cache(maxsize=1024)
def _is_local(folder: Path) -> bool:
    """Whether a folder lies on a drive that no other machine writes to."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:  # not Linux
        return True
    drives = {}
    for line in lines:
        mount, _, drive = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), mount.split(" ")[4])
        drives[Path(point)] = drive.split(" ")[0]
    return next((drives[part] for part in (folder, *folder.parents) if part in drives), "") in LOCAL_DRIVES


def _writer() -> str:
    """Name this process: the machine's start, its table of processes, number and start of the process."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}-{os.getpid()}-{_start_of(os.getpid())}"
    return "unknown"


def _writer_ended(name: str) -> bool:
    """Whether a file's name says that a process wrote it that ran here, since this machine started, and has ended."""
    writer = _WRITER.search(name)
    if writer is None or writer[1] != _writer().rsplit("-", 2)[0]:
        return False
    number = int(writer[2])
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _start_of(number) not in ("", writer[3])


def _start_of(process: int) -> str:
    """When a process started, in ticks since the machine did; "" where that cannot be read."""
    try:
        return Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    except OSError:
        return ""


def check_regular(path: Path) -> None:
    """Refuse to read a pipe or a device, which may have no end, before it is opened.

    Raises:
        StorageError: If it is one.
    """
    if path.is_symlink() and not path.exists():
        raise StorageError(f"Cannot read {path}: it is a link to nothing, or to itself.")
    if path.exists() and not stat.S_ISREG(mode := path.stat().st_mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a link to one"
        raise StorageError(f"Cannot read {path}: it is {what}, not a file.")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file, in one write."""
    with said_plainly(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def names_a_file(name: str) -> bool:
    """Whether a file or folder can have this name with a prefix and an ending: one visible part of a path, not long.

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
    remove_orphans(folder)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Try to hold a lock inside the block; it ends with the process, however that ends.

    Args:
        path: The lock's file; its folder is made.

    Yields:
        Whether the lock is held; False where another process, or another block of this one, holds it.
    """
    from filelock import FileLock, SoftFileLock, Timeout  # takes long to import

    with said_plainly(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            with suppress(Timeout):
                lock.acquire(blocking=False)
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
                raise
            # Some network drives: what a file's presence says is all there is.
            lock = SoftFileLock(path.with_name(f"{path.name}.held"))
            with suppress(Timeout):
                lock.acquire(blocking=False)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def make_temporary_folder() -> Path:
    """Make a folder where the system keeps temporary files.

    Raises:
        StorageError: If that is full or cannot be written.
    """
    with said_plainly(Path(tempfile.gettempdir()), "write"):
        return Path(tempfile.mkdtemp(prefix="langneurons-"))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a temporary folder that is removed at the end of the block.

    Raises:
        StorageError: If the disk is full or cannot be written.
    """
    folder = make_temporary_folder()
    try:
        yield folder
    finally:
        remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Delete a folder with everything in it, if it is there.

    Raises:
        StorageError: If the system refuses.
    """
    if folder.exists():
        with said_plainly(folder, "remove"):
            shutil.rmtree(folder)
