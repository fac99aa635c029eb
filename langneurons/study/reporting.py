"""The pages that a study ends with: one a model, with everything that was found in it."""

from collections.abc import Mapping
from typing import Any

import langneurons as ln
from langneurons.study.config import StudyConfig, written
from langneurons.study.run_folder import RunFolder
from langneurons.study.steps import Step

PAGE = "report.html"
RESULTS = {
    "matrix": ("matrix", "EffectTable"),
    "evaluate": ("evaluation", "Evaluation"),
    "transfer": ("transfer", "Transfer"),
    "ablate": ("ablation", "Ablation"),
    "polysemanticity": ("polysemanticity", "Polysemanticity"),
}


def write_study_report(config: StudyConfig, plan: Mapping[str, Step], folder: RunFolder, step: Step) -> None:
    """Write the report of every model that has results; that of the first is ``report.html``.

    Args:
        config: The study.
        plan: All its steps.
        folder: Where their results are.
        step: The report's own step, whose folder the pages are written to.

    Raises:
        StudyError: If no step has a result.
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
    own = [step for step in plan.values() if step.name.split("/")[1:2] == [model]]
    done = [step for step in own if folder.is_done(step)]
    found: dict[str, Any] = {kind: {} for kind, _ in RESULTS.values()}
    neurons, stats, profiles = {}, None, None
    for step in done:
        parts = step.name.split("/")[2:]
        place = ", ".join(parts if len(config.sets) > 1 else parts[1:])
        if step.kind == "record":
            stats = ln.ActivationStats.load(folder.result(step))
        elif step.kind == "identify":
            neurons[place] = ln.NeuronSet.load(folder.result(step) / "neurons.json")
        elif step.kind == "profile":
            profiles = ln.Profiles.load(folder.result(step))
        else:
            kind, reader = RESULTS[step.kind]
            found[kind][place] = getattr(ln, reader).load(folder.result(step))
    missing = [f"Not done: {step.name}{_why(folder, step)}." for step in own if step not in done]
    title = config.question or f"What was found in {model}"
    return ln.Findings(
        title if len(config.models) == 1 else f"{title} ({model})",
        answer=missing,
        stats=stats,
        neurons=neurons,
        profiles=profiles,
        provenance=[f"Study {config.name}; steps {', '.join(f'{step.name} {step.key[:12]}' for step in done)}."],
        config=written(config),
        **found,
    )


def _why(folder: RunFolder, step: Step) -> str:
    why = folder.failure(step)
    return f" ({why.rstrip('.')})" if why else ""
