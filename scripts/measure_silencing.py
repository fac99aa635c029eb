"""Does a model that is trained without its language neurons route around them?

Usage (from the project's root; the same command goes on after any interruption)::

    python -m scripts.measure_silencing runs/silencing                          # babel learns its miniature XNLI
    python -m scripts.measure_silencing runs/silencing-text --text texts/       # it learns to predict text instead
    python -m scripts.measure_silencing runs/smollm2 --text texts/ --model SmolLM2-135M-Instruct.Q4_1.gguf --seeds 2

For each language, low-rank updates of attention (and for XNLI, a fitted head) are trained on the language's own data:
with nothing silenced, with the language's LAPE neurons set to 0 in every step, and with as many others that write as
much (each seed draws its own). Every model is tested with these neurons and without them. The folder ``effects`` holds
what that changes: silenced in the test, in training, and in both, against neither; and in both against in the test
alone, which is what is routed around.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

import langneurons as ln
from langneurons import storage
from langneurons.effects.pairing import BASELINE, ROW
from langneurons.patches import Patch
from langneurons.tasks.task import Task
from langneurons.training.text import TextTask, as_task, to_judge_by

ATTENTION = ("q", "k", "v", "o")
TOKENS, CONTEXT = 3_000, 128  # of each language to find neurons on, and positions of a block
TEST_TOKENS, TEST_PREMISES = 1_000, 100  # of each language
HEAD_PREMISES = 100  # on which the head is fitted that training starts from
CONTRASTS = {  # silenced in training and in the test, against what
    "in the test": ((False, True), (False, False)),
    "in training": ((True, False), (False, False)),
    "in both": ((True, True), (False, False)),
    "in both, against in the test": ((True, True), (False, True)),
}


@dataclass(frozen=True)
class Lesson:
    """What a model is trained and tested on, and which neurons are silenced: its language's, or random ones."""

    train: Task
    test: Task
    language: str
    neurons: ln.NeuronSet
    stats: ln.ActivationStats
    head: ln.tasks.ClassificationHead | None = None

    def silenced(self, which: str, seed: int) -> Patch:
        """Set neurons to 0."""
        own = self.neurons.select([self.language])
        if which == "random":
            own = own.matched_control(ln.Controls(stats=self.stats, seed=seed), exclude=self.neurons)
        return ln.SetTo(own, 0.0)

    def rows(self, model: torch.nn.Module, training: ln.Training, seeds: int, out: Path) -> pd.DataFrame:
        """Train and test in every combination; what was trained and measured before is read."""
        parts = []
        for seed in range(seeds):
            for which in ("language's", "random"):
                patch = self.silenced(which, seed)
                for in_training in (False, True):
                    held = [patch] if in_training else []
                    folder = out / (f"{self.language}-{which[:4]}" if in_training else self.language) / f"seed{seed}"
                    tuned = ln.finetune(
                        model,
                        self.train,
                        ln.MaskedLoRA(None, attention=ATTENTION, seed=seed),
                        languages=[self.language],
                        head=self.head,
                        patches=held,
                        training=training.model_copy(update={"seed": seed}),
                        run=ln.Run(out=folder, progress=False),
                    )
                    task = self.test if tuned.head is None else self.test.with_head(tuned.head)
                    for in_test in (False, True):
                        path = folder / (f"{which[:4]}-silenced.parquet" if in_test else "intact.parquet")
                        if not path.exists():
                            with tuned.attach(model), ln.intervene(model, *[patch] * in_test):
                                storage.write_table(path, task.measure(model, self.language), sidecar=True)
                        about = {"neurons": which, "seed": seed, "in_training": in_training, "in_test": in_test}
                        parts.append(storage.read_table(path).assign(**about))
        return pd.concat(parts, ignore_index=True)


def effects_of(rows: pd.DataFrame, judge: Task, language: str) -> Iterator[tuple[tuple[str, ...], ln.effects.Effect]]:
    """Compare combinations, seed by seed."""
    metric, per = judge.metrics[0], BASELINE if isinstance(judge, TextTask) else ROW
    for which, of_neurons in rows.groupby("neurons", sort=False):
        cells = dict(iter(of_neurons.groupby(["in_training", "in_test"])))
        for name, (condition, baseline) in CONTRASTS.items():
            yield (language, str(which), name), ln.effects.effect(cells[condition], cells[baseline], metric, per)


def main() -> None:
    """Run the experiment, and print its effects."""
    arguments, training = parsed()
    model = ln.load_model(arguments.model)
    corpus, heldout = texts(arguments.text or "babel")
    if arguments.text is None:
        train: Task = ln.XNLI.load("babel", arguments.languages, split="train")
        test: Task = ln.XNLI.load("babel", arguments.languages).take(TEST_PREMISES, 0)
    else:
        trained = corpus.select(arguments.languages)
        train = as_task(ln.HeldoutText.of(model, trained, context_length=CONTEXT))
        test = to_judge_by(model, ln.HeldoutText.of(model, heldout.select(arguments.languages), TEST_TOKENS, CONTEXT))
    statistics = ln.Run(out=arguments.out / "statistics", progress=False)
    stats = ln.record(model, corpus, tokens_per_language=TOKENS, context_length=CONTEXT, run=statistics)
    neurons = ln.LAPE(top=arguments.top).identify(stats)
    effects = {}
    for language in arguments.languages:
        head = None
        if isinstance(train, ln.XNLI):
            head = ln.tasks.ClassificationHead.fit(model, train.take(HEAD_PREMISES), [language])
        lesson = Lesson(train, test, language, neurons, stats, head)
        rows = lesson.rows(model, training, arguments.seeds, arguments.out)
        effects |= dict(effects_of(rows, test, language))
    numbers = ", ".join(f"{language} {len(neurons[language])}" for language in arguments.languages)
    judged = f"{Path(arguments.model).name}, {test.name} {test.metrics[0]}"
    family = f"{judged}, neurons set to 0: {numbers}; {len(effects)} effects"
    table = ln.effects.EffectTable.of(effects, ("language", "neurons", "silenced"), family)
    table.save(arguments.out / "effects")
    sys.stdout.write(f"{table}\n")


def texts(source: str) -> list[ln.Corpus]:
    """The text to train on, and the one to judge by."""
    if source == "babel":
        return list(ln.load_corpus("babel").split(0.2))
    return [ln.load_corpus(source, split=split).shuffle(0) for split in ("train", "heldout")]


def parsed() -> tuple[argparse.Namespace, ln.Training]:
    """The command line, and the settings of every training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of everything that is trained and measured")
    parser.add_argument("--model", default="babel", help="the model")
    parser.add_argument("--text", help='folder of text to learn, or "babel"; by default the miniature XNLI')
    parser.add_argument("--languages", default=["hi", "es"], type=lambda codes: codes.split(","), help="such as hi,es")
    parser.add_argument("--top", type=float, default=0.02, help="share of all neurons that LAPE takes")
    parser.add_argument("--seeds", type=int, default=6, help="training seeds")
    parser.add_argument("--steps", type=int, default=15, help="steps of a training")
    parser.add_argument("--batch-size", type=int, default=16, help="examples of a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="highest learning rate")
    arguments = parser.parse_args()
    names = ("steps", "batch_size", "learning_rate")
    return arguments, ln.Training(**{name: getattr(arguments, name) for name in names})


if __name__ == "__main__":
    main()
