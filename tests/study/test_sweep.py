import pytest

import langneurons as ln
from langneurons.errors import StudyError
from langneurons.evaluation import Dose
from langneurons.study.stages.sweep import Doses
from langneurons.study.study import Study
from tests.study.small import small

DOSES = [Dose("set", -1), Dose("quantile", 0.5), Dose("scale", 2), Dose("cumulative", 0.5)]


def test_a_study_sweeps_as_the_function_does_and_its_report_draws_the_doses(tmp_path):
    doses = {"constants": [-1], "quantiles": [0.5], "factors": [2], "shares": [0.5]}
    sweep = {"languages": ["hi"], "doses": doses}
    study = Study(small(patches={}, matrix=None, sweep=sweep, testing={"resamples": 200}), tmp_path)
    study.run(progress=False)
    table = ln.effects.EffectTable.load(study.path("sweep/babel/two/lape"))
    stats = ln.ActivationStats.load(study.path("record/babel"))
    model, neurons = ln.load_model("babel"), ln.LAPE(top=0.002).identify(stats)
    corpus = ln.load_corpus("babel", ["en", "hi"]).split(heldout=0.3, seed=0)[1].shuffle(0)
    text = ln.HeldoutText.of(model, corpus, 100, 32)
    same = ln.sweep(model, text, neurons, DOSES, stats=stats, languages=["hi"], resamples=200, progress=False)
    assert table.rows.equals(same.rows)
    assert "What values written at the neurons do" in study.report().read_text("utf-8")


def test_a_sweep_that_lists_no_values_is_the_deactivation_sweep():
    assert Doses().listed() == list(ln.evaluation.deactivation_doses())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"doses": {"quantiles": [1.5]}}, "quantiles must be a list, each at least 0 and at most 1, given 1.5"),
        ({"doses": {"shares": [0]}}, "shares must be a list, each above 0 and at most 1, given 0"),
        ({"doses": {"constants": [float("nan")]}}, "constants.*nan"),
        ({"languages": ["hy"]}, "'hi'"),
        ({"amounts": [1]}, "amounts"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_runs(table, message):
    with pytest.raises(StudyError, match=message):
        small(sweep=table)
