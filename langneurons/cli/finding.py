"""Commands that record, name and show neurons, and those that run a whole study."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer
from pydantic import Field, field_validator

import langneurons as ln
from langneurons.cli.commands import command
from langneurons.errors import (
    LangNeuronsError,
    NeuronSetError,
    PatchError,
    StaleArtefactError,
    StatisticsError,
    StorageError,
    StudyError,
    warn_user,
)
from langneurons.settings import ContextLength, Controls, Count, Profiling, Recording, Run, Seed, Settings, Testing
from langneurons.study.tables import ModelOptions, PatchPart
from langneurons.study.wording import METHODS, PUBLISHED_METHODS, make_method, options_of, parsed

if TYPE_CHECKING:
    import torch

QUESTION = "Which neurons belong to which language, and what do they do?"

Model = Annotated[str, typer.Argument(help="babel, a local folder, or a hub name.")]
Texts = Annotated[str, typer.Argument(help="A folder of <language>*.{txt,jsonl,parquet}, babel, or a hub data set.")]
MethodName = Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")]
MethodOptions = Annotated[
    list[str] | None, typer.Option("--set", help="An option of the method, such as --set top=0.01; repeatable.")
]
Site = Annotated[str | None, typer.Option(help="A recorded site; by default the first.")]


class TextOptions(Settings):
    """Which part of a text is read."""

    languages: tuple[str, ...] | None = Field(None, description="Language codes, such as en,hi; by default all.")
    split: str = Field("train", description="Part of the text: files with this word in their name.")
    text_column: str = Field("text", description="Column of the text in jsonl, parquet and hub data sets.")
    seed: Seed = Field(0, description="Seed for the order of documents.")

    def load(self, source: str, shuffled: bool = True) -> "ln.Corpus":
        """Load a text.

        Args:
            source: A folder, babel, or a hub data set.
            shuffled: Whether to put documents in the order of the seed, not of the source.
        """
        corpus = ln.load_corpus(source, self.languages, text_column=self.text_column, split=self.split)
        return corpus.shuffle(self.seed) if shuffled else corpus


class HeldoutOptions(TextOptions):
    """Which held-out text is read, and how it is cut."""

    old_names: ClassVar[Mapping[str, str]] = {"tokens": "tokens_per_language"}

    split: str = Field("heldout", description="Part of the text: files with this word in their name.")
    tokens_per_language: Count | None = Field(
        None, description="Counted tokens of each language; by default as many as the smallest has."
    )
    context_length: ContextLength | None = Field(
        None, description="Positions read at once, a multiple of 16; by default 512, or the model's context if shorter."
    )
    each: Literal["block", "text"] = Field("block", description="block for running text, text for sentences.")

    @field_validator("each", mode="before")
    @classmethod
    def _by_its_current_name(cls, each: object) -> object:
        if each != "document":
            return each
        warn_user("--each document is called --each text.")
        return "text"

    def pack(self, model: "torch.nn.Module", corpus: "ln.Corpus") -> "ln.HeldoutText":
        """Tokenise a text for a model."""
        return ln.HeldoutText.of(model, corpus, self.tokens_per_language, self.context_length, self.each)


class NeuronFiles(Settings):
    """Files of neurons and statistics."""

    error: ClassVar[type[LangNeuronsError]] = NeuronSetError

    neurons: Path | None = Field(None, description="A file that identify wrote.")
    statistics: Path | None = Field(
        None, description="A folder that record wrote, for means, percentiles and controls of equal magnitude."
    )

    def load(self, languages: Sequence[str] | None = None) -> "tuple[ln.NeuronSet, ln.ActivationStats | None]":
        """Load both.

        Args:
            languages: Languages whose neurons are wanted; by default all.

        Raises:
            NeuronSetError: If no neurons were given.
        """
        if self.neurons is None:
            raise NeuronSetError("Whose neurons? Please give --neurons too, a file that langneurons identify wrote.")
        neurons = ln.NeuronSet.load(self.neurons)
        return neurons if languages is None else neurons.select(languages), self.stats()

    def stats(self) -> "ln.ActivationStats | None":
        """Load the statistics, if there are any."""
        return None if self.statistics is None else ln.ActivationStats.load(self.statistics)


class PatchOptions(NeuronFiles):
    """Neurons, and what is written at them."""

    error: ClassVar[type[LangNeuronsError]] = PatchError

    patch: tuple[str, ...] = Field(
        (),
        description="0, mean, p90 (set); add:mean, scale:2, diffmean; or parts of the neurons, as in "
        "'shared=scale:1.2; exclusive=scale:0.8'; repeatable; 0 by default.",
    )

    def patches(self) -> dict[str, PatchPart]:
        """What is written, by its own words."""
        return {text: PatchPart.model_validate({"write": text}) for text in self.patch or ("0",)}


class ComparisonOptions(Settings):
    """What methods are compared by."""

    error: ClassVar[type[LangNeuronsError]] = StatisticsError

    heldout: str | None = Field(
        None, description="Text to patch and ablate on: files with heldout in their name; by default neither is done."
    )
    nulls: tuple[str, ...] = Field(("shuffled",), description="Nulls to record: shuffled, source, topic.")
    value: float = Field(0.0, description="Number that patched and ablated neurons are set to.")
    sample: Count = Field(200, description="Neurons to ablate, drawn at random from all.")


def statistics_of(path: Path, site: str | None, languages: Sequence[str] | None) -> "ln.ActivationStats":
    """Load statistics.

    Args:
        path: Folder that record wrote.
        site: A recorded site; by default the first.
        languages: Languages to keep; by default all.
    """
    stats = ln.ActivationStats.load(path) if site is None else ln.ActivationStats.load(path).at(site)
    return stats if languages is None else stats.select(languages)


def keep(result: "ln.storage.Result", run: Run, name: str) -> None:
    """Save a result in a folder of the run, if it has one, and say where; before it is shown, which may fail.

    Args:
        result: What was computed.
        run: Where it is kept.
        name: Name of the folder.
    """
    if run.out is not None:
        try:
            print(f"Written to {result.save(run.out / name)}")
        except StaleArtefactError:
            print(result)
            raise


def method_of(name: str, options: Sequence[str]) -> "ln.identification.Method":
    """Build a method from its name and ``field=value`` options.

    Args:
        name: Name of the method.
        options: Texts such as ``"top=0.01"``.

    Raises:
        StatisticsError: If an option is no ``field=value``, the method does not take it, or only a study can use it.
    """
    if name in PUBLISHED_METHODS:
        raise StatisticsError(f"{name} reads published statistics, which only a study computes.")
    values = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            possible = ", ".join(options_of(name))
            raise StatisticsError(f"An option reads field=value, not {option!r}. Possible fields: {possible}.")
        values[key] = parsed(text)
    return make_method(name, values)


@command()
def demo(out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("runs/demo")) -> None:
    """Run a whole small study on the embedded model."""
    from langneurons.study.demo import run_demo

    print(run_demo(out))


@command(required=("out",))
def record(
    model: Model, corpus: Texts, text: TextOptions, recording: Recording, run: Run, options: ModelOptions
) -> None:
    """Record what every neuron does in every language."""
    texts = text.load(corpus)
    stats = ln.record(options.load(model), texts, recording=recording, run=run)
    print(f"{stats}\nNext: langneurons identify {run.out}")


@command()
def identify(
    statistics: Annotated[Path, typer.Argument(help="A folder that record wrote.")],
    method: MethodName = "lape",
    option: MethodOptions = None,
    languages: Annotated[str | None, typer.Option(help="Language codes, such as en,hi; by default all.")] = None,
    site: Site = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default STATISTICS/neurons.<method>.json.")
    ] = None,
) -> None:
    """Name each language's neurons from recorded statistics."""
    import pandas as pd

    stats = statistics_of(statistics, site, None if languages is None else listed(languages))
    neurons = method_of(method, option or []).identify(stats)
    path = neurons.save(out or statistics / f"neurons.{method}.json")
    layers = neurons.counts()
    table = pd.DataFrame({"language": layers.index, "neurons": layers.sum(axis=1).array})
    print(table.assign(**{"most in layer": layers.to_numpy().argmax(axis=1)}).to_string(index=False))
    print(f"{len(neurons):,} neurons in all, written to {path}")


