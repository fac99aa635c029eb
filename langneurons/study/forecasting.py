"""What is left of a study, and about what it will take: tokens, memory, disk, time."""

import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

import langneurons as ln
from langneurons.errors import ModelError
from langneurons.models.description import ModelDescription
from langneurons.study.config import StudyConfig
from langneurons.study.run_folder import DONE, RunFolder
from langneurons.study.steps import Step

COLUMNS = ["step", "state", "million tokens", "GB memory", "GB disk", "minutes", "measured"]
BYTES_A_NEURON = 800  # of one language's statistics at a site, at most
ITEM_TOKENS = {"xnli": 180, "xquad": 260, "generation": 48}  # three labels of 60 tokens; a context and its answer
BACKWARD = 3  # a token that is also gone back through, in forwards
EFFICIENCY = 0.5  # of a large matrix product's speed that a model's forward reaches
PROFILED = 2000 * 64  # tokens of a language that are looked through for a neuron's texts
ABLATED_SHARE = 0.5  # of the layers, that lie above a neuron


def forecast(config: StudyConfig, plan: Mapping[str, Step], folder: RunFolder) -> pd.DataFrame:
    """Estimate every step that is not done.

    Args:
        config: The study.
        plan: Its steps.
        folder: Where it runs; steps of the same name that ran here before tell their time.
    """
    described: dict[str, ModelDescription | None] = {}
    earlier = folder.seconds_by_name()
    speed = _operations_a_second()
    rows = []
    for step in plan.values():
        state = folder.state(step)
        if state == DONE:
            rows.append((step.name, state, 0.0, 0.0, 0.0, 0.0, True))
            continue
        parts = step.name.split("/")
        name = parts[1] if len(parts) > 1 else None
        if name is not None and name not in described:
            described[name] = _described(config.models[name].name)
        model = described.get(name) if name else None
        tokens = _tokens(config, step, model) / 1e6
        memory = max(model.memory_to_load.values()) / 1e9 if model and tokens else 0.0
        minutes = 2 * model.parameters * tokens * 1e6 / (speed * EFFICIENCY) / 60 if model else 0.0
        known = earlier.get(step.name)
        rows.append(
            (
                step.name,
                state,
                tokens,
                memory,
                _disk(config, step, model),
                known / 60 if known else minutes,
                bool(known),
            )
        )
    return pd.DataFrame(rows, columns=pd.Index(COLUMNS))


def _described(name: str) -> ModelDescription | None:
    try:
        return ln.describe(name)
    except ModelError:
        return None  # not on this machine; the steps are listed all the same


def _tokens(config: StudyConfig, step: Step, model: ModelDescription | None) -> float | int:
    """Tokens that go through the model, in forwards."""
    told = step.settings
    if step.kind == "record":
        each = told["text.tokens"] or 0
        return each * len(told["languages"]) * (1 + BACKWARD * ("gradient" in told["also"]))
    languages = len(told.get("languages", ()))
    heldout = (told.get("heldout_tokens") or 0) * languages
    if step.kind == "matrix":
        # Unpatched, each label's neurons, their controls, and frequent neutral neurons.
        return heldout * (1 + languages * (2 + told["controls"]))
    if step.kind == "ablate":
        neurons = _chosen(config, step, model) * (1 + told["controls"])
        return heldout * (1 + neurons * ABLATED_SHARE)
    if step.kind == "evaluate":
        conditions = 1 + len(told["patches"]) * (1 + told["controls"])
        return told["items"] * ITEM_TOKENS[told["kind"]] * languages * conditions
    if step.kind == "polysemanticity":
        return (told["items"] or 1000) * ITEM_TOKENS[told["task"]["kind"]] * languages
    if step.kind == "profile":
        return PROFILED * languages
    if step.kind == "transfer":
        item = ITEM_TOKENS[told["kind"]] / 3
        trainings = told["seeds"] * len(told["conditions"])
        seen = (told["steps"] or 1000) * told["batch_size"] * item * BACKWARD
        tested = (told["test_items"] or 1000) * 3 * item * languages * (1 + len(told["patches"]))
        return trainings * (seen + tested)
    return 0.0


def _chosen(config: StudyConfig, step: Step, model: ModelDescription | None) -> float | int:
    """About how many neurons a language's set has, over all its languages."""
    options = config.methods[step.name.split("/")[3]].options
    neurons = model.layers * model.neurons["act"] if model else 0
    return neurons * float(options.get("top", 0.01))


def _disk(config: StudyConfig, step: Step, model: ModelDescription | None) -> float:
    if step.kind != "record" or model is None:
        return 0.001
    neurons = sum(model.layers * model.neurons.get(site, 0) for site in config.text.sites)
    return neurons * len(step.settings["languages"]) * BYTES_A_NEURON / 1e9


def _operations_a_second() -> float:
    """How fast this processor multiplies matrices, in floating-point operations."""
    left, right = torch.rand(512, 512), torch.rand(512, 512)
    torch.mm(left, right)
    started, times = time.perf_counter(), 8
    for _ in range(times):
        torch.mm(left, right)
    return times * 2 * 512**3 / (time.perf_counter() - started)


def as_text(table: pd.DataFrame, path: Path) -> str:
    """A forecast in words."""
    left = table.query("state != 'done'")
    shown = left.drop(columns="measured").to_string(index=False, float_format=lambda value: f"{value:.3g}")
    total = left[["million tokens", "GB disk", "minutes"]].sum()
    return (
        f"{shown}\n{len(left)} of {len(table)} steps to run in {path}: about {total['million tokens']:.3g} million "
        f"tokens, {total['GB disk']:.2g} GB of disk and {total['minutes']:.0f} minutes on this machine's processor "
        "(from the size of the model and the speed of a matrix product; steps that ran here before: as they took)."
    )
