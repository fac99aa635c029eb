"""What may stand in a study's file: one class a table, every key with its default and what it means."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

import langneurons as ln
from langneurons.errors import unknown
from langneurons.evaluation.factorial import OPERATIONS
from langneurons.study.wording import PUBLISHED_METHODS

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Split = Annotated[str, Field(pattern=r"^[a-z]+(\[(\d{1,2}%)?:(\d{1,2}%)?\])?$")]
Value = str | float | int


def _task_kind(kind: str) -> str:
    if kind not in ln.tasks.KINDS:
        raise ValueError(unknown("kind of task", kind, ln.tasks.KINDS))
    return kind


def _trained_kind(kind: str) -> str:
    trained = [name for name, task in ln.tasks.KINDS.items() if task.objective is not ln.tasks.Task.objective]
    if _task_kind(kind) not in trained:
        raise ValueError(unknown("kind of task to train on", kind, trained))
    return kind


def sliced(split: str) -> tuple[str, int, int]:
    """A split's name, and from which to which % of its items it goes.

    Example:
        >>> sliced("train[:25%]"), sliced("test")
        (('train', 0, 25), ('test', 0, 100))
    """
    name, _, part = split.rstrip("]").partition("[")
    low, _, high = part.replace("%", "").partition(":")
    return name, int(low or 0), int(high or 100)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _distinct(codes: list[str]) -> list[str]:
    twice = [code for code in dict.fromkeys(codes) if codes.count(code) > 1]
    if twice:
        raise ValueError(f"{twice[0]} stands there twice")
    return codes


Languages = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]
Names = Annotated[list[str], BeforeValidator(_listed)]


class Part(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelPart(Part):
    """A model to study."""

    name: str = Field(description="babel, a local folder, or a hub name")
    revision: str | None = Field(None, description="of a hub model: a branch, tag or commit")
    backend: Literal["auto", "hooked", "bridge"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(None, description="the checkpoint's own by default")
    device: str | None = Field(None, description="such as cuda")
    published_as: str | None = Field(
        None, description="the model whose published numbers stand beside; as it is called here"
    )


class TextPart(Part):
    """The text that neurons are found and judged on."""

    source: str = Field(description="a folder of <language>*.{txt,jsonl,parquet}, babel, or a hub data set")
    text_column: str = "text"
    revision: str | None = None
    heldout: Share | Literal["files"] = Field(
        "files", description="'files': those with heldout in their name; or a share of the documents to hold out"
    )
    tokens: Count | None = Field(None, description="of each language to record; as many as the smallest has")
    context_length: Count = 512
    heldout_tokens: Count | None = Field(6000, description="of each language to patch and ablate on")
    heldout_context: Count = 128
    batch_size: Count = 8
    sites: Names = ["act"]


class PublishedStatisticsPart(Part):
    """The statistics as Mondal et al. 2025 compute them; only if a method or patch is called published."""

    tokens: Count | None = Field(None, description="each of two passes reads a language; text.tokens by default")
    context_length: Count | None = Field(None, description="text.context_length by default")
    batch_size: Count = Field(4, description="chunks a batch, on which the percentiles depend")


class MethodPart(Part):
    """A way to find neurons: its name and options, as ``langneurons identify`` takes them."""

    model_config = ConfigDict(extra="allow", frozen=True, validate_default=True)
    method: str = Field(description="such as lape, or published-lape; further keys are its options")
    site: str | None = Field(None, description="a recorded site; the first by default")
    published_as: str | None = Field(
        None, description="what published numbers call it; as it is called here by default"
    )

    @property
    def options(self) -> dict[str, Any]:
        """The options of the method."""
        return dict(self.model_extra or {})

    @property
    def published(self) -> bool:
        """Whether it reads the published statistics."""
        return self.method in PUBLISHED_METHODS


class PatchPart(Part):
    """What is written at a language's own neurons."""

    write: Value = Field(description="a number, mean, p90; add:mean, scale:2, diffmean; published:mean_mu_act")
    also: dict[str, Value] = Field({}, description="other language -> what is written at its neurons meanwhile")
    published_as: str | None = Field(
        None, description="what published numbers call it; as it is called here by default"
    )