@command()
def validity(
    statistics: Annotated[Path, typer.Argument(help="A folder that record wrote.")],
    method: MethodName = "lape",
    option: MethodOptions = None,
    site: Site = None,
    splits: Annotated[int, typer.Option(help="Random halvings of the documents.")] = 20,
    model: Annotated[str | None, typer.Option(help="With --corpus: record texts without language, the nulls.")] = None,
    corpus: Annotated[str | None, typer.Option(help="Text for the nulls, in the order of its sources.")] = None,
    *,
    text: TextOptions,
    recording: Recording,
    run: Run,
) -> None:
    """Ask whether a method's score is real: does it repeat on other documents, and find nothing where nothing is?"""
    if (model is None) != (corpus is None):
        raise StatisticsError("The nulls need both --model and --corpus, or neither for split halves alone.")
    stats = statistics_of(statistics, site, text.languages)
    if model is not None and stats.site != "act":
        raise StatisticsError(
            f"The nulls are recorded at 'act', these statistics at {stats.site!r}: do not give --model."
        )
    checked_method = method_of(method, option or [])
    print(ln.split_half(checked_method, stats, splits, text.seed))
    if model is not None and corpus is not None:
        texts = text.load(corpus, shuffled=False)
        print(ln.nulls(checked_method, ln.load_model(model), texts, seed=text.seed, recording=recording, run=run))


