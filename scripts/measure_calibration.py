"""Measure how often effects of 0 are significant, and print the table of docs/effects.md.

Usage (from the project's root, after ``make install``)::

    python scripts/measure_calibration.py [--text ../shared/data/articles]

With ``--text`` one more kind of differences is drawn from: those of babel's loss on the documents of one language when
that language's LAPE neurons are set to 0. Without it, the documents are phrases of the embedded phrasebook.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

import langneurons as ln
from langneurons.effects.calibration import Share
from langneurons.effects.resampling import SIGNIFICANCE, ClusterSums, spreads
from langneurons.evaluation.measuring import measure

TOGETHER = 50  # simulations that share their clusters' sizes
JUMPS = 0.03  # share of the clusters that differ thirty times as much as others
FLIPPED = "rare flips"  # of answers right or wrong
FLIPS, ROWS = 0.01, 20  # share of answers that change, each way, of the answers of a cluster

Drawn = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]  # "cluster simulation"

DIFFERENCES: Mapping[str, Drawn] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "Student's t (3)": lambda generator, shape: generator.standard_t(3, size=shape),
    "lognormal (1.2)": lambda generator, shape: generator.lognormal(0, 1.2, shape) - np.exp(1.2**2 / 2),
    "rare jumps": lambda generator, shape: (
        generator.normal(size=shape) * np.where(generator.random(shape) < JUMPS, 30.0, 1.0)
    ),
    FLIPPED: lambda generator, shape: (
        (generator.binomial(ROWS, FLIPS, shape) - generator.binomial(ROWS, FLIPS, shape)) / ROWS
    ),
}
SIZES: Mapping[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "equal": lambda generator, clusters: np.ones(clusters),
    "lognormal": lambda generator, clusters: generator.lognormal(0, 1, clusters),
    "one dominant": lambda generator, clusters: np.append(np.ones(clusters - 1), 20.0),
}


def observed_differences(rows_after: pd.DataFrame, rows_before: pd.DataFrame, value: str = "nll") -> Drawn:
    """Differences to draw with replacement, relative to the baseline, of the clusters of a real comparison.

    Args:
        rows_after: Rows of the condition, with ``cluster`` and the value.
        rows_before: Rows of the baseline.
        value: The column compared.
    """
    after, before = (
        np.bincount(pd.factorize(rows["cluster"], sort=True)[0], weights=rows[value].to_numpy(dtype=float))
        for rows in (rows_after, rows_before)
    )
    centred = after / before - (after / before).mean()
    return lambda generator, shape: generator.choice(centred, size=shape)


def false_alarms(
    differences: Mapping[str, Drawn] = DIFFERENCES,
    clusters: Sequence[int] = (8, 15, 30, 100),
    simulations: int = 2000,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure how often effects of 0 are significant; as often the 95 % interval fails to hold them.

    Args:
        differences: Name -> a function that draws differences of mean 0, one per cluster and simulation.
        clusters: Numbers of clusters.
        simulations: Simulated comparisons of each kind, a multiple of 50.
        resamples: Resamples of each comparison.
        seed: Seed for the simulations.

    Returns:
        One row per kind of differences, kind of sizes and number of clusters: differences, sizes, clusters, rejected
        (the share with p < 0.05), low and high (its exact binomial 95 % interval).
    """
    rows = []
    for name, draw in differences.items():
        for sizes, draw_sizes in SIZES.items():
            for number in clusters:
                generator, rejected = np.random.default_rng([seed, number]), 0
                for _ in range(simulations // TOGETHER):
                    size = draw_sizes(generator, number)
                    change = draw(generator, (number, TOGETHER)) * size[:, None]
                    sums = [ClusterSums(column[None], size[None], binary=name == FLIPPED) for column in change.T]
                    rejected += sum(spread.p() < SIGNIFICANCE for spread in spreads(sums, resamples, seed))
                share = Share.of(rejected, simulations // TOGETHER * TOGETHER)
                rows.append((name, sizes, number, share.share, share.low, share.high))
    return pd.DataFrame(rows, columns=["differences", "sizes", "clusters", "rejected", "low", "high"])


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
