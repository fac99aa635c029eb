"""Commands that patch, ablate, train and measure."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import typer
from pydantic import Field

import langneurons as ln
from langneurons import storage
from langneurons.cli.commands import command
from langneurons.cli.finding import HeldoutOptions, Model, NeuronFiles, PatchOptions, Texts, keep, listed, method_of
from langneurons.corpora.languages import spelled
from langneurons.errors import EffectError, LangNeuronsError, PatchError, TaskError, TrainingError
from langneurons.settings import (
    Adapter,
    Asking,
    Controls,
    Count,
    Experiment,
    Probing,
    Prompting,
    Run,
    Seed,
    Settings,
    Testing,
    Training,
)
from langneurons.study.stages.sweep import Doses
from langneurons.study.stages.training import TEXT
from langneurons.study.tables import ModelOptions
from langneurons.study.wording import PatchOfLanguage, language_patches, parsed, part_makers, patch_maker, patch_of

OLD_TASKS = {"--xnli": "--task xnli=", "--xquad": "--task xquad="}  # options of 0.1.0
SCREENED = 200  # neurons that a screen is checked on

TaskSource = Annotated[str, typer.Argument(help="A folder of the task's files, or of text; the hub's name, or babel.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        help="A task as kind=source, such as xnli=FOLDER, xquad=google/xquad, generation=TEXTS, confusion=FOLDER, "
        "steering=FOLDER; "
        "repeatable."
    ),
]


class AskedItems(Asking):
    """Which items of tasks are asked, and how."""

    languages: tuple[str, ...] | None = Field(None, description="Language codes, such as en,hi; by default all.")
    seed: Seed = Field(0, description="Seed for the choice of items.")

    def load(self, sources: "Sequence[tuple[str, str]]", prompting: Prompting) -> "list[ln.tasks.Task]":
        """Load tasks by kind and source.

        Raises:
            TaskError: If an option belongs to none of the kinds, or a kind refuses something.
        """
        from langneurons.tasks.kinds import idle_options

        for mistake in idle_options([kind for kind, _ in sources], self):
            raise TaskError(mistake)
        about: dict[str, Any] = {**self.model_dump(exclude={"languages", "head"}), "prompting": prompting}
        return [ln.tasks.load_task(kind, source, self.languages, **about) for kind, source in sources]


class AskedOptions(AskedItems):
    """Which items of tasks are asked, how, and what answers."""

    head: Path | None = Field(None, description="A saved classification head that answers.")


class AblationOptions(NeuronFiles):
    """Which neurons are ablated, how, and on what."""

    error: ClassVar[type[LangNeuronsError]] = EffectError

    label: str | None = Field(None, description="Language whose neurons are ablated; by default all.")
    top: Count | None = Field(
        None, description="Instead of --neurons: neurons per language that a gradient names on half of the text."
    )
    kind: str = Field("text", description="text to measure a loss, or a kind of task, such as xnli.")
    metric: str = Field("nll", description="nll, or a score of the task such as accuracy.")
    value: str = Field("0", description="What ablated neurons are set to: a number, or mean.")
    each: Literal["neuron", "group", "cumulative"] = Field("neuron", description="neuron, group or cumulative.")
    items: Count = Field(100, description="Items of the task.")
    show: Count = Field(20, description="Effects to print.")
    min_effect: float = Field(0.0, ge=0, description="Smaller effects are not printed; 0.01 is 1 % or one point.")
    latex: Path | None = Field(None, description="A file for the table in LaTeX.")


class TrainingItems(Settings):
    """Which items are trained and tested on."""

    error: ClassVar[type[LangNeuronsError]] = TrainingError

    kind: str = Field("xnli", description="Kind of the task: xnli (a head is trained), xquad, ...; or text.")
    source: str = Field("en", description="Language of the training data.")
    train_split: str = Field("train", description="Part to train on: train, validation or test, or train[:25%].")
    test_split: str = Field("test", description="Part to evaluate on; of a folder of text, heldout.")
    train_items: Count | None = Field(None, description="Premises, questions or documents to train on; by default all.")
    test_items: Count | None = Field(None, description="Premises, questions or documents per language to evaluate on.")
    seed: Seed = Field(0, description="Seed for the choice of items.")

    def load(
        self, source: str, languages: "list[str]"
    ) -> "tuple[ln.tasks.Task | ln.Corpus, ln.tasks.Task | ln.Corpus]":
        """What is trained on, in the language of the training data, and what is evaluated on, in all languages."""
        from langneurons.training.transfer import check_apart

        every = list(dict.fromkeys([self.source, *languages]))
        if self.kind == TEXT:
            train = self._text(source, [self.source], self.train_split, self.train_items)
            return train, self._text(source, every, self.test_split, self.test_items)
        load = partial(ln.tasks.load_task, self.kind, source, seed=self.seed)
        train = load([self.source], self.train_split, items=self.train_items)
        test = load(every, self.test_split, items=self.test_items)
        check_apart(train, test, self.source, "training")
        return train, test

    def _text(self, source: str, languages: "list[str]", split: str, documents: int | None) -> "ln.Corpus":
        text = ln.load_corpus(source, languages, split=split).shuffle(self.seed)
        return text if documents is None else text.take(documents)


class IdentifiedNeurons(PatchOptions):
    """Neurons that are read from a file, or identified in statistics."""

    method: str = Field("lape", description="Method that identifies neurons, where there is no file of them.")
    set: tuple[str, ...] = Field((), description="An option of the method, such as --set top=0.01; repeatable.")

    def identify(self) -> "tuple[ln.NeuronSet, ln.ActivationStats | None]":
        """Load neurons, or identify them.

        Raises:
            TrainingError: If there is neither a file of neurons nor statistics.
        """
        if self.neurons is not None:
            return self.load()
        if (stats := self.stats()) is None:
            raise TrainingError("Whose neurons? Give --neurons, or --statistics to identify them.")
        return method_of(self.method, self.set).identify(stats), stats


@command()
def perplexity(model: Model, corpus: Texts, text: HeldoutOptions, run: Run, options: ModelOptions) -> None:
    """Measure how well a model predicts each language."""
    texts = text.load(corpus)
    loaded = options.load(model)
    print(ln.perplexity(loaded, text.pack(loaded, texts), run=run).to_string(index=False))


@command(required=("neurons",))
def perplexity_matrix(
    model: Model,
    corpus: Texts,
    value: Annotated[
        str, typer.Option(help="What to write: a number, mean, a percentile such as p90; or add:mean, scale:2, ...")
    ] = "0",
    *,
    files: NeuronFiles,
    text: HeldoutOptions,
    controls: Controls,
    testing: Testing,
    run: Run,
    options: ModelOptions,
) -> None:
    """Measure what patching each language's neurons does to every language."""
    texts = text.load(corpus)
    # What can be wrong with the small files is found before the model is loaded.
    neurons, stats = files.load()
    patch = patch_maker(value, stats)
    loaded = options.load(model)
    settings: dict[str, Any] = {"controls": controls, "stats": stats, "testing": testing, "run": run}
    packed = text.pack(loaded, texts)
    matrix = ln.perplexity_matrix(loaded, packed, neurons, languages=text.languages, patch=patch, **settings)
    keep(matrix, run, "matrix")
    print(matrix)
    if matrix.selectivity is not None and len(matrix.selectivity):
        print(f"\n{matrix.selectivity_table()}")


