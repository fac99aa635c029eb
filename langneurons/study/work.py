"""What steps read and where they work: models, text, tasks, and the results of earlier steps; each is loaded once."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import langneurons as ln
from langneurons.settings import Run
from langneurons.study.run_folder import SHOWN, RunFolder
from langneurons.study.stages import Step
from langneurons.study.tables import PatchPart, StudyConfig
from langneurons.study.wording import PatchOfLanguage, language_patches

if TYPE_CHECKING:
    from langneurons.replication import PublishedStatistics
    from langneurons.training.finetuned import Finetuned

Loaded = TypeVar("Loaded")


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
        step.stage.run(step, step.stage.part_of(self.config, step), self)

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

    def published(self, step: Step) -> "PublishedStatistics | None":
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
        return language_patches(neurons, patches, stats, self.published(step))

    def tuned(self, step: Step, name: str) -> "Finetuned":
        """What was trained in the fine-tuning of a name."""
        trained = step.input("finetune", name)
        return self.once(("tuned", trained.key), lambda: cast("Finetuned", ln.load(self.result(trained))))

    def once(self, key: tuple, make: Callable[[], Loaded]) -> Loaded:
        """Load something when it is first asked for.

        Args:
            key: What it is; the second part is the model where the first is "model" or "heldout".
            make: A function that loads it.
        """
        if key not in self._held:
            self._held[key] = make()
        return self._held[key]
