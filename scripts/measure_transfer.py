"""Measure on the miniature inference task what training a language's neurons is worth in other languages.

Usage, from the root of the project:

    python scripts/measure_transfer.py conditions runs/real --out runs/transfer
    python scripts/measure_transfer.py silenced runs/real --out runs/silenced

``runs/real`` holds statistics of the model that is trained. ``conditions`` trains attention and head alone, with the
source's LAPE neurons, and with matched random ones. ``silenced`` trains attention and head while the source's neurons
are zero, and while as many others are, and tests every model with and without that. Every training and everything
measured is kept in the output folder, and the same command resumes from there.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import langneurons as ln

SOURCE = "en"


def main() -> None:
    """Measure one thing."""
    arguments = parsed()
    stats = ln.ActivationStats.load(arguments.statistics)
    model = ln.load_model(arguments.model)
    neurons = ln.LAPE(top=arguments.top).identify(stats)
    print(neurons, flush=True)
    started = time.monotonic()
    {"conditions": conditions, "silenced": silenced}[arguments.what](model, stats, neurons, arguments)
    print(f"{time.monotonic() - started:.0f} s in this call")


def conditions(model, stats: ln.ActivationStats, neurons: ln.NeuronSet, arguments: argparse.Namespace) -> None:
    """Attention and head alone, with the source's neurons, with random ones."""
    report(experiment(model, neurons, arguments, ["none", "source", "random"], stats=stats), arguments.out / "table")


def silenced(model, stats: ln.ActivationStats, neurons: ln.NeuronSet, arguments: argparse.Namespace) -> None:
    """The source's neurons, or others like them, at zero while the model is trained, and while it is used."""
    controls = neurons[SOURCE].matched_control(ln.Controls(stats=stats))
    for name, chosen in {"source": neurons[SOURCE], "control": controls}.items():
        zero = ln.SetTo(chosen, 0.0)
        options = {"training_patches": zero, "patches": {"silenced": zero}}
        transfer = experiment(model, neurons, arguments, ["none"], out=arguments.out / name, **options)
        print(f"\n## {name} silenced in training")
        report(transfer, arguments.out / f"table-{name}")


def experiment(model, neurons: ln.NeuronSet, arguments: argparse.Namespace, conditions, out=None, **options):
    """One transfer experiment on mini_xnli."""
    return ln.transfer_experiment(
        model,
        ln.XNLI.load("babel", [SOURCE], split="train"),
        ln.XNLI.load("babel", split="test").take(arguments.premises),
        neurons,
        source=SOURCE,
        conditions=conditions,
        seeds=arguments.seeds,
        rank=arguments.rank,
        alpha=2 * arguments.rank,
        projections=("gate", "up", "down"),
        out=out or arguments.out,
        steps=arguments.steps,
        batch_size=32,
        learning_rate=arguments.learning_rate,
        bfloat16=True,
        **options,
    )


def report(transfer: ln.training.Transfer, path: Path) -> None:
    """Save and print scores, effects and verdict."""
    transfer.save(path)
    tables = [transfer.scores().to_string(index=False)]
    if len(transfer.conditions) > 1:
        tables += [transfer.effects(against=name).to_markdown() for name in ("none", "random")]
        tables += [transfer.effects(on="source").to_markdown(), transfer.verdict()]
    if transfer.settings["patches"]:
        tables.append(transfer.patch_effects().to_markdown())
    print(*tables, sep="\n\n", flush=True)


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["conditions", "silenced"])
    parser.add_argument("statistics", type=Path, help="a folder that record wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="babel")
    parser.add_argument("--top", type=float, default=0.01, help="share of neurons that LAPE selects")
    parser.add_argument("--premises", type=int, default=400, help="of the test split, three hypotheses each")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    return parser.parse_args()


if __name__ == "__main__":
    main()
