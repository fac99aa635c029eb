"""Settings: groups of options that Python, TOML and the command line share, each declared once.

Nothing heavy is imported here, so that the command line knows its options and their bounds at once.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypedDict, TypeVar, TypeVarTuple, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from langneurons.errors import (
    EffectError,
    ExecutorError,
    LangNeuronsError,
    LangNeuronsWarning,
    StatisticsError,
    TrainingError,
    unknown,
)

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
DecayRate = Annotated[float, Field(ge=0, lt=1)]
Match = Literal["write", "dose", "layer", "layer+magnitude"]
Resampled = Literal["auto", "clusters", "sources"]
RESAMPLES = 5000
RESAMPLES_PER_TEST = 100
RESAMPLED_EFFECTS = 500_000_000  # at most, of a family: a few minutes
CONDITIONS = ("none", "source", "target", "source+target", "random", "all")
PYTHON_ONLY: dict[str, JsonValue] = {"python_only": True}  # fields that only a Python object can fill


class _Checked(type(BaseModel)):
    """Makes a settings object that is built in Python raise the errors of langneurons."""

    if not TYPE_CHECKING:

        def __call__(cls, *arguments: Any, **options: Any) -> Any:
            try:
                return super().__call__(*arguments, **options)
            except ValidationError as error:
                raise cls.error(sentence(error.errors()[0], cls)) from None


class Settings(BaseModel, metaclass=_Checked):
    """A group of options: frozen, checked, with a default and a sentence for each.

    Attributes:
        error: The exception that a wrong option raises.
        old_names: Names of an earlier version, which go on working, and what they are called.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    error: ClassVar[type[LangNeuronsError]] = LangNeuronsError
    old_names: ClassVar[Mapping[str, str]] = {}


SettingsType = TypeVar("SettingsType", bound=Settings)
Groups = TypeVarTuple("Groups")  # several settings objects, each of its own class


class Training(Settings):
    """How parameters are trained: AdamW without dropout, on an order of examples that the seed and the epoch decide.

    Example:
        >>> ln.Training(steps=50, learning_rate=5e-4).steps
        50
    """

    error: ClassVar[type[LangNeuronsError]] = TrainingError

    epochs: Count = Field(1, description="Passes over all examples.")
    steps: Count | None = Field(None, description="Optimiser steps; by default as many as the epochs have.")
    batch_size: Count = Field(8, description="Examples per forward pass.")
    accumulate: Count = Field(1, description="Forward passes per optimiser step.")
    learning_rate: Positive = Field(1e-4, description="Highest learning rate.")
    weight_decay: float = Field(0.1, ge=0, allow_inf_nan=False, description="AdamW's decay of every trained parameter.")
    betas: tuple[DecayRate, DecayRate] = Field(
        (0.9, 0.999),
        description="AdamW's decay rates of the gradient's mean and square.",
        json_schema_extra={"possible": "two numbers from 0 to below 1"},
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    schedule: Literal["linear", "constant"] = Field(
        "linear", description="Learning rate after the warm-up: falling to 0, or constant."
    )
    clip: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="Largest norm of a step's gradient; None does not clip."
    )
    loss_on: Literal["answer", "all"] = Field("answer", description="Tokens that count: the answer's, or all.")
    position: Literal["last", "padding"] = Field(
        "last", description="Position that a classification head reads: the last real token, or the paper's padding."
    )
    positions: Count = Field(256, description='Tokens to which texts are padded, or cut, for position="padding".')
    bfloat16: bool | None = Field(
        None, description="Whether to compute in bfloat16; by default only for float32 models on GPUs that support it."
    )
    gradient_checkpointing: bool = Field(False, description="Whether to save memory at the cost of a second forward.")
    evaluate_every: Count | None = Field(None, description="Steps between evaluations on dev; by default one epoch.")
    patience: Count | None = Field(
        None, description="Evaluations without improvement after which training stops; None never stops early."
    )
    save_every: float = Field(60.0, ge=0, description="Seconds between checkpoints.")
    tensorboard: bool = Field(False, description="Whether to write TensorBoard events beside the checkpoints.")
    seed: Seed = Field(0, description="Seed for the order of examples and for a random head.")


