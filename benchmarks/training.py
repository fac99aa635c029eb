"""Steps of next-token training: MaskedRows as `finetune` trains them, and peft's LoRA with as many parameters."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import peft
import torch

import langneurons as ln
from benchmarks.llama import BACKENDS, SMOLLM2, TINY, loaded, random_llama
from benchmarks.lora import MODULES, step_of
from benchmarks.losses import phrases
from benchmarks.measuring import Settings, Way, added_memory, medians, memory_is_seen
from benchmarks.rows import Row
from langneurons.models import view
from langneurons.training.loop import Loop
from langneurons.training.text import NextToken

PEFT = "peft LoRA of as many parameters, Hugging Face sdpa"
WAYS = {f"finetune(MaskedRows), {name}, 1 % of neurons": backend for backend, name in BACKENDS.items()}
HELD = next(way for way, backend in WAYS.items() if backend == "bridge")
STEP_HOLD, MEMORY_HOLD = 1.0, 0.9
PROJECTIONS = ("gate", "up", "down")
SHAPE = "SmolLM2-135M's shape"
STEPS = 1000  # more than are ever taken


@cache
def as_large(tiny: bool) -> int:
    """The rank at which a LoRA of the MLPs has as many parameters as 1 % of their rows, or the next smaller one."""
    shape = TINY if tiny else SMOLLM2
    rows = len(range(0, shape.d_mlp, 100)) * shape.d_model
    return max(1, rows // (shape.d_model + shape.d_mlp))


def size(tiny: bool) -> tuple[int, int]:
    """Blocks of a step, and their positions."""
    return (2, 32) if tiny else (4, 256)


def theirs(tiny: bool) -> Way:
    """A step of peft's LoRA on the plain model, on tokens that are all counted."""
    settings = peft.LoraConfig(r=as_large(tiny), lora_alpha=2 * as_large(tiny), target_modules=MODULES)
    model = peft.get_peft_model(random_llama(TINY if tiny else SMOLLM2), settings)
    tokens = torch.randint(0, 16384, size(tiny), generator=torch.Generator().manual_seed(0))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return step_of(lambda tokens: model(tokens, use_cache=False).logits, trained, tokens)


def ours(backend: str, tiny: bool, stack: ExitStack) -> Way:
    """A step of the loop of `finetune`, on whole blocks of text."""
    model = loaded(random_llama(TINY if tiny else SMOLLM2), backend)
    model_view, (blocks, context) = view(model), size(tiny)
    text = phrases(model, blocks, context)
    units = [(layer, unit) for layer in range(model_view.n_layers) for unit in range(0, model_view.width("act"), 100)]
    neurons = ln.NeuronSet.of({"some": units}, (model_view.n_layers, model_view.width("act")), "act")
    update = ln.MaskedRows(neurons, projections=PROJECTIONS)
    stack.enter_context(update.attach(model))
    training = ln.Training(steps=STEPS, batch_size=blocks, bfloat16=False)
    loop: Any = Loop(model_view, NextToken(model_view, text, text.languages[:1]), [update], training)
    whole = np.arange(blocks)
    loop._order.batches = lambda step: [whole]
    steps = iter(range(STEPS))

    def step() -> None:
        with model_view.native_attention():
            loop._take(next(steps))

    return step


def made(way: str, tiny: bool, stack: ExitStack) -> Way:
    """Make a step of any way."""
    return theirs(tiny) if way == PEFT else ours(WAYS[way], tiny, stack)


def rows(settings: Settings) -> Iterator[Row]:
    """Compare time and memory."""
    blocks, context = size(settings.tiny)
    shape = f"{SHAPE}, {blocks} x {context}"
    with ExitStack() as stack:
        ways = {way: made(way, settings.tiny, stack) for way in (PEFT, *WAYS)}
        taken = medians(ways, settings.rounds)
    for way in WAYS:
        hold, detail = STEP_HOLD if way == HELD else None, f"{1000 * taken[way]:.0f} ms"
        ratio = taken[way] / taken[PEFT]
        yield Row(f"next-token step of {way}, {shape}", PEFT, ratio, at_most=hold, detail=detail)
    if memory_is_seen():
        memory = {way: settings.apart(added_memory, made, way, settings.tiny) for way in (PEFT, *WAYS)}
        for way in WAYS:
            hold, detail = MEMORY_HOLD if way == HELD else None, f"{memory[way]:.0f} MB"
            ratio = memory[way] / memory[PEFT]
            yield Row(f"memory of a next-token step of {way}, {shape}", PEFT, ratio, at_most=hold, detail=detail)
