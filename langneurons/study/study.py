"""A study: planned, run, resumed and compared; what is done stays done until something it depends on changes."""

import math
import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Unpack

import pandas as pd
import torch

import langneurons as ln
from langneurons import storage
from langneurons.errors import ModelError, StorageError, StudyError, unknown
from langneurons.replication.published import read_published
from langneurons.run import chosen_executor, timed
from langneurons.settings import RunOptions, with_options
from langneurons.storage.hub import PREFIX, Shareable, copied
from langneurons.study.config import CONFIG, STAGES, as_toml, read_study
from langneurons.study.stages import Plan, Source, Step
from langneurons.study.stages.report import REPORT, findings_of
from langneurons.study.tables import StudyConfig
from langneurons.study.work import BLOCKED, DONE, FAILED, RunFolder, Sources, Work

EFFICIENCY = 0.5  # of a large matrix product's speed that a model's forward reaches
LEAST_DISK = 1e6  # bytes of any result
BYTES_PER_TOKEN = 3  # of text in several scripts, about
HOURS = 180  # minutes from which on hours are printed
Say = Callable[[str], Any]


def steps_of(config: StudyConfig, source: Source) -> dict[str, Step]:
    """List a study's steps by name, each after its inputs.

    Args:
        config: The study.
        source: From kind ("model", "text", "task", "numbers") and name of a source to a hash of its content.
    """
    plan = Plan(config, cache(source))
    for model in config.models:
        for stage in STAGES:
            plan.steps |= {step.name: step for step in stage.steps(plan, model)}
    plan.steps |= {step.name: step for step in REPORT.steps(plan, "")}
    return plan.steps


