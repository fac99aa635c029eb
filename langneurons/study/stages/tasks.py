"""Tasks: scored unpatched and under every patch; also what other stages ask of tasks."""

from collections.abc import Iterator, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import Field

import langneurons as ln
from langneurons.corpora.languages import spelled
from langneurons.errors import LanguageError
from langneurons.settings import Asking, Controls, Count, Prompting
from langneurons.study.stages import NeuronStage, Piece, Plan, Step, Units, among, keyed, misnamed
from langneurons.study.tables import Languages, PatchedGrid, Split, StudyConfig
from langneurons.study.work import Work

PAIR_TOKENS = {"xnli": 60, "xquad": 230}  # of a premise and a hypothesis, of a paragraph and a question
PAIRS = {"xnli": 3}  # of an item
LABELS = 3  # that are read for their likelihood
HARNESS = "harness"  # the kind whose tasks have languages of their own
USUAL_TOKENS = 100  # of an item of which nothing is known
KEYED = {"items", "split", "max_new_tokens", "min_new_tokens", "prompt_tokens", "beginnings"}  # whatever they are
# Items of the hub's splits, to tell how long an epoch is.
ITEMS = {"xnli": {"train": 392_702, "validation": 2_490, "test": 5_010}, "xquad": {"validation": 1_190}}
FEW = 1000  # items, where nothing tells how many there are


class TaskPart(PatchedGrid, Asking):
    """A task that the model is scored on, unpatched and under every patch."""

    kind: str
    source: str = Field("", description="a folder of the task's files, the hub's name, or babel")
    revision: str | None = None
    languages: Languages | None = Field(None, description="in a language set those that it has; all by default")
    head: str | None = Field(None, description="xnli: the language on whose items of head_split a head is fitted")
    head_split: Split = "validation"
    head_items: Count = 830
    tuned: str | None = Field(None, description="the finetuning whose model is asked, instead of the model as it is")
    controls: Controls = Controls(draws=0)
    prompting: Prompting = Prompting()


class TasksStage(
    NeuronStage[TaskPart], name="evaluate", table="tasks", several=True, section="evaluation", judged=True
):
    """Scores of tasks."""

    def work_on(self, plan: Plan, part: TaskPart, model: str, languages: Sequence[str]) -> Iterator[Piece]:
        """One for each task that has languages of the set."""
        if among(part.languages, languages):
            patches = plan.config.patches_of(part)
            settings = {"task": task_settings(plan, part), "patches": plan.patch_settings(patches)}
            further = plan.published(model, *patches.values()) + tuned_inputs(model, part)
            yield "", {**settings, "controls": keyed(part.controls)}, further

    def mistakes_in(self, config: StudyConfig, where: str, part: TaskPart) -> Iterator[str]:
        """Unknown kinds and names, missing sources, idle options, and a task of another kind than what was tuned."""
        from langneurons.tasks.kinds import idle_options  # takes seconds

        finetuning = config.tables("finetuning")
        yield from check_kind(where, part.kind)
        yield from misnamed("finetuning", where, [] if part.tuned is None else [part.tuned], finetuning)
        yield from misnamed(
            "language", f"{where}.beginnings", [] if part.beginnings is None else [part.beginnings], config.languages
        )
        if not part.source and not ln.tasks.KINDS[part.kind].reads_text:
            yield f"{where}.source is missing."
        kind = ln.tasks.KINDS[part.kind]
        if part.prompting.temperature and not getattr(kind, "samples", kind.generates):
            yield f"{where}.prompting: {part.kind} samples nothing, so temperature must be 0."
        if part.prompting.shots and not getattr(kind, "shows_examples", False):
            yield f"{where}.prompting: {part.kind} has no solved examples, so shots must be 0."
        if part.prompting.changes and "prompting" not in signature(kind.load).parameters:
            changes = ", ".join(part.prompting.changes)
            yield f"{where}.prompting: {part.kind} has no such options, so leave out {changes}."
        yield from (f"{where}: {mistake}" for mistake in idle_options([part.kind], part))
        everywhere = [name for name, patch in config.patches_of(part).items() if patch.everywhere is not None]
        if everywhere and part.controls.draws:
            yield (
                f"{where}.controls: patches.{everywhere[0]} is written everywhere, which leaves no control neurons: "
                "name other patches, or draw none."
            )
        if part.tuned is not None and finetuning[part.tuned].kind != part.kind:
            yield f"{where} asks {part.kind} of a model tuned on {finetuning[part.tuned].kind}."

    def run(self, step: Step, part: TaskPart, work: Work) -> Any:
        """Score the model as it is and under every patch."""
        neurons, stats = work.neurons(step)
        task, patches = task_of(part, step, work), work.patches(step, work.config.patches_of(part))
        options = {**self.settings(part, step, work), "stats": stats}
        del options["prompting"]  # the task has it
        languages = patchable(task.languages, neurons)
        return ln.evaluate(work.model(step), task, languages, patches, **options)

    def tokens(self, step: Step, part: TaskPart, config: StudyConfig, units: Units) -> float:
        """Every item unpatched, under every patch and its controls."""
        conditions = 1 + len(config.patches_of(part)) * (1 + part.controls.draws)
        return asked_tokens(part, step.settings["languages"]) * conditions


