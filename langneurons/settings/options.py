"""Options given one by one: as typed keywords, and as they are filled into the groups that they belong to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, TypeVarTuple, cast

from langneurons.errors import unknown, warn_user
from langneurons.settings.checking import Settings
from langneurons.settings.groups import Match, Resampled

SettingsType = TypeVar("SettingsType", bound=Settings)
Groups = TypeVarTuple("Groups")  # several settings objects, each of its own class


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


class AlteringOptions(RecordingOptions, total=False):
    """Single options of ``Altering``, ``Recording`` and ``Run``."""

    conditions: Sequence[str]
    parts: int
    random_share: float


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
    form: Literal["lora", "rows", "ia3"]
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


class AttributingOptions(RunOptions, total=False):
    """Single options of ``Attributing`` and ``Run``."""

    exact: int


class ConfusionOptions(AttributingOptions, TestingOptions, total=False):
    """Single options of ``Attributing``, ``Testing`` and ``Run``."""


class TaskScoringOptions(RunOptions, total=False):
    """Single options of ``TaskScoring`` and ``Run``."""

    site: str
    top: float


class PromptingOptions(TypedDict, total=False):
    """The fields of ``Prompting``, for functions that take them one by one."""

    chat: bool | Literal["auto"]
    system: str | None
    shots: int
    temperature: float
    top_p: float
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
            warn_user(f"The option {name} is called {current}.")
            changes[current] = value
        elif name in type(group).model_fields:
            changes[name] = value
    return type(group)(**{**dict(group), **changes}) if changes else group
