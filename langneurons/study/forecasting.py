"""What is left of a study, and about what it will take: tokens, memory, disk, time."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import langneurons as ln
from langneurons.errors import ModelError, StudyError
from langneurons.models.description import ModelDescription
from langneurons.study.parts import StudyConfig, sliced
from langneurons.study.run_folder import DONE, RunFolder
from langneurons.study.steps import Step, among, transferred_to

HOURS = 180  # minutes from which on hours are said
COLUMNS = ["step", "state", "million tokens", "GB memory", "GB disk", "minutes", "measured"]
BYTES_A_NEURON = 800  # of one language's statistics at a site, at most
PUBLISHED_BYTES_A_NEURON = 44  # of the published statistics: eleven single-precision numbers
TEXT = 100  # tokens of an example, where nothing tells how many there are
TEXTS = {"xnli": 60, "xquad": 230}  # tokens of a premise and a hypothesis, of a paragraph and a question
EXAMPLES = {"xnli": 3}  # hypotheses of a premise
LABELS = 3  # that are read for their likelihood
# Items of the hub's splits, to tell how long an epoch is.
ITEMS = {"xnli": {"train": 392_702, "validation": 2_490, "test": 5_010}, "xquad": {"validation": 1_190}}
FEW = 1000  # items, where nothing tells how many there are
BACKWARD = 3  # a token that is also gone back through, in forwards
EFFICIENCY = 0.5  # of a large matrix product's speed that a model's forward reaches
PROFILED = 2000 * 64  # tokens of a language that are looked through for a neuron's texts
ABLATED_SHARE = 0.5  # of the layers, that lie above a neuron


def forecast(
    config: StudyConfig, plan: Mapping[str, Step], folder: RunFolder, speed: float | None = None
) -> pd.DataFrame:
    """Estimate every step that is not done.

    Args:
        config: The study.
        plan: Its steps.
        folder: Where it runs; steps of the same name that ran here before tell their time, unless there is a speed.
        speed: Floating-point operations a second that the machine reaches; None measures this machine's processor.

    Raises:
        StudyError: If the speed is not above 0.
    """
    if speed is not None and not 0 < speed < math.inf:
        raise StudyError(f"A speed is a number of operations a second above 0, such as 160e12, not {speed:g}.")
    described = {name: _described(part.name) for name, part in config.models.items()}
    earlier = folder.seconds_by_name() if speed is None else {}
    reached = _operations_a_second() * EFFICIENCY if speed is None else speed
    rows = []
    for step in plan.values():
        if (state := folder.state(step)) == DONE:
            rows.append((step.name, state, 0.0, 0.0, 0.0, 0.0, True))
            continue
        model = described.get(step.model)
        tokens = _tokens(config, step, model)
        memory, minutes = _cost(model, tokens, reached)
        known = earlier.get(step.name)
        minutes = known / 60 if known else minutes
        rows.append((step.name, state, tokens / 1e6, memory, _disk(config, step, model), minutes, bool(known)))
    return pd.DataFrame(rows, columns=pd.Index(COLUMNS))


def _cost(model: ModelDescription | None, tokens: float | int, speed: float) -> tuple[float, float]:
    """GB of memory and minutes; NaN where the model is not known."""
    if not tokens:
        return 0.0, 0.0
    if model is None:
        return math.nan, math.nan
    return max(model.memory_to_load.values()) / 1e9, 2 * model.parameters * tokens / speed / 60


def _described(name: str) -> ModelDescription | None:
    try:
        return ln.describe(name)
    except ModelError:
        return None  # not on this machine; the steps are listed all the same


def _tokens(config: StudyConfig, step: Step, model: ModelDescription | None) -> float | int:
    """Tokens that go through the model, in forwards."""
    told = step.settings
    languages = len(told.get("languages", ()))
    heldout = (told.get("heldout_tokens") or 0) * languages
    if step.kind == "record":
        return (told["text.tokens"] or 0) * languages * (1 + BACKWARD * ("gradient" in told["also"]))
    if step.kind == "published":
        return 2 * (told["tokens"] or 0) * languages
    if step.kind == "nulls":
        return (told["tokens"] or 0) * languages * (1 + len(told["nulls"]))
    if step.kind == "matrix":
        # Unpatched, each label's neurons, their controls, and frequent neutral neurons.
        return heldout * (1 + languages * (2 + told["controls"]))
    if step.kind == "ablate":
        neurons = _chosen(config, step, model) * (1 + told["controls"])
        return heldout * (1 + neurons * ABLATED_SHARE)
    if step.kind == "polysemanticity":
        return (told["items"] or FEW) * _item(told["task"]) * languages
    if step.kind == "profile":
        return PROFILED * languages
    if step.kind == "finetune":
        return _trained(told, told["split"], told["items"])
    if step.kind == "transfer":
        return _transferred(told)
    return _asked(step)


def _asked(step: Step) -> float | int:
    """Tokens of steps that ask tasks."""
    told, languages = step.settings, step.settings.get("languages", ())
    if step.kind == "evaluate":
        return _items(told, languages) * (1 + len(told["patches"]) * (1 + told["controls"]))
    if step.kind == "protocols":
        task = told["task"]
        padded = 0 if ln.tasks.KINDS[task["kind"]].generates else EXAMPLES.get(task["kind"], 1) * told["positions"]
        each = _item(task) + padded
        conditions = 1 + len(told["patches"])
        return (
            task["items"] * each * len(among(task["languages"], languages)) * conditions + told["head_items"] * padded
        )
    if step.kind == "factorial":
        conditions = 1 + len(told["operations"]) * len(told["sites"]) * (1 + told["controls"])
        of_set = among(told["languages"], languages)
        return sum(_items(task, of_set) for task in told["tasks"].values()) * conditions
    return 0


def _items(task: Mapping[str, Any], languages: Sequence[str]) -> float | int:
    return task["items"] * _item(task) * len(among(task["languages"], languages))


def _item(task: Mapping[str, Any]) -> int:
    """Tokens of an item: a premise with its hypotheses, a question or a prompt, and what is generated."""
    kind = ln.tasks.KINDS[task["kind"]]
    if kind.generates:
        return (task["prompt_tokens"] if kind.reads_text else _pair(task["kind"])) + task["max_new_tokens"]
    return EXAMPLES.get(task["kind"], 1) * _pair(task["kind"]) * (1 if task["head"] or task["tuned"] else LABELS)


def _transferred(told: Mapping[str, Any]) -> float | int:
    targets = transferred_to(told["targets"], told["language"], told["languages"])
    trainings = told["seeds"] * len(told["conditions"])
    tested = _number(told["kind"], told["test_split"], told["test_items"]) * _pair(told["kind"])
    seen = _trained(told, told["train_split"], told["train_items"])
    return trainings * (seen + tested * (1 + len(targets) * (1 + len(told["patches"]))))


def _trained(told: Mapping[str, Any], split: str, items: int | None) -> float | int:
    """Tokens of a training, in forwards."""
    number = _number(told["kind"], split, items)
    examples = told["steps"] * told["batch_size"] if told["steps"] else (told["epochs"] or 1) * number
    return examples * _pair(told["kind"]) * BACKWARD


def _pair(kind: str) -> int:
    return TEXTS.get(kind, TEXT)


def _number(kind: str, split: str, items: int | None) -> float | int:
    """Examples in a split, or in so many premises or questions of it."""
    if items is not None:
        return items * EXAMPLES.get(kind, 1)
    name, low, high = sliced(split)
    return ITEMS.get(kind, {}).get(name, FEW) * (high - low) / 100


def _chosen(config: StudyConfig, step: Step, model: ModelDescription | None) -> float | int:
    """About how many neurons a language's set has, over all its languages."""
    options = config.methods[step.name.split("/")[3]].options
    neurons = model.layers * model.neurons["act"] if model else 0
    return neurons * float(options.get("top", 0.01))


