"""What a study is: a TOML file, checked before anything runs; an unknown key is an error that names the nearest."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from langneurons.errors import PatchError, StatisticsError, StudyError, unknown
from langneurons.study.wording import check_patch, make_method

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _distinct(codes: list[str]) -> list[str]:
    twice = [code for code in dict.fromkeys(codes) if codes.count(code) > 1]
    if twice:
        raise ValueError(f"{twice[0]} stands there twice")
    return codes


Languages = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]
Names = Annotated[list[str], BeforeValidator(_listed)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelPart(_Part):
    """A model to study."""

    name: str = Field(description="babel, a local folder, or a hub name")
    revision: str | None = Field(None, description="of a hub model: a branch, tag or commit")
    backend: Literal["auto", "hooked", "bridge"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(None, description="the checkpoint's own by default")
    device: str | None = Field(None, description="such as cuda")


class TextPart(_Part):
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


class MethodPart(_Part):
    """A way to find neurons: its name and options, as ``langneurons identify`` takes them."""

    model_config = ConfigDict(extra="allow", frozen=True, validate_default=True)
    method: str = Field(description="such as lape or activation-probability; further keys are its options")
    site: str | None = Field(None, description="a recorded site; the first by default")

    @property
    def options(self) -> dict[str, Any]:
        """The options of the method."""
        return dict(self.model_extra or {})


class PatchPart(_Part):
    """What is written at a language's own neurons."""

    write: str | float | int = Field(description="a number, mean, p90; add:mean, scale:2, diffmean")


class _Grid(_Part):
    methods: Names | None = Field(None, description="which of the methods; all by default")
    sets: Names | None = Field(None, description="which of the language sets; all by default")


class MatrixPart(_Grid):
    """Perplexity matrices: patch one language's neurons, measure every language."""

    patches: Names | None = Field(None, description="which of the patches; all by default")
    controls: int = Field(20, ge=0, description="draws of matched control neurons a language")


class TaskPart(_Grid):
    """A task that the model is scored on, unpatched and under every patch."""

    kind: Literal["xnli", "xquad", "generation"]
    source: str = Field("", description="a folder of the task's files, the hub's name, or babel")
    revision: str | None = None
    split: str | None = Field(None, description="the task's usual one by default")
    languages: Languages | None = Field(None, description="all of the language set by default")
    items: Count = Field(200, description="premises, questions or prompts a language")
    max_new_tokens: Count = 32
    head: str | None = Field(None, description="xnli: the language on whose items of head_split a head is fitted")
    head_split: str = "validation"
    head_items: Count = 830
    patches: Names | None = Field(None, description="which of the patches; all by default")
    controls: int = Field(0, ge=0)


class AblationPart(_Grid):
    """Every neuron of the sets ablated by itself."""

    languages: Languages | None = Field(None, description="whose neurons; all of the language set by default")
    value: Literal["mean"] | float | int = 0
    controls: int = Field(0, ge=0)


class PolysemanticityPart(_Grid):
    """What else the neurons carry: language against the labels of a task."""

    task: str = Field(description="which of the tasks")
    items: Count | None = None
    position: Literal["mean", "last"] = "last"
    controls: int = Field(20, ge=0)
    permutations: Count = 1000


class TransferPart(_Grid):
    """Training chosen neurons on one language, and what that is worth in others."""

    kind: Literal["xnli", "xquad"] = "xnli"
    source: str = Field(description="the task's files: a folder, the hub's name, or babel")
    revision: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    train_items: Count | None = None
    test_items: Count | None = None
    language: str = Field("en", description="of the training data")
    targets: Languages | None = None
    conditions: Names = ["none", "source", "target", "source+target", "random"]
    seeds: Count = 6
    rank: Count = 8
    alpha: float = 16
    projections: Names = ["gate"]
    attention: Names = ["q", "k", "v", "o"]
    epochs: Count | None = None
    steps: Count | None = None
    batch_size: Count = 8
    learning_rate: float = Field(1e-4, gt=0)
    patches: Names = Field([], description="under which every trained model is evaluated, too")


class ReportPart(_Part):
    """The page that a study ends with."""

    profiles: int = Field(0, ge=0, description="neurons with a page, the clearest of the first method and set")


class StudyConfig(_Part):
    """A whole study."""

    name: Name
    question: str = ""
    seed: int = 0
    models: dict[Name, ModelPart] = Field(min_length=1)
    text: TextPart
    sets: dict[Name, Languages] = Field(min_length=1, description="language sets by name")
    methods: dict[Name, MethodPart] = Field(min_length=1)
    patches: dict[Name, PatchPart] = {}
    matrix: MatrixPart | None = None
    tasks: dict[Name, TaskPart] = {}
    ablation: AblationPart | None = None
    polysemanticity: PolysemanticityPart | None = None
    transfer: dict[Name, TransferPart] = {}
    report: ReportPart = Field(default_factory=lambda: ReportPart.model_validate({}))

    @property
    def languages(self) -> list[str]:
        """All languages of the sets, each once, in order."""
        return list(dict.fromkeys(code for codes in self.sets.values() for code in codes))


