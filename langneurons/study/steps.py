"""The steps of a study: what each depends on, and so what has to run again when something changes."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from langneurons import storage
from langneurons.study.config import StudyConfig, TaskPart
from langneurons.study.wording import make_method

# Raised when the same settings give other results, so that what an older langneurons computed runs again.
VERSIONS = {
    "record": 1,
    "identify": 1,
    "matrix": 1,
    "evaluate": 1,
    "ablate": 1,
    "polysemanticity": 1,
    "transfer": 1,
    "profile": 1,
    "report": 1,
}


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


def steps_of(config: StudyConfig, source: Callable[[str, str], str]) -> dict[str, Step]:
    """List a study's steps by name, each after its inputs.

    Args:
        config: The study.
        source: From kind ("model", "text", "task") and name of a source to a hash of its content.
    """
    found: dict[str, Step] = {}

    def add(name: str, kind: str, settings: Mapping[str, Any], *inputs: Step) -> Step:
        found[name] = Step(name, kind, settings, inputs)
        return found[name]

    for model in config.models:
        recorded = add(f"record/{model}", "record", _recorded(config, model, source))
        shown = config.report.profiles
        for group, languages in config.sets.items():
            for method, part in config.methods.items():
                settings = {**part.model_dump(), "languages": languages}
                place = f"{model}/{group}/{method}"
                identified = add(f"identify/{place}", "identify", settings, recorded)
                for kind, name, more in _on_neurons(config, group, method, source):
                    told = {**more, "languages": languages, "seed": config.seed}
                    add("/".join(filter(None, (kind, place, name))), kind, told, identified, recorded)
                if shown:  # a report has room for the pages of one set: the first method's in the first language set
                    told = {"neurons": shown, "languages": languages, "seed": config.seed}
                    add(f"profile/{place}", "profile", told, identified, recorded)
                    shown = 0
    add("report", "report", {"question": config.question}, *found.values())
    return found


def _recorded(config: StudyConfig, model: str, source: Callable[[str, str], str]) -> dict[str, Any]:
    part, text = config.models[model], config.text
    needed = {one for chosen in config.methods.values() for one in make_method(chosen.method, chosen.options).needs}
    kept = ("text_column", "revision", "heldout", "tokens", "context_length", "sites")
    return {
        "model": source("model", part.name),
        **{name: getattr(part, name) for name in ("revision", "backend", "dtype", "device")},
        "text": source("text", text.source),
        **{f"text.{name}": getattr(text, name) for name in kept},
        "languages": config.languages,
        "also": sorted(needed),
        "seed": config.seed,
    }


def _on_neurons(
    config: StudyConfig, group: str, method: str, source: Callable[[str, str], str]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What is done with one neuron set: kind, name, settings."""

    def wanted(part: Any) -> bool:
        return method in (part.methods or config.methods) and group in (part.sets or config.sets)

    heldout = {name: getattr(config.text, name) for name in ("heldout_tokens", "heldout_context")}
    if config.matrix is not None and wanted(config.matrix):
        for patch in config.patches if config.matrix.patches is None else config.matrix.patches:
            written = {"write": config.patches[patch].write, "controls": config.matrix.controls}
            yield "matrix", patch, {**heldout, **written}
    for name, task in config.tasks.items():
        if wanted(task):
            written = {one: config.patches[one].write for one in patches_of(config, task)}
            yield "evaluate", name, {**asked(task, source), "patches": written, "controls": task.controls}
    if (ablation := config.ablation) is not None and wanted(ablation):
        chosen = {"of": ablation.languages, "value": ablation.value, "controls": ablation.controls}
        yield "ablate", "", {**heldout, **chosen}
    if (part := config.polysemanticity) is not None and wanted(part):
        settings = part.model_dump(exclude={"methods", "sets", "task"})
        yield "polysemanticity", "", {**settings, "task": asked(config.tasks[part.task], source)}
    for name, transfer in config.transfer.items():
        if wanted(transfer):
            settings = transfer.model_dump(exclude={"methods", "sets", "patches"})
            written = {one: config.patches[one].write for one in transfer.patches}
            yield "transfer", name, {**settings, "source": source("task", transfer.source), "patches": written}


def patches_of(config: StudyConfig, task: TaskPart) -> list[str]:
    """The patches under which a task is evaluated."""
    return list(config.patches) if task.patches is None else list(task.patches)


def asked(task: TaskPart, source: Callable[[str, str], str]) -> dict[str, Any]:
    """What of a task decides its items and answers."""
    settings = task.model_dump(exclude={"methods", "sets", "patches", "controls"})
    return {**settings, "source": source("task", task.source) if task.source else ""}
