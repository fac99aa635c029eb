"""What a study reads from outside, known by a hash of its content, so that a changed file is noticed."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from langneurons import storage
from langneurons.errors import StorageError
from langneurons.replication.published import SHIPPED

SCHEMA = "langneurons/study-sources/1"
EMBEDDED = "babel"


class Sources:
    """Hashes of models, texts and tasks; a file is read again only when its size or time of change differ."""

    def __init__(self, memory: Path):
        self._memory = memory
        self._files: dict[str, list[Any]] = {}
        self._names: dict[str, str] = {}
        if memory.exists():
            known = storage.read_json(memory, SCHEMA)
            self._files, self._names = known["files"], known["names"]

    def __call__(self, kind: str, name: str) -> str:
        """The hash of a source: of its files, or of its name where it lies on the hub.

        Where the files are out of reach, as on another machine, the hash they had is given.
        """
        shipped = SHIPPED.get(name) if kind == "numbers" else _embedded() if name == EMBEDDED else None
        folder = Path(name) if shipped is None else Path(str(shipped))
        if not folder.exists():
            return self._names.get(f"{kind} {name}", storage.fingerprint("by name", name))
        found = [folder] if folder.is_file() else sorted(one for one in folder.rglob("*") if _counts(one))
        parts = [part for one in found for part in (one.relative_to(folder).as_posix(), self._checksum(one))]
        self._names[f"{kind} {name}"] = storage.fingerprint(*parts)
        return self._names[f"{kind} {name}"]

    def _checksum(self, path: Path) -> str:
        try:
            about = path.stat()
        except OSError as error:
            raise StorageError(f"Cannot read {path}: {error.strerror}.") from error
        place, now = str(path.resolve()), [about.st_size, about.st_mtime_ns]
        known = self._files.get(place)
        if known is None or known[:2] != now:
            known = self._files[place] = [*now, storage.checksum(path)]
        return known[2]

    def remember(self) -> None:
        """Keep what was hashed beside the study."""
        content: Mapping[str, Any] = {"files": self._files, "names": self._names}
        storage.write_json(self._memory, SCHEMA, content)


def _embedded() -> Path:
    return Path(str(files("langneurons.babel")))


def _counts(path: Path) -> bool:
    return path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
