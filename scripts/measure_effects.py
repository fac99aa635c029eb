"""Measure what patching language neurons does on held-out text: a matrix, a sweep, every method's selectivity.

Usage, from the root of the project:

    python scripts/measure_effects.py matrix texts/ runs/real --out runs/matrix
    python scripts/measure_effects.py selectivity texts/ runs/real --out runs/selectivity
    python scripts/measure_effects.py sweep texts/ runs/real --out runs/sweep --language hi

``texts`` holds <language>.heldout.txt; ``runs/real`` holds statistics of other text of the same languages. Every
condition is kept in the output folder, and the same command resumes from there.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the list of methods

import langneurons as ln
from langneurons import storage
from scripts.measure_validity import METHODS


def main() -> None:
    """Measure one thing."""
    arguments = parsed()
    stats = ln.ActivationStats.load(arguments.statistics)
    corpus = ln.load_corpus(arguments.texts, stats.languages, split="heldout").shuffle(0)
    model = ln.load_model(arguments.model, backend=arguments.backend)
    text = ln.HeldoutText.of(model, corpus, arguments.tokens, arguments.context)
    print(text)
    {"matrix": matrix, "selectivity": selectivity, "sweep": sweep}[arguments.what](model, text, stats, arguments)


def matrix(model, text: ln.HeldoutText, stats: ln.ActivationStats, arguments: argparse.Namespace) -> None:
    """LAPE's perplexity matrix with controls."""
    neurons = ln.LAPE(top=arguments.top).identify(stats)
    table = ln.perplexity_matrix(
        model, text, neurons, arguments.value, controls=arguments.controls, stats=stats, out=arguments.out
    )
    table.save(arguments.out / "matrix")
    print(neurons, table.to_markdown(), table.selectivity_table(), sep="\n\n")


def selectivity(model, text: ln.HeldoutText, stats: ln.ActivationStats, arguments: argparse.Namespace) -> None:
    """The selectivity index of every method of the validity table, without controls."""
    points = {}
    for name, method in METHODS.items():
        table = ln.perplexity_matrix(
            model, text, method.identify(stats), arguments.value, controls=0, resamples=1000, out=arguments.out
        )
        overall = table.selectivity.set_index("language").loc["all"]
        points[name], low, high = (100 * float(overall[column]) for column in ("selectivity", "low", "high"))
        print(f"{name}: {points[name]:.3f} points [{low:.3f}, {high:.3f}]", flush=True)
    storage.write_text(arguments.out / "selectivity.json", json.dumps(points, indent=1))


def sweep(model, text: ln.HeldoutText, stats: ln.ActivationStats, arguments: argparse.Namespace) -> None:
    """The deactivation sweep of one language's LAPE neurons."""
    neurons = ln.LAPE(top=arguments.top).identify(stats)
    table = ln.sweep(model, text, neurons, stats=stats, languages=[arguments.language], out=arguments.out)
    table.save(arguments.out / f"sweep-{arguments.language}")
    own = table.rows.query("measured == @arguments.language")
    columns = ["kind", "amount", "neurons", "written", "unreachable", "estimate", "low", "high", "verdict"]
    print(own[columns].to_string(index=False))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["matrix", "selectivity", "sweep"])
    parser.add_argument("texts")
    parser.add_argument("statistics", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="babel")
    parser.add_argument("--backend", default="bridge", help="auto, hooked or bridge")
    parser.add_argument("--top", type=float, default=0.01)
    parser.add_argument("--value", type=float, default=0.0)
    parser.add_argument("--controls", type=int, default=20)
    parser.add_argument("--language", default="hi")
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--context", type=int, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    main()