class Study(Shareable):
    """Everything that one file asks for, computed in one directory.

    Args:
        config: The study, as ``parse_config`` and ``read_config`` make it.
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

    kind: ClassVar[str] = "study"

    def __init__(self, config: StudyConfig, out: str | Path):
        self.config = config
        self.folder = RunFolder(Path(out))
        self._sources = Sources(self.folder.path / "sources.json")

    @classmethod
    def from_toml(cls, path: str | Path, out: str | Path | None = None) -> "Study":
        """Read a study.

        Args:
            path: Its TOML file, or the directory of an earlier run; or ``hub:user/repo/name``, which is copied to
                ``out``.
            out: The directory to run in; by default the study's ``run.out`` or ``runs/<name of the study>``, or that of
                the earlier run.

        Raises:
            StudyError: If the file is wrong; the sentence names the key and what is possible.
            StorageError: If the hub cannot be reached, or ``out`` is missing or not empty where it is copied to.
        """
        if str(path).startswith(PREFIX):
            if out is None:
                raise StorageError(f"Give out=, the directory to which {path} is copied.")
            path = copied(path, Path(out))
        return cls(*read_study(path, out))

    @property
    def steps(self) -> list[str]:
        """The names of the steps, each after those it depends on."""
        return list(self._plan)

    def __repr__(self) -> str:
        states = self.status()["state"].value_counts()
        counted = ", ".join(f"{count} {state}" for state, count in states.items())
        return f"Study {self.config.name!r} in {self.folder.path}: {len(self.steps)} steps, {counted}"

    def run(self, only: str | None = None, say: Say | None = None, **options: Unpack[RunOptions]) -> pd.DataFrame:
        """Compute every step that is not done; one that fails does not stop the others.

        Args:
            only: Steps whose name begins with this, and what they depend on; by default all.
            say: What to do with a line about each step, such as ``print``; by default nothing.
            options: Single fields of ``Run``, such as ``executor="ray"`` or ``progress=False``, over the study's own.

        Returns:
            What became of every step, see ``status``.

        Raises:
            ExecutorError: If ``executor`` is neither an executor nor the name of one.
            StudyError: If another process runs in the directory, no step is called ``only``, or the published numbers
                cannot be read.
        """
        (run,) = with_options(options, self.config.run)
        run = run.model_copy(update={"executor": chosen_executor(run.executor)})
        say = say or (lambda line: None)
        with self.folder.alone():
            plan = self._plan if only is None else self._wanted(only)
            if self.config.published is not None:
                read_published(self.config.published)  # so that a mistake in it costs no computed step
            storage.write_text(self.folder.path / CONFIG, self.show())
            self._sources.remember()
            work = Work(self.config, self.folder, run)
            failed: set[str] = set()
            for number, step in enumerate(plan.values(), start=1):
                place = f"[{number}/{len(plan)}] {step.name}"
                if self.folder.is_done(step):
                    say(f"{place}: done before")
                elif _depends_on(step, failed):
                    failed.add(step.name)
                    say(f"{place}: left out, what it depends on failed")
                elif not self._compute(step, work, place, say):
                    failed.add(step.name)
        return self.status()

    def _compute(self, step: Step, work: Work, place: str, say: Say) -> bool:
        started = time.monotonic()
        say(f"{place} ...")
        try:
            with self.folder.working(step):
                work.compute(step)
                if steps_of(self.config, self._sources)[step.name].key != step.key:
                    raise StudyError("A model, text or task changed while the step ran: run the study again.")
                self.folder.finish(step, time.monotonic() - started)
        except Exception as error:  # whatever it is, the other steps do not depend on it
            self.folder.fail(step, f"{type(error).__name__}: {error}", traceback.format_exc())
            say(f"{place}: FAILED, {type(error).__name__}: {error}")
            return False
        say(f"{place}: {time.monotonic() - started:.1f} s")
        return True

    def status(self) -> pd.DataFrame:
        """What became of every step.

        Returns:
            step, state ("done", "running", "stale": done for other settings or sources, "failed", "blocked": an input
            failed, "to do"), seconds it took here, why it failed.
        """
        rows, broken, seconds = [], set[str](), self.folder.seconds()
        for step in self._plan.values():
            state = self.folder.state(step)
            state = BLOCKED if state != DONE and _depends_on(step, broken) else state
            if state in (FAILED, BLOCKED):
                broken.add(step.name)
            rows.append((step.name, state, seconds.get(step.key), self.folder.failure(step) or ""))
        return pd.DataFrame(rows, columns=pd.Index(["step", "state", "seconds", "why"]))

    def forecast(self, speed: float | None = None) -> pd.DataFrame:
        """What is left to do, and about what it takes.

        Args:
            speed: Floating-point operations per second that the machine reaches, such as 160e12 for a GPU of
                400 TFLOP/s at 40 %; None measures this machine's processor.

        Returns:
            step, state, million tokens through the model (a token that is also gone back through counts three times),
            GB of memory, GB of disk, and minutes; where a step of the same name was run here before, its time, unless a
            speed is given.

        Raises:
            StudyError: If the speed is not above 0.
        """
        if speed is not None and not 0 < speed < math.inf:
            raise StudyError(f"A speed is a number of operations per second above 0, such as 160e12, not {speed:g}.")
        models = {}
        for name, part in self.config.models.items():
            with suppress(ModelError):  # not on this machine; its steps are listed all the same
                models[name] = ln.describe(part.name, gguf_file=part.gguf_file)
        config = self._with_sizes()
        earlier = self.folder.seconds_by_name() if speed is None else {}
        operations_per_second = _operations_per_second() * EFFICIENCY if speed is None else speed
        rows = []
        for step in self._plan.values():
            state, model = self.folder.state(step), models.get(step.model)
            tokens = memory = disk = seconds = 0.0
            if state != DONE:
                units = {site: model.layers * width for site, width in model.neurons.items()} if model else {}
                part = step.stage.part_of(config, step)
                tokens = step.stage.tokens(step, part, config, units)
                disk = max(step.stage.disk(step, part, config, units), LEAST_DISK)
                if tokens:
                    memory = max(model.memory_to_load.values()) if model else math.nan
                    seconds = 2 * model.parameters * tokens / operations_per_second if model else math.nan
                seconds = earlier.get(step.name, seconds)
            ran_here = state == DONE or step.name in earlier
            rows.append((step.name, state, tokens / 1e6, memory / 1e9, disk / 1e9, seconds / 60, ran_here))
        columns = ["step", "state", "million tokens", "GB memory", "GB disk", "minutes", "measured"]
        return pd.DataFrame(rows, columns=pd.Index(columns))

    def _with_sizes(self) -> StudyConfig:
        """The study with a number of tokens wherever it reads all of a text that is on this machine."""
        text, recording = self.config.text, self.config.recording
        if text.source != "babel" and not Path(text.source).expanduser().is_dir():
            return self.config
        work = Work(self.config, self.folder)
        if text.heldout_tokens is None:
            text = text.model_copy(update={"heldout_tokens": _tokens_of(work.ordered_text(heldout=True))})
        if recording.tokens_per_language is None:
            tokens = _tokens_of(work.ordered_text(heldout=False))
            recording = recording.model_copy(update={"tokens_per_language": tokens})
        return self.config.model_copy(update={"text": text, "recording": recording})

    def path(self, step: str) -> Path:
        """The folder of a step's result.

        Raises:
            StudyError: If there is no such step, or it is not done.
        """
        if step not in self._plan:
            raise StudyError(unknown("step", step, self._plan))
        if not self.folder.is_done(self._plan[step]):
            raise StudyError(f"The step {step!r} is not done: run the study.")
        return self.folder.result(self._plan[step])

    def report(self) -> Path:
        """The page that the study ends with.

        Raises:
            StudyError: If it is not written yet.
        """
        return self.path("report") / "report.html"

    def findings(self) -> dict[str, ln.Findings]:
        """What the steps that are done found in each model, by its name."""
        report, work = self._plan["report"], Work(self.config, self.folder)
        return {model: findings_of(report, work, model) for model in self.config.models}

    def files(self) -> dict[str, str]:
        """Every file of every step that is done, and its checksum."""
        checksums = {step.name: self.folder.files(step) for step in self._plan.values() if self.folder.is_done(step)}
        return {f"{step}/{name}": digest for step, files in checksums.items() for name, digest in files.items()}

    def _save_into(self, folder: Path) -> None:
        """Copy the study and its steps that are done, without paths of this machine."""
        storage.write_text(folder / CONFIG, self.show())
        self._sources.remember(folder / "sources.json")
        for step in self._plan.values():
            if self.folder.is_done(step):
                source = self.folder.result(step)
                for name in ("step.json", *self.folder.files(step)):
                    target = folder / source.relative_to(self.folder.path) / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source / name, target)

    def _about(self) -> dict[str, object]:
        models = {name: part.name for name, part in self.config.models.items()}
        revisions = {name: part.revision for name, part in self.config.models.items() if part.revision}
        options = {"steps": len(self.steps), "all options": CONFIG}
        return {"model": models, "revision": revisions, "corpus": self.config.text.source, "options": options}

    def _loading(self, address: str) -> str:
        return f"study = ln.Study.from_toml({address!r}, out={f'runs/{self.config.name}'!r})"

    def check(self) -> None:
        """Verify every byte of what is done.

        Raises:
            CorruptArtefactError: If a file is truncated or changed; it is named.
        """
        for step in self._plan.values():
            if self.folder.is_done(step):
                self.folder.check(step)

    def compare(self, other: "Study") -> pd.DataFrame:
        """Hold this study against another.

        Returns:
            One row per step of either: step, and ``difference``: "same" (equal settings and sources, equal files),
            "other files" (equal settings and sources, but results differ), the settings that differ, "inputs" where
            only an input differs, "not done", or which of the two lacks the step.
        """
        mine, theirs = self._plan, other._plan
        differences = {name: f"only in {self.folder.path}" for name in mine}
        differences |= {name: f"only in {other.folder.path}" for name in theirs}
        for name in mine.keys() & theirs.keys():
            differences[name] = _difference(mine[name], self.folder, theirs[name], other.folder)
        return pd.DataFrame(list(differences.items()), columns=pd.Index(["step", "difference"]))

    def show(self) -> str:
        """The study as TOML, every default written out."""
        return as_toml(self.config)

    @cached_property
    def _plan(self) -> dict[str, Step]:
        return steps_of(self.config, self._sources)

    def _wanted(self, only: str) -> dict[str, Step]:
        """Steps whose name begins with a word, and what they depend on."""
        wanted = {name for name in self._plan if name.startswith(only)}
        if not wanted:
            raise StudyError(unknown("step", only, self._plan))
        for name, step in reversed(self._plan.items()):
            if name in wanted:
                wanted |= {read.name for read in step.inputs}
        return {name: step for name, step in self._plan.items() if name in wanted}


def _depends_on(step: Step, broken: set[str]) -> bool:
    """Whether a step cannot be computed without some others; the report shows what there is."""
    return step.stage is not REPORT and any(read.name in broken for read in step.inputs)


def _difference(mine: Step, here: RunFolder, theirs: Step, there: RunFolder) -> str:
    if mine.key == theirs.key:
        if not (here.is_done(mine) and there.is_done(theirs)):
            return "not done"
        return "same" if here.files(mine) == there.files(theirs) else "other files"
    settings, other_settings = (pd.json_normalize(dict(step.settings)).to_dict("records")[0] for step in (mine, theirs))
    names = [name for name in sorted({*settings, *other_settings}) if settings.get(name) != other_settings.get(name)]
    return "; ".join(f"{name}: {settings.get(name)!r} and {other_settings.get(name)!r}" for name in names) or "inputs"


def _tokens_of(corpus: ln.Corpus) -> int:
    """About how many tokens a language of a corpus has, in the mean."""
    texts = [corpus.texts(language) for language in corpus.languages]
    return sum(len(text.encode()) for of_language in texts for text in of_language) // BYTES_PER_TOKEN // len(texts)


def _operations_per_second() -> float:
    """How fast this processor multiplies matrices, in floating-point operations."""
    left, right = torch.rand(2, 512, 512)
    return 2 * 512**3 / timed(lambda: torch.mm(left, right))


def as_text(table: pd.DataFrame, path: Path, speed: float | None = None) -> str:
    """A forecast in words.

    Args:
        table: What ``Study.forecast`` returns.
        path: Directory of the study.
        speed: The speed that was given to ``Study.forecast``.
    """
    left = table.query("state != 'done'")
    rows = left.drop(columns="measured").to_string(index=False, na_rep="?", float_format=lambda value: f"{value:.3g}")
    total = left[["million tokens", "GB disk", "minutes"]].sum()
    where = "on this machine's processor" if speed is None else f"at {speed:.3g} operations per second"
    how = "the speed of a matrix product; steps that ran here before: as they took" if speed is None else "that speed"
    minutes = sum(left["minutes"].dropna().tolist())
    duration = f"{minutes:.0f} minutes" if minutes < HOURS else f"{minutes / 60:.0f} hours"
    unknown_model = "\nA model that is not on this machine (?) is in no sum." if left["minutes"].hasnans else ""
    return (
        f"{rows}\n{len(left)} of {len(table)} steps to run in {path}: about {total['million tokens']:.3g} million "
        f"tokens, {total['GB disk']:.2g} GB of disk and {duration} {where} (from the size of the model and {how})."
        f"{unknown_model}"
    )