class Grid(Part):
    """Something that is done with the neuron sets of methods in language sets."""

    methods: Names | None = Field(None, description="which of the methods; all by default, [] none")
    sets: Names | None = Field(None, description="which of the language sets; all by default")


class MatrixPart(Grid):
    """Perplexity matrices: patch one language's neurons, measure every language."""

    patches: Names | None = Field(None, description="which of the patches; all by default")
    controls: int = Field(20, ge=0, description="draws of matched control neurons a language")


class _Training(Part):
    rank: Count = 8
    alpha: float = 16
    attention: Names = ["q", "k", "v", "o"]
    epochs: Count | None = None
    steps: Count | None = None
    batch_size: Count = 8
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    betas: list[float] = Field([0.9, 0.999], min_length=2, max_length=2)
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps in which the learning rate rises")
    clip: float = Field(1.0, gt=0, description="largest norm of a step's gradient")
    loss_on: Literal["answer", "all"] = Field("answer", description="xquad; all: the prompt too")
    bfloat16: bool | None = Field(None, description="whether to compute in bfloat16; where a GPU can by default")

    @property
    def training(self) -> dict[str, Any]:
        """What ``ln.finetune`` takes."""
        named = ("batch_size", "learning_rate", "weight_decay", "warmup", "clip", "loss_on", "bfloat16")
        given = {name: getattr(self, name) for name in ("epochs", "steps") if getattr(self, name) is not None}
        return {name: getattr(self, name) for name in named} | {"betas": (self.betas[0], self.betas[1])} | given


class FinetuningPart(_Training):
    """Attention, and for XNLI a head, trained on one language; tasks may be asked of such a model."""

    kind: Annotated[str, AfterValidator(_trained_kind)] = "xnli"
    source: str = Field(description="the task's files: a folder, the hub's name, or babel")
    revision: str | None = None
    split: Split = Field("train", description="such as train, or train[:25%]")
    items: Count | None = Field(None, description="premises or questions; all by default")
    language: str = "en"


class TaskPart(Grid):
    """A task that the model is scored on, unpatched and under every patch."""

    kind: Annotated[str, AfterValidator(_task_kind)]
    source: str = Field("", description="a folder of the task's files, the hub's name, or babel")
    revision: str | None = None
    split: Split | None = Field(None, description="the task's usual one by default; such as validation[80%:]")
    languages: Languages | None = Field(None, description="in a language set those that it has; all by default")
    items: Count = Field(200, description="premises, questions or prompts a language")
    max_new_tokens: Count = 32
    min_new_tokens: int = Field(0, ge=0, description="generation: before which no text ends")
    prompt_tokens: Count = Field(16, description="generation: of a document that the model goes on from")
    beginnings: str | None = Field(
        None, description="generation: the language of all prompts; the measured one by default"
    )
    head: str | None = Field(None, description="xnli: the language on whose items of head_split a head is fitted")
    head_split: Split = "validation"
    head_items: Count = 830
    tuned: str | None = Field(None, description="the finetuning whose model is asked, instead of the model as it is")
    patches: Names | None = Field(None, description="which of the patches; all by default")
    controls: int = Field(0, ge=0)


class ProtocolsPart(Grid):
    """A task in the protocol of Mondal et al. 2025 and in the sound one, under the same patches."""

    task: str = Field(description="which of the tasks: xquad, or xnli that is answered by a head")
    patches: Names | None = Field(None, description="which of the patches; all by default")
    head_items: Count = Field(400, description="xnli: premises that the published head is fitted on")
    positions: Count = Field(256, description="xnli: the published head reads the last of as many, padded")


class FactorialPart(Grid):
    """Operation x site x protocol: which choice turns the sign of an effect around?"""

    tasks: Names = Field(min_length=1, description="which of the tasks, one a protocol")
    languages: Languages | None = Field(None, description="of the language set; those that the tasks have by default")
    operations: Names = list(OPERATIONS)
    sites: Names | None = Field(None, description="recorded sites; all by default")
    controls: int = Field(0, ge=0)