@command(required=("neurons",))
def sweep(
    model: Model,
    corpus: Texts,
    label: Annotated[str | None, typer.Option(help="Language whose neurons are changed; by default all.")] = None,
    *,
    doses: Doses,
    files: NeuronFiles,
    text: HeldoutOptions,
    testing: Testing,
    run: Run,
    options: ModelOptions,
) -> None:
    """Measure every language while a language's neurons are given many values."""
    texts = text.load(corpus)
    # What can be wrong with the small files is found before the model is loaded.
    neurons, stats = files.load()
    loaded = options.load(model)
    settings: dict[str, Any] = {"stats": stats, "testing": testing, "run": run}
    languages = None if label is None else [label]
    table = ln.sweep(loaded, text.pack(loaded, texts), neurons, doses.listed(), languages=languages, **settings)
    keep(table, run, "sweep")
    print(table)


@command(old=OLD_TASKS | {"--prompts": "--task generation=", "--source": "--beginnings"})
def evaluate(
    model: Model,
    task: Tasks = None,
    *,
    files: PatchOptions,
    asked_items: AskedOptions,
    prompting: Prompting,
    controls: Controls = Controls(draws=0),
    testing: Testing,
    run: Run,
    options: ModelOptions,
) -> None:
    """Score a model on tasks, without and with patches of each language's neurons."""
    from langneurons.evaluation.evaluating import chosen_languages

    if not task:
        raise TaskError("Nothing to score: give --task, such as --task xnli=FOLDER.")
    # What can be wrong with the small files is found before the model is loaded.
    neurons, stats, patches = loaded_patches(files)
    tasks, languages = asked_items.load([named_task(each) for each in task], prompting), asked_items.languages
    if neurons is not None:
        languages = languages or [name for name in chosen_languages(tasks, None) if spelled(name, neurons.languages)]
    head = None if asked_items.head is None else ln.tasks.ClassificationHead.load(asked_items.head)
    settings: dict[str, Any] = {"controls": controls, "stats": stats, "testing": testing, "run": run}
    evaluation = ln.evaluate(options.load(model), tasks, languages, patches, head=head, **settings)
    keep(evaluation, run, "evaluation")
    print(evaluation)
    for each in tasks if patches else []:
        print(f"\n{evaluation.effects(each.name)}")


