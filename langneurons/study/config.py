"""What a study is: a TOML file, checked before anything runs; an unknown key is an error that names the nearest.

Nothing heavy is imported to read a file, so that what is wrong with its keys, values and names is said at once.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args, get_origin

import tomlkit
from pydantic import BaseModel, ValidationError, create_model
from pydantic_core import ErrorDetails
from tomlkit.items import Item, Table

from langneurons import storage
from langneurons.errors import LangNeuronsError, StudyError, unknown, warn_user
from langneurons.replication.published import beside
from langneurons.settings import Settings, sentence, shown
from langneurons.study.stages import Stage, misnamed, misnamed_languages
from langneurons.study.stages.ablation import AblationStage
from langneurons.study.stages.factorial import FactorialStage
from langneurons.study.stages.matrix import MatrixStage
from langneurons.study.stages.polysemanticity import PolysemanticityStage
from langneurons.study.stages.profile import ProfileStage
from langneurons.study.stages.protocols import ProtocolsStage
from langneurons.study.stages.record import IdentifyStage, PublishedStage, RecordStage
from langneurons.study.stages.survival import AlteredStage, SurvivalStage
from langneurons.study.stages.sweep import SweepStage
from langneurons.study.stages.tasks import TasksStage
from langneurons.study.stages.training import FinetuneStage, TransferStage
from langneurons.study.stages.validity import NullsStage, ValidityStage
from langneurons.study.tables import Name, Part, PatchPart, StudyConfig, python_only
from langneurons.study.wording import make_method, patch_of

CONFIG = "study.toml"  # in the directory of a run

# Each after those whose results it reads; the report, which reads all, stands for itself.
STAGES: tuple[Stage[Any], ...] = (
    RecordStage(),
    PublishedStage(),
    IdentifyStage(),
    NullsStage(),
    ValidityStage(),
    AlteredStage(),
    SurvivalStage(),
    MatrixStage(),
    SweepStage(),
    FinetuneStage(),
    TasksStage(),
    ProtocolsStage(),
    FactorialStage(),
    AblationStage(),
    PolysemanticityStage(),
    TransferStage(),
    ProfileStage(),
)


def _table_of(stage: Stage) -> tuple[object, object]:
    """The annotation of a stage's table, and its default."""
    if stage.several:
        return dict[Name, stage.part], {}
    return (stage.part, stage.part()) if stage.always else (stage.part | None, None)


_TABLES: dict[str, Any] = {stage.table: _table_of(stage) for stage in STAGES if stage.table}
_Complete = create_model("StudyConfig", __base__=StudyConfig, **_TABLES)
# Tables that hold several tables by name.
SEVERAL = {name for name, field in _Complete.model_fields.items() if get_origin(field.annotation) is dict}


def read_config(path: str | Path) -> StudyConfig:
    """Read and check a study's TOML file.

    Args:
        path: The file, or the directory of an earlier run.

    Raises:
        StudyError: If it is not TOML, a key is unknown, a value does not fit, or a name that is used does not exist.
    """
    path = storage.path_of(path)
    path = path / CONFIG if path.is_dir() else path
    content = storage.read_toml(path, "the study", StudyError)
    if isinstance(content.get("published"), str):
        content["published"] = beside(path, content["published"])
    return parse_config(content, str(path))


def read_study(path: str | Path, out: str | Path | None = None) -> tuple[StudyConfig, Path]:
    """Read a study, and find the directory to run in.

    Args:
        path: The TOML file, or the directory of an earlier run.
        out: The directory; by default that of the earlier run, the study's ``run.out``, or ``runs/<its name>``.

    Raises:
        StudyError: If the file is wrong, see ``read_config``.
    """
    config = read_config(path)
    return config, Path(out or (path if Path(path).is_dir() else config.run.out or Path("runs") / config.name))


def parse_config(content: Mapping[str, object], name: str = "The study") -> StudyConfig:
    """Check the content of a study.

    Args:
        content: Content of the TOML file.
        name: Name of the study in an error.

    Raises:
        StudyError: If a key is unknown, a value does not fit, or a name that is used does not exist.
    """
    content = deepcopy(dict(content))
    if moves := _lift(content):
        listed = "; ".join(f"{old} is called {current}" for old, current in moves.items())
        warn_user(f"{name} uses names of langneurons 0.1.0: {listed}.")
    try:
        config = _Complete.model_validate(content)
        config = _seeded(config, config.seed)
        for mistake in _mistakes(config):
            raise StudyError(mistake)
    except ValidationError as error:
        problems: dict[str, str] = {}
        for problem in error.errors():
            problems.setdefault(*_problem(problem))
        raise StudyError(
            f"{name} cannot be run: {'; '.join(problem.removesuffix('.') for problem in problems.values())}."
        ) from error
    except LangNeuronsError as error:
        raise StudyError(f"{name} cannot be run: {error}") from error
    return config