class ValidityPart(Grid):
    """Is the score real? Split halves of the text, and nulls in which there is no language to find."""

    splits: int = Field(20, ge=2, description="random halvings of the text")
    nulls: Names = Field(["shuffled"], description="shuffled, source, topic; each is a recording of its own")
    tokens: Count | None = Field(None, description="of each label of a null; as many as the smallest has")


class AblationPart(Grid):
    """Every neuron of the sets ablated by itself."""

    languages: Languages | None = Field(None, description="whose neurons; all of the language set by default")
    value: Literal["mean"] | float | int = 0
    controls: int = Field(0, ge=0)


class PolysemanticityPart(Grid):
    """What else the neurons carry: language against the labels of a task."""

    task: str = Field(description="which of the tasks")
    items: Count | None = None
    position: Literal["mean", "last"] = "last"
    controls: int = Field(20, ge=0)
    permutations: Count = 1000


class TransferPart(Grid, _Training):
    """Training chosen neurons on one language, and what that is worth in others."""

    kind: Annotated[str, AfterValidator(_trained_kind)] = "xnli"
    source: str = Field(description="the task's files: a folder, the hub's name, or babel")
    revision: str | None = None
    train_split: Split = Field("train", description="such as train, or train[:25%]")
    test_split: Split = "test"
    train_items: Count | None = None
    test_items: Count | None = None
    language: str = Field("en", description="of the training data")
    targets: Languages | None = Field(None, description="in a language set those that it has; all by default")
    conditions: Names = ["none", "source", "target", "source+target", "random"]
    seeds: Count = 6
    projections: Names = ["gate"]
    patches: Names = Field([], description="under which every trained model is evaluated, too")


class EffectsPart(Part):
    """How effects are judged."""

    delta: float = Field(0.01, gt=0, description="a smaller change counts as none; 0.01 is one point, or 1 % of a loss")
    resamples: int = Field(5000, ge=100, description="bootstrap and sign-flip samples")


class ReportPart(Part):
    """The page that a study ends with."""

    profiles: int = Field(0, ge=0, description="neurons with a page, the clearest of the first method and set")


class StudyConfig(Part):
    """A whole study."""

    name: Name
    question: str = ""
    seed: int = 0
    published: str | None = Field(None, description="published numbers to stand beside: shipped ones, or a TOML file")
    models: dict[Name, ModelPart] = Field(min_length=1)
    text: TextPart
    published_statistics: PublishedStatisticsPart = PublishedStatisticsPart.model_validate({})
    sets: dict[Name, Languages] = Field(min_length=1, description="language sets by name")
    methods: dict[Name, MethodPart] = Field(min_length=1)
    patches: dict[Name, PatchPart] = {}
    validity: ValidityPart | None = None
    matrix: MatrixPart | None = None
    finetuning: dict[Name, FinetuningPart] = {}
    tasks: dict[Name, TaskPart] = {}
    protocols: dict[Name, ProtocolsPart] = {}
    factorial: FactorialPart | None = None
    ablation: AblationPart | None = None
    polysemanticity: PolysemanticityPart | None = None
    transfer: dict[Name, TransferPart] = {}
    effects: EffectsPart = EffectsPart.model_validate({})
    report: ReportPart = Field(default_factory=lambda: ReportPart.model_validate({}))

    @property
    def languages(self) -> list[str]:
        """All languages of the sets, each once, in order."""
        return list(dict.fromkeys(code for codes in self.sets.values() for code in codes))

    @property
    def grids(self) -> dict[str, Grid]:
        """Everything that is done with neuron sets, by where it stands in the file."""
        single = {
            name: getattr(self, name) for name in ("validity", "matrix", "factorial", "ablation", "polysemanticity")
        }
        several = {
            f"{name}.{key}": part
            for name in ("tasks", "protocols", "transfer")
            for key, part in getattr(self, name).items()
        }
        return {name: part for name, part in {**single, **several}.items() if part is not None}
