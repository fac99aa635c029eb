"""Draw every figure from a saved demo study: ``make figures``, or ``python scripts/draw_figures.py runs/demo``.

What the demo does not hold (a sweep, a task, ablations, a transfer experiment, ...) is made on babel in some minutes
and kept in the study's folder ``for-figures``; run again, only the drawing is done anew. A larger result is drawn in
place of the study's by naming it: ``--from matrix=runs/large/matrix --from statistics=runs/large``.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from plotly.graph_objects import Figure

import langneurons as ln
from langneurons.analysis.validity import Evidence, RedrawnRandom, nulls_of, record_nulls, split_half, validity_table
from langneurons.analysis.validity.checks import ValidityTable

HELDOUT_TOKENS = 600
SHOWN = "hi"  # the language whose neurons are swept and ablated
TRAINED = {"batch_size": 32, "learning_rate": 8e-4, "bfloat16": True}
RESAMPLES = 2000
RESULTS = Path(__file__).parents[1] / "docs" / "results"  # saved results of other studies


@dataclass(frozen=True)
class Study:
    """A saved demo study and what is made beside it.

    Attributes:
        folder: What ``langneurons demo`` wrote.
        given: Result -> folder of a larger one, drawn in its place.
    """

    folder: Path
    given: dict[str, Path]

    @cached_property
    def stats(self) -> ln.ActivationStats:
        """Activation statistics."""
        return ln.ActivationStats.load(self.given.get("statistics", self.folder / "statistics"))

    @cached_property
    def neurons(self) -> ln.NeuronSet:
        """LAPE's neurons."""
        return ln.LAPE(top=0.01).identify(self.stats)

    @cached_property
    def clearest(self) -> list[int]:
        """Layer and index of the clearest neuron of the language that is shown."""
        return self.neurons[SHOWN].clearest(self.stats).indices()[0].tolist()

    @cached_property
    def sets(self) -> dict[str, ln.NeuronSet]:
        """What several methods choose."""
        return {name: method.identify(self.stats) for name, method in methods(self.stats).items()}

    @cached_property
    def own_stats(self) -> ln.ActivationStats:
        """The study's own statistics, whatever is drawn: what is made is made with these."""
        return ln.ActivationStats.load(self.folder / "statistics")

    @cached_property
    def own_neurons(self) -> ln.NeuronSet:
        """LAPE's neurons in the study's own statistics."""
        return ln.LAPE(top=0.01).identify(self.own_stats)

    @cached_property
    def swept(self) -> ln.ActivationStats:
        """The statistics of the model that was swept, which may be another than the study's."""
        return ln.ActivationStats.load(self.given.get("sweep-statistics", self.folder / "statistics"))

    @cached_property
    def model(self) -> Any:
        """The embedded model."""
        return ln.load_model("babel")

    @cached_property
    def text(self) -> ln.HeldoutText:
        """What the demo holds out."""
        _, heldout = ln.load_corpus("babel").split(heldout=0.3, seed=0)
        return ln.HeldoutText.of(self.model, heldout, HELDOUT_TOKENS, context_length=128)

    def result(self, name: str, kind: Any, make: Callable[["Study"], Any]) -> Any:
        """A result that was given, or was made before, or is made now."""
        folder = self.given.get(name, self.folder / "for-figures" / name)
        if not folder.is_dir():
            print(f"making {name}", file=sys.stderr)
            make(self).save(folder)
        return kind.load(folder)


def methods(stats: ln.ActivationStats) -> dict[str, Any]:
    """Methods that name about as many neurons."""
    top = 0.01 / len(stats.languages)
    return {
        "LAPE": ln.LAPE(top=0.01),
        "pooled-p90": ln.ActivationProbability(threshold="pooled-p90", top=top),
        "MeanDifference": ln.MeanDifference(top=top),
        "often active": ln.ActivationProbability(top=top),
    }


def sweep(study: Study) -> ln.effects.EffectTable:
    """One language's neurons set to many values."""
    doses = [ln.evaluation.Dose("set", value) for value in (-10, -5, -2, -1, 0, 1, 2, 5, 10)]
    doses += [ln.evaluation.Dose("quantile", share) for share in (0.1, 0.5, 0.9)]
    return ln.sweep(study.model, study.text, study.own_neurons, doses, stats=study.own_stats, languages=[SHOWN])


def tasks(study: Study) -> ln.evaluation.Evaluation:
    """The miniature XNLI under three patches, by babel fine-tuned on English: as it comes it cannot answer."""
    tuned = study.result("training", ln.training.Finetuned, training)
    test, neurons, stats = ln.XNLI.load("babel", split="test").take(40), study.own_neurons, study.own_stats
    patches = {
        "zero": lambda language: ln.SetTo(neurons[language], 0.0),
        "mean": lambda language: ln.SetTo(neurons[language], stats[language].mean()),
        "p90": lambda language: ln.SetTo(neurons[language], stats[language].quantile(0.9)),
    }
    options = {"controls": 3, "stats": stats, "resamples": RESAMPLES}
    with tuned.attach(study.model):
        return ln.evaluate(study.model, test, patches=patches, head=tuned.head, **options)


def ablation(study: Study) -> ln.analysis.Ablation:
    """Each neuron of one language alone."""
    return ln.ablate(
        study.model, study.own_neurons[SHOWN], study.text, languages=["en", SHOWN, "ur"], value=0.0, controls=40,
        stats=study.own_stats, resamples=RESAMPLES,
    )  # fmt: skip


def cumulative(study: Study) -> ln.analysis.Ablation:
    """The neurons of one language, one after the other."""
    return ln.ablate(
        study.model, study.own_neurons[SHOWN], study.text, each="cumulative", languages=["en", SHOWN, "ur"], value=0.0,
        resamples=RESAMPLES,
    )  # fmt: skip


