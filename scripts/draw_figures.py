"""Draw every figure from a saved demo study: ``make figures``, or ``python scripts/draw_figures.py runs/demo``.

Results that the documents print (docs/results/babel, of studies/babel.toml) are drawn from there, so that figures and
tables agree. What neither holds (a fine-tuning, neurons ablated one after the other) is made on babel in some minutes
and kept in the study's folder ``for-figures``; run again, only the drawing is done anew. Another result is drawn in
their place by naming it: ``--from matrix=runs/large/matrix --from statistics=runs/large``.
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

HELDOUT_TOKENS = 600
SHOWN = "hi"  # the language whose neurons are swept and ablated
TRAINED = {"batch_size": 32, "learning_rate": 8e-4}
RESAMPLES = 2000
# Their captions stand in docs/results, under the tables of the same results.
CAPTION_IN_PAGE = ("perplexity_matrix", "smollm2_matrix", "smollm2_confusion", "tasks", "transfer", "transfer_effects")
RESULTS = Path(__file__).parents[1] / "docs" / "results"  # saved results of other studies


@dataclass(frozen=True)
class Study:
    """A saved demo study and what is made beside it.

    Attributes:
        folder: What ``langneurons demo`` wrote.
        given: Result -> folder of another one, drawn in its place.
    """

    folder: Path
    given: dict[str, Path]

    @cached_property
    def stats(self) -> ln.ActivationStats:
        """Activation statistics."""
        return ln.ActivationStats.load(self.given.get("statistics", self.folder / "statistics")).at("act")

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
    def swept(self) -> ln.NeuronSet:
        """The neurons that were swept."""
        return ln.NeuronSet.load(RESULTS / "babel" / "neurons")

    @cached_property
    def model(self) -> Any:
        """The embedded model."""
        return ln.load_model("babel")

    @cached_property
    def text(self) -> ln.HeldoutText:
        """What the demo holds out."""
        _, heldout = ln.load_corpus("babel").split(heldout=0.3, seed=0)
        return ln.HeldoutText.of(self.model, heldout, HELDOUT_TOKENS, context_length=128)

    def saved(self, name: str) -> Any:
        """A result that was given, or that the documents print."""
        return ln.load(self.given.get(name, RESULTS / "babel" / name))

    def made(self, name: str, kind: Any, make: Callable[["Study"], Any]) -> Any:
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


def cumulative(study: Study) -> ln.analysis.Ablation:
    """The neurons of one language, one after the other."""
    return ln.ablate(
        study.model, study.neurons[SHOWN], study.text, each="cumulative", languages=["en", SHOWN, "ur"], value=0.0,
        resamples=RESAMPLES,
    )  # fmt: skip


def training(study: Study) -> ln.training.Finetuned:
    """One fine-tuning, its development score measured on the way."""
    task, dev = ln.XNLI.load("babel", ["en"], split="train"), ln.XNLI.load("babel", ["en"], split="test").take(40)
    update = ln.MaskedLoRA(study.neurons["en"], rank=8, alpha=16, attention=("q", "k", "v", "o"))
    return ln.finetune(study.model, task, update, dev=dev, evaluate_every=10, steps=50, **TRAINED)


def figures(study: Study) -> dict[str, Callable[[], Figure]]:
    """Name -> what draws it."""
    plot = ln.plot
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
        "perplexity_matrix": lambda: plot.perplexity_matrix(study.saved("matrix")),
        "smollm2_matrix": lambda: plot.perplexity_matrix(ln.load(RESULTS / "smollm2" / "matrix")),
        "smollm2_validity": lambda: plot.validity(ln.load(RESULTS / "smollm2" / "validity")),
        "smollm2_carried": lambda: plot.selectivity(ln.load(RESULTS / "smollm2" / "carried")),
        "smollm2_confusion": lambda: ln.load(RESULTS / "smollm2-more" / "confusion").plot(),
        "dose_response": lambda: plot.dose_response(study.saved("sweep"), study.stats, study.swept, SHOWN, "given"),
        "tasks": lambda: study.saved("xnli").plot(),
        "ablation": lambda: plot.ablation(study.saved("ablation"), top=15),
        "cumulative": lambda: plot.ablation(study.made("cumulative", ln.analysis.Ablation, cumulative)),
        "carried": lambda: plot.selectivity(study.saved("carried")),
        "transfer": lambda: plot.transfer(study.saved("transfer")),
        "transfer_effects": lambda: plot.effects(study.saved("transfer").effects()),
        "training": lambda: study.made("training", ln.training.Finetuned, training).plot(),
        "validity": lambda: plot.validity(study.saved("validity")),
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
            path = arguments.out / f"{name}.{arguments.kind}"
            print(ln.plot.save(drawn[name](), path, caption=name not in CAPTION_IN_PAGE))
    except ln.LangNeuronsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
