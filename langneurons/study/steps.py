"""The steps of a study: what each depends on, and so what has to run again when something changes."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from langneurons import storage
from langneurons.study.parts import FactorialPart, Grid, MethodPart, PatchPart, StudyConfig, TaskPart
from langneurons.study.wording import is_published, make_method

# Raised when the same settings give other results, so that what an older langneurons computed runs again.
VERSIONS = {
    "record": 1,
    "published": 1,
    "identify": 1,
    "nulls": 1,
    "validity": 1,
    "matrix": 1,
    "finetune": 1,
    "evaluate": 1,
    "protocols": 1,
    "factorial": 1,
    "ablate": 1,
    "polysemanticity": 1,
    "transfer": 1,
    "profile": 1,
    "report": 1,
}
JUDGED = ("matrix", "evaluate", "protocols", "factorial", "transfer")  # of which effects are part
PUBLISHED = "published"
Source = Callable[[str, str], str]
Told = tuple[str, str, dict[str, Any], list[str]]


@dataclass(frozen=True)
class Step:
    """One thing to compute.

    Attributes:
        name: Such as ``"matrix/babel/all/lape/zero"``: kind, model, language set, method, and what is done.
        kind: What is computed.
        settings: All of the study that its result depends on.
        inputs: The steps whose results it reads.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    inputs: tuple["Step", ...] = ()

    @cached_property
    def key(self) -> str:
        """The hash of everything that the result depends on."""
        content = json.dumps(self.settings, sort_keys=True, ensure_ascii=False)
        parts = [one.key for one in self.inputs]
        return storage.fingerprint(self.kind, str(VERSIONS[self.kind]), content, *parts)

    @property
    def model(self) -> str:
        """What the study calls the model; "" for the report."""
        return self.name.split("/")[1] if "/" in self.name else ""

    def input(self, kind: str) -> "Step":
        """The input of a kind."""
        return next(one for one in self.inputs if one.kind == kind)


def steps_of(config: StudyConfig, source: Source) -> dict[str, Step]:
    """List a study's steps by name, each after its inputs.

    Args:
        config: The study.
        source: From kind ("model", "text", "task", "numbers") and name of a source to a hash of its content.
    """
    found: dict[str, Step] = {}

    def add(name: str, kind: str, settings: Mapping[str, Any], *inputs: Step) -> Step:
        found[name] = Step(name, kind, settings, inputs)
        return found[name]

    for model in config.models:
        recorded = add(f"record/{model}", "record", _recorded(config, model, source))
        shared = {
            name: add(f"{kind}/{place}", kind, told) for name, kind, place, told in _shared(config, model, source)
        }
        shown = config.report.profiles
        for group, languages in config.sets.items():
            whole = {"languages": languages, "seed": config.seed}
            about_nulls = _nulls(config, model, group, source)
            nulls = [add(f"nulls/{model}/{group}", "nulls", about_nulls)] if about_nulls else []
            for method, part in config.methods.items():
                settings = {**part.model_dump(exclude={"published_as"}), "languages": languages}
                place = f"{model}/{group}/{method}"
                read = shared[PUBLISHED] if part.published else recorded
                identified = add(f"identify/{place}", "identify", settings, read)
                if config.validity is not None and chosen(config, config.validity, group, method):
                    checked = {"splits": config.validity.splits, **settings, "seed": config.seed}
                    add(f"validity/{place}", "validity", checked, recorded, *nulls)
                for kind, name, more, needs in _on_neurons(config, group, method, source):
                    read = (identified, recorded, *(shared[one] for one in needs))
                    judged = config.effects.model_dump() if kind in JUDGED else {}
                    add("/".join(filter(None, (kind, place, name))), kind, {**more, **judged, **whole}, *read)
                if shown:  # a report has room for the pages of one set: the first method's in the first language set
                    add(f"profile/{place}", "profile", {"neurons": shown, **whole}, identified, recorded)
                    shown = 0
    add("report", "report", _reported(config, source), *found.values())
    return found


def chosen(config: StudyConfig, part: Grid, group: str, method: str) -> bool:
    """Whether something is done with the neurons of a method in a language set."""
    methods = config.methods if part.methods is None else part.methods
    return method in methods and group in (config.sets if part.sets is None else part.sets)


def patches_of(config: StudyConfig, part: Any) -> dict[str, PatchPart]:
    """The patches of a part; all of the study's where it names none."""
    return {name: config.patches[name] for name in (config.patches if part.patches is None else part.patches)}


def asked(task: TaskPart, source: Source) -> dict[str, Any]:
    """What of a task decides its items and answers."""
    settings = task.model_dump(exclude={"methods", "sets", "patches", "controls"})
    return {**settings, "source": source("task", task.source) if task.source else ""}


def _model(config: StudyConfig, model: str, source: Source) -> dict[str, Any]:
    part = config.models[model]
    loaded = {name: getattr(part, name) for name in ("revision", "backend", "dtype", "device")}
    return {"model": source("model", part.name), **loaded, "seed": config.seed}


def _text(config: StudyConfig, source: Source, *names: str) -> dict[str, Any]:
    kept = ("text_column", "revision", "heldout", *names)
    return {"text": source("text", config.text.source), **{f"text.{name}": getattr(config.text, name) for name in kept}}


def _recorded(config: StudyConfig, model: str, source: Source) -> dict[str, Any]:
    sound = [part for part in config.methods.values() if not part.published]
    return {
        **_model(config, model, source),
        **_text(config, source, "tokens", "context_length", "sites"),
        "languages": config.languages,
        "also": sorted(_needed(sound)),
    }


