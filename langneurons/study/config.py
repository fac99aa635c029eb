"""What a study is: a TOML file, checked before anything runs; an unknown key is an error that names the nearest."""

import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import tomlkit
from pydantic import BaseModel, ValidationError, create_model

from langneurons import storage
from langneurons.errors import LangNeuronsWarning, PatchError, StatisticsError, StudyError, unknown
from langneurons.replication.published import beside
from langneurons.settings import Settings, sentence
from langneurons.study.stages import Stage, misnamed
from langneurons.study.stages.ablation import AblationStage
from langneurons.study.stages.factorial import FactorialStage
from langneurons.study.stages.finetune import FinetuneStage
from langneurons.study.stages.identify import IdentifyStage
from langneurons.study.stages.matrix import MatrixStage
from langneurons.study.stages.polysemanticity import PolysemanticityStage
from langneurons.study.stages.profile import ProfileStage
from langneurons.study.stages.protocols import ProtocolsStage
from langneurons.study.stages.record import PublishedStage, RecordStage
from langneurons.study.stages.tasks import TasksStage
from langneurons.study.stages.transfer import TransferStage
from langneurons.study.stages.validity import NullsStage, ValidityStage
from langneurons.study.tables import Name, Part, StudyConfig, python_only
from langneurons.study.wording import check_method, check_patch

# Each after those whose results it reads; the report, which reads all, stands for itself.
STAGES: tuple[Stage[Any], ...] = (
    RecordStage(),
    PublishedStage(),
    IdentifyStage(),
    NullsStage(),
    ValidityStage(),
    MatrixStage(),
    FinetuneStage(),
    TasksStage(),
    ProtocolsStage(),
    FactorialStage(),
    AblationStage(),
    PolysemanticityStage(),
    TransferStage(),
    ProfileStage(),
)
MOVED = {"effects": "testing"}  # tables of 0.1.0 -> what they are called


def _table_of(stage: Stage[Any]) -> Any:
    if stage.several:
        return dict[Name, stage.part], {}
    return (stage.part, stage.part()) if stage.always else (stage.part | None, None)


_TABLES: dict[str, Any] = {stage.table: _table_of(stage) for stage in STAGES if stage.table}
_Complete = create_model("StudyConfig", __base__=StudyConfig, **_TABLES)


def read_config(path: str | Path) -> StudyConfig:
    """Read and check a study's TOML file.

    Raises:
        StudyError: If it is no TOML, a key is unknown, a value does not fit, or a name that is used does not exist.
    """
    path = Path(path)
    content = storage.read_toml(path, "the study", StudyError)
    if isinstance(content.get("published"), str):
        content["published"] = beside(path, content["published"])
    return parse_config(content, str(path))


def parse_config(content: Mapping[str, Any], name: str = "The study") -> StudyConfig:
    """Check the content of a study.

    Args:
        content: Content of the TOML file.
        name: Name of the study in an error.

    Raises:
        StudyError: If a key is unknown, a value does not fit, or a name that is used does not exist.
    """
    content, moves = _lifted(deepcopy(dict(content)))
    if moves:
        listed = "; ".join(f"{old} is called {current}" for old, current in moves.items())
        warnings.warn(f"{name} uses names of langneurons 0.1.0: {listed}.", LangNeuronsWarning, stacklevel=2)
    try:
        config = _seeded(_Complete.model_validate(content))
    except ValidationError as error:
        problems: dict[str, str] = {}
        for problem in error.errors():
            problems.setdefault(*_problem(problem))
        raise StudyError(f"{name} cannot be run: {'; '.join(problems.values())}") from error
    for mistake in _mistakes(config):
        raise StudyError(f"{name} cannot be run: {mistake}")
    try:
        for method in config.methods.values():
            check_method(method.method, method.options)
        for patch in config.patches.values():
            for value in patch.values:
                check_patch(value)
    except (StatisticsError, PatchError) as error:
        raise StudyError(f"{name} cannot be run: {error}") from error
    return config


def _mistakes(config: StudyConfig) -> Iterator[str]:
    """What is wrong with the study though every table by itself is right."""
    for where, group in _settings_in(config):
        possible = set(type(group).model_fields) - python_only(type(group))
        yield from misnamed("key", where, group.model_fields_set & python_only(type(group)), possible)
    for name, patch in config.patches.items():
        yield from misnamed("language", f"patches.{name}.also", patch.also, config.languages)
    for stage in STAGES:
        yield from stage.mistakes(config)


def _settings_in(part: BaseModel | Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Settings]]:
    """Every settings object in a study, and where it stands."""
    for name, value in part.items() if isinstance(part, Mapping) else part:
        place = f"{where}.{name}" if where else name
        if isinstance(value, Settings):
            yield place, value
        elif isinstance(value, BaseModel | Mapping):
            yield from _settings_in(value, place)


def _seeded(config: StudyConfig) -> StudyConfig:
    """Give the study's seed to all settings that have none of their own."""

    def seeded(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: seeded(inner) for name, inner in value.items()}
        if not isinstance(value, BaseModel):
            return value
        changes = {name: seeded(inner) for name, inner in value if isinstance(inner, BaseModel | dict)}
        if isinstance(value, Settings) and "seed" in type(value).model_fields and "seed" not in value.model_fields_set:
            changes["seed"] = config.seed
        return value.model_copy(update=changes)

    return seeded(config)


