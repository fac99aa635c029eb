"""What steps read and where they work: models, text, tasks, each loaded once; and the directory of the results.

The directory holds results by step and key, what failed, who is at work, and what was read from outside; it can be
moved and copied.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import langneurons as ln
from langneurons import storage
from langneurons.babel import FOLDER
from langneurons.errors import StorageError, StudyError
from langneurons.replication.published import SHIPPED
from langneurons.settings import Run
from langneurons.study.stages import Step
from langneurons.study.tables import PatchPart, StudyConfig
from langneurons.study.wording import PatchOfLanguage, language_patches

Loaded = TypeVar("Loaded")
SCHEMA = "langneurons/study-step/1"
FAILURE = "langneurons/study-failure/1"
SOURCES = "langneurons/study-sources/1"
EMBEDDED = "babel"
PLAIN = ("model", "text", "task", "numbers")  # kinds of sources that are one file or folder
SHOWN = 12  # digits of a key in a folder's name
DONE, RUNNING, STALE, FAILED, BLOCKED, OPEN = "done", "running", "stale", "failed", "blocked", "to do"


class RunFolder:
    """Where a study's results are.

    A step's result lies in ``steps/<name>/<key>``; ``step.json`` there, written last, says that it is whole. What
    steps need to go on after an interruption is in ``work``, and may be deleted when the study is done.
    """

    def __init__(self, path: Path):
        self.path = path

    def result(self, step: Step) -> Path:
        """The folder of a step's result."""
        return self._of(step) / step.key[:SHOWN]

    def work(self, *parts: str) -> Path:
        """A folder for what a step needs to go on."""
        return self.path.joinpath("work", *parts)

    def is_done(self, step: Step) -> bool:
        """Whether a step's result is whole."""
        file = self.result(step) / "step.json"
        if file.exists():
            with suppress(StorageError):
                return storage.read_json(file, SCHEMA).get("key") == step.key
        return False

    def finish(self, step: Step, seconds: float) -> None:
        """Say that a step's result is whole, and what it consists of."""
        folder = self.result(step)
        files = [file for file in _files(folder) if file.name != "step.json"]
        checksums = {file.relative_to(folder).as_posix(): storage.checksum(file) for file in files}
        content = {"name": step.name, "kind": step.stage.name, "key": step.key, "settings": step.settings}
        content |= {"inputs": {read.name: read.key for read in step.inputs}, "files": checksums}
        storage.write_json(folder / "step.json", SCHEMA, content)
        self._failure(step).unlink(missing_ok=True)
        line = {"step": step.name, "key": step.key, "seconds": round(seconds, 2)}
        storage.append_line(self.path / "log.jsonl", json.dumps(line, ensure_ascii=False))

    def files(self, step: Step) -> dict[str, str]:
        """A result's files and their checksums.

        Raises:
            StorageError: If the step is not done.
        """
        file = self.result(step) / "step.json"
        with storage.understood(file):
            return {str(name): str(checksum) for name, checksum in storage.read_json(file, SCHEMA)["files"].items()}

    def check(self, step: Step) -> None:
        """Verify every byte of a result.

        Raises:
            CorruptArtefactError: If a file is truncated or changed.
            StorageError: If one is missing.
        """
        for name, expected in self.files(step).items():
            storage.verify(self.result(step) / name, expected)

    def fail(self, step: Step, message: str, trace: str) -> None:
        """Remember why a step failed, and where in the code."""
        content = {"name": step.name, "key": step.key, "why": message, "trace": trace}
        storage.write_json(self._failure(step), FAILURE, content)

    def failure(self, step: Step) -> str | None:
        """Why a step failed as it is, None if it did not."""
        file = self._failure(step)
        if not file.exists():
            return None
        try:
            return str(storage.read_json(file, FAILURE).get("why"))
        except StorageError as error:
            return str(error)

    def state(self, step: Step) -> str:
        """What became of a step, whatever becomes of its inputs."""
        if self.is_done(step):
            return DONE
        if self.at_work() == step.key:
            return RUNNING
        if self.failure(step) is not None:
            return FAILED
        return STALE if any(self._of(step).glob("*/step.json")) else OPEN

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out of the directory; the lock ends with the process, whatever ends it.

        Raises:
            StudyError: If another process is at work here.
        """
        with storage.locked(self.path / "lock") as free:
            if not free:
                raise StudyError(
                    f"Another process is running the study in {self.path}: wait for it, or use another directory."
                )
            storage.remove_orphans(self.path)
            yield

    @contextmanager
    def working(self, step: Step) -> Iterator[None]:
        """Say which step runs."""
        storage.write_text(self.path / "at-work", step.key)
        try:
            yield
        finally:
            (self.path / "at-work").unlink(missing_ok=True)

    def at_work(self) -> str | None:
        """The key of the step that another process runs at this moment."""
        file = self.path / "at-work"
        if not file.exists():
            return None
        with storage.locked(self.path / "lock") as free:
            return None if free else file.read_text("utf-8", "replace")

    def seconds(self) -> dict[str, float]:
        """How long steps took here, by key."""
        return {key: seconds for _, key, seconds in self._log()}

    def seconds_by_name(self) -> dict[str, float]:
        """How long steps took here when they last ran, with whatever settings, by name."""
        return {name: seconds for name, _, seconds in self._log()}

    def _log(self) -> Iterator[tuple[str, str, float]]:
        """Name, key and seconds of every step that ran here; lines that were cut short or damaged are left out."""
        file = self.path / "log.jsonl"
        for line in file.read_bytes().splitlines() if file.exists() else []:
            with suppress(ValueError, RecursionError, TypeError, KeyError, OverflowError):
                content = json.loads(line)
                yield str(content["step"]), str(content["key"]), float(content["seconds"])

    def _of(self, step: Step) -> Path:
        return self.path.joinpath("steps", *step.name.split("/"))

    def _failure(self, step: Step) -> Path:
        return self._of(step) / f"{step.key[:SHOWN]}.failed.json"


class Sources:
    """Hashes of models, texts and tasks; a file is read again only when its size or time of change differ."""

    def __init__(self, memory: Path):
        self._memory = memory
        self._files: dict[str, list[Any]] = {}
        self._names: dict[str, str] = {}
        if memory.exists():
            with storage.understood(memory):
                content = storage.read_json(memory, SOURCES)
                self._files, self._names = dict(content["files"]), dict(content["names"])

    def __call__(self, kind: str, name: str) -> str:
        """The hash of a source: of its files, or of its name where it lies on the hub.

        Where the files are out of reach, as on another machine, the hash they had is given.

        Args:
            kind: "model", "text", "task", "numbers", or a kind of task that says itself which files a source names.
            name: Name of the source.
        """
        files = _named_files(kind, name)
        if not files:
            return self._names.get(f"{kind} {name}", storage.fingerprint("by name", name))
        parts = [part for path, place in files.items() for part in (place, self._checksum(path))]
        parts += [] if kind in PLAIN else [Path(each).name for each in name.split(",")]
        self._names[f"{kind} {name}"] = storage.fingerprint(*parts)
        return self._names[f"{kind} {name}"]

    def _checksum(self, path: Path) -> str:
        try:
            about = path.stat()
        except OSError as error:
            raise StorageError(f"Cannot read {path}: {error.strerror}.") from error
        place, now = str(path.resolve()), [about.st_size, about.st_mtime_ns]
        remembered = self._files.get(place)
        if remembered is None or remembered[:2] != now:
            remembered = self._files[place] = [*now, storage.checksum(path)]
        return remembered[2]

    def remember(self, elsewhere: Path | None = None) -> None:
        """Keep what was hashed beside the study; elsewhere only the hashes, without the paths of files."""
        files = self._files if elsewhere is None else {}
        storage.write_json(elsewhere or self._memory, SOURCES, {"files": files, "names": self._names})


class Work:
    """Loads what steps read, and holds it until another model is asked for.

    Args:
        config: The study.
        folder: Folder of the results.
        run: Where and how work runs; the study's ``run`` by default.
    """

    def __init__(self, config: StudyConfig, folder: RunFolder, run: Run | None = None):
        self.config, self.folder, self._run = config, folder, run or config.run
        self._held: dict[tuple, Any] = {}

    def compute(self, step: Step) -> None:
        """Compute a step into its folder.

        Raises:
            LangNeuronsError: Whatever is wrong with it.
        """
        result = step.stage.run(step, step.stage.part_of(self.config, step), self)
        if result is not None:
            result.save(self.result(step))

    def result(self, step: Step) -> Path:
        """The folder of a step's result."""
        return self.folder.result(step)

    def run(self, out: Path | None = None) -> Run:
        """Where and how a function runs.

        Args:
            out: Folder that keeps what it measures; by default none.
        """
        return self._run.model_copy(update={"out": None if out is None else out.resolve()})  # a worker stands elsewhere

    @property
    def measuring(self) -> Run:
        """Where and how effects are measured; measured conditions are shared by all steps."""
        return self.run(self.folder.work("conditions"))

    def own(self, step: Step, kind: str) -> Run:
        """Where and how a step's own work runs."""
        return self.run(self.folder.work(kind, step.key[:SHOWN]))

    def model(self, step: Step) -> Any:
        """The model that a step is about; no other stays in memory."""
        part = self.config.models[step.model]
        for key in [key for key in self._held if key[0] in ("model", "heldout") and key[1] != step.model]:
            del self._held[key]
        return self.once(("model", step.model), lambda: part.load(part.name))

    def text(self, heldout: bool) -> "ln.Corpus":
        """The text to find neurons on, or to judge them on, in a random order."""
        return self.once(("text", heldout), lambda: self.ordered_text(heldout).shuffle(self.config.seed))

    def ordered_text(self, heldout: bool) -> "ln.Corpus":
        """The same text in the order of its sources."""
        text = self.config.text
        options = {"text_column": text.text_column, "revision": text.revision}
        if text.heldout == "files":
            split = "heldout" if heldout else "train"
            return ln.load_corpus(text.source, self.config.languages, split=split, **options)
        whole = ln.load_corpus(text.source, self.config.languages, **options)
        return whole.split(float(text.heldout), self.config.seed)[heldout]

    def heldout(self, step: Step) -> "ln.HeldoutText":
        """The text to judge a step's neurons on, tokenised."""
        text, languages = self.config.text, step.settings["languages"]
        return self.once(
            ("heldout", step.model, *languages),
            lambda: ln.HeldoutText.of(
                self.model(step), self.text(heldout=True).select(languages), text.heldout_tokens, text.heldout_context
            ),
        )

    def statistics(self, step: Step) -> "ln.ActivationStats":
        """The statistics that a recording step wrote."""
        return self.once(("statistics", step.key), lambda: ln.ActivationStats.load(self.result(step)))

    def published(self, step: Step) -> "ln.replication.PublishedStatistics | None":
        """The published statistics among a step's inputs."""
        if not step.reads("published"):
            return None
        read = step.input("published")
        return self.once(("published", read.key), lambda: ln.replication.PublishedStatistics.load(self.result(read)))

    def neurons(self, step: Step) -> "tuple[ln.NeuronSet, ln.ActivationStats]":
        """The neuron set a step is about, and the statistics of its languages."""
        identified = step.input("identify")
        path = self.result(identified) / "neurons.json"
        neurons = self.once(("neurons", identified.key), lambda: ln.NeuronSet.load(path))
        return neurons, self.statistics(step.input("record")).select(step.settings["languages"])

    def patches(self, step: Step, patches: Mapping[str, PatchPart]) -> dict[str, PatchOfLanguage]:
        """Patches of each language's own neurons, by name."""
        neurons, stats = self.neurons(step)
        reference_of = {name: patch.dose_of for name, patch in patches.items() if patch.dose_of is not None}
        parts = {**patches, **{name: self.config.patches[name] for name in reference_of.values()}}
        by_name = language_patches(neurons, parts, stats, self.published(step))
        scaled = {name: partial(self._scaled, step, by_name[name], by_name[of]) for name, of in reference_of.items()}
        return {name: scaled.get(name, by_name[name]) for name in patches}

    def _scaled(
        self, step: Step, patches: PatchOfLanguage, others: PatchOfLanguage, language: str
    ) -> "list[ln.patches.Patch]":
        """Patches of a language at the dose of others, on the held-out text of the step's languages."""
        text = self.heldout(step)
        return ln.evaluation.at_dose_of(self.model(step), patches(language), others(language), text)

    def tuned(self, step: Step, name: str) -> "ln.training.Finetuned":
        """What was trained in the fine-tuning of a name."""
        trained = step.input("finetune", name)
        return self.once(("tuned", trained.key), lambda: cast("ln.training.Finetuned", ln.load(self.result(trained))))

    def once(self, key: tuple, make: Callable[[], Loaded]) -> Loaded:
        """Load something when it is first asked for.

        Args:
            key: What it is; the second part is the model where the first is "model" or "heldout".
            make: A function that loads it.
        """
        if key not in self._held:
            self._held[key] = make()
        return self._held[key]


def _named_files(kind: str, name: str) -> dict[Path, str]:
    """The files that a source names, and what each is called in its hash; none where it lies on the hub."""
    if kind not in PLAIN:
        return {path: path.name for path in ln.tasks.KINDS[kind].files(name)}
    shipped = SHIPPED if kind == "numbers" else {EMBEDDED: FOLDER}
    folder = Path(str(shipped.get(name, name)))
    paths = [folder] if folder.is_file() else _files(folder)
    return {path: path.relative_to(folder).as_posix() for path in paths}


def _files(folder: Path) -> list[Path]:
    """The files in a folder and the folders in it; hidden and compiled ones do not count."""
    visible = (path for path in folder.rglob("*") if path.suffix != ".pyc" and not path.name.startswith("."))
    return sorted(path for path in visible if path.is_file())