def _disk(config: StudyConfig, step: Step, model: ModelDescription | None) -> float:
    if step.kind not in ("record", "nulls", "published") or model is None:
        return 0.001
    if step.kind == "published":
        each = model.layers * model.neurons.get("pre", model.neurons["act"]) * PUBLISHED_BYTES_A_NEURON
    else:
        recordings = 1 if step.kind == "record" else 2 * (1 + len(step.settings["nulls"]))
        neurons = sum(model.layers * model.neurons.get(site, 0) for site in config.text.sites)
        each = recordings * neurons * BYTES_A_NEURON
    return each * len(step.settings["languages"]) / 1e9


def _operations_a_second() -> float:
    """How fast this processor multiplies matrices, in floating-point operations."""
    left, right = torch.rand(512, 512), torch.rand(512, 512)
    torch.mm(left, right)
    started, times = time.perf_counter(), 8
    for _ in range(times):
        torch.mm(left, right)
    return times * 2 * 512**3 / (time.perf_counter() - started)


def as_text(table: pd.DataFrame, path: Path, speed: float | None = None) -> str:
    """A forecast in words."""
    left = table.query("state != 'done'")
    shown = left.drop(columns="measured").to_string(index=False, na_rep="?", float_format=lambda value: f"{value:.3g}")
    total = left[["million tokens", "GB disk", "minutes"]].sum()
    where = "on this machine's processor" if speed is None else f"at {speed:.3g} operations a second"
    how = "the speed of a matrix product; steps that ran here before: as they took" if speed is None else "that speed"
    minutes = sum(left["minutes"].dropna().tolist())
    spent = f"{minutes:.0f} minutes" if minutes < HOURS else f"{minutes / 60:.0f} hours"
    unknown_model = "\nA model that is not on this machine (?) is in no sum." if left["minutes"].hasnans else ""
    return (
        f"{shown}\n{len(left)} of {len(table)} steps to run in {path}: about {total['million tokens']:.3g} million "
        f"tokens, {total['GB disk']:.2g} GB of disk and {spent} {where} (from the size of the model and {how})."
        f"{unknown_model}"
    )
