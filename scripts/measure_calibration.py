"""Measure how often effects of 0 are significant, and print the table of docs/effects.md.

Usage (from the project's root, after ``make install``)::

    python scripts/measure_calibration.py [--text ../shared/data/articles]

With ``--text`` one more kind of differences is drawn from: those of babel's loss on the documents of one language when
that language's LAPE neurons are set to 0. Without it, the documents are phrases of the embedded phrasebook.
"""

import argparse

import pandas as pd

import langneurons as ln
from langneurons.effects.calibration import DIFFERENCES, false_alarms, observed_differences
from langneurons.evaluation.measuring import measure


def real_rows(text: str, language: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of babel on real documents, with the language's neurons set to 0, and unpatched."""
    model, corpus = ln.load_model("babel"), ln.load_corpus(text).shuffle(0)
    stats = ln.record(model, ln.load_corpus("babel"), context_length=64, progress=False)
    neurons = ln.LAPE(top=0.01).identify(stats)
    heldout = ln.HeldoutText.of(model, corpus.select([language]), context_length=512)
    conditions = {("unpatched",): [], ("zero",): [ln.SetTo(neurons[language], 0.0)]}
    rows = measure(model, heldout, conditions, ln.Run(progress=False))
    return rows["zero",], rows["unpatched",]


def main() -> None:
    """Parse the command line, simulate, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="babel", help="folder of articles, or babel for the phrasebook")
    parser.add_argument("--language", default="hi", help="language of the real documents")
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    observed = observed_differences(*real_rows(arguments.text, arguments.language))
    table = false_alarms(
        {**DIFFERENCES, "real documents": observed}, simulations=arguments.simulations, seed=arguments.seed
    )
    wide = table.assign(percent=100 * table["rejected"]).pivot(
        index=["differences", "sizes"], columns="clusters", values="percent"
    )
    wide = wide.reindex(table[["differences", "sizes"]].drop_duplicates().itertuples(index=False, name=None))
    print("| differences | sizes |" + "".join(f" {clusters} clusters |" for clusters in wide.columns))
    print("|---|---|" + "---|" * len(wide.columns))
    for (differences, sizes), row in wide.iterrows():
        print(f"| {differences} | {sizes} |" + "".join(f" {share:.1f} |" for share in row))
    worst = table.loc[table["rejected"].idxmax()]
    print(f"\nLargest: {worst['differences']}, {worst['sizes']}, {worst['clusters']} clusters: ", end="")
    print(f"{100 * worst['rejected']:.1f} % [{100 * worst['low']:.1f}, {100 * worst['high']:.1f}].")


if __name__ == "__main__":
    main()
