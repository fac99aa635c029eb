"""Time training steps side by side in one process: MaskedLoRA on both backends, and peft's LoRA on the same weights.

Run with ``python benchmarks/lora.py``. Every way trains the same projections with the same rank, is run in turn, round
after round; medians are printed, each as a ratio to peft. Peak memory is what a step adds to the process, measured by a
process of its own for each way. To be held, on the Bridge: at most 1.1 times peft's step, and its memory.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import peft
import torch
from forward import llama, medians

import langneurons as ln
from langneurons.models import load_model, view
from langneurons.training.lora import MaskedLoRA

RANK = 8
MODULES = ["gate_proj", "up_proj", "down_proj"]
SIZES = {"tiny": {"layers": 2, "d_model": 64, "d_mlp": 200, "vocabulary": 16384}, "40M": {"vocabulary": 16384}}
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


def step_of(
    logits_of: Callable[[torch.Tensor], Any], parameters: list[Any], tokens: torch.Tensor
) -> Callable[[], None]:
    """Make one training step: forward, loss, backward, AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        logits = logits_of(tokens)[:, :-1].flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def theirs(size: str, tokens: torch.Tensor) -> Callable[[], None]:
    """A step of peft's LoRA on the plain model."""
    settings = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=MODULES)
    model = peft.get_peft_model(llama(**SIZES[size]), settings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return step_of(lambda tokens: model(tokens, use_cache=False).logits, trained, tokens)


def ours(size: str, way: str, tokens: torch.Tensor, stack: ExitStack) -> Callable[[], None]:
    """A step of a MaskedLoRA, attached for as long as the stack is open."""
    tokenizer = view(load_model("babel")).tokenizer
    backend = "bridge" if "Bridge" in way else "hooked"
    model = load_model("benchmark", hf_model=llama(**SIZES[size]), tokenizer=tokenizer, backend=backend)
    seen = view(model)
    every = 1 if "all neurons" in way else 100
    units = [(layer, unit) for layer in range(seen.n_layers) for unit in range(0, seen.width("act"), every)]
    neurons = ln.NeuronSet.of({"some": units}, (seen.n_layers, seen.width("act")), "act")
    update = MaskedLoRA(neurons, rank=min(RANK, len(neurons)), targets=("gate", "up", "down"))
    stack.enter_context(update.attach(model))
    if "native" in way:
        stack.enter_context(seen.native_attention())
    return step_of(seen.forward, update.parameters(), tokens)


def made(size: str, way: str, batch: int, length: int, stack: ExitStack) -> Callable[[], None]:
    """Make a step of any way."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 16384, (batch, length))
    return theirs(size, tokens) if way == PEFT else ours(size, way, tokens, stack)


def added_memory(size: str, way: str, batch: int, length: int) -> float:
    """Measure, in a process of its own, the MB that three steps add to the peak."""
    arguments = ["--memory-of", way, "--size", size, "--batch", str(batch), "--length", str(length)]
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_memory(size: str, way: str, batch: int, length: int) -> None:
    """Print the peak's growth over three steps in MB."""
    with ExitStack() as stack:
        step = made(size, way, batch, length, stack)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading, which may be higher (Linux)
        before = resident("VmRSS")
        for _ in range(3):
            step()
        print((resident("VmHWM") - before) / 1024)


def resident(kind: str) -> int:
    """Read this process's resident memory in kB: VmRSS is held, VmHWM the most that was held."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(kind))


def print_times(size: str, batch: int, length: int, rounds: int) -> None:
    """Print a markdown table of step times and added memory."""
    with ExitStack() as stack:
        taken = medians({way: made(size, way, batch, length, stack) for way in WAYS}, rounds)
    memory = {way: added_memory(size, way, batch, length) for way in WAYS}
    print(f"\n### {size} Llama, {batch} x {length} tokens, rank {RANK} on gate, up and down, {rounds} rounds\n")
    print("| | ms a step | x peft | MB added | x peft |\n|---|---:|---:|---:|---:|")
    for way, seconds in taken.items():
        ratios = seconds / taken[PEFT], memory[way] / memory[PEFT]
        print(f"| {way} | {1000 * seconds:.0f} | {ratios[0]:.2f} | {memory[way]:.0f} | {ratios[1]:.2f} |")
    held = all(taken[way] <= 1.1 * taken[PEFT] and memory[way] <= memory[PEFT] for way in HELD)
    print(
        f"\nBridge with native attention: at most 1.1 x the time and 1.0 x the memory: {'held' if held else 'NOT HELD'}"
    )


def main() -> None:
    """Print a table for each batch shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", choices=list(SIZES), default="40M")
    parser.add_argument("--memory-of", choices=WAYS)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--length", type=int)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_memory(arguments.size, arguments.memory_of, arguments.batch, arguments.length)
        return
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, peft {peft.__version__}")
    for batch, length in ((4, 128), (8, 256)):
        print_times(arguments.size, arguments.batch or batch, arguments.length or length, arguments.rounds)


if __name__ == "__main__":
    main()
