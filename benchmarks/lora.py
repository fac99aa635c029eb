"""Training steps: MaskedLoRA on both backends, and peft's LoRA on the same projections with the same rank."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import peft
import torch

import langneurons as ln
from benchmarks.llama import chosen, loaded, random_llama
from benchmarks.measuring import Settings, Way, added_memory, medians, memory_is_seen
from benchmarks.rows import Row
from langneurons.models import view
from langneurons.training.lora import MaskedLoRA

RANK = 8
MODULES = ["gate_proj", "up_proj", "down_proj"]
PEFT = "peft LoRA, Hugging Face sdpa"
WAYS = (
    PEFT,
    "MaskedLoRA, Bridge with native attention, 1 % of neurons",
    "MaskedLoRA, Bridge with native attention, all neurons",
    "MaskedLoRA, Bridge, 1 % of neurons",
    "MaskedLoRA, HookedTransformer, 1 % of neurons",
    "MaskedLoRA, HookedTransformer, all neurons",
)
HELD = WAYS[1:3]
STEP_HOLD, MEMORY_HOLD = 1.1, 1.0


def step_of(logits_of: Callable[[torch.Tensor], Any], parameters: list[Any], tokens: torch.Tensor) -> Way:
    """Make one training step: forward, loss, backward, AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        logits = logits_of(tokens)[:, :-1].flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def theirs(tiny: bool, tokens: torch.Tensor) -> Way:
    """A step of peft's LoRA on the plain model."""
    settings = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=MODULES)
    model = peft.get_peft_model(random_llama(chosen(tiny)), settings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return step_of(lambda tokens: model(tokens, use_cache=False).logits, trained, tokens)


def ours(way: str, tiny: bool, tokens: torch.Tensor, stack: ExitStack) -> Way:
    """A step of a MaskedLoRA, attached for as long as the stack is open."""
    model = loaded(random_llama(chosen(tiny)), "bridge" if "Bridge" in way else "hooked")
    seen = view(model)
    every = 1 if "all neurons" in way else 100
    units = [(layer, unit) for layer in range(seen.n_layers) for unit in range(0, seen.width("act"), every)]
    neurons = ln.NeuronSet.of({"some": units}, (seen.n_layers, seen.width("act")), "act")
    update = MaskedLoRA(neurons, rank=min(RANK, len(neurons)), targets=("gate", "up", "down"))
    stack.enter_context(update.attach(model))
    if "native" in way:
        stack.enter_context(seen.native_attention())
    return step_of(seen.forward, update.parameters(), tokens)


def made(way: str, tiny: bool, stack: ExitStack) -> Way:
    """Make a step of any way."""
    batch, length = (2, 16) if tiny else (4, 128)
    tokens = torch.randint(0, 16384, (batch, length), generator=torch.Generator().manual_seed(0))
    return theirs(tiny, tokens) if way == PEFT else ours(way, tiny, tokens, stack)


def rows(settings: Settings) -> Iterator[Row]:
    """Compare time and memory."""
    with ExitStack() as stack:
        taken = medians({way: made(way, settings.tiny, stack) for way in WAYS}, settings.rounds)
    for way in WAYS[1:]:
        hold, detail = STEP_HOLD if way in HELD else None, f"{1000 * taken[way]:.0f} ms"
        yield Row(f"step of {way}, 44M", PEFT, taken[way] / taken[PEFT], at_most=hold, detail=detail)
    if memory_is_seen():
        memory = {way: settings.apart(added_memory, made, way, settings.tiny) for way in WAYS}
        for way in WAYS[1:]:
            hold, detail = MEMORY_HOLD if way in HELD else None, f"{memory[way]:.0f} MB"
            yield Row(f"memory of {way}, 44M", PEFT, memory[way] / memory[PEFT], at_most=hold, detail=detail)