@command(old={"--xnli": "--kind xnli", "--rows": "--batch-size"})
def ablate(
    model: Model,
    corpus: Annotated[str, typer.Argument(help="Held-out text, or the source of a task.")],
    *,
    files: AblationOptions,
    text: HeldoutOptions,
    controls: Controls = Controls(draws=0),
    testing: Testing,
    run: Run,
    options: ModelOptions,
) -> None:
    """Measure what the model loses without each neuron, beside matched controls."""
    on_text = files.kind == "text"
    if (files.neurons is None) == (files.top is None) or not (on_text or files.top is None):
        raise EffectError("Whose neurons? Give --neurons, or --top to screen the whole model on a text.")
    read_task = partial(ln.tasks.load_task, files.kind, languages=text.languages, items=files.items, seed=text.seed)
    data: Any = text.load(corpus) if on_text else read_task(corpus)
    # What can be wrong with the small files is found before the model is loaded.
    neurons, stats, value = None, files.stats(), parsed(files.value)
    if files.neurons is not None:
        neurons, _ = files.load(text.languages)
        neurons = neurons if files.label is None else neurons[files.label]
    loaded = options.load(model)
    if neurons is None:
        assert files.top is not None
        # Neurons chosen for large effects on some text look larger there than they are.
        screened, data = data.split(0.5, text.seed)
        screen = ln.screen(
            loaded, text.pack(loaded, screened), value, files.top, sample=SCREENED, stats=stats, seed=text.seed, run=run
        )
        print(f"{screen}\nScreened on one half of the documents; their effects on the other half:\n")
        neurons = screen.neurons if files.label is None else screen.neurons[files.label]
    data = text.pack(loaded, data) if on_text else data
    controls = Controls(draws=0) if files.each == "cumulative" else controls
    settings: dict[str, Any] = {"controls": controls, "stats": stats, "testing": testing, "run": run}
    ablation = ln.ablate(loaded, neurons, data, files.metric, value, each=files.each, **settings)
    table = ablation.table(files.show, files.min_effect)
    keep(ablation, run, "ablation")
    print(table)
    if files.latex is not None:
        storage.write_text(files.latex, table.latex())