@command(old={"--site": "--sites"}, required=("out",))
def compare_methods(
    model: Model,
    corpus: Texts,
    method: Annotated[
        list[str] | None,
        typer.Option(help="lape, or with options lape:top=0.01,filter_quantile=0.9; repeatable; by default all."),
    ] = None,
    *,
    compared: ComparisonOptions,
    text: TextOptions,
    recording: Recording,
    controls: Controls = Controls(draws=0),
    testing: Testing,
    run: Run,
    options: ModelOptions,
) -> None:
    """Compare methods: overlap, split halves, nulls, selectivity of patching, agreement with exact ablation."""
    methods = {}
    for words in method or METHODS:
        name, _, fields = words.partition(":")
        methods[words] = method_of(name, listed(fields))
    texts, heldout = text.load(corpus), None
    if compared.heldout is not None:
        heldout = text.model_copy(update={"split": "heldout", "languages": texts.languages}).load(compared.heldout)
    about = compared.model_dump(exclude={"heldout"}) | testing.model_dump()
    settings: dict[str, Any] = {"controls": controls, "recording": recording, "run": run}
    comparison = ln.compare_methods(methods, options.load(model), texts, heldout, **about, **settings)
    keep(comparison, run, "comparison")
    print(comparison)


@command(old={"--texts": "--k"}, required=("neurons", "out"))
def profile(
    model: Model,
    corpus: Texts,
    files: NeuronFiles,
    text: TextOptions,
    profiling: Profiling,
    run: Run,
    options: ModelOptions,
    most: Annotated[
        int, typer.Option(help="Neurons to look at, at most; those furthest ahead in their language.")
    ] = 200,
) -> None:
    """Look at single neurons: the texts that move them, the tokens they promote, the neurons like them."""
    neurons, stats = files.load(text.languages)
    if len(neurons) > most and stats is None:
        raise NeuronSetError(
            f"{files.neurons} holds {len(neurons):,} neurons, more than {most}: give --statistics or --most."
        )
    if stats is not None and len(neurons) > most:
        neurons = neurons.clearest(stats, most)
    texts = text.load(corpus, shuffled=False)
    profiles = ln.profile(options.load(model), neurons, texts, stats, profiling=profiling, run=run)
    keep(profiles, run, "profiles")
    print(profiles)
    print(f"Next: langneurons report {run.out}")


