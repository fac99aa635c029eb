"""How each step of a study is computed: the public functions of langneurons, with the study's settings."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import langneurons as ln
from langneurons.analysis.profiles.profiling import clearest_neurons
from langneurons.analysis.validity import Evidence, Nulls, nulls_of, record_nulls, split_half, validity_table
from langneurons.analysis.validity.reliability import Halves, whole
from langneurons.effects.table import with_current_names
from langneurons.errors import StatisticsError
from langneurons.replication.protocols import compare_protocols
from langneurons.replication.statistics import published_statistics
from langneurons.run import Executor
from langneurons.study.loading import Loading
from langneurons.study.parts import StudyConfig
from langneurons.study.run_folder import SHOWN, RunFolder
from langneurons.study.steps import Step, among, patches_of, transferred_to
from langneurons.study.wording import make_method, patch_maker, published_neurons
from langneurons.tasks.heads import ClassificationHead
from langneurons.tasks.kinds import load_task


class Computing:
    """Computes steps; what several of them need is loaded once.

    Args:
        config: The study.
        folder: Where results are.
        progress: Show progress bars on standard error.
        executor: Where to run.
    """

    def __init__(self, config: StudyConfig, folder: RunFolder, progress: bool, executor: Executor):
        self.config, self.folder, self.progress, self.executor = config, folder, progress, executor
        self.load = Loading(config, folder)

    def compute(self, step: Step) -> None:
        """Compute a step into its folder.

        Raises:
            LangNeuronsError: Whatever is wrong with it.
        """
        by_kind: Mapping[str, Callable[[Step, Path], Any]] = {
            "record": self._record,
            "published": self._published,
            "identify": self._identify,
            "nulls": self._nulls,
            "validity": self._validity,
            "matrix": self._matrix,
            "finetune": self._finetune,
            "evaluate": self._evaluate,
            "protocols": self._protocols,
            "factorial": self._factorial,
            "ablate": self._ablate,
            "polysemanticity": self._polysemanticity,
            "transfer": self._transfer,
            "profile": self._profile,
        }
        by_kind[step.kind](step, self.folder.result(step))

    def _record(self, step: Step, out: Path) -> None:
        text = self.config.text
        ln.record(
            self.load.model(step),
            self.load.text(heldout=False),
            tokens_per_language=text.tokens,
            context_length=text.context_length,
            batch_size=text.batch_size,
            sites=text.sites,
            out=out,
            progress=self.progress,
            also=step.settings["also"],
            executor=self.executor,
        )

    def _published(self, step: Step, out: Path) -> None:
        sizes = [step.settings[name] for name in ("tokens", "context_length", "batch_size")]
        common = {"seed": self.config.seed, "progress": self.progress, "executor": self.executor}
        published_statistics(self.load.model(step), self.load.text(heldout=False), None, *sizes, **common).save(out)

    def _identify(self, step: Step, out: Path) -> None:
        part = self.config.methods[step.name.split("/")[3]]
        languages = step.settings["languages"]
        if part.published:
            read = self.load.published(step)
            assert read is not None
            chosen = published_neurons(part.method, part.options, read, languages)
        else:
            stats = self.load.statistics(step.inputs[0])
            stats = stats if part.site is None else stats.at(part.site)
            chosen = make_method(part.method, part.options).identify(stats.select(languages))
        chosen.save(out / "neurons.json")

    def _nulls(self, step: Step, out: Path) -> None:
        text = self.load.ordered_text(heldout=False).select(step.settings["languages"])
        record_nulls(self.load.model(step), text, out=out, **self._null_options(step))

    def _null_options(self, step: Step) -> dict[str, Any]:
        text, told = self.config.text, step.settings
        sizes = {"tokens_per_language": told["tokens"], "context_length": text.context_length}
        named = {"which": told["nulls"], "sites": tuple(text.sites), "also": told["also"], "seed": self.config.seed}
        where = {"progress": self.progress, "executor": self.executor}
        return {**sizes, **named, **where, "batch_size": text.batch_size}

    def _validity(self, step: Step, out: Path) -> None:
        _, _, group, name = step.name.split("/")
        part, languages = self.config.methods[name], step.settings["languages"]
        method, stats = make_method(part.method, part.options), self.load.statistics(step.input("record"))
        stats = stats.select(languages) if part.site is None else stats.at(part.site).select(languages)
        folder = next((self.folder.result(one) for one in step.inputs if one.kind == "nulls"), None)
        recorded = {} if folder is None else {place.name: _halves(place, part.site) for place in _folders(folder)}
        real, seed = recorded.pop("real", None), self.config.seed
        labelled = {name: whole(halves) for name, halves in recorded.items()}
        found: Nulls | None = None if real is None else nulls_of(method, whole(real), labelled)
        try:
            halved = split_half(method, stats, step.settings["splits"], seed)
        except StatisticsError:  # the folds of one recording hold counts and sums only
            if real is None:
                raise
            halved = split_half(method, real, seed=seed)
        evidence = Evidence(f"{name}, {group}", split_half=halved, nulls=found)
        validity_table([evidence]).save(out)

    def _matrix(self, step: Step, out: Path) -> None:
        neurons, stats = self.load.neurons(step)
        table = ln.perplexity_matrix(
            self.load.model(step),
            self.load.heldout(step),
            neurons,
            controls=step.settings["controls"],
            stats=stats.at(neurons.site),
            patch=patch_maker(str(step.settings["write"]), stats, self.load.published(step)),
            executor=self.executor,
            **with_current_names(self._judged()),
        )
        table.save(out)

    def _finetune(self, step: Step, out: Path) -> None:
        part, seed = self.config.finetuning[step.name.split("/")[2]], self.config.seed
        about = {"items": part.items, "seed": seed, "revision": part.revision}
        items = load_task(part.kind, part.source, [part.language], part.split, **about)
        lora = ln.MaskedLoRA(None, rank=part.rank, alpha=part.alpha, attention=tuple(part.attention), seed=seed)
        training = partial(_finetuned, **part.training, **self._common("training", step.key[:SHOWN]))
        (tuned,) = self.executor.map(self.load.model(step), training, [(items, lora)])
        tuned.save(out)

    def _evaluate(self, step: Step, out: Path) -> None:
        neurons, stats = self.load.neurons(step)
        part = self.config.tasks[step.name.split("/")[4]]
        task = self.load.task(part, step)
        found = ln.evaluate(
            self.load.model(step),
            task,
            _named(task.languages, neurons),
            self.load.patches(step, patches_of(self.config, part)),
            controls=part.controls,
            stats=stats,
            batch_size=self.config.text.batch_size,
            executor=self.executor,
            **with_current_names(self._judged()),
        )
        found.save(out)

    def _protocols(self, step: Step, out: Path) -> None:
        neurons, _ = self.load.neurons(step)
        part = self.config.protocols[step.name.split("/")[4]]
        asked = self.config.tasks[part.task]
        task, batch_size = self.load.task(asked, step), self.config.text.batch_size
        head: Any = None
        if not task.generates:
            with self.load.attached(asked, step):
                items, place = self.load.head_items(asked, part.head_items), {"positions": part.positions}
                head = ClassificationHead.fit(
                    self.load.model(step), items, None, batch_size, position="padding", **place
                )
        found = compare_protocols(
            self.load.model(step),
            task,
            self.load.patches(step, patches_of(self.config, part)),
            _named(task.languages, neurons),
            published_head=head,
            batch_size=batch_size,
            executor=self.executor,
            **self._judged(),
        )
        found.save(out)

    def _factorial(self, step: Step, out: Path) -> None:
        neurons, stats = self.load.neurons(step)
        part, told = self.config.factorial, step.settings
        assert part is not None
        tasks = [self.load.task(self.config.tasks[name], step) for name in part.tasks]
        asked = among(
            part.languages, [code for code in told["languages"] if all(code in one.languages for one in tasks)]
        )
        found = ln.factorial(
            self.load.model(step),
            neurons,
            stats,
            tasks,
            _named(asked, neurons),
            part.operations,
            told["sites"],
            controls=part.controls,
            batch_size=self.config.text.batch_size,
            executor=self.executor,
            **with_current_names(self._judged()),
        )
        found.save(out)

    def _ablate(self, step: Step, out: Path) -> None:
        neurons, stats = self.load.neurons(step)
        wanted = step.settings["of"] or [name for name in neurons.languages if len(neurons[name])]
        found = ln.ablate(
            self.load.model(step),
            neurons.select(among(wanted, neurons.languages)),
            self.load.heldout(step),
            value=step.settings["value"],
            controls=step.settings["controls"],
            stats=stats,
            executor=self.executor,
            **self._common("ablation", step.key[:SHOWN]),
        )
        found.save(out)

    def _polysemanticity(self, step: Step, out: Path) -> None:
        neurons, stats = self.load.neurons(step)
        part = self.config.polysemanticity
        assert part is not None
        found = ln.polysemanticity(
            self.load.model(step),
            neurons,
            self.load.task(self.config.tasks[part.task], step),
            position=part.position,
            controls=part.controls,
            permutations=part.permutations,
            stats=stats,
            max_items=part.items,
            **self._common("values", step.key[:SHOWN]),
        )
        found.save(out)

    def _transfer(self, step: Step, out: Path) -> None:
        neurons, stats = self.load.neurons(step)
        part, seed = self.config.transfer[step.name.split("/")[4]], self.config.seed
        targets = transferred_to(part.targets, part.language, step.settings["languages"])
        about = {"seed": seed, "revision": part.revision}
        languages, items = [part.language], part.train_items
        train = load_task(part.kind, part.source, languages, part.train_split, items=items, **about)
        languages, items = [part.language, *targets], part.test_items
        test = load_task(part.kind, part.source, languages, part.test_split, items=items, **about)
        found = ln.transfer_experiment(
            self.load.model(step),
            train,
            test,
            neurons,
            source=part.language,
            targets=targets,
            conditions=part.conditions,
            seeds=part.seeds,
            rank=part.rank,
            alpha=part.alpha,
            projections=part.projections,
            attention=part.attention,
            patches=self.load.patches(step, patches_of(self.config, part)) or None,
            stats=stats.at(neurons.site),
            **part.training,
            executor=self.executor,
            **self._judged("training", step.key[:SHOWN]),
        )
        found.save(out)

    def _profile(self, step: Step, out: Path) -> None:
        neurons, stats = self.load.neurons(step)
        known = stats.at(neurons.site)
        chosen = clearest_neurons(neurons, known, min(step.settings["neurons"], len(neurons)))
        text = self.load.text(heldout=False).select(step.settings["languages"])
        found = ln.profile(self.load.model(step), chosen, text, known, seed=self.config.seed, progress=self.progress)
        found.save(out)

    def _common(self, *work: str) -> dict[str, Any]:
        """What every function that runs the model takes; measured conditions are shared by all steps."""
        return {
            "seed": self.config.seed,
            "out": self.folder.work(*(work or ("conditions",))).resolve(),  # a worker stands in another folder
            "progress": self.progress,
        }

    def _judged(self, *work: str) -> dict[str, Any]:
        """What every function that gives effects takes."""
        return {**self.config.effects.model_dump(), **self._common(*work)}


def _finetuned(model: Any, job: tuple[Any, ln.MaskedLoRA], **options: Any) -> Any:
    return ln.finetune(model, *job, **options)


def _named(languages: Any, neurons: ln.NeuronSet) -> list[str]:
    """The languages that have neurons to patch."""
    return [name for name in languages if name in neurons.languages and len(neurons[name])]


def _folders(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir())


def _halves(folder: Path, site: str | None) -> Halves:
    """The two recordings of a real or null corpus."""
    first, second = (ln.ActivationStats.load(folder / name) for name in ("first", "second"))
    return (first, second) if site is None else (first.at(site), second.at(site))
