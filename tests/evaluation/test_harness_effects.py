"""A planted effect on a task of the harness: recovered inside its interval, beside what the harness would report."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import langneurons as ln
from langneurons.tasks.likelihood import LABELS
from tests.planted.classifier import ANSWERS, DAMAGED, planted_classifier
from tests.tasks.harness_files import CHOICE, write_task

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

PAGE = Path(__file__).parents[2] / "docs" / "effects.md"
DRAWS = 200
# What is planted in how many premises with how many items each: the neurons matter to all items of some premises.
SCENARIOS = {
    "120 premises of 3 items": {"sample": 120, "each": 3, "routed": 0.1},
    "30 passages of 12 items": {"sample": 30, "each": 12, "routed": 0.5},
}


class Scenario:
    """A population of items whose answers are known with and without the neurons, and samples of it."""

    def __init__(self, sample: int, each: int, routed: float) -> None:
        self.truth = planted_classifier(900, routed=routed, each=each, together=each)
        self.items = self.truth.task.items[DAMAGED].reset_index(drop=True)
        self.sample = sample
        predictions = [self.truth.predictions[patched][DAMAGED] for patched in (False, True)]
        self.before, self.after = (
            pd.DataFrame(
                {
                    "item": range(len(self.items)),
                    "cluster": np.arange(len(self.items)) // each,
                    "acc": (self.items["label"] == predicted).astype(float),
                }
            )
            for predicted in predictions
        )
        self.effect = self.after["acc"].mean() - self.before["acc"].mean()

    def drawn(self, seed: int) -> np.ndarray:
        """The rows of some premises, drawn at random."""
        clusters = self.before["cluster"].unique()
        chosen = np.random.default_rng(seed).choice(clusters, self.sample, replace=False)
        return np.flatnonzero(self.before["cluster"].isin(chosen))

    def covered(self) -> tuple[float, float]:
        """How often the harness' interval and ours hold the effect of the population."""
        theirs, ours = [], []
        for seed in range(DRAWS):
            rows = self.drawn(seed)
            before, after = self.before.iloc[rows], self.after.iloc[rows]
            change = ln.effects.effect(after, before, "acc", "row", resamples=500)
            ours.append(change.low <= self.effect <= change.high)
            difference, half = independent(before["acc"], after["acc"])
            theirs.append(abs(difference - self.effect) <= half)
        return float(np.mean(theirs)), float(np.mean(ours))


def independent(before: pd.Series, after: pd.Series) -> tuple[float, float]:
    """The difference of two accuracies, and half of its interval as if they were of different items."""
    errors = [values.std() / np.sqrt(len(values)) for values in (before, after)]
    return after.mean() - before.mean(), 1.96 * float(np.hypot(*errors))


@pytest.fixture(scope="module", params=SCENARIOS)
def measured(request, tmp_path_factory):
    """A scenario's name, its truth, what the harness says of one sample, and our effect on it."""
    scenario, folder = Scenario(**SCENARIOS[request.param]), tmp_path_factory.mktemp("tasks")
    items = scenario.items.iloc[scenario.drawn(0)]
    docs = items[["premise", "hypothesis"]].assign(gold=items["label"].map(LABELS.index)).to_dict("records")
    config = CHOICE | {"doc_to_text": "{{premise}} {{hypothesis}}", "doc_to_target": "gold"}
    write_task(folder, f"planted_{DAMAGED}", docs, **config, doc_to_choice=[ANSWERS[label] for label in LABELS])
    model, patch = scenario.truth.model(), scenario.truth.patch
    task = ln.tasks.harness(f"planted_{DAMAGED}", folder)
    evaluation = ln.evaluate(model, task, patches={"silenced": patch}, progress=False)
    reports = [reported(model, folder)]
    with ln.intervene(model, patch):
        reports.append(reported(model, folder))
    (effect,) = evaluation.effects().rows.to_dict("records")
    return request.param, scenario, reports, effect


def reported(model, folder: Path) -> tuple[float, float]:
    """Accuracy and standard error as the harness' own program reports them."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    options = {"tasks": [f"planted_{DAMAGED}"], "task_manager": manager, "bootstrap_iters": 100}
    results = simple_evaluate(model=ln.tasks.HarnessModel(model), **options)["results"][f"planted_{DAMAGED}"]
    return results["acc,none"], results["acc_stderr,none"]


def test_a_planted_effect_is_recovered_inside_its_interval(measured):
    _, scenario, _, effect = measured
    assert effect["low"] <= scenario.effect <= effect["high"] < 0
    assert effect["verdict"] == "worse"
    assert effect["clusters"] == scenario.sample
    rows = scenario.drawn(0)
    known = scenario.after["acc"].iloc[rows].mean() - scenario.before["acc"].iloc[rows].mean()
    assert effect["estimate"] == pytest.approx(known, abs=1e-9)


@pytest.mark.slow
def test_the_page_says_what_the_harness_and_we_report_of_the_same_rows(measured):
    name, scenario, reports, effect = measured
    rows = scenario.drawn(0)
    difference, half = independent(scenario.before["acc"].iloc[rows], scenario.after["acc"].iloc[rows])
    (before, error_before), (after, error_after) = reports
    assert difference == pytest.approx(after - before, abs=1e-9)
    assert half == pytest.approx(1.96 * np.hypot(error_before, error_after), abs=1e-9)
    theirs, ours = scenario.covered()
    cells = (
        f"{100 * scenario.effect:.1f}",
        f"{100 * difference:.1f} [{100 * (difference - half):.1f}, {100 * (difference + half):.1f}]",
        f"{100 * effect['estimate']:.1f} [{100 * effect['low']:.1f}, {100 * effect['high']:.1f}]",
        f"{100 * theirs:.0f} %",
        f"{100 * ours:.0f} %",
    )
    row = f"| {name} | {' | '.join(cells)} |"
    assert row in PAGE.read_text("utf-8"), row
    assert ours >= 0.92