@command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder with results of the other commands.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; by default FOLDER/report.html.")] = None,
    question: Annotated[str, typer.Option(help="Title of the report.")] = QUESTION,
) -> None:
    """Write everything that a folder holds as one HTML file that opens anywhere."""
    from langneurons.study.config import CONFIG
    from langneurons.study.stages.report import read_folder
    from langneurons.study.study import Study
    from langneurons.views.findings import provenance

    if (folder / CONFIG).is_file():
        pages, left_out = Study.from_toml(folder).findings(), []
        if question != QUESTION:
            pages = {name: replace(each, question=question) for name, each in pages.items()}
    else:
        findings, left_out = read_folder(folder, question)
        pages = {"": findings}
    first = out or folder / "report.html"
    for number, (model, findings) in enumerate(pages.items()):
        page = ln.write_report(first if number == 0 else first.with_stem(f"{first.stem}-{model}"), findings)
        print("\n".join([*left_out, *provenance(findings), f"Report: {page} (open it in a browser)"]))


@command()
def push(
    folder: Annotated[Path, typer.Argument(help="A saved result, or the directory of a study.")],
    repo: Annotated[str, typer.Argument(help="A repository on the hub, user/name; it is created where it is missing.")],
    name: Annotated[str | None, typer.Option(help="Name of the result there; by default its kind.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence that the card says, such as cc-by-4.0.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Create the repository for everybody to see.")] = False,
) -> None:
    """Upload a result or a study to Hugging Face's hub, and print the address that ln.load reads."""
    from langneurons.study.config import CONFIG

    if (folder / "langneurons.json").is_file():
        raise StorageError(
            f"{folder} holds an update: push it in Python, ln.MaskedLoRA.load(folder).push_to_hub(repo)."
        )
    result = ln.Study.from_toml(folder) if (folder / CONFIG).is_file() else ln.load(folder)
    print(result.push_to_hub(repo, name, private=not public, licence=licence))


@command()
def describe(model: Model) -> None:
    """Say how large a model is, what neurons it has, and how it would be loaded, without loading it."""
    print(ln.describe(model))


@command()
def study(
    config: Annotated[Path, typer.Argument(help="A TOML file, or the directory of an earlier run.")],
    only: Annotated[str | None, typer.Option(help="Steps whose name begins so, and what they depend on.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what is left to do and what it takes.")] = False,
    speed: Annotated[
        float | None,
        typer.Option(help="With --dry-run: operations per second of a machine, such as 160e12; by default this one's."),
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="List what became of every step.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the study with every default.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Verify every byte of what is done.")] = False,
    compare: Annotated[Path | None, typer.Option(help="Another study to compare with: its file or directory.")] = None,
    *,
    run: Run,
) -> None:
    """Run a whole study: what is done stays done, and the same command goes on after an interruption."""
    from langneurons.study.config import read_study

    # What is wrong with the file is said before what takes long is imported.
    config_and_folder = read_study(config, run.out)
    from langneurons.study.study import Study, as_text

    planned_study = Study(*config_and_folder)
    if show:
        print(planned_study.show())
    elif dry_run:
        print(as_text(planned_study.forecast(speed), planned_study.folder.path, speed))
    elif status:
        print(planned_study.status().to_string(index=False, na_rep=""))
    elif check:
        planned_study.check()
        print(f"Every file of {len(planned_study.files())} is as it was written.")
    elif compare is not None:
        print(planned_study.compare(Study.from_toml(compare)).to_string(index=False))
    else:
        states = planned_study.run(only, print, **run.model_dump(exclude_unset=True))
        broken = states[states["state"].isin(["failed", "blocked"])]
        if len(broken):
            reasons = zip(broken["step"], broken["state"], broken["why"], strict=True)
            listed_reasons = "; ".join(" ".join(filter(None, reason)) for reason in reasons)
            raise StudyError(f"{len(broken)} of {len(states)} steps are not done: {listed_reasons}")
        if only is None:
            print(f"Report: {planned_study.report()} (open it in a browser)")


def listed(text: str) -> list[str]:
    """The parts of a comma-separated text."""
    return [part.strip() for part in text.split(",") if part.strip()]
