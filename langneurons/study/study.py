"""A study: planned, run, resumed and compared; what is done stays done until something it depends on changes."""

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from langneurons import storage
from langneurons.errors import StudyError, unknown
from langneurons.replication.published import read_published
from langneurons.run import Executor, chosen_executor
from langneurons.study.computing import Computing
from langneurons.study.config import read_config, written
from langneurons.study.forecasting import forecast
from langneurons.study.parts import StudyConfig
from langneurons.study.reporting import write_study_report
from langneurons.study.run_folder import BLOCKED, DONE, FAILED, RunFolder
from langneurons.study.sources import Sources
from langneurons.study.steps import Step, steps_of

CONFIG = "study.toml"
Say = Callable[[str], Any]


class Study:
    """Everything that one file asks for, computed in one directory.

    Args:
        config: What is asked for.
        out: The directory; it may hold an earlier state of the study, of which all that still fits is used.

    Example:
        >>> config = {
        ...     "name": "small",
        ...     "models": {"babel": {"name": "babel"}},
        ...     "text": {"source": "babel", "heldout": 0.3, "context_length": 128},
        ...     "sets": {"two": ["en", "hi"]},
        ...     "methods": {"lape": {"method": "lape", "top": 0.01}},
        ... }
        >>> from langneurons.study.config import parse_config
        >>> Study(parse_config(config), "runs/small").steps
        ['record/babel', 'identify/babel/two/lape', 'report']
    """

    def __init__(self, config: StudyConfig, out: str | Path):
        self.config = config
        self.folder = RunFolder(Path(out))
        self._sources = Sources(self.folder.path / "sources.json")
        self._steps: dict[str, Step] = {}

    @classmethod
    def from_toml(cls, path: str | Path, out: str | Path | None = None) -> "Study":
        """Read a study.

        Args:
            path: Its TOML file, or the directory of an earlier run.
            out: The directory to run in; None takes ``runs/<name of the study>``, or that of the earlier run.

        Raises:
            StudyError: If the file is wrong; the sentence names the key and what is possible.
        """
        path = Path(path)
        if path.is_dir():
            return cls(read_config(path / CONFIG), out or path)
        config = read_config(path)
        return cls(config, out or Path("runs") / config.name)

    @property
    def steps(self) -> list[str]:
        """The names of the steps, each after those it depends on."""
        return list(self._plan())

    def __repr__(self) -> str:
        states = self.status()["state"].value_counts()
        counted = ", ".join(f"{count} {state}" for state, count in states.items())
        return f"Study {self.config.name!r} in {self.folder.path}: {len(self.steps)} steps, {counted}"

    def run(
        self,
        only: str | None = None,
        say: Say | None = None,
        progress: bool = True,
        executor: str | Executor | None = None,
    ) -> pd.DataFrame:
        """Compute every step that is not done; one that fails does not stop the others.

        Args:
            only: Steps whose name begins with this, and what they depend on.
            say: What to do with a line about each step, such as ``print``.
            progress: Show progress bars on standard error.
            executor: Where recordings, conditions, ablations and trainings run, as for ``ln.record``; no result depends
                on it.

        Returns:
            As ``status``.

        Raises:
            ExecutorError: If ``executor`` is neither an executor nor the name of one.
            StudyError: If another process runs in the directory, no step is called ``only``, or the published numbers
                cannot be read.
        """
        where = chosen_executor(executor)
        say = say or (lambda line: None)
        with self.folder.alone():
            plan = self._wanted(only)
            if self.config.published is not None:
                read_published(self.config.published)  # what is wrong with it is said now, not when all else is done
            storage.write_text(self.folder.path / CONFIG, self.show())
            self._sources.remember()
            computing = Computing(self.config, self.folder, progress, where)
            failed: set[str] = set()
            for number, step in enumerate(plan.values(), start=1):
                place = f"[{number}/{len(plan)}] {step.name}"
                if self.folder.is_done(step):
                    say(f"{place}: done before")
                elif step.kind != "report" and any(one.name in failed for one in step.inputs):
                    failed.add(step.name)
                    say(f"{place}: left out, what it depends on failed")
                elif not self._compute(step, computing, place, say):
                    failed.add(step.name)
        return self.status()

    def _compute(self, step: Step, computing: Computing, place: str, say: Say) -> bool:
        started = time.monotonic()
        say(f"{place} ...")
        try:
            with self.folder.working(step):
                if step.kind == "report":
                    write_study_report(self.config, self._plan(), self.folder, step)
                else:
                    computing.compute(step)
                self._check_sources(step)
                self.folder.finish(step, time.monotonic() - started)
        except Exception as error:  # whatever it is, the other steps do not depend on it
            self.folder.fail(step, f"{type(error).__name__}: {error}", traceback.format_exc())
            say(f"{place}: FAILED, {type(error).__name__}: {error}")
            return False
        say(f"{place}: {time.monotonic() - started:.1f} s")
        return True

    def _check_sources(self, step: Step) -> None:
        if steps_of(self.config, self._sources)[step.name].key != step.key:
            raise StudyError("A model, text or task changed while the step ran: run the study again.")

    def status(self) -> pd.DataFrame:
        """What became of every step.

        Returns:
            step, state ("done", "running", "stale": done for other settings or sources, "failed", "blocked": an input
            failed, "to do"), seconds it took here, why it failed.
        """
        rows, broken, seconds = [], set(), self.folder.seconds()
        for step in self._plan().values():
            state = self.folder.state(step)
            if state != DONE and step.kind != "report" and any(one.name in broken for one in step.inputs):
                state = BLOCKED
            if state in (FAILED, BLOCKED):
                broken.add(step.name)
            rows.append((step.name, state, seconds.get(step.key), self.folder.failure(step) or ""))
        return pd.DataFrame(rows, columns=pd.Index(["step", "state", "seconds", "why"]))

    def forecast(self, speed: float | None = None) -> pd.DataFrame:
        """What is left to do, and about what it takes.

        Args:
            speed: Floating-point operations a second that the machine reaches, such as 160e12 for a GPU of 400 TFLOP/s
                at 40 %; None measures this machine's processor.

        Returns:
            step, state, million tokens through the model (a token that is also gone back through counts three times),
            GB of memory, GB of disk, and minutes; where a step of the same name was run here before, its time, unless a
            speed is given.

        Raises:
            StudyError: If the speed is not above 0.
        """
        return forecast(self.config, self._plan(), self.folder, speed)

    def path(self, step: str) -> Path:
        """The folder of a step's result.

        Raises:
            StudyError: If there is no such step, or it is not done.
        """
        plan = self._plan()
        if step not in plan:
            raise StudyError(unknown("step", step, plan))
        if not self.folder.is_done(plan[step]):
            raise StudyError(f"The step {step!r} is not done: run the study.")
        return self.folder.result(plan[step])

    def report(self) -> Path:
        """The page that the study ends with.

        Raises:
            StudyError: If it is not written yet.
        """
        return self.path("report") / "report.html"

    def files(self) -> dict[str, str]:
        """Every file of every step that is done, and its checksum."""
        done = [step for step in self._plan().values() if self.folder.is_done(step)]
        return {f"{step.name}/{name}": found for step in done for name, found in self.folder.files(step).items()}

    def check(self) -> None:
        """Verify every byte of what is done.

        Raises:
            CorruptArtefactError: If a file is truncated or changed; it is named.
        """
        for step in self._plan().values():
            if self.folder.is_done(step):
                self.folder.check(step)

    def compare(self, other: "Study") -> pd.DataFrame:
        """Hold this study against another.

        Returns:
            One row a step of either: step, and ``difference``: "same" (equal settings and sources, equal files),
            "other files" (equal settings and sources, but results differ), the settings that differ, "inputs" where
            only an input differs, "not done", or which of the two lacks the step.
        """
        mine, theirs = self._plan(), other._plan()
        rows = []
        for name in dict.fromkeys([*mine, *theirs]):
            if name not in mine or name not in theirs:
                rows.append((name, f"only in {(self if name in mine else other).folder.path}"))
                continue
            rows.append((name, _difference(mine[name], self.folder, theirs[name], other.folder)))
        return pd.DataFrame(rows, columns=pd.Index(["step", "difference"]))

    def show(self) -> str:
        """The study as TOML, every default written out."""
        return written(self.config)

    def _plan(self) -> dict[str, Step]:
        if not self._steps:
            self._steps = steps_of(self.config, self._sources)
        return self._steps

    def _wanted(self, only: str | None) -> dict[str, Step]:
        plan = self._plan()
        if only is None:
            return plan
        chosen = [step for step in plan.values() if step.name.startswith(only)]
        if not chosen:
            raise StudyError(unknown("step", only, plan))
        needed: set[str] = set()
        for step in chosen:
            needed |= {step.name, *_before(step)}
        return {name: step for name, step in plan.items() if name in needed}


def _before(step: Step) -> set[str]:
    found: set[str] = set()
    for one in step.inputs:
        found |= {one.name, *_before(one)}
    return found


def _difference(mine: Step, here: RunFolder, theirs: Step, there: RunFolder) -> str:
    if mine.key == theirs.key:
        if not (here.is_done(mine) and there.is_done(theirs)):
            return "not done"
        return "same" if here.files(mine) == there.files(theirs) else "other files"
    names = sorted({*mine.settings, *theirs.settings})
    found = [
        f"{name}: {mine.settings.get(name)!r} and {theirs.settings.get(name)!r}"
        for name in names
        if mine.settings.get(name) != theirs.settings.get(name)
    ]
    return "; ".join(found) or "inputs"