def read_config(path: str | Path) -> StudyConfig:
    """Read and check a study's TOML file.

    Raises:
        StudyError: If it is no TOML, a key is unknown, a value does not fit, or a name that is used does not exist.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise StudyError(f"Cannot read the study {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is no TOML file: {error}.") from error
    return parse_config(content, str(path))


def parse_config(content: dict[str, Any], said: str = "The study") -> StudyConfig:
    """Check the content of a study.

    Args:
        content: What the TOML file holds.
        said: What to call it in an error.

    Raises:
        StudyError: As ``read_config``.
    """
    try:
        config = StudyConfig.model_validate(content)
    except ValidationError as error:
        found = "; ".join(dict.fromkeys(_sentence(one) for one in error.errors()))
        raise StudyError(f"{said} cannot be run: {found}") from error
    for what, given, possible in _references(config):
        if given not in possible:
            raise StudyError(f"{said} cannot be run: {unknown(what, given, possible)}")
    try:
        for method in config.methods.values():
            make_method(method.method, method.options)
        for patch in config.patches.values():
            check_patch(str(patch.write))
    except (StatisticsError, PatchError) as error:
        raise StudyError(f"{said} cannot be run: {error}") from error
    return config


def written(config: StudyConfig) -> str:
    """The study as TOML, every default written out, what is not set as a comment, each key with what it means."""
    document = tomlkit.document()
    _write(document, config)
    return tomlkit.dumps(document)


def _write(table: Any, part: BaseModel) -> None:
    """One part of a study; plain values stand before tables, as TOML wants it."""
    nested = []
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel) or (isinstance(value, Mapping) and _holds_tables(value)):
            nested.append((name, value))
        elif value is None:
            table.add(tomlkit.comment(f"{name} is not set" + (f": {field.description}" if field.description else "")))
        elif value != {}:
            table.add(name, value)
            if field.description:
                table[name].comment(field.description)
    for name, value in (part.model_extra or {}).items():
        table.add(name, value)
    for name, value in nested:
        inner = tomlkit.table(is_super_table=isinstance(value, Mapping))
        for key, one in [(None, value)] if isinstance(value, BaseModel) else value.items():
            _write(inner if key is None else inner.setdefault(key, tomlkit.table()), one)
        table.add(name, inner)


def _holds_tables(value: Mapping[str, Any]) -> bool:
    return any(isinstance(one, BaseModel) for one in value.values())


def _sentence(error: Any) -> str:
    """One validation error in words, with the nearest key where a key is unknown."""
    places = [str(place) for place in error["loc"]]
    where = ".".join(places)
    if error["type"] == "extra_forbidden":
        inside = _part_at(places[:-1])
        return unknown(f"key in {'.'.join(places[:-1]) or 'the study'}", places[-1], inside.model_fields)
    if error["type"] == "missing":
        return f"{where} is missing."
    return f"{where} = {error['input']!r}: {_plain(error['msg'])}."


def _plain(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _part_at(places: list[str]) -> type[BaseModel]:
    """The part of a study that stands at a place, to say which keys it has."""
    part: Any = StudyConfig
    for place in places:
        if isinstance(part, type) and issubclass(part, BaseModel):
            part = part.model_fields[place].annotation if place in part.model_fields else part
            arguments = getattr(part, "__args__", ())
            models = [one for one in arguments if isinstance(one, type) and issubclass(one, BaseModel)]
            part = models[0] if models else part
    return part if isinstance(part, type) and issubclass(part, BaseModel) else StudyConfig


def _references(config: StudyConfig) -> list[tuple[str, str, list[str]]]:
    """Every name that one part uses of another: what it is, the name, and those that exist."""
    known = {"method": list(config.methods), "language set": list(config.sets), "patch": list(config.patches)}
    found: list[tuple[str, str, list[str]]] = []
    grids: dict[str, Any] = {"matrix": config.matrix, "ablation": config.ablation}
    grids |= {"polysemanticity": config.polysemanticity}
    grids |= {f"tasks.{name}": task for name, task in config.tasks.items()}
    grids |= {f"transfer.{name}": one for name, one in config.transfer.items()}
    for where, part in grids.items():
        if part is None:
            continue
        for what, names in (("method", part.methods), ("language set", part.sets)):
            found += [(f"{what} in {where}", name, known[what]) for name in names or []]
        found += [(f"patch in {where}", name, known["patch"]) for name in getattr(part, "patches", None) or []]
    if config.polysemanticity is not None:
        found.append(("task in polysemanticity", config.polysemanticity.task, list(config.tasks)))
    return found
