"""What a study is: a TOML file, checked before anything runs; an unknown key is an error that names the nearest."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import BaseModel, ValidationError

import langneurons as ln
from langneurons import storage
from langneurons.analysis.validity import NULLS
from langneurons.errors import PatchError, StatisticsError, StudyError, unknown
from langneurons.evaluation.factorial import OPERATIONS
from langneurons.replication.published import PUBLISHED_METRICS, beside
from langneurons.study.parts import StudyConfig
from langneurons.study.wording import check_method, check_patch


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
    for mistake in _mistakes(config):
        raise StudyError(f"{said} cannot be run: {mistake}")
    try:
        for method in config.methods.values():
            check_method(method.method, method.options)
        for patch in config.patches.values():
            for write in (patch.write, *patch.also.values()):
                check_patch(str(write))
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
        if isinstance(value, BaseModel) or (isinstance(value, Mapping) and isinstance(part, StudyConfig)):
            nested.append((name, value))
        elif value is None:
            table.add(tomlkit.comment(f"{name} is not set" + (f": {field.description}" if field.description else "")))
        elif value != {}:
            table.add(name, _filled(tomlkit.inline_table(), value) if isinstance(value, Mapping) else value)
            if field.description:
                table[name].comment(field.description)
    _filled(table, part.model_extra or {})
    for name, value in nested:
        if value != {}:
            table.add(name, _table(value))


def _table(value: Any) -> Any:
    """A part, several parts by name, or plain values by name."""
    several = isinstance(value, Mapping) and any(isinstance(one, BaseModel) for one in value.values())
    table = tomlkit.table(is_super_table=several)
    if isinstance(value, BaseModel):
        _write(table, value)
        return table
    return _filled(table, {name: _table(one) if several else one for name, one in value.items()})


def _filled(table: Any, values: Mapping[str, Any]) -> Any:
    for name, value in values.items():
        table.add(name, value)
    return table


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


def _references(config: StudyConfig) -> Iterator[tuple[str, str, list[str]]]:
    """Every name that one part uses of another: what it is, the name, and those that exist."""
    methods, sets, patches, tasks = (list(part) for part in (config.methods, config.sets, config.patches, config.tasks))
    for where, part in config.grids.items():
        yield from ((f"method in {where}", name, methods) for name in part.methods or [])
        yield from ((f"language set in {where}", name, sets) for name in part.sets or [])
        yield from ((f"patch in {where}", name, patches) for name in getattr(part, "patches", None) or [])
        for key in ("languages", "targets"):
            asked = getattr(part, key, None) or []
            yield from ((f"language in {where}.{key}", code, _languages(config, part.sets)) for code in asked)
    for name, patch in config.patches.items():
        yield from ((f"language in patches.{name}.also", code, config.languages) for code in patch.also)
    for name, task in config.tasks.items():
        if task.tuned is not None:
            yield f"finetuning in tasks.{name}", task.tuned, list(config.finetuning)
        if task.beginnings is not None:
            yield f"language in tasks.{name}.beginnings", task.beginnings, config.languages
    if config.polysemanticity is not None:
        yield "task in polysemanticity", config.polysemanticity.task, tasks
    yield from ((f"task in protocols.{name}", part.task, tasks) for name, part in config.protocols.items())
    if config.factorial is not None:
        yield from (("task in factorial", name, tasks) for name in config.factorial.tasks)
        yield from (("operation in factorial", name, list(OPERATIONS)) for name in config.factorial.operations)
        yield from (("site in factorial", site, config.text.sites) for site in config.factorial.sites or [])
    if config.validity is not None:
        yield from (("null in validity", name, [*map(str, NULLS)]) for name in config.validity.nulls)


def _languages(config: StudyConfig, sets: list[str] | None) -> list[str]:
    chosen = config.sets if sets is None else [name for name in sets if name in config.sets]
    return list(dict.fromkeys(code for name in chosen for code in config.sets[name]))


def _mistakes(config: StudyConfig) -> Iterator[str]:
    """What does not go together."""
    kinds = ln.tasks.KINDS
    for name, part in config.protocols.items():
        task = config.tasks[part.task]
        if kinds[task.kind].metrics[0] not in PUBLISHED_METRICS:
            yield f"protocols.{name}: both protocols ask xnli or xquad, and {part.task!r} is of the kind {task.kind!r}."
        elif not kinds[task.kind].generates and task.head is None and task.tuned is None:
            yield f"protocols.{name}: the published protocol answers by a head; give tasks.{part.task} head or tuned."
    for name, task in config.tasks.items():
        if not task.source and not kinds[task.kind].reads_text:
            yield f"tasks.{name}.source is missing."
        if task.tuned is not None and config.finetuning[task.tuned].kind != task.kind:
            yield f"tasks.{name} asks {task.kind} of a model tuned on {config.finetuning[task.tuned].kind}."
    asked = config.polysemanticity
    if asked is not None and config.tasks[asked.task].tuned is not None:
        yield f"polysemanticity looks at the model as it is, and tasks.{asked.task} asks a tuned one."
    if config.matrix is not None:
        for name in config.patches if config.matrix.patches is None else config.matrix.patches:
            if config.patches[name].also:
                yield f"matrix writes at one language's neurons, and patches.{name} at others' also: name its patches."
    if config.validity is not None:
        for name in config.methods if config.validity.methods is None else config.validity.methods:
            if config.methods[name].published:
                yield (
                    f"validity needs scores of other recordings, and methods.{name} reads published statistics: name "
                    "its methods (own-p90 is what published-act-prob-90p is but for its batches)."
                )
