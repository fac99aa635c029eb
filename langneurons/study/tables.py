"""What may stand in a study's file: the tables that every study has; each stage adds its own."""

from collections.abc import Mapping
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

import langneurons as ln
from langneurons.corpora.languages import canonical
from langneurons.errors import LangNeuronsError, ModelError, PatchError, unknown
from langneurons.settings import (
    PYTHON_ONLY,
    Checked,
    ContextLength,
    Controls,
    Count,
    Recording,
    Run,
    Seed,
    Settings,
    Testing,
    plain_types,
)

if TYPE_CHECKING:
    import torch

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Split = Annotated[str, Field(pattern=r"^[a-z]+(\[(\d{1,2}%)?:(\d{1,2}%)?\])?$")]
Value = str | float | int
PARTS = ("shared", "exclusive")  # of a language's neurons, as the filters of NeuronSet are called
PUBLISHED = "published"  # how methods and patches begin that read the published statistics


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _distinct(codes: list[str]) -> list[str]:
    languages = [canonical(code) for code in codes]
    for code, language in zip(codes, languages, strict=True):
        if languages.count(language) > 1:
            raise ValueError(f"{code} stands there twice")
    return languages


Languages = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]


def _ascending(layers: tuple[int, int]) -> tuple[int, int]:
    if layers[0] > layers[1]:
        raise ValueError("The first layer lies after the last")
    return layers


Layer = Annotated[int, Field(ge=0, le=10**4)]
LayerRange = Annotated[tuple[Layer, Layer], AfterValidator(_ascending)]
Names = Annotated[list[str], BeforeValidator(_listed)]


class Part(Checked):
    """A table of the file.

    Attributes:
        old_names: Keys of 0.1.0 that go on working -> where they stand, from this table on, or from the top after a
            colon.
    """

    model_config = ConfigDict(validate_default=True)
    old_names: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, content: object) -> object:
        """Fill what is given of a settings object into the one that stands there by default."""
        if not isinstance(content, dict):
            return content
        defaults = {name: part.default for name, part in cls.model_fields.items() if isinstance(part.default, Settings)}
        over = {name: _over(defaults[name], content[name]) for name in defaults if name in content}
        return _with_none(cls, content | over)


def _over(default: Settings, value: object) -> object:
    if isinstance(default, Controls) and not isinstance(value, dict | Controls):
        value = {"draws": value}
    if not isinstance(value, dict):
        return value
    return default.model_dump(exclude_unset=True) | _with_none(type(default), value)


def _with_none(part: type[BaseModel], content: dict[str, object]) -> dict[str, object]:
    """Options with None where "none" is written, which TOML has no other word for."""
    optional = {name for name, field in part.model_fields.items() if NoneType in plain_types(field.annotation)}
    return {name: None if name in optional and option == "none" else option for name, option in content.items()}


class ModelOptions(Settings):
    """How a model is loaded."""

    error: ClassVar[type[LangNeuronsError]] = ModelError

    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    backend: Literal["auto", "hooked", "bridge"] = Field("auto", description="TransformerLens's class of models.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Type of the weights; by default the checkpoint's own."
    )
    device: str | None = Field(None, description="Device, such as cpu or cuda; by default a GPU where there is one.")
    gguf_file: str | None = Field(None, description="A GGUF file in the model's folder or hub repository.")

    @property
    def options(self) -> dict[str, Any]:
        """What ``ln.load_model`` takes beside the name."""
        return self.model_dump(include=set(ModelOptions.model_fields))

    def load(self, name: str) -> "torch.nn.Module":
        """Load a model: babel, a local folder, or a hub name."""
        return ln.load_model(name, **{option: value for option, value in self.options.items() if value is not None})


class ModelPart(ModelOptions):
    """A model to study."""

    name: str = Field(min_length=1, description="babel, a local folder, or a hub name")
    published_as: str | None = Field(
        None, description="the model whose published numbers stand beside; as it is called here"
    )


class TextPart(Part):
    """The text that neurons are found and judged on."""

    old_names: ClassVar[Mapping[str, str]] = {
        "tokens": ":recording.tokens_per_language",
        "context_length": ":recording.context_length",
        "sites": ":recording.sites",
        "batch_size": ":run.batch_size",
    }

    source: str = Field(
        min_length=1, description="a folder of <language>*.{txt,jsonl,parquet}, babel, or a hub data set"
    )
    text_column: str = "text"
    revision: str | None = None
    heldout: Share | Literal["files"] = Field(
        "files", description="'files': those with heldout in their name; or a share of the documents to hold out"
    )
    heldout_tokens: Count | None = Field(6000, description="of each language to patch and ablate on")
    heldout_context: ContextLength = 128


class MethodPart(Part):
    """A way to find neurons: its name and options, as ``langneurons identify`` takes them."""

    model_config = ConfigDict(extra="allow")
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
        return self.method.startswith(f"{PUBLISHED}-")


