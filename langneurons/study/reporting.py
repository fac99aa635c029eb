"""The pages that a study ends with: one a model, with everything that was found in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import langneurons as ln
from langneurons.analysis.validity import ValidityTable
from langneurons.replication.protocols import ProtocolComparison
from langneurons.replication.published import read_published
from langneurons.study.against import Against
from langneurons.study.config import written
from langneurons.study.parts import StudyConfig
from langneurons.study.run_folder import RunFolder
from langneurons.study.steps import Step

PAGE = "report.html"
READERS: Mapping[str, Callable[[Path], Any]] = {
    "record": ln.ActivationStats.load,
    "identify": lambda folder: ln.NeuronSet.load(folder / "neurons.json"),
    "validity": ValidityTable.load,
    "matrix": ln.effects.EffectTable.load,
    "evaluate": ln.evaluation.Evaluation.load,
    "protocols": ProtocolComparison.load,
    "factorial": ln.evaluation.Factorial.load,
    "transfer": ln.training.Transfer.load,
    "ablate": ln.analysis.Ablation.load,
    "polysemanticity": ln.analysis.Polysemanticity.load,
    "profile": ln.analysis.Profiles.load,
}
# What a report calls the results of a kind of step of which there may be several.
SEVERAL = {
    "identify": "neurons",
    "matrix": "matrix",
    "evaluate": "evaluation",
    "factorial": "factorial",
    "transfer": "transfer",
    "ablate": "ablation",
    "polysemanticity": "polysemanticity",
}


@dataclass
class _Found:
    """The results of one model: by kind and place in the study, and by step."""

    by_place: dict[str, dict[str, Any]] = field(default_factory=dict)
    by_step: dict[str, tuple[Step, Any]] = field(default_factory=dict)

    def of(self, kind: str) -> dict[str, Any]:
        return self.by_place.get(kind, {})

    def first(self, kind: str) -> Any:
        return next(iter(self.of(kind).values()), None)


def write_study_report(config: StudyConfig, plan: Mapping[str, Step], folder: RunFolder, step: Step) -> None:
    """Write the report of every model that has results; that of the first is ``report.html``.

    Args:
        config: The study.
        plan: All its steps.
        folder: Where their results are.
        step: The report's own step, whose folder the pages are written to.

    Raises:
        StudyError: If no step has a result, or the published numbers cannot be read.
    """
    for number, model in enumerate(config.models):
        name = PAGE if number == 0 else f"report-{model}.html"
        ln.write_report(folder.result(step) / name, findings_of(config, plan, folder, model))


def findings_of(config: StudyConfig, plan: Mapping[str, Step], folder: RunFolder, model: str) -> ln.Findings:
    """Read everything that was found in one model.

    Args:
        config: The study.
        plan: Its steps.
        folder: Where their results are.
        model: The model's name in the study.
    """
    own = [step for step in plan.values() if step.model == model]
    done = [step for step in own if folder.is_done(step)]
    found = _read(config, folder, done)
    numbers = None if config.published is None else read_published(config.published)
    against = Against(config, numbers, model, found.by_step)
    title = config.question or f"What was found in {model}"
    missing = [f"Not done: {step.name}{_why(folder, step)}." for step in own if step not in done]
    changed = [f"{place}, {repr(one).splitlines()[0]}" for place, one in found.of("protocols").items()]
    return ln.Findings(
        title if len(config.models) == 1 else f"{title} ({model})",
        answer=missing + changed,
        stats=found.first("record"),
        profiles=found.first("profile"),
        validity=_together(list(found.of("validity").values())),
        published=against.tables(),
        published_about=against.about,
        provenance=[f"Study {config.name}; steps {', '.join(f'{step.name} {step.key[:12]}' for step in done)}."],
        config=written(config),
        **{name: found.of(kind) for kind, name in SEVERAL.items()},
    )


def _read(config: StudyConfig, folder: RunFolder, done: list[Step]) -> _Found:
    found = _Found()
    for step in done:
        if step.kind in READERS:
            parts = step.name.split("/")[2:]
            place = ", ".join(parts if len(config.sets) > 1 else parts[1:])
            result = READERS[step.kind](folder.result(step))
            found.by_place.setdefault(step.kind, {})[place] = result
            found.by_step[step.name] = (step, result)
    return found


def _together(tables: list[ValidityTable]) -> ValidityTable | None:
    """Methods that were checked one by one, in one table."""
    if not tables:
        return None
    return ValidityTable(pd.concat([one.rows for one in tables], ignore_index=True), tables[0].checks)


def _why(folder: RunFolder, step: Step) -> str:
    why = folder.failure(step)
    return f" ({why.rstrip('.')})" if why else ""
