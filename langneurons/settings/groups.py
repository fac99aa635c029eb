"""The groups of options, each declared once for Python, a study's file and the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, JsonValue, StrictBool, ValidationInfo, field_validator

from langneurons.errors import (
    EffectError,
    ExecutorError,
    LangNeuronsError,
    StatisticsError,
    TaskError,
    TrainingError,
)
from langneurons.settings.checking import ContextLength, Count, Few, Seed, Settings

Positive = Annotated[float, Field(gt=0)]
DecayRate = Annotated[float, Field(ge=0, lt=1)]
Resamples = Annotated[int, Field(ge=100, le=10**7)]
Match = Literal["write", "dose", "layer", "layer+magnitude"]
Condition = Literal["parallel", "words", "characters", "romanised", "random"]
Resampled = Literal["auto", "clusters", "sources"]
RESAMPLES = 5000
RESAMPLES_PER_TEST = 100
RESAMPLED_EFFECTS = 500_000_000  # at most, of a family: a few minutes
CONDITIONS = ("none", "source", "target", "source+target", "random", "all")
EXECUTORS = "None (this process), 'ray', a cluster's address such as 'ray://head:10001', or a ln.run.RayExecutor"
PYTHON_ONLY: dict[str, JsonValue] = {"python_only": True}  # fields that only a Python object can fill
IN_WORDS: dict[str, JsonValue] = {"in_words": True}  # true and false are two words of several, and no switch


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
    weight_decay: float = Field(0.1, ge=0, description="AdamW's decay of every trained parameter.")
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
        None,
        description="Whether to compute in bfloat16; by default only for float32 models on GPUs that support it. On "
        "processors without instructions for it, it takes several times as long.",
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

    draws: int = Field(20, ge=0, le=10**4, description="Number of control draws; 0 draws none.")
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
    resamples: Resamples | None = Field(
        None,
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
    progress: StrictBool | Literal["notebook"] = Field(
        True, description='Whether to show progress bars on standard error; "notebook" adds a curve of the loss.'
    )

    @field_validator("executor")
    @classmethod
    def _runs_work(cls, executor: object) -> object:
        by_name = isinstance(executor, str) and (executor == "ray" or executor.startswith("ray://"))
        if executor is None or by_name or callable(getattr(executor, "map", None)):
            return executor
        raise ValueError(EXECUTORS)


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
    context_length: ContextLength = Field(512, description="Positions per block, a multiple of 16.")
    sites: tuple[str, ...] = Field(
        ("act",),
        min_length=1,
        description="Sites to record: pre, up, act, post, q, k, v, head, resid_post, of mixtures of experts router and "
        "router_logits, or names of added dictionaries.",
        json_schema_extra={"possible": "at least one site"},
    )
    also: tuple[Literal["sentence", "gradient"], ...] = Field(
        (),
        description="Statistics that some methods need: sentence (8 bytes per neuron and document) and gradient "
        "(a backward pass, about four times the time).",
    )
    sentences: Count = Field(500, description='Documents per language that also="sentence" keeps.')


class Altering(Settings):
    """How text is altered, to see which of a method's neurons stay.

    Example:
        >>> ln.settings.Altering(conditions=["romanised"]).parts
        6
    """

    error: ClassVar[type[LangNeuronsError]] = StatisticsError

    conditions: tuple[Condition, ...] = Field(
        ("parallel", "words", "characters", "romanised", "random"),
        min_length=1,
        description="What is done to the text. parallel: every language reads the same sentences; words, characters: "
        "these are shuffled in each text; romanised: Latin letters replace others (extra script); random: neurons that "
        "are active on random tokens are left out.",
        json_schema_extra={"possible": "at least one of parallel, words, characters, romanised, random"},
    )
    parts: int = Field(6, ge=3, le=100, description="Parts of documents; leaving out each in turn gives the intervals.")
    random_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="A neuron is active on random tokens if it is active at least this many times as often as in its "
        "language.",
    )


class Adapter(Settings):
    """The masked LoRA update that a fine-tuning trains.

    Example:
        >>> ln.settings.Adapter(rank=4).attention
        ('q', 'k', 'v', 'o')
    """

    error: ClassVar[type[LangNeuronsError]] = TrainingError

    rank: Few = Field(8, description="Rank of the update.")
    alpha: float = Field(16.0, gt=0, description="Scale of the update, divided by the rank.")
    projections: tuple[Literal["gate", "up", "down", "q", "k", "v"], ...] = Field(
        ("gate",),
        description="Projections whose rows or columns are trained at the chosen neurons: gate, up and down at neurons "
        "of the MLP; q, k or v at coordinates of that site.",
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
        Literal[
            "none",
            "source",
            "target",
            "source+target",
            "shared",
            "exclusive",
            "random",
            "random target",
            "random source+target",
            "random shared",
            "random exclusive",
            "all",
            "lora",
            "full",
        ],
        ...,
    ] = Field(CONDITIONS, min_length=1, description="Training conditions to compare.")
    form: Literal["lora", "rows", "ia3"] = Field(
        "lora",
        description="How the neurons' rows are trained: by masked LoRA, every weight by itself, or one factor each.",
    )
    seeds: Few | tuple[Seed, ...] = Field(
        6,
        description="Number of training seeds; with fewer than six no difference gets a p-value.",
        json_schema_extra={"possible": "a whole number from 1 to 10,000, or seeds of at least 0"},
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

    k: Few = Field(5, description="Texts of each kind (top, median, random) per language and neuron.")
    context_length: Count = Field(64, description="Tokens read per text, special ones included.")
    documents: Count | None = Field(2000, description="Random documents to look through per language; None takes all.")
    output_tokens: Few = Field(10, description="Promoted tokens to list, and as many suppressed ones.")
    similar: int = Field(
        8, ge=0, le=10**4, description="Similar neurons to list by activity, and as many by output direction."
    )
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
    permutations: Resamples = Field(1000, description="Exchanges per test; finer p-values take more.")
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


class Attributing(Settings):
    """How it is measured what neurons add to a token's logit.

    Example:
        >>> ln.settings.Attributing(exact=50).exact
        50
    """

    error: ClassVar[type[LangNeuronsError]] = EffectError

    exact: Few = Field(
        300, description="Neurons per language, those with the largest direct contributions, to ablate as well."
    )


class TaskScoring(Settings):
    """Which neurons are scored by a task, and how many are named.

    Example:
        >>> ln.settings.TaskScoring(site="pre").top
        0.01
    """

    error: ClassVar[type[LangNeuronsError]] = StatisticsError

    site: str = Field("act", description="Site of the neurons; CULNIG scores the gate's output, pre.")
    top: float = Field(0.01, gt=0, le=1, description="Share of all neurons to name in each language.")


class Prompting(Settings):
    """How a model is asked, and how it chooses the tokens of its answer: by default plain text, answered greedily.

    Base models often come with the chat template of their family. So ``chat="auto"`` takes a template only where the
    token that ends its turns is one of the model's stop tokens, as it is in models that were trained to chat.

    Example:
        >>> ln.settings.Prompting(chat="auto", temperature=0.7).top_p
        1.0
    """

    error: ClassVar[type[LangNeuronsError]] = TaskError

    chat: StrictBool | Literal["auto"] = Field(
        False,
        description="Whether prompts go through the chat template of the model's tokenizer, false by default; auto: "
        "where it has one whose turns end with a stop token of the model.",
        json_schema_extra=IN_WORDS,
    )
    system: str | None = Field(None, description="System prompt of a chat; plain text has none.")
    shots: int = Field(
        0, ge=0, le=10**4, description="Solved examples in front of every item, the same for all items and languages."
    )
    temperature: float = Field(0.0, ge=0, description="Temperature of sampling; 0 takes the likeliest token.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Probability that the tokens to sample from hold together, likeliest first."
    )
    seed: Seed = Field(0, description="Seed for the choice of examples and for sampling.")

    @property
    def changes(self) -> dict[str, Any]:
        """The options by which prompts or answers differ from those by default.

        Example:
            >>> ln.settings.Prompting(shots=2, seed=1).changes, ln.settings.Prompting(seed=1).changes
            ({'shots': 2, 'seed': 1}, {})
        """
        idle = ({"top_p"} if not self.temperature else set()) | (
            {"seed"} if not self.temperature + self.shots else set()
        )
        return {name: value for name, value in self if name not in idle and value != getattr(Prompting(), name)}

    @field_validator("system")
    @classmethod
    def _has_a_chat(cls, system: str | None, about: object) -> str | None:
        if system is not None and cast("ValidationInfo", about).data.get("chat") is False:
            raise ValueError('left out unless chat is true or "auto"')
        return system


def controls_of(controls: int | Controls) -> Controls:
    """Controls from their number of draws, the shorthand.

    Raises:
        EffectError: If the number is negative.
    """
    return controls if isinstance(controls, Controls) else Controls(draws=controls)
