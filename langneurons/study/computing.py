"""How each step of a study is computed: the public functions of langneurons, with the study's settings."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import langneurons as ln
from langneurons.analysis.profiles.choosing import clearest_neurons
from langneurons.errors import StudyError
from langneurons.study.config import StudyConfig, TaskPart
from langneurons.study.run_folder import SHOWN, RunFolder
from langneurons.study.steps import Step, patches_of
from langneurons.study.wording import language_patches, make_method, patch_maker


class Computing:
    """Computes steps; what several of them need is loaded once.

    Args:
        config: The study.
        folder: Where results are.
        progress: Show progress bars on standard error.
    """

    def __init__(self, config: StudyConfig, folder: RunFolder, progress: bool):
        self.config, self.folder, self.progress = config, folder, progress
        self._held: dict[tuple, Any] = {}

    def compute(self, step: Step) -> None:
        """Compute a step into its folder.

        Raises:
            LangNeuronsError: Whatever is wrong with it.
        """
        by_kind: Mapping[str, Callable[[Step, Path], Any]] = {
            "record": self._record,
            "identify": self._identify,
            "matrix": self._matrix,
            "evaluate": self._evaluate,
            "ablate": self._ablate,
            "polysemanticity": self._polysemanticity,
            "transfer": self._transfer,
            "profile": self._profile,
        }
        by_kind[step.kind](step, self.folder.result(step))

    def _record(self, step: Step, out: Path) -> None:
        text = self.config.text
        ln.record(
            self._model(step),
            self._text(heldout=False),
            text.tokens,
            text.context_length,
            text.batch_size,
            tuple(text.sites),
            out,
            progress=self.progress,
            also=step.settings["also"],
        )

    def _identify(self, step: Step, out: Path) -> None:
        part = self.config.methods[step.name.split("/")[3]]
        stats = self._statistics(step.inputs[0])
        stats = stats if part.site is None else stats.at(part.site)
        chosen = make_method(part.method, part.options).identify(stats.select(step.settings["languages"]))
        chosen.save(out / "neurons.json")

    def _matrix(self, step: Step, out: Path) -> None:
        neurons, stats = self._neurons(step)
        write, controls = str(step.settings["write"]), step.settings["controls"]
        table = ln.perplexity_matrix(
            self._model(step),
            self._heldout(step),
            neurons,
            controls=controls,
            stats=stats.at(neurons.site),
            patch=patch_maker(write, stats),
            **self._common(),
        )
        table.save(out)

    def _evaluate(self, step: Step, out: Path) -> None:
        neurons, stats = self._neurons(step)
        part = self.config.tasks[step.name.split("/")[4]]
        task = self._task(part, step)
        languages = [name for name in task.languages if name in neurons.languages and len(neurons[name])]
        writes = {name: str(self.config.patches[name].write) for name in patches_of(self.config, part)}
        made = language_patches(neurons, list(writes.values()), stats)
        found = ln.evaluate(
            self._model(step),
            task,
            languages,
            {name: made[write] for name, write in writes.items()},
            controls=part.controls,
            stats=stats,
            batch_size=self.config.text.batch_size,
            **self._common(),
        )
        found.save(out)

    def _ablate(self, step: Step, out: Path) -> None:
        neurons, stats = self._neurons(step)
        wanted = step.settings["of"] or [name for name in neurons.languages if len(neurons[name])]
        found = ln.ablate(
            self._model(step),
            neurons.select(wanted),
            self._heldout(step),
            value=step.settings["value"],
            controls=step.settings["controls"],
            stats=stats,
            **self._common("ablation", step.key[:SHOWN]),
        )
        found.save(out)

    def _polysemanticity(self, step: Step, out: Path) -> None:
        neurons, stats = self._neurons(step)
        part = self.config.polysemanticity
        assert part is not None
        found = ln.polysemanticity(
            self._model(step),
            neurons,
            self._task(self.config.tasks[part.task], step),
            position=part.position,
            controls=part.controls,
            permutations=part.permutations,
            stats=stats,
            max_items=part.items,
            **self._common("values", step.key[:SHOWN]),
        )
        found.save(out)

    def _transfer(self, step: Step, out: Path) -> None:
        neurons, stats = self._neurons(step)
        part = self.config.transfer[step.name.split("/")[4]]
        reader = {"xnli": ln.XNLI, "xquad": ln.XQuAD}[part.kind]
        options = {"revision": part.revision}
        train = reader.load(part.source, [part.language], split=part.train_split, **options)
        test = reader.load(part.source, step.settings["languages"], split=part.test_split, **options)
        writes = [str(self.config.patches[name].write) for name in part.patches]
        made = language_patches(neurons, writes, stats)
        duration = {name: getattr(part, name) for name in ("steps", "epochs") if getattr(part, name) is not None}
        found = ln.transfer_experiment(
            self._model(step),
            train if part.train_items is None else train.take(part.train_items, self.config.seed),
            test if part.test_items is None else test.take(part.test_items, self.config.seed),
            neurons,
            part.language,
            part.targets,
            part.conditions,
            part.seeds,
            rank=part.rank,
            alpha=part.alpha,
            projections=part.projections,
            attention=part.attention,
            patches={name: made[write] for name, write in zip(part.patches, writes, strict=True)} or None,
            stats=stats.at(neurons.site),
            batch_size=part.batch_size,
            learning_rate=part.learning_rate,
            **duration,
            **self._common("training", step.key[:SHOWN]),
        )
        found.save(out)

    def _profile(self, step: Step, out: Path) -> None:
        neurons, stats = self._neurons(step)
        known = stats.at(neurons.site)
        chosen = clearest_neurons(neurons, known, min(step.settings["neurons"], len(neurons)))
        text = self._text(heldout=False).select(step.settings["languages"])
        found = ln.profile(self._model(step), chosen, text, known, seed=self.config.seed, progress=self.progress)
        found.save(out)

    def _common(self, *work: str) -> dict[str, Any]:
        """What every function that runs the model takes; measured conditions are shared by all steps."""
        return {
            "seed": self.config.seed,
            "out": self.folder.work(*(work or ("conditions",))),
            "progress": self.progress,
        }

    def _model(self, step: Step) -> Any:
        name = step.name.split("/")[1]
        part = self.config.models[name]
        options = part.model_dump(exclude={"name"}, exclude_none=True)
        for key in [key for key in self._held if key[0] in ("model", "heldout") and key[1] != name]:
            del self._held[key]
        return self._once(("model", name), lambda: ln.load_model(part.name, **options))

    def _text(self, heldout: bool) -> Any:
        return self._once(("text", heldout), lambda: self._loaded_text(heldout))

    def _loaded_text(self, heldout: bool) -> Any:
        text, seed = self.config.text, self.config.seed
        options = {"text_column": text.text_column, "revision": text.revision}
        if text.heldout == "files":
            split = "heldout" if heldout else "train"
            return ln.load_corpus(text.source, self.config.languages, split=split, **options).shuffle(seed)
        whole = ln.load_corpus(text.source, self.config.languages, **options)
        return whole.split(float(text.heldout), seed)[heldout].shuffle(seed)

    def _heldout(self, step: Step) -> Any:
        name, text = step.name.split("/")[1], self.config.text
        languages = step.settings["languages"]
        return self._once(
            ("heldout", name, *languages),
            lambda: ln.HeldoutText.of(
                self._model(step), self._text(heldout=True).select(languages), text.heldout_tokens, text.heldout_context
            ),
        )

    def _statistics(self, step: Step) -> ln.ActivationStats:
        return self._once(("statistics", step.key), lambda: ln.ActivationStats.load(self.folder.result(step)))

    def _neurons(self, step: Step) -> tuple[ln.NeuronSet, ln.ActivationStats]:
        """The neuron set a step is about, and the statistics it was found in."""
        identified, recorded = step.inputs
        path = self.folder.result(identified) / "neurons.json"
        neurons = self._once(("neurons", identified.key), lambda: ln.NeuronSet.load(path))
        return neurons, self._statistics(recorded).select(step.settings["languages"])

    def _task(self, part: TaskPart, step: Step) -> Any:
        languages = part.languages or step.settings["languages"]
        unknown_here = [code for code in languages if code not in step.settings["languages"]]
        if unknown_here:
            raise StudyError(f"The task asks for {unknown_here[0]!r}, which is not in the language set.")
        options = {"revision": part.revision, **({"split": part.split} if part.split else {})}
        if part.kind == "generation":
            given: dict[str, Any] = {"max_new_tokens": part.max_new_tokens, "documents": part.items}
            given["seed"] = self.config.seed
            return ln.Generation.of(self._text(heldout=True).select(languages), **given)
        if part.kind == "xquad":
            made = ln.XQuAD.load(part.source, languages, max_new_tokens=part.max_new_tokens, **options)
            return made.take(part.items, self.config.seed)
        made = ln.XNLI.load(part.source, languages, seed=self.config.seed, **options).take(part.items, self.config.seed)
        return made if part.head is None else made.by_head(self._head(part, step))

    def _head(self, part: TaskPart, step: Step) -> Any:
        assert part.head is not None
        name = (step.name.split("/")[1], part.source, part.head, part.head_split, part.head_items)

        def fitted() -> ln.ClassificationHead:
            fitted_on = ln.XNLI.load(part.source, [str(part.head)], split=part.head_split, revision=part.revision)
            return ln.ClassificationHead.fit(self._model(step), fitted_on.take(part.head_items, self.config.seed))

        return self._once(("head", *name), fitted)

    def _once(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._held:
            self._held[key] = make()
        return self._held[key]
