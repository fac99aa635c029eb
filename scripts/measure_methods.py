"""Every method on one model: what they choose, whether it holds up, and whether exact ablation agrees.

Usage, from the root of the project::

    python scripts/measure_methods.py texts/ runs/methods

``texts`` holds ``<language>.txt`` to find neurons on and ``<language>.heldout.txt`` to patch them on. Halves of the
text and its shuffled null are recorded once for all methods; every condition is kept in the output folder, and the same
command resumes from there. Written: ``comparison/``, as ``ln.compare_methods`` gives it.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the list of methods

import langneurons as ln
from scripts.measure_validity import METHODS

MORE = {
    "SentenceAP": ln.identification.SentenceAP(),
    "Contrast": ln.identification.Contrast(),
    "GradientRelevance": ln.identification.GradientRelevance(),
}


def main() -> None:
    """Compare and write."""
    arguments = parsed()
    started = time.monotonic()
    model = ln.load_model(arguments.model, backend=arguments.backend)
    corpus = ln.load_corpus(arguments.texts).shuffle(arguments.seed)
    heldout = ln.load_corpus(arguments.texts, corpus.languages, split="heldout").shuffle(arguments.seed)
    text = ln.HeldoutText.of(model, heldout, arguments.heldout, context_length=128)
    comparison = ln.compare_methods(
        METHODS | MORE,
        model,
        corpus,
        text,
        tokens_per_language=arguments.tokens,
        context_length=256,
        controls=arguments.controls,
        sample=arguments.sample,
        seed=arguments.seed,
        out=arguments.out,
    )
    comparison.save(arguments.out / "comparison")
    print(comparison, f"{time.monotonic() - started:.0f} s in this call", sep="\n\n")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="babel")
    parser.add_argument("--backend", default="bridge", help="auto, hooked or bridge")
    parser.add_argument("--tokens", type=int, default=60_000, help="of each language to record")
    parser.add_argument("--heldout", type=int, default=3_000, help="tokens of each language to patch and ablate on")
    parser.add_argument("--controls", type=int, default=0)
    parser.add_argument("--sample", type=int, default=400, help="neurons to ablate exactly")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