def _lifted(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Put keys of 0.1.0 where they stand; also each such key, and what it is called."""
    moves: dict[str, str] = {}
    for old, current in MOVED.items():
        if old in content and current not in content:
            content[current] = content.pop(old)
            moves[old] = current
    for where, table, part in list(_tables_in(content)):
        for key in [key for key in table if key not in part.model_fields and (place := _place_of(key, part))]:
            place = _place_of(key, part)
            path = place.removeprefix(":") if place.startswith(":") else f"{where}.{place}"
            *parents, name = path.split(".")
            target = content
            for parent in parents:
                target = target.setdefault(parent, {}) if isinstance(target, dict) else {}
            if isinstance(target, dict):
                target.setdefault(name, table.pop(key))
                moves[f"{where}.{key}"] = path
    return content, moves


def _tables_in(content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], type[BaseModel]]]:
    """Every table of a study's content: where it stands, what it holds, and its class."""
    for name, table in content.items():
        if name in _Complete.model_fields and isinstance(table, dict):
            part, several = _part_in(_Complete.model_fields[name].annotation)
            if part is not None:
                tables = {f"{name}.{key}": inner for key, inner in table.items()} if several else {name: table}
                yield from ((where, inner, part) for where, inner in tables.items() if isinstance(inner, dict))


def _place_of(key: str, part: type[BaseModel]) -> str:
    """Where a key of 0.1.0 stands, from its table on; "" where it stands nowhere."""
    if issubclass(part, Settings):
        return part.old_names.get(key, "")
    if not issubclass(part, Part) or part.model_config.get("extra") == "allow":
        return ""
    if key in part.moved:
        return part.moved[key]
    groups = {name: _part_in(field.annotation)[0] for name, field in part.model_fields.items()}
    places = [
        f"{name}.{group.old_names.get(key, key)}"
        for name, group in groups.items()
        if group is not None and issubclass(group, Settings) and (key in group.model_fields or key in group.old_names)
    ]
    return places[0] if len(places) == 1 else ""


def _part_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The class of tables in an annotation, and whether there are several by name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    parts = [_part_in(argument)[0] for argument in get_args(annotation)]
    return next(filter(None, parts), None), getattr(annotation, "__origin__", None) is dict


def _problem(error: Any) -> tuple[str, str]:
    """The place of a validation error, and the error in words, with the nearest key where a key is unknown."""
    places = [str(place) for place in error["loc"]]
    where, table = ".".join(places), ".".join(places[:-1])
    part, group = _classes_at(places[:-1])
    if error["type"] == "extra_forbidden":
        own = [name for name in part.model_fields if name not in python_only(part)]
        inner = [name for field in part.model_fields.values() for name in _fields_of(field.annotation)]
        old = list(getattr(part, "moved", ()) or getattr(part, "old_names", ()))
        possible = own if part is _Complete else dict.fromkeys([*own, *inner, *old])
        return where, unknown(f"key in {table or 'the study'}", places[-1], possible)
    if error["type"] == "missing":
        return where, f"{where} is missing."
    if group is not None and set(places[group[0] : group[0] + 1]) & set(group[1].model_fields):
        place, settings = group
        said = sentence({**error, "loc": error["loc"][place:]}, settings)
        return ".".join(places[: place + 1]), f"{'.'.join(places[:place])}: {said}"
    message = error["msg"].removeprefix("Value error, ")
    return where, f"{where} = {error['input']!r}: {message[0].lower()}{message[1:]}."


def _fields_of(annotation: Any) -> list[str]:
    """Options of a settings object, which may also be given beside it."""
    group, several = _part_in(annotation)
    return list(group.model_fields) if group is not None and issubclass(group, Settings) and not several else []


def _classes_at(places: list[str]) -> tuple[type[BaseModel], tuple[int, type[Settings]] | None]:
    """The class of the table at a place; if the place is inside a settings object, also where that begins."""
    part: type[BaseModel] = _Complete
    group = None
    place = 0
    while place < len(places) and places[place] in part.model_fields:
        inner, several = _part_in(part.model_fields[places[place]].annotation)
        place += 2 if several else 1
        if inner is None:
            break
        part = inner
        if issubclass(part, Settings) and group is None:
            group = (place, part)
    return part, group


def as_toml(config: StudyConfig) -> str:
    """The study as TOML, every default written out, what is not set as a comment, each key with what it means."""
    document = tomlkit.document()
    _write(document, config, config.seed)
    return tomlkit.dumps(document)


def _write(table: Any, part: BaseModel, seed: int) -> None:
    """One part of a study; plain values stand before tables, as TOML wants it."""
    nested = []
    fields = sorted(type(part).model_fields.items(), key=lambda item: not item[1].is_required())
    for name, field in fields:
        value, same_seed = getattr(part, name), isinstance(part, Settings) and name == "seed"
        if isinstance(value, BaseModel) or (isinstance(value, Mapping) and isinstance(part, StudyConfig)):
            nested.append((name, value))
        elif name in python_only(type(part)) or (same_seed and value == seed):
            continue
        elif value is None and field.default is None:
            table.add(tomlkit.comment(f"{name} is not set" + (f": {field.description}" if field.description else "")))
        elif value != {}:
            item = _plain(value)
            table.add(name, item.comment(field.description) if field.description else item)
    for name, value in (part.model_extra or {}).items():
        table.add(name, value)
    for name, value in nested:
        if value != {}:
            table.add(name, _table(value, seed))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        table.update(value)
        return table
    return tomlkit.item("none" if value is None else str(value) if isinstance(value, Path) else value)


def _table(value: Any, seed: int) -> Any:
    """A part, several parts by name, or plain values by name."""
    several = isinstance(value, Mapping) and any(isinstance(inner, BaseModel) for inner in value.values())
    table = tomlkit.table(is_super_table=several)
    if isinstance(value, BaseModel):
        _write(table, value, seed)
        return table
    for name, inner in value.items():
        table.add(name, _table(inner, seed) if several else inner)
    return table
