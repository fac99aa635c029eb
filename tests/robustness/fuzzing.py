"""Damages artefacts and reads them: a typed error or the right result, never another exception, hang or number."""

import resource
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from langneurons.errors import LangNeuronsError
from tests.robustness.artefacts import ARTEFACTS, Artefact, described
from tests.robustness.mutations import FORGED, Damage, mutated

FINE, OTHER = ("refused", "equal", "legal"), "gave another result"
LIMIT_S = 10.0
LIMIT_BYTES = 2 << 30  # what one load may take beyond what the process had


class Hung(BaseException):
    """A load took longer than the limit; no loader can catch it by accident."""


@dataclass
class Outcome:
    """What came of some mutations: how many were refused, gave an equal result, gave another legal one; what failed."""

    counts: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Bench:
    """A valid artefact on disk, damaged and mended again and again.

    Args:
        name: Of the artefact.
        folder: An empty folder to work in.
        foreign: Files of other artefacts, by name, that may be put in the place of its own.
    """

    def __init__(self, name: str, folder: Path, foreign: dict[str, bytes]) -> None:
        self.name, self.artefact, self.foreign = name, ARTEFACTS[name], foreign
        self._original, self._work = folder / "original", folder / "work"
        self._original.mkdir(parents=True)
        made(self.artefact, self._original)
        shutil.copytree(self._original, self._work)
        self.files = _files(self._original)
        self.expected = described(self._read())

    def run(self, seed: int, count: int) -> Outcome:
        """Try ``count`` mutations; a mutation is known by the artefact's name, the seed and its number."""
        outcome = Outcome()
        for number in range(count):
            self.try_one(seed, number, outcome)
        return outcome

    def try_one(self, seed: int, number: int, outcome: Outcome) -> None:
        """Try one mutation."""
        random = Random(f"{self.name} {seed} {number}")
        file = random.choice(sorted(self.files))
        same_kind = {name: data for name, data in self.foreign.items() if Path(name).suffix == Path(file).suffix}
        others = {**{name: data for name, data in self.files.items() if name != file}, **same_kind}
        done, damaged = mutated(file, self.files[file], others, random)
        _put(self._work / file, damaged)
        try:
            result = self._verdict()
        finally:
            _put(self._work / file, self.files[file])
        if result == OTHER and (self.artefact.plain or FORGED in done):
            result = "legal"
        outcome.counts[result if result in FINE else "failed"] += 1
        if result not in FINE:
            outcome.failures.append(f"{self.name}, seed {seed}, mutation {number} ({done}): {result}")

    def _verdict(self) -> str:
        try:
            with _limited():
                found = described(self._read())
        except LangNeuronsError as error:
            return "refused" if _readable(str(error)) else f"said badly: {error}"
        except Hung:
            return f"took longer than {LIMIT_S} s"
        except BaseException as error:
            return f"{type(error).__name__}: {str(error)[:300]} at {_where(error)}"
        return "equal" if found == self.expected else OTHER

    def _read(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.artefact.read(self._work)


def made(artefact: Artefact, folder: Path) -> None:
    """Write a valid artefact into a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        artefact.make(folder)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def _put(path: Path, data: Damage) -> None:
    """Write a file anew: others may still have the old one mapped."""
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    if data is None:
        path.mkdir()
    else:
        path.write_bytes(data)


def _readable(message: str) -> bool:
    return 20 <= len(message) <= 1500 and "\n" not in message.strip() and "Traceback" not in message


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    place = ""
    while trace is not None:
        if "langneurons" in trace.tb_frame.f_code.co_filename:
            place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


@contextmanager
def _limited() -> Iterator[None]:
    """Limit the time, and the address space, that a load may take."""

    def stop(*_: Any) -> None:
        raise Hung

    before, limits = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + LIMIT_BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def fuzz(name: str, seed: int, count: int, folder: Path) -> Outcome:
    """Damage one kind of artefact ``count`` times; files of two other kinds may take the place of its own."""
    foreign: dict[str, bytes] = {}
    for other in ("effect table", "neuron set"):
        (folder / other).mkdir(parents=True)
        made(ARTEFACTS[other], folder / other)
        foreign |= {f"{other}/{file}": data for file, data in _files(folder / other).items()}
    return Bench(name, folder / "bench", foreign).run(seed, count)
