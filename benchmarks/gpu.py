"""A model of Llama-3.1-8B's shape, random weights, in bfloat16 on a GPU: speed, its physical limit, memory.

The limit is measured, not looked up: a large matrix product in bfloat16 on the same device. A forward's floating-point
operations are counted as two a token and weight that tokens are multiplied with, attention's scores left out.
"""

import gc
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.llama import BACKENDS, LLAMA_8B, TINY, loaded, random_llama
from benchmarks.measuring import Settings, held, medians, memory_is_seen, on_gpu, peak
from benchmarks.patches import patch_rows
from benchmarks.record import FORWARD, PLAIN, Ways, against_the_paper
from benchmarks.rows import Row

BATCH, CONTEXT = 8, 512  # record()'s own
HOLDS = {"hooked": 1.15, "bridge": 1.05}
ROOM = 1.3  # times the weights: what another copy of the model needs beside them, activations included


def matrix_product(side: int, device: str, rounds: int) -> float:
    """Measure the floating-point operations a second of a large matrix product in bfloat16."""
    left, right = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    return 2 * side**3 / medians({"product": lambda: left @ right}, 4 * rounds, device)["product"]


def fits(weights: int, device: str) -> bool:
    """Whether another copy of a model of so many bytes goes on the device."""
    return not on_gpu(device) or torch.cuda.mem_get_info(device)[0] >= ROOM * weights


@torch.no_grad()
def rows(settings: Settings) -> Iterator[Row]:
    """Measure both backends where memory allows, beside the plain Hugging Face model."""
    device = settings.device or "cuda"
    shape, side = (TINY, 128) if settings.tiny else (LLAMA_8B, 8192)
    limit = matrix_product(side, device, settings.rounds)
    yield Row(f"bfloat16 matrix product, {side} x {side} x {side}, {device}", "", limit / 1e12, "TFLOP/s")
    plain = random_llama(shape, torch.bfloat16, device)
    size = sum(weight.nbytes for weight in plain.parameters())
    for backend, name in BACKENDS.items():
        if not fits(size, device):
            print(f"gpu: no room for a {name} beside the plain model on {device}", file=sys.stderr)
            continue
        model = loaded(plain if backend == "hooked" else random_llama(shape, torch.bfloat16, device), backend)
        yield from backend_rows(model, backend, f"8B-shape {name}, {device}", plain, limit, settings)
        del model
        gc.collect()
        if on_gpu(device):
            torch.cuda.empty_cache()


def backend_rows(model: Any, backend: str, name: str, plain: Any, limit: float, settings: Settings) -> Iterator[Row]:
    """Measure one backend: recording, its limit and memory, the paper's way, patches."""
    device = str(plain.device)
    batch, context = (2, 32) if settings.tiny else (BATCH, CONTEXT)
    with tempfile.TemporaryDirectory() as folder:
        before = held(device) if memory_is_seen(device) else 0.0
        ways = Ways(model, Path(folder), 1, batch, context)
        multiplied = sum(weight.numel() for weight in plain.model.layers.parameters())
        if backend == "bridge":  # compared with a forward that has logits
            base, forward = PLAIN, lambda: plain(ways.blocks[0], use_cache=False)
            multiplied_by_base = multiplied + plain.lm_head.weight.numel()
        else:
            base, forward, multiplied_by_base = FORWARD, ways.forward, multiplied
        taken = medians({base: forward, "record()": ways.record}, settings.rounds, device)
        for what, weights in ((base, multiplied_by_base), ("record()", multiplied)):
            speed = ways.tokens / taken[what]
            yield Row(f"{what}, {name}, {batch} x {context}", "", speed, "tokens/s")
            share = 2 * weights * speed / limit
            yield Row(f"{what}, {name}, {batch} x {context}", "the device's bfloat16 matrix product", share)
        ratio = taken["record()"] / taken[base]
        yield Row(f"record(), all statistics, {name}, {batch} x {context}", base, ratio, at_most=HOLDS[backend])
        if memory_is_seen(device):
            sums = held(device) - before
            alone = f"the forward {peak(forward, device) - before - sums:,.0f} MB"
            recording = peak(ways.record, device) - before
            yield Row(f"record(), peak memory beside the weights, {name}", "", recording, "MB", detail=alone)
        yield from against_the_paper(name, backend, ways, settings, device)
    for size in ((1, context // 8), (batch, context)):
        yield from patch_rows(model, name, *size, settings)