def _mistakes(config: StudyConfig) -> Iterator[str]:
    """What is wrong with the study though every table by itself is right.

    Raises:
        LangNeuronsError: If a method or a patch is wrong.
    """
    for name, patch in config.patches.items():
        yield from misnamed_languages(f"patches.{name}.also", patch.also, config.languages)
    for stage in STAGES:
        yield from stage.mistakes(config)
    for name, patch in config.patches.items():
        operations = [patch_of(value)[0] for value in patch.values]
        yield from _misplaced(config, f"patches.{name}", patch, operations[: len(patch.parts)])
    for method in config.methods.values():
        make_method(method.method, method.options)


def _misplaced(config: StudyConfig, where: str, patch: PatchPart, operations: list[str]) -> Iterator[str]:
    """What is wrong with where a patch writes, and with the patch whose dose it should have."""
    if patch.everywhere is not None:
        yield from misnamed("site", f"{where}.everywhere", [patch.everywhere], config.recording.sites)
        if operations != ["diffmean"] or any(patch.parts):
            yield f"{where}.everywhere is for diffmean, and {patch.write!r} is written at neurons."
    if patch.dose_of is not None:
        own_dose = {name for name, other in config.patches.items() if other.dose_of is None}
        yield from misnamed("patch", f"{where}.dose_of", [patch.dose_of], own_dose)
        if not {"add", "diffmean"}.issuperset(operations) or patch.also:
            yield f"{where}.dose_of scales what add or diffmean add at one language's neurons, not {patch.write!r}."


def _seeded(value: object, seed: int, where: str = "") -> Any:
    """Give the study's seed to all settings that have none of their own, and refuse what only Python can fill."""
    if isinstance(value, dict):
        return {name: _seeded(inner, seed, f"{where}.{name}") for name, inner in value.items()}
    if not isinstance(value, BaseModel):
        return value
    inner_tables = [(name, inner) for name, inner in value if isinstance(inner, BaseModel | dict)]
    changes = {name: _seeded(inner, seed, f"{where}.{name}".strip(".")) for name, inner in inner_tables}
    if isinstance(value, Settings):
        fields, closed = set(type(value).model_fields), python_only(type(value))
        for mistake in misnamed("key", where, value.model_fields_set & closed, fields - closed):
            raise StudyError(mistake)
        if "seed" in fields - value.model_fields_set:
            changes["seed"] = seed
    return value.model_copy(update=changes)


def _lift(content: dict[str, Any]) -> dict[str, str]:
    """Put keys of 0.1.0 where they stand, and say of each what it is called."""
    moves: dict[str, str] = {}
    if "effects" in content and "testing" not in content:
        content["testing"] = content.pop("effects")
        moves["effects"] = "testing"
    for where, table, part in list(_tables_in(content)):
        for key in [key for key in table if key not in part.model_fields]:
            if not (place := _place_of(key, part)):
                continue
            path = place[1:] if place.startswith(":") else f"{where}.{place}"
            *parents, name = path.split(".")
            target = content
            for parent in parents:
                target = target.setdefault(parent, {}) if isinstance(target, dict) else {}
            if isinstance(target, dict):
                target.setdefault(name, table.pop(key))
                moves[f"{where}.{key}"] = path
    return moves


def _tables_in(content: Mapping[str, object]) -> Iterator[tuple[str, dict[str, Any], type[Part | Settings]]]:
    """Every table of a study's content: where it stands, what it holds, and its class."""
    for name, part in _parts_in(_Complete).items():
        table = content.get(name)
        if isinstance(table, dict):
            tables = {f"{name}.{key}": inner for key, inner in table.items()} if name in SEVERAL else {name: table}
            yield from ((where, inner, part) for where, inner in tables.items() if isinstance(inner, dict))