@command(old=OLD_TASKS | {"--items": "--max-items"}, required=("out",))
def polysemanticity(
    model: Model,
    neurons: Annotated[Path, typer.Argument(help="A file that identify wrote.")],
    task: Tasks = None,
    texts: Annotated[
        Path | None, typer.Option(help="A parquet file with the columns language, item, cluster, text and label.")
    ] = None,
    languages: Annotated[str | None, typer.Option(help="Language codes, such as en,hi; by default all.")] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="A folder that record wrote, to match controls by magnitude too.")
    ] = None,
    *,
    controls: Controls,
    probing: Probing,
    run: Run,
    options: ModelOptions,
) -> None:
    """Ask whether a language's neurons carry a task too: shares, tests, probes, beside matched controls."""
    sources = [*(task or []), *filter(None, [texts])]
    if len(sources) != 1:
        raise TaskError(f"Give exactly one of --task and --texts, not {len(sources)}.")
    codes = None if languages is None else listed(languages)
    labelled = ln.tasks.load_task(*named_task(str(sources[0])), codes) if texts is None else labelled_texts(texts)
    neuron_set, stats = NeuronFiles(neurons=neurons, statistics=statistics).load(codes)
    settings: dict[str, Any] = {"controls": controls, "stats": stats, "probing": probing, "run": run}
    result = ln.polysemanticity(options.load(model), neuron_set, labelled, codes, **settings)
    keep(result, run, "polysemanticity")
    print(f"{result}\n\n{result.table(top=10)}")
    if len(result.probes):
        print(f"\n{result.probes_table()}")


@command(required=("out",))
def finetune(
    model: Model,
    task: TaskSource,
    neurons: Annotated[Path | None, typer.Option(help="A file that identify wrote.")] = None,
    condition: Annotated[str | None, typer.Option(help="What to train: none, source, target, random, all, ...")] = None,
    language: Annotated[str | None, typer.Option(help="The target language, whose neurons are trained.")] = None,
    *,
    items: TrainingItems,
    adapter: Adapter,
    training: Training,
    run: Run,
    options: ModelOptions,
) -> None:
    """Fine-tune the neurons of a language on a task or on text, with attention and a head, and evaluate the result."""
    from langneurons.training.conditions import NONE, conditions

    languages = [] if language is None else [language]
    train, test = items.load(task, languages)
    name = condition or (NONE if neurons is None else "source" if language is None else "target")
    trained = None
    if name != NONE:
        if neurons is None or (language is None and "target" in name):
            raise TrainingError(f"The condition {name!r} needs --neurons{', and --language' * ('target' in name)}.")
        sets = ln.NeuronSet.load(neurons)
        trained = conditions(sets, items.source, languages, [name], [training.seed])[0].neurons
    parts = (adapter.rank, adapter.alpha, adapter.projections, adapter.attention, training.seed)
    update = None if trained is None and not adapter.attention else ln.MaskedLoRA(trained, *parts)
    loaded = options.load(model)
    tuned = ln.finetune(loaded, train, update, languages=[items.source], training=training, run=run)
    keep(tuned, run, "finetuned")
    print(tuned)
    evaluated = list(dict.fromkeys([items.source, *languages]))
    if isinstance(test, ln.Corpus):
        with tuned.attach(loaded):
            print(ln.perplexity(loaded, test, batch_size=training.batch_size).to_string(index=False))
    else:
        print(tuned.evaluate(loaded, test, evaluated, batch_size=training.batch_size))


@command(old={"--draws": "--controls"}, required=("out", "targets"))
def transfer_experiment(
    model: Model,
    task: TaskSource,
    *,
    files: IdentifiedNeurons,
    items: TrainingItems,
    experiment: Experiment,
    controls: Controls = Controls(draws=1),
    training: Training,
    testing: Testing,
    run: Run,
    options: ModelOptions,
) -> None:
    """Train neurons on one language under several conditions and seeds, and measure what that is worth in others."""
    train, test = items.load(task, list(experiment.targets or ()))
    neurons, stats = files.identify()
    patches = language_patches(neurons, files.patches() if files.patch else {}, stats)
    settings: dict[str, Any] = {"experiment": experiment, "controls": controls, "stats": stats, "training": training}
    settings |= {"patches": patches or None, "testing": testing, "run": run}
    transfer = ln.transfer_experiment(options.load(model), train, test, neurons, **settings)
    keep(transfer, run, "transfer")
    print(transfer)
    if len(transfer.conditions) > 1:
        print(f"\n{transfer.effects(transfer.reference)}")
    if patches:
        print(f"\n{transfer.patch_effects()}")


