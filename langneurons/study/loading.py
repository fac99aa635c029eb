"""What steps read: models, text, tasks, and the results of earlier steps; each is loaded once."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import langneurons as ln
from langneurons.replication.statistics import PublishedStatistics
from langneurons.study.parts import PatchPart, StudyConfig, TaskPart
from langneurons.study.run_folder import RunFolder
from langneurons.study.steps import Step, among
from langneurons.study.tuned import TunedTask
from langneurons.study.wording import patch_maker
from langneurons.tasks.kinds import load_task
from langneurons.training.finetuned import Finetuned


class Loading:
    """Loads what steps read, and holds it until another model is asked for.

    Args:
        config: The study.
        folder: Where results are.
    """

    def __init__(self, config: StudyConfig, folder: RunFolder):
        self.config, self.folder = config, folder
        self._held: dict[tuple, Any] = {}

    def model(self, step: Step) -> Any:
        """The model that a step is about; no other stays in memory."""
        name = step.model
        part = self.config.models[name]
        options = part.model_dump(exclude={"name", "published_as"}, exclude_none=True)
        for key in [key for key in self._held if key[0] in ("model", "heldout") and key[1] != name]:
            del self._held[key]
        return self._once(("model", name), lambda: ln.load_model(part.name, **options))

    def text(self, heldout: bool) -> Any:
        """The text to find neurons on, or to judge them on, in a random order."""
        return self._once(("text", heldout), lambda: self.ordered_text(heldout).shuffle(self.config.seed))

    def ordered_text(self, heldout: bool) -> Any:
        """The same text in the order of its sources."""
        text = self.config.text
        options = {"text_column": text.text_column, "revision": text.revision}
        if text.heldout == "files":
            split = "heldout" if heldout else "train"
            return ln.load_corpus(text.source, self.config.languages, split=split, **options)
        whole = ln.load_corpus(text.source, self.config.languages, **options)
        return whole.split(float(text.heldout), self.config.seed)[heldout]

    def heldout(self, step: Step) -> Any:
        """The text to judge a step's neurons on, tokenised."""
        text, languages = self.config.text, step.settings["languages"]
        return self._once(
            ("heldout", step.model, *languages),
            lambda: ln.HeldoutText.of(
                self.model(step), self.text(heldout=True).select(languages), text.heldout_tokens, text.heldout_context
            ),
        )

    def statistics(self, step: Step) -> ln.ActivationStats:
        """The statistics that a recording step wrote."""
        return self._once(("statistics", step.key), lambda: ln.ActivationStats.load(self.folder.result(step)))

    def published(self, step: Step) -> PublishedStatistics | None:
        """The published statistics among a step's inputs."""
        found = [one for one in step.inputs if one.kind == "published"]
        if not found:
            return None
        return self._once(("published", found[0].key), lambda: PublishedStatistics.load(self.folder.result(found[0])))

    def neurons(self, step: Step) -> tuple[ln.NeuronSet, ln.ActivationStats]:
        """The neuron set a step is about, and the statistics of its languages."""
        identified = step.input("identify")
        path = self.folder.result(identified) / "neurons.json"
        neurons = self._once(("neurons", identified.key), lambda: ln.NeuronSet.load(path))
        return neurons, self.statistics(step.input("record")).select(step.settings["languages"])

    def patches(self, step: Step, named: Mapping[str, PatchPart]) -> dict[str, Callable[[str], list[ln.patches.Patch]]]:
        """Patches of each language's own neurons, by name."""
        neurons, stats = self.neurons(step)
        published = self.published(step)

        def made(part: PatchPart) -> Callable[[str], list[ln.patches.Patch]]:
            own = patch_maker(str(part.write), stats, published)
            also = {code: patch_maker(str(write), stats, published) for code, write in part.also.items()}
            return lambda language: [
                *(make(neurons[code], code) for code, make in also.items() if code != language),
                own(neurons[language], language),
            ]

        return {name: made(part) for name, part in named.items()}

    def task(self, part: TaskPart, step: Step) -> Any:
        """A task in the languages of a step's set, asked of the model as it is, or of a fine-tuned one."""
        languages = among(part.languages, step.settings["languages"])
        names = ("prompt_tokens", "max_new_tokens", "min_new_tokens", "beginnings")
        options = {name: getattr(part, name) for name in names}
        source = part.source or self.text(heldout=True)
        task = load_task(
            part.kind, source, languages, part.split, items=part.items, seed=self.config.seed,
            revision=part.revision, **options,
        )  # fmt: skip
        if part.tuned is not None:
            tuned, about = self.tuned(part, step)
            return TunedTask(task if tuned.head is None else task.with_head(tuned.head), tuned, about)
        return task if part.head is None else task.with_head(self._head(part, step))

    def tuned(self, part: TaskPart, step: Step) -> tuple[Finetuned, str]:
        """The fine-tuned model that a task is asked of, and a hash of all it depends on."""
        trained = next(one for one in step.inputs if one.name == f"finetune/{step.model}/{part.tuned}")
        return self._once(("tuned", trained.key), lambda: Finetuned.load(self.folder.result(trained))), trained.key

    def attached(self, part: TaskPart, step: Step) -> AbstractContextManager[None]:
        """The model as the task is asked of it, inside a block."""
        return nullcontext() if part.tuned is None else self.tuned(part, step)[0].attach(self.model(step))

    def head_items(self, part: TaskPart, premises: int) -> Any:
        """The items that a head of a task is fitted on: those that it was tuned on, or those of ``head_split``."""
        if part.tuned is not None:
            trained = self.config.finetuning[part.tuned]
            kind, source, revision = trained.kind, trained.source, trained.revision
            languages, split = [trained.language], trained.split
        else:
            kind, source, revision = part.kind, part.source, part.revision
            languages, split = [str(part.head)], part.head_split
        return load_task(kind, source, languages, split, items=premises, seed=self.config.seed, revision=revision)

    def _head(self, part: TaskPart, step: Step) -> Any:
        name = (step.model, part.source, part.head, part.head_split, part.head_items)

        def fitted() -> ln.tasks.ClassificationHead:
            return ln.tasks.ClassificationHead.fit(self.model(step), self.head_items(part, part.head_items))

        return self._once(("head", *name), fitted)

    def _once(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._held:
            self._held[key] = make()
        return self._held[key]