WRITES = (
    "a number, mean, p90; add:mean, scale:2, diffmean; published:mean_mu_act; parts of a language's neurons by name: "
    "shared=scale:1.2; exclusive=scale:0.8"
)


def writes_of(text: str) -> list[tuple[str, str]]:
    """What is written at which part of a language's neurons.

    Args:
        text: What is written at all of them, or ``<part>=<what>`` for each part, divided by semicolons.

    Returns:
        Pairs of a part ("shared" or "exclusive", see ``NeuronSet.shared``; "" for all) and what is written there.

    Raises:
        PatchError: If there is no such part, it is named twice, or stands beside something without a part.

    Example:
        >>> writes_of("shared=scale:1.2; exclusive=0"), writes_of("mean")
        ([('shared', 'scale:1.2'), ('exclusive', '0')], [('', 'mean')])
    """
    pieces = [piece.strip() for piece in text.split(";")]
    pairs = [(part.strip(), word.strip()) for part, _, word in (piece.rpartition("=") for piece in pieces)]
    parts = [part for part, _ in pairs]
    for part in parts:
        if part not in PARTS and (part or len(parts) > 1):
            raise PatchError(unknown("part of a language's neurons", part, PARTS))
        if parts.count(part) > 1:
            raise PatchError(f"{text!r:.100} writes twice at the {part} neurons.")
    return pairs


class PatchPart(Part):
    """What is written at a language's own neurons."""

    write: Value = Field(description=WRITES)
    also: dict[str, Value] = Field({}, description="other language -> what is written at its neurons meanwhile")
    everywhere: str | None = Field(
        None, description="diffmean: a recorded site whose every unit is written, not the neurons; such as resid_post"
    )
    layers: LayerRange | None = Field(None, description="the first and the last layer that is written; all by default")
    dose_of: str | None = Field(
        None, description="add, diffmean: the patch whose dose it is scaled to, on the held-out text"
    )
    published_as: str | None = Field(
        None, description="what published numbers call it; as it is called here by default"
    )

    @property
    def values(self) -> list[str]:
        """Everything that it writes, wherever.

        Raises:
            PatchError: If there is no such part of a language's neurons.
        """
        return [word for value in (self.write, *self.also.values()) for _, word in writes_of(str(value))]

    @property
    def parts(self) -> list[str]:
        """The parts of the language's neurons that it writes at, "" for all."""
        return [part for part, _ in writes_of(str(self.write))]

    @property
    def published(self) -> bool:
        """Whether it writes values of the published statistics."""
        return any(value.startswith(f"{PUBLISHED}:") for value in self.values)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides what it writes; options that are not set are left out, as before there were any."""
        optional = {name for name in ("everywhere", "layers", "dose_of") if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude={"published_as", *optional})


class Grid(Part):
    """Something that is done with the neuron sets of methods in language sets."""

    methods: Names | None = Field(None, description="which of the methods; all by default, [] none")
    sets: Names | None = Field(None, description="which of the language sets; all by default")

    def covers(self, method: str, language_set: str) -> bool:
        """Whether it is done with the neurons of a method in a language set."""
        methods, sets = self.methods, self.sets
        return (methods is None or method in methods) and (sets is None or language_set in sets)


class PatchedGrid(Grid):
    """Something that is done under patches."""

    patches: Names | None = Field(None, description="which of the patches; all by default")


class StudyConfig(Part):
    """What every study has; each stage adds the table that it reads."""

    name: Name
    question: str = ""
    seed: Seed = Field(0, description="of every random choice; a table of settings may have its own")
    published: str | None = Field(None, description="published numbers to stand beside: shipped ones, or a TOML file")
    models: dict[Name, ModelPart] = Field(min_length=1)
    text: TextPart
    recording: Recording = Recording()
    sets: dict[Name, Languages] = Field(min_length=1, description="language sets by name")
    methods: dict[Name, MethodPart] = Field(min_length=1)
    patches: dict[Name, PatchPart] = {}
    testing: Testing = Testing()
    run: Run = Run()

    @property
    def languages(self) -> list[str]:
        """All languages of the sets, each once, in order."""
        return list(dict.fromkeys(code for codes in self.sets.values() for code in codes))

    def tables(self, name: str) -> dict[str, Any]:
        """The tables of a stage of which there may be several."""
        return getattr(self, name)

    def patches_of(self, part: PatchedGrid) -> dict[str, PatchPart]:
        """The patches of a part; all of the study's where it names none."""
        return {name: self.patches[name] for name in (self.patches if part.patches is None else part.patches)}


def python_only(group: type[BaseModel]) -> set[str]:
    """Fields of a settings object that only a Python object can fill."""
    return {name for name, about in group.model_fields.items() if about.json_schema_extra == PYTHON_ONLY}