class Controls(Settings):
    """Control neurons: drawn at random outside the sets that are judged, from the same layers, writing as much.

    A neuron writes the vector that it adds to the residual stream; how much is the mean length of that vector in the
    language of the set (``ActivationStats.write``). Whatever a set writes, its controls should write too, or an effect
    of the amount passes for one of the language.

    Example:
        >>> ln.Controls(draws=20, match="layer").draws
        20
    """

    error: ClassVar[type[LangNeuronsError]] = EffectError

    draws: int = Field(20, ge=0, description="Number of control draws; 0 draws none.")
    match: Match | None = Field(
        None,
        description="What controls share with the neurons they stand for, beside the layer. write: each stands for one "
        "neuron that writes about as much; dose: as many neurons as write the same in sum; layer: their number; "
        "layer+magnitude: deciles of |act| x output norm, as version 0.1.0 had it. By default write where there are "
        "statistics, else layer.",
    )
    caliper: Positive = Field(
        0.1, description='Largest difference of log writes at which a neuron can stand for another (match="write").'
    )
    firing: bool = Field(
        False, description='Whether neurons must also be active about as often, within 0.1 (match="write").'
    )
    spare: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the neurons most specific to the label's language, by P(active) there minus its mean "
        "elsewhere, that cannot be controls; 0 excludes only neurons of the sets that are judged.",
    )
    stats: Any = Field(
        None,
        description="Statistics of the same model to match magnitudes by, or several where patches are at several "
        "sites.",
        json_schema_extra=PYTHON_ONLY,
    )
    seed: Seed = Field(0, description="Seed for drawing controls.")


