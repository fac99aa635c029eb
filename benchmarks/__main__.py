"""Measure everything and print one table: what was measured, against what, what it is held to, and whether it holds."""

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.measuring import Settings
from benchmarks.rows import HEADER

MODULES = (
    "record",
    "forward",
    "losses",
    "likelihood",
    "generation",
    "patches",
    "ablation",
    "lora",
    "training",
    "identification",
    "startup",
    "report",
    "demo",
    "gpu",
)
VERSIONS = ("torch", "transformer-lens", "transformers", "peft", "lm-eval")


def main(given: Sequence[str] | None = None) -> None:
    """Print the table, row by row as it is measured."""
    names, settings = parsed(given)
    print(described(names, settings), HEADER, sep="\n\n", flush=True)
    for name in names:
        print(f"measuring {name}", file=sys.stderr)
        for row in import_module(f"benchmarks.{name}").rows(settings):
            print(row, flush=True)


def parsed(given: Sequence[str] | None) -> tuple[list[str], Settings]:
    """Read which modules to measure, and how."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="NAMES", help=f"of {','.join(MODULES)}")
    parser.add_argument("--rounds", type=int, help="how often everything is run; the median counts (default 5)")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, one round: to see that everything runs")
    parser.add_argument("--with-demo", action="store_true", help="also time the demo, which takes minutes")
    parser.add_argument("--device", help="of the rows of gpu; by default a GPU, where there is one")
    options = parser.parse_args(given)
    device = options.device or ("cuda" if torch.cuda.is_available() else None)
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds must be at least 1, given {options.rounds}")
    if options.device and torch.device(options.device).type == "cpu" and not options.tiny:
        parser.error("--device cpu is for --tiny: a model of eight billion weights is too much for a processor")
    usual = {**dict.fromkeys(MODULES, True), "demo": options.with_demo, "gpu": device is not None}
    names = options.only.split(",") if options.only else [name for name in MODULES if usual[name]]
    if unknown := [name for name in names if name not in MODULES]:
        parser.error(f"--only takes {', '.join(MODULES)}; given {', '.join(unknown)}")
    if "gpu" in names and device is None:
        parser.error("gpu needs a GPU, or --device cpu --tiny")
    return names, Settings(options.rounds or (1 if options.tiny else 5), options.tiny, device)


def described(names: Sequence[str], settings: Settings) -> str:
    """Say on what, with what and how everything was measured."""
    machine = f"{processor()}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    how = f"float32 (gpu: bfloat16), ways run in turn in one process, medians, rounds: {settings.rounds}"
    said = [f"{machine}; Python {platform.python_version()}, {versions}; {how}."]
    if settings.tiny:
        said.append("Tiny shapes: the numbers mean nothing.")
    if missing := [name for name in MODULES if name not in names]:
        said.append(f"Not measured: {', '.join(missing)}.")
    return " ".join(said)


def processor() -> str:
    """Name the processor."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
