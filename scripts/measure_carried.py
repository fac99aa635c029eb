"""Measure what babel's language neurons carry of the miniature inference task, beside matched controls.

Usage, from the root of the project: ``python scripts/measure_carried.py runs/real --out runs/carried``, where
``runs/real`` holds statistics of the model. What was read is kept in the output folder.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import langneurons as ln


def main() -> None:
    """Measure at the last token and on average."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("statistics", type=Path, help="a folder that record wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="babel")
    parser.add_argument("--top", type=float, default=0.01, help="share of neurons that LAPE selects")
    parser.add_argument("--controls", type=int, default=20)
    parser.add_argument("--items", type=int, help="at most; all of the test split by default")
    arguments = parser.parse_args()
    stats = ln.ActivationStats.load(arguments.statistics)
    model = ln.load_model(arguments.model)
    neurons = ln.LAPE(top=arguments.top).identify(stats)
    task = ln.XNLI.load("babel", split="test")
    for position in ("last", "mean"):
        polysemanticity = ln.polysemanticity(
            model,
            neurons,
            task,
            position=position,
            controls=arguments.controls,
            stats=stats,
            max_items=arguments.items,
            probe_sizes=(1, 8),
            batch_size=32,
            out=arguments.out / position,
        )
        polysemanticity.save(arguments.out / f"carried-{position}")
        tables = polysemanticity.table(top=10), polysemanticity.probes_table()
        print(f"\n## {position}", polysemanticity, *tables, sep="\n", flush=True)


if __name__ == "__main__":
    main()