def task_of(part: TaskPart, step: Step, work: Work) -> "ln.tasks.Task":
    """A task in the languages of a step's set, asked of the model as it is, or of a fine-tuned one.

    Args:
        part: The task's table.
        step: The step that asks it.
        work: Loads what it needs.
    """
    source = part.source or work.text(heldout=True)
    options = part.model_dump(include={"revision", *Asking.model_fields})
    if (judge := part.judge) is not None:
        options["judge"] = work.once(("judge", judge), lambda: ln.tasks.ModelJudge(judge))
    languages = among(part.languages, step.settings["languages"])
    seed = work.config.seed
    task = ln.tasks.load_task(part.kind, source, languages, seed=seed, prompting=part.prompting, **options)
    if part.tuned is not None:
        return work.tuned(step, part.tuned).ask(task)
    if part.head is None:
        return task
    key = ("head", step.model, part.kind, part.source, part.head, part.head_split, part.head_items)
    items = head_items(part, part.head_items, work)
    return task.with_head(work.once(key, lambda: ln.tasks.ClassificationHead.fit(work.model(step), items)))


def head_items(part: TaskPart, count: int, work: Work) -> Any:
    """The items that a head of a task is fitted on: those that it was tuned on, or those of ``head_split``."""
    read, language, split = part, str(part.head), part.head_split
    if part.tuned is not None:
        read = work.config.tables("finetuning")[part.tuned]
        language, split = read.language, read.split
    load = partial(ln.tasks.load_task, items=count, seed=work.config.seed, revision=read.revision)
    return load(part.kind, read.source, [language], split)


def check_kind(where: str, kind: str, trained: bool = False) -> Iterator[str]:
    """Say that a kind of task does not exist, or cannot be trained on.

    Args:
        where: Place of the table in the file.
        kind: Name of the kind.
        trained: Whether a model is to be trained on it.
    """
    kinds = ln.tasks.KINDS
    if trained:
        kinds = {name: task for name, task in kinds.items() if task.objective is not ln.tasks.Task.objective}
    yield from misnamed("kind of task", where, [kind], kinds)


def patchable(languages: Sequence[str], neurons: "ln.NeuronSet") -> list[str]:
    """The languages that have neurons to patch."""
    return [name for name in languages if spelled(name, neurons.languages) and len(neurons[name])]


def task_settings(plan: Plan, part: TaskPart) -> dict[str, Any]:
    """What of a task decides its items and answers."""
    plain = [] if part.prompting.changes else ["prompting"]
    usual = Asking.model_fields.keys() - KEYED - part.changes.keys()
    settings = keyed(part, "methods", "sets", "patches", "controls", *plain, *usual)
    sources = {name: str(value) for name, value in part if isinstance(value, Path)} | {"source": part.source}
    kind = part.kind if hasattr(ln.tasks.KINDS[part.kind], "files") else "task"
    settings |= {} if part.judge is None else {"judge": plan.source("model", part.judge)}
    return settings | {name: source and plan.source(kind, source) for name, source in sources.items()}


def tuned_inputs(model: str, *tasks: TaskPart) -> list[tuple[str, ...]]:
    """The fine-tunings that tasks are asked of."""
    return [("finetune", model, name) for name in dict.fromkeys(task.tuned for task in tasks) if name is not None]


def asked_tokens(part: TaskPart, languages: Sequence[str]) -> int:
    """Tokens of a task's items in the languages of a set; of a judge's work nothing is counted."""
    asked_in = 1
    if "ask_in" in signature(ln.tasks.KINDS[part.kind].load).parameters:
        asked_in = len(part.ask_in or languages[1:])
    items = part.items if part.limit is None else min(part.items, part.limit)
    return items * asked_in * item_tokens(part) * len(_languages_with_items(part, among(part.languages, languages)))


def _languages_with_items(part: TaskPart, languages: Sequence[str]) -> Sequence[str]:
    """The languages that a task is asked in: those that the names of the harness' tasks say, where all say one."""
    if part.kind != HARNESS:
        return languages
    from langneurons.tasks.harness_documents import language_of_task  # takes seconds

    unsaid: Any = SimpleNamespace(get_config=lambda name: None)
    try:
        codes = {language_of_task(Path(name.strip()).stem, unsaid, None)[0] for name in part.source.split(",")}
    except LanguageError:
        return languages
    named = [language for language in languages if spelled(language, codes)]
    return named if len(named) == len(codes) else languages


def item_tokens(part: TaskPart) -> int:
    """Tokens of an item: a premise with its hypotheses, a question or a prompt, and what is generated."""
    kind, prompt = ln.tasks.KINDS[part.kind], pair_tokens(part.kind) * (1 + (part.fewshot or part.prompting.shots))
    if part.kind == HARNESS:
        return prompt  # answers to choose from are short, and what they follow is run once
    if kind.generates:
        return (part.prompt_tokens if kind.reads_text else prompt) + part.max_new_tokens
    return PAIRS.get(part.kind, 1) * (pair_tokens(part.kind) if part.head or part.tuned else LABELS * prompt)


def pair_tokens(kind: str) -> int:
    """Tokens of an example to train on."""
    return PAIR_TOKENS.get(kind, USUAL_TOKENS)


def examples(kind: str, split: str, items: int | None) -> float:
    """Number of examples in a split, or in a number of its items."""
    if items is not None:
        return items * PAIRS.get(kind, 1)
    name, _, part = split.rstrip("]").partition("[")
    low, _, high = part.replace("%", "").partition(":")
    return ITEMS.get(kind, {}).get(name, FEW) * (int(high or 100) - int(low or 0)) / 100