def carried(study: Study) -> ln.analysis.Polysemanticity:
    """What else the neurons carry, of the miniature XNLI."""
    return ln.polysemanticity(
        study.model, study.own_neurons, ln.XNLI.load("babel", split="test"), position="last", controls=5,
        permutations=200, stats=study.own_stats, max_items=240, probe_sizes=(1,),
    )  # fmt: skip


def transfer(study: Study) -> ln.training.Transfer:
    """English neurons trained on English, in other languages; six seeds, which is what a p-value needs."""
    task, test = ln.XNLI.load("babel", ["en"], split="train"), ln.XNLI.load("babel", split="test").take(40)
    return ln.transfer_experiment(
        study.model, task, test, study.own_neurons, source="en", targets=["es", "hi"],
        conditions=["none", "source", "random"], seeds=6, projections=("gate", "up", "down"), stats=study.own_stats,
        resamples=RESAMPLES, steps=30, **TRAINED,
    )  # fmt: skip


def training(study: Study) -> ln.training.Finetuned:
    """One fine-tuning, its development score measured on the way."""
    task, dev = ln.XNLI.load("babel", ["en"], split="train"), ln.XNLI.load("babel", ["en"], split="test").take(40)
    update = ln.MaskedLoRA(study.own_neurons["en"], rank=8, alpha=16, attention=("q", "k", "v", "o"))
    return ln.finetune(study.model, task, update, dev=dev, evaluate_every=10, steps=50, **TRAINED)


def validity(study: Study) -> ValidityTable:
    """Do the methods find the same neurons again, and nothing in text without languages?"""
    corpus, _ = ln.load_corpus("babel").split(heldout=0.3, seed=0)
    recorded = record_nulls(study.model, corpus, context_length=256, which=("shuffled",))
    chosen = methods(study.own_stats)
    del chosen["pooled-p90"]  # halves of a recording hold no quantiles; scripts/measure_validity.py reads twice
    checked = chosen | {"Random, drawn anew for every text": RedrawnRandom(top=0.01)}
    return validity_table(
        [
            Evidence(
                name,
                split_half=split_half(method, study.own_stats),
                nulls=nulls_of(method, recorded.real, recorded.nulls),
            )
            for name, method in checked.items()
        ]
    )


def figures(study: Study) -> dict[str, Callable[[], Figure]]:
    """Name -> what draws it."""
    plot, folder = ln.plot, study.folder
    return {
        "layer_heatmap": lambda: plot.layer_heatmap(study.neurons),
        "layer_profile": lambda: plot.layer_profile(study.neurons),
        "layer_profile_methods": lambda: plot.layer_profile(study.sets),
        "overlap": lambda: plot.overlap(study.neurons),
        "overlap_methods": lambda: plot.overlap(study.sets["LAPE"], study.sets["pooled-p90"], ("LAPE", "pooled-p90")),
        "sets": lambda: plot.sets(study.neurons),
        "methods": lambda: plot.methods(study.sets),
        "histogram": lambda: plot.histogram(
            study.stats, *study.neurons[SHOWN].clearest(study.stats).indices().tolist()
        ),
        "perplexity_matrix": lambda: plot.perplexity_matrix(
            ln.effects.EffectTable.load(study.given.get("matrix", folder / "matrix" / "effects"))
        ),
        "smollm2_matrix": lambda: plot.perplexity_matrix(ln.load(RESULTS / "smollm2" / "matrix")),
        "smollm2_validity": lambda: plot.validity(ln.load(RESULTS / "smollm2" / "validity")),
        "smollm2_carried": lambda: plot.selectivity(ln.load(RESULTS / "smollm2" / "carried")),
        "smollm2_confusion": lambda: ln.load(RESULTS / "smollm2-more" / "confusion").plot(),
        "babel_transfer": lambda: plot.effects(ln.load(RESULTS / "babel" / "transfer").effects()),
        "dose_response": lambda: plot.dose_response(
            study.result("sweep", ln.effects.EffectTable, sweep),
            study.swept,
            ln.LAPE(top=0.01).identify(study.swept),
            SHOWN,
        ),
        "tasks": lambda: study.result("tasks", ln.evaluation.Evaluation, tasks).plot(),
        "ablation": lambda: plot.ablation(study.result("ablation", ln.analysis.Ablation, ablation), top=15),
        "cumulative": lambda: plot.ablation(study.result("cumulative", ln.analysis.Ablation, cumulative)),
        "carried": lambda: plot.selectivity(study.result("carried", ln.analysis.Polysemanticity, carried)),
        "transfer": lambda: plot.transfer(study.result("transfer", ln.training.Transfer, transfer)),
        "transfer_effects": lambda: plot.effects(study.result("transfer", ln.training.Transfer, transfer).effects()),
        "training": lambda: study.result("training", ln.training.Finetuned, training).plot(),
        "validity": lambda: plot.validity(study.result("validity", ValidityTable, validity)),
    }


def main() -> None:
    """Draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a folder that langneurons demo wrote")
    parser.add_argument("--from", dest="given", action="append", default=[], help="RESULT=FOLDER, drawn instead")
    parser.add_argument("--only", action="append", help="names of figures; all without it")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--kind", default="png", help="png, svg, pdf or html")
    arguments = parser.parse_args()
    given = {name: Path(folder) for name, _, folder in (text.partition("=") for text in arguments.given)}
    try:
        drawn = figures(Study(arguments.study, given))
        for name in arguments.only or drawn:
            print(ln.plot.save(drawn[name](), arguments.out / f"{name}.{arguments.kind}"))
    except ln.LangNeuronsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