def _needed(methods: Iterable[MethodPart]) -> set[str]:
    return {one for part in methods for one in make_method(part.method, part.options).needs}


def _shared(config: StudyConfig, model: str, source: Source) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """What several steps of a model read beside its recording: what they call it, kind, place, settings."""
    text, about = config.text, config.published_statistics
    if any(part.published for part in config.methods.values()) or any(map(_writes, config.patches.values())):
        sizes = {"tokens": about.tokens or text.tokens, "context_length": about.context_length or text.context_length}
        told = {**_model(config, model, source), **_text(config, source), "languages": config.languages}
        yield PUBLISHED, "published", model, {**told, **sizes, "batch_size": about.batch_size}
    for name, part in config.finetuning.items():
        told = {**part.model_dump(), "source": source("task", part.source)}
        yield f"finetune/{name}", "finetune", f"{model}/{name}", {**told, **_model(config, model, source)}


def _nulls(config: StudyConfig, model: str, group: str, source: Source) -> dict[str, Any]:
    part = config.validity
    if part is None or not part.nulls:
        return {}
    methods = [one for name, one in config.methods.items() if chosen(config, part, group, name)]
    if not methods:
        return {}
    return {
        **_model(config, model, source),
        **_text(config, source, "context_length", "sites"),
        "languages": config.sets[group],
        "also": sorted(_needed(methods)),
        "nulls": part.nulls,
        "tokens": part.tokens,
    }


def _writes(patch: PatchPart) -> bool:
    return any(is_published(str(one)) for one in (patch.write, *patch.also.values()))


def _patched(config: StudyConfig, part: Any) -> tuple[dict[str, Any], list[str]]:
    """What a part's patches write, and whether that is read from the published statistics."""
    named = patches_of(config, part)
    written = {name: {"write": one.write, "also": one.also} if one.also else one.write for name, one in named.items()}
    return written, [PUBLISHED] if any(map(_writes, named.values())) else []


def _tuned(*tasks: TaskPart) -> list[str]:
    return list(dict.fromkeys(f"finetune/{task.tuned}" for task in tasks if task.tuned is not None))


def _on_neurons(config: StudyConfig, group: str, method: str, source: Source) -> Iterator[Told]:
    """What is done with one neuron set: kind, name, settings, and what else it reads."""
    languages = config.sets[group]
    heldout = {name: getattr(config.text, name) for name in ("heldout_tokens", "heldout_context")}
    if (matrix := config.matrix) is not None and chosen(config, matrix, group, method):
        for name, patch in patches_of(config, matrix).items():
            needs = [PUBLISHED] if _writes(patch) else []
            yield "matrix", name, {**heldout, "write": patch.write, "controls": matrix.controls}, needs
    for name, task in config.tasks.items():
        if chosen(config, task, group, method) and among(task.languages, languages):
            written, needs = _patched(config, task)
            told = {**asked(task, source), "patches": written, "controls": task.controls}
            yield "evaluate", name, told, needs + _tuned(task)
    for name, part in config.protocols.items():
        task = config.tasks[part.task]
        if chosen(config, part, group, method) and among(task.languages, languages):
            written, needs = _patched(config, part)
            settings = part.model_dump(exclude={"methods", "sets"}) | {"patches": written}
            yield "protocols", name, {**settings, "task": asked(task, source)}, needs + _tuned(task)
    if (part := config.factorial) is not None and chosen(config, part, group, method):
        yield from _crossed(config, part, languages, source)
    if (ablation := config.ablation) is not None and chosen(config, ablation, group, method):
        told = {"of": ablation.languages, "value": ablation.value, "controls": ablation.controls}
        yield "ablate", "", {**heldout, **told}, []
    if (part := config.polysemanticity) is not None and chosen(config, part, group, method):
        settings = part.model_dump(exclude={"methods", "sets", "task"})
        yield "polysemanticity", "", {**settings, "task": asked(config.tasks[part.task], source)}, []
    for name, transfer in config.transfer.items():
        if chosen(config, transfer, group, method) and transferred_to(transfer.targets, transfer.language, languages):
            written, needs = _patched(config, transfer)
            settings = transfer.model_dump(exclude={"methods", "sets", "patches"})
            yield "transfer", name, {**settings, "source": source("task", transfer.source), "patches": written}, needs


def _crossed(config: StudyConfig, part: FactorialPart, languages: Sequence[str], source: Source) -> Iterator[Told]:
    tasks = {name: config.tasks[name] for name in part.tasks}
    settings = part.model_dump(exclude={"methods", "sets"})
    told = {**settings, "tasks": {name: asked(task, source) for name, task in tasks.items()}}
    if among(part.languages, languages):
        yield "factorial", "", {**told, "sites": part.sites or config.text.sites}, _tuned(*tasks.values())


def among(wanted: Sequence[str] | None, languages: Sequence[str]) -> list[str]:
    """Those of the wanted languages that are in a language set, all of it where none are named."""
    return [code for code in (languages if wanted is None else wanted) if code in languages]


def transferred_to(wanted: Sequence[str] | None, trained: str, languages: Sequence[str]) -> list[str]:
    """The targets in a language set; none where it lacks the language of the training data."""
    return [code for code in among(wanted, languages) if code != trained] if trained in languages else []


def _reported(config: StudyConfig, source: Source) -> dict[str, Any]:
    if config.published is None:
        return {"question": config.question}
    names = {
        f"{kind}.{name}": part.published_as
        for kind in ("models", "methods", "patches")
        for name, part in getattr(config, kind).items()
    }
    return {"question": config.question, "numbers": source("numbers", config.published), "published_as": names}