@command()
def bake(
    model: Model,
    out: Annotated[Path, typer.Option(help="The folder to write, which must not exist.")],
    update: Annotated[
        list[Path] | None,
        typer.Option(help="A folder with trained updates, or an adapter that peft wrote; merged in turn; repeatable."),
    ] = None,
    language: Annotated[str | None, typer.Option(help="Language whose neurons are patched; by default all.")] = None,
    *,
    files: PatchOptions,
    options: ModelOptions,
) -> None:
    """Write patches and trained updates into an ordinary checkpoint, which any engine runs."""
    if files.neurons is None and (files.patch or language or not update):
        raise PatchError("Which neurons are patched? Give --neurons, or --update alone to merge what was trained.")
    # What can be wrong with the small files is found before the model is loaded.
    patches = [] if files.neurons is None else patches_of_files(files, language)
    loaded = options.load(model)
    updates = [each for folder in update or () for each in ln.training.load_updates(folder, loaded)]
    baked = ln.bake(loaded, patches, updates)
    print(f"{baked} in {baked.save(out)}")


def loaded_patches(
    files: PatchOptions,
) -> "tuple[ln.NeuronSet | None, ln.ActivationStats | None, dict[str, PatchOfLanguage]]":
    """Neurons, statistics, and the patches of each language's own neurons, by name; none without neurons.

    Raises:
        PatchError: If there is a patch but no neurons.
    """
    if files.patch and files.neurons is None:
        raise PatchError("--patch says what is written at neurons: give --neurons too.")
    neurons, stats = (None, files.stats()) if files.neurons is None else files.load()
    return neurons, stats, {} if neurons is None else language_patches(neurons, files.patches(), stats)


def patches_of_files(files: PatchOptions, language: str | None) -> "list[ln.patches.Patch]":
    """What is written at neurons, each patch once.

    Args:
        files: The neurons, and what is written at them.
        language: Language whose neurons are patched; by default all.

    Raises:
        PatchError: If a value is a language's own and there is no language.
    """
    neurons, stats = files.load()
    if language is None and len(neurons.languages) == 1:
        [language] = neurons.languages
    for text in [word for part in files.patches().values() for word in part.values] if language is None else ():
        operation, value = patch_of(text)
        if operation == "diffmean" or isinstance(parsed(value), str):
            raise PatchError(f"{text!r} is a value of one language: give --language.")
    neurons = neurons if language is None else neurons[language]
    return [patch for text in files.patches() for patch in part_makers(text, stats)(neurons, language or "")]


def labelled_texts(path: Path) -> "ln.analysis.LabelledTexts":
    """Read labelled texts.

    Args:
        path: A parquet file with the columns language, item, cluster, text and label.

    Raises:
        TaskError: If there is no such column.
    """
    table = storage.read_table(path, foreign=True)
    if "language" not in table.columns:
        raise TaskError(f"{path} has no column 'language', only {', '.join(map(str, table.columns))}.")
    tables = {str(language): part for language, part in table.groupby("language", sort=False)}
    return ln.analysis.LabelledTexts(tables, path.stem)


def named_task(task: str) -> tuple[str, str]:
    """Kind and source of a task from ``kind=source``, or ``harness:NAME`` as the harness' users write it.

    Raises:
        TaskError: If the text reads otherwise.
    """
    kind, divider, source = task.partition("=" if "=" in task else ":")
    if not divider:
        raise TaskError(f"A task reads kind=source, such as xnli=FOLDER, not {task!r}.")
    return kind, source