class Testing(Settings):
    """How effects are judged: margin of equivalence, intervals and tests.

    Example:
        >>> ln.Testing(margin=0.02).level
        0.95
    """

    error: ClassVar[type[LangNeuronsError]] = EffectError
    old_names: ClassVar[Mapping[str, str]] = {"delta": "margin"}

    margin: Positive = Field(
        0.01, description="Largest difference of no interest; 0.01 is one point of a score, or 1 % of a loss."
    )
    resamples: int | None = Field(
        None,
        ge=100,
        description="Resamples of every effect; by default 5000, and 100 for each test of a larger family.",
    )
    level: float = Field(0.95, gt=0, lt=1, description="Confidence of intervals.")
    resampled: Resampled = Field(
        "auto",
        description="What is resampled: clusters, such as documents or premises, or the sources that documents come "
        "from; auto takes sources where at least 8 are known.",
    )
    seed: Seed = Field(0, description="Seed for resampling.")

    @property
    def samples(self) -> int:
        """Bootstrap samples of one effect."""
        return self.resamples or RESAMPLES

    def in_family(self, tests: int) -> "Testing":
        """The same, with enough resamples for a family of tests, unless their number was chosen.

        The smallest p-value that n resamples give is about 2 / n, and a family of m tests multiplies it by up to m. In
        families of thousands, fewer than 100 for each test must do.

        Example:
            >>> ln.Testing().in_family(256).samples, ln.Testing(resamples=1000).in_family(256).samples
            (25600, 1000)
        """
        samples = self.resamples or max(RESAMPLES, min(RESAMPLES_PER_TEST * tests, RESAMPLED_EFFECTS // tests))
        return self.model_copy(update={"resamples": samples})


class Run(Settings):
    """Where and how work runs, and where it is kept.

    Example:
        >>> ln.Run(batch_size=16, progress=False).batch_size
        16
    """

    error: ClassVar[type[LangNeuronsError]] = ExecutorError

    out: Path | None = Field(
        None, description="Folder that keeps everything measured; calling again with it resumes from there."
    )
    executor: Any = Field(
        None, description='Where to run: None for this process, "ray" or an address for a Ray cluster.'
    )
    batch_size: Count | None = Field(None, description="Texts per forward pass; by default what suits the function.")
    progress: bool | Literal["notebook"] = Field(
        True, description='Whether to show progress bars on standard error; "notebook" adds a curve of the loss.'
    )


class Recording(Settings):
    """What is recorded, from how much text.

    Example:
        >>> ln.Recording(sites=("act", "post")).context_length
        512
    """

    error: ClassVar[type[LangNeuronsError]] = StatisticsError
    old_names: ClassVar[Mapping[str, str]] = {"tokens": "tokens_per_language"}

    tokens_per_language: Count | None = Field(
        None, description="Counted tokens of each language; by default as many as the smallest language has."
    )
    context_length: Count = Field(512, description="Positions per block, a multiple of 16.")
    sites: tuple[str, ...] = Field(
        ("act",),
        min_length=1,
        description="Sites to record: pre, act, post, head, resid_post, or the names of added dictionaries.",
        json_schema_extra={"possible": "at least one site"},
    )
    also: tuple[Literal["sentence", "gradient"], ...] = Field(
        (),
        description="Statistics that some methods need: sentence (8 bytes per neuron and document) and gradient "
        "(a backward pass, about four times the time).",
    )
    sentences: Count = Field(500, description='Documents per language that also="sentence" keeps.')


class Adapter(Settings):
    """The masked LoRA update that a fine-tuning trains.

    Example:
        >>> ln.settings.Adapter(rank=4).attention
        ('q', 'k', 'v', 'o')
    """

    error: ClassVar[type[LangNeuronsError]] = TrainingError

    rank: Count = Field(8, description="Rank of the update.")
    alpha: float = Field(16.0, gt=0, allow_inf_nan=False, description="Scale of the update, divided by the rank.")
    projections: tuple[Literal["gate", "up", "down"], ...] = Field(
        ("gate",), description="Projections of the MLP whose rows or columns are trained at the chosen neurons."
    )
    attention: tuple[Literal["q", "k", "v", "o"], ...] = Field(
        ("q", "k", "v", "o"), description="Projections of attention that are trained as a whole; empty trains none."
    )


class Experiment(Adapter):
    """What a transfer experiment trains, on which language, and how often.

    Example:
        >>> ln.settings.Experiment(seeds=2).conditions
        ('none', 'source', 'target', 'source+target', 'random', 'all')
    """

    source: str = Field("en", description="Language of the training data.")
    targets: tuple[str, ...] | None = Field(
        None, description="Languages to transfer to; by default all others that the test has."
    )
    conditions: tuple[
        Literal["none", "source", "target", "source+target", "random", "random target", "random source+target", "all"],
        ...,
    ] = Field(CONDITIONS, min_length=1, description="Training conditions to compare.")
    seeds: Annotated[int, Field(ge=1)] | tuple[int, ...] = Field(
        6, description="Number of training seeds; with fewer than six no difference gets a p-value."
    )
    update: Any = Field(
        None,
        description="A function of neurons (or None) and seed that makes something else to train than masked LoRA.",
        json_schema_extra=PYTHON_ONLY,
    )
    dev: Any = Field(
        None, description="A task whose score decides which parameters are kept.", json_schema_extra=PYTHON_ONLY
    )
    head: Any = Field(
        None, description="A classification head that every training starts from.", json_schema_extra=PYTHON_ONLY
    )
    training_patches: Any = Field(
        (),
        description="Patches that are held while models are trained, but not while they are evaluated.",
        json_schema_extra=PYTHON_ONLY,
    )


class Profiling(Settings):
    """What a neuron's profile shows.

    Example:
        >>> ln.settings.Profiling(k=3).similar
        8
    """

    error: ClassVar[type[LangNeuronsError]] = StatisticsError

    k: Count = Field(5, description="Texts of each kind (top, median, random) per language and neuron.")
    context_length: Count = Field(64, description="Tokens read per text, special ones included.")
    documents: Count | None = Field(2000, description="Random documents to look through per language; None takes all.")
    output_tokens: Count = Field(10, description="Promoted tokens to list, and as many suppressed ones.")
    similar: int = Field(8, ge=0, description="Similar neurons to list by activity, and as many by output direction.")
    seed: Seed = Field(0, description="Seed for the choice of documents and of random texts.")


class Probing(Settings):
    """How it is tested what else neurons carry.

    Example:
        >>> ln.settings.Probing(position="last").permutations
        1000
    """

    error: ClassVar[type[LangNeuronsError]] = StatisticsError

    position: Literal["mean", "last"] = Field(
        "mean", description="A neuron's value on a text: its mean over counted tokens, or its value at the last one."
    )
    permutations: int = Field(1000, ge=100, description="Exchanges per test; finer p-values take more.")
    max_items: Count | None = Field(None, description="Items to read at most, in whole clusters; by default all.")
    probe_sizes: tuple[Count, ...] = Field(
        (1, 2, 4, 8, 16),
        description="Numbers of neurons that probes read; empty leaves probes out.",
        json_schema_extra={"possible": "whole numbers of at least 1"},
    )
    least_share: float = Field(
        0.01, ge=0, lt=1, description="Share of the remaining variance below which an effect counts as none."
    )
    seed: Seed = Field(0, description="Seed for items, exchanges and probes.")


class TrainingOptions(TypedDict, total=False):
    """The fields of ``Training``, for functions that take them one by one."""

    epochs: int
    steps: int | None
    batch_size: int
    accumulate: int
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    warmup: float
    schedule: Literal["linear", "constant"]
    clip: float | None
    loss_on: Literal["answer", "all"]
    position: Literal["last", "padding"]
    positions: int
    bfloat16: bool | None
    gradient_checkpointing: bool
    evaluate_every: int | None
    patience: int | None
    save_every: float
    tensorboard: bool
    seed: int


class TestingOptions(TypedDict, total=False):
    """The fields of ``Testing``, for functions that take them one by one."""

    margin: float
    resamples: int | None
    level: float
    resampled: Resampled
    seed: int


class RunOptions(TypedDict, total=False):
    """The fields of ``Run``, for functions that take them one by one."""

    out: str | Path | None
    executor: Any
    batch_size: int | None
    progress: bool | Literal["notebook"]


class MeasuringOptions(TestingOptions, RunOptions, total=False):
    """Single options of ``Testing`` and ``Run``."""


class MatchingOptions(TypedDict, total=False):
    """The fields of ``Controls`` that say what is matched, for functions that take them one by one."""

    match: Match | None
    caliper: float
    firing: bool
    spare: float


class ControlledOptions(MeasuringOptions, MatchingOptions, total=False):
    """Single options of ``Controls``, ``Testing`` and ``Run``."""

    stats: Any


class RecordingOptions(RunOptions, total=False):
    """Single options of ``Recording`` and ``Run``."""

    tokens_per_language: int | None
    context_length: int
    sites: Sequence[str]
    also: Sequence[str]
    sentences: int


class FinetuningOptions(TrainingOptions, total=False):
    """Single options of ``Training`` and ``Run``."""

    out: str | Path | None
    executor: Any
    progress: bool | Literal["notebook"]


class ExperimentOptions(FinetuningOptions, MatchingOptions, total=False):
    """Single options of ``Experiment``, ``Training``, ``Controls``, ``Testing`` and ``Run``."""

    source: str
    targets: Sequence[str] | None
    conditions: Sequence[str]
    seeds: int | Sequence[int]
    update: Any
    dev: Any
    head: Any
    training_patches: Any
    rank: int
    alpha: float
    projections: Sequence[str]
    attention: Sequence[str]
    stats: Any
    margin: float
    resamples: int | None
    level: float
    resampled: Resampled


class ProfilingOptions(RunOptions, total=False):
    """Single options of ``Profiling`` and ``Run``."""

    k: int
    context_length: int
    documents: int | None
    output_tokens: int
    similar: int
    seed: int


class ProbingOptions(RunOptions, MatchingOptions, total=False):
    """Single options of ``Probing``, ``Controls`` and ``Run``."""

    position: Literal["mean", "last"]
    permutations: int
    max_items: int | None
    probe_sizes: Sequence[int]
    least_share: float
    stats: Any
    seed: int


def with_options(options: Mapping[str, Any], *settings: *Groups) -> tuple[*Groups]:
    """Fill in options that were given one by one; an option that several settings have, such as the seed, is for all.

    Args:
        options: Option names and values.
        settings: The settings objects that a function takes.

    Returns:
        The settings objects with the options.

    Raises:
        LangNeuronsError: If no settings object has an option, or a value is out of its bounds.

    Example:
        >>> from langneurons.settings import with_options
        >>> testing, run = with_options({"margin": 0.05, "progress": False}, ln.Testing(), ln.Run())
        >>> testing.margin, run.progress
        (0.05, False)
    """
    groups = cast(tuple[Settings, ...], settings)
    for name in options:
        if not any(name in type(group).model_fields or name in group.old_names for group in groups):
            possible = dict.fromkeys(field for group in groups for field in type(group).model_fields)
            raise groups[0].error(unknown("option", name, possible))
    return cast(tuple[*Groups], tuple(_filled(group, options) for group in groups))


def _filled(group: SettingsType, options: Mapping[str, Any]) -> SettingsType:
    changes = {}
    for name, value in options.items():
        if name in group.old_names:
            current = group.old_names[name]
            warnings.warn(f"The option {name} is called {current}.", LangNeuronsWarning, stacklevel=5)
            changes[current] = value
        elif name in type(group).model_fields:
            changes[name] = value
    return type(group)(**{**dict(group), **changes}) if changes else group


def controls_of(controls: int | Controls) -> Controls:
    """Controls from their number of draws, the shorthand.

    Raises:
        EffectError: If the number is negative.
    """
    return controls if isinstance(controls, Controls) else Controls(draws=controls)


def sentence(error: Any, model: type[BaseModel]) -> str:
    """Say what is wrong with one option: its name, what is possible, and what was given.

    Args:
        error: One of pydantic's errors.
        model: The class whose field it is about.

    Example:
        >>> ln.Training(warmup=1)
        Traceback (most recent call last):
        langneurons.errors.TrainingError: warmup must be at least 0 and below 1, given 1.
    """
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    name, value = str(error["loc"][0]), error["input"]
    if error["type"] == "extra_forbidden":
        return unknown("option", name, model.model_fields)
    if error["type"] == "missing" and len(error["loc"]) == 1:
        return f"{name} is missing."
    field = model.model_fields[name]
    if choices := literal_choices(field.annotation):
        return unknown(name, value, choices)
    possible = possible_values(field) or str(error["msg"]).removeprefix("Value error, ")
    return f"{name} must be {possible}, given {value!r:.100}."


def literal_choices(annotation: Any) -> list[Any]:
    """The words that a field allows; empty where it is no choice among words."""
    if getattr(annotation, "__origin__", None) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in literal_choices(part)]


def possible_values(field: Any) -> str:
    """What a field allows, in words; "" where its type has none."""
    if isinstance(field.json_schema_extra, dict) and "possible" in field.json_schema_extra:
        return str(field.json_schema_extra["possible"])
    kinds, metadata = _kinds(field.annotation, field.metadata)
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [
        f"{text} {getattr(limit, bound):g}"
        for limit in metadata
        for bound, text in words.items()
        if getattr(limit, bound, None) is not None
    ]
    if any(getattr(limit, "allow_inf_nan", None) is False for limit in metadata):
        limits.append("finite")
    by_kind = {int: "a whole number", float: "" if limits else "a number", bool: "true or false", Path: "a path"}
    kind = next((text for kind, text in by_kind.items() if kind in kinds), "")
    text = " of ".join(part for part in (kind, " and ".join(limits)) if part)
    return text + (", or None" if text and type(None) in kinds else "")


def _kinds(annotation: Any, metadata: Iterable[Any]) -> tuple[set[Any], list[Any]]:
    """The plain types inside an annotation, and the bounds that stand anywhere in it."""
    limits = [limit for part in metadata for limit in getattr(part, "metadata", None) or [part]]
    origin = getattr(annotation, "__origin__", None)
    if hasattr(annotation, "__metadata__"):
        return _kinds(origin, [*limits, *annotation.__metadata__])
    if get_args(annotation) and origin is not tuple:
        parts = [_kinds(part, ()) for part in get_args(annotation)]
        return set().union(*(kinds for kinds, _ in parts)), limits + [limit for _, inner in parts for limit in inner]
    return {annotation}, limits