def _place_of(key: str, part: type[Part | Settings]) -> str:
    """Where a key of 0.1.0 stands, from its table on, or from the top after a colon; "" where it stands nowhere."""
    groups = {name: group for name, group in _parts_in(part).items() if issubclass(group, Settings)}
    places = [
        f"{name}.{group.old_names.get(key, key)}"
        for name, group in groups.items()
        if key in (*group.model_fields, *group.old_names)
    ]
    return part.old_names.get(key) or (places[0] if len(places) == 1 else "")


def _parts_in(part: type[BaseModel]) -> dict[str, type[Part | Settings]]:
    """The classes of the tables in a table."""
    classes = {name: _class_in(field.annotation) for name, field in part.model_fields.items()}
    return {name: inner for name, inner in classes.items() if inner is not None}


def _class_in(annotation: object) -> type[Part | Settings] | None:
    if isinstance(annotation, type) and issubclass(annotation, Part | Settings):
        return annotation
    return next(filter(None, map(_class_in, get_args(annotation))), None)


def _problem(error: ErrorDetails) -> tuple[str, str]:
    """The place of a validation error, and the error in words, with the nearest key where a key is unknown."""
    places = [str(place) for place in error["loc"]]
    where, table = ".".join(places), ".".join(places[:-1])
    classes = _classes_at(places[:-1])
    part = classes[max(classes)]
    if error["type"] == "extra_forbidden":
        possible = [name for name in part.model_fields if name not in python_only(part)]
        if part is not _Complete:
            possible += [field for group in _parts_in(part).values() for field in group.model_fields]
            possible += part.old_names
        return where, unknown(f"key in {table or 'the study'}", places[-1], dict.fromkeys(possible))
    if error["type"] == "missing":
        return where, f"{where} is missing."
    for depth, group in reversed(classes.items()):
        if issubclass(group, Settings) and set(places[depth : depth + 1]) & set(group.model_fields):
            said = sentence({**error, "loc": error["loc"][depth:]}, group)
            return ".".join(places[: depth + 1]), f"{'.'.join(places[:depth])}: {said}"
    message = error["msg"].removeprefix("Value error, ")
    return where, f"{where} = {shown(error['input'])}: {message[0].lower()}{message[1:]}."


def _classes_at(places: list[str]) -> dict[int, type[Part | Settings]]:
    """The class of every table on the way to a place, by how deep it stands."""
    part, depth = _Complete, 0
    classes: dict[int, type[Part | Settings]] = {depth: part}
    while depth < len(places) and (inner := _parts_in(part).get(places[depth])) is not None:
        depth += 2 if part is _Complete and places[depth] in SEVERAL else 1
        classes[depth] = part = inner
    return classes


def as_toml(config: StudyConfig) -> str:
    """The study as TOML, every default written out, what is not set as a comment, each key with what it means."""
    document = tomlkit.document()
    _write(document, config, config.seed)
    return tomlkit.dumps(document)


def _write(table: Table | tomlkit.TOMLDocument, part: BaseModel, seed: int) -> None:
    """One part of a study; plain values stand before tables, as TOML wants it."""
    nested = {}
    fields = sorted(type(part).model_fields.items(), key=lambda item: not item[1].is_required())
    for name, field in fields:
        value, same_seed = getattr(part, name), isinstance(part, Settings) and name == "seed"
        if value == {} or name in python_only(type(part)) or (same_seed and value == seed):
            continue
        if isinstance(value, BaseModel) or (isinstance(value, Mapping) and isinstance(part, StudyConfig)):
            nested[name] = value
        elif value is None and field.default is None:
            table.add(tomlkit.comment(f"{name} is not set" + (f": {field.description}" if field.description else "")))
        else:
            item = _plain(value)
            table.add(name, item.comment(field.description) if field.description else item)
    for name, value in (part.model_extra or {}).items():
        table.add(name, value)
    for name, value in nested.items():
        table.add(name, _table(value, seed))


def _plain(value: object) -> Item:
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        table.update(value)
        return table
    return tomlkit.item("none" if value is None else str(value) if isinstance(value, Path) else value)


def _table(value: BaseModel | Mapping[str, object], seed: int) -> Table:
    """A part, several parts by name, or plain values by name."""
    if isinstance(value, BaseModel):
        table = tomlkit.table()
        _write(table, value, seed)
        return table
    table = tomlkit.table(is_super_table=any(isinstance(inner, BaseModel) for inner in value.values()))
    for name, inner in value.items():
        table.add(name, _table(inner, seed) if isinstance(inner, BaseModel) else inner)
    return table
