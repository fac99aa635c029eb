"""Numbers that are not finite, through every verb. `make soak` tries every site, tensor, dtype and verb."""

import math
from itertools import cycle

import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.errors import EffectError, ModelError, StatisticsError, TaskError, TrainingError
from langneurons.evaluation.measuring import summarise
from langneurons.models import view
from langneurons.recording.accumulation import Accumulators, Grid
from langneurons.tasks.heads import ClassificationHead
from tests.robustness.numbers import DAMAGES, PLACES, QUIET, VERBS, Outcome, attempt, damaged, setting

HALF = dict(zip(VERBS, cycle(["bfloat16", "float16"]), strict=False))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_a_damaged_model_or_is_not_touched_by_it(verb):
    outcome, number = Outcome(), list(VERBS).index(verb)
    for step, damage in enumerate(DAMAGES):
        for place in (PLACES[(number + 3 * step) % len(PLACES)], "resid_post 1", "embedding"):
            attempt(verb, HALF[verb] if step == 1 else "float32", place, damage, outcome)
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.counts["refused"] > 0


def test_the_check_can_fail(monkeypatch):
    monkeypatch.setitem(VERBS, "careless", lambda at: at.model(at.model.to_tokens("w21 w5 w6")))
    outcome = Outcome()
    attempt("careless", "float32", "act 1", "nan", outcome)
    assert outcome.failures == ["careless, float32, nan at act 1: gave other numbers"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("act 1", r"at site 'post' of layer 1, unit 1 is nan \(1 of 48 units are not finite\), on the text '<s>'"),
        ("head 0", "at site 'head' of layer 0, unit 8 is nan"),
        ("resid_post 0", r"at site 'resid_post' of layer 0, unit 1 is nan \(1 of 32"),
        ("embedding", r"before layer 0, unit 0 is nan \(32 of 32 .* on the text '<s> w21'"),
        ("norm", r"its layers do, but its final norm or its unembedding does not, on the text '<s>'"),
    ],
)
def test_the_first_layer_site_unit_and_text_are_named(place, said):
    at = setting("float32")
    with damaged(at.model, place, "nan"), pytest.raises(ModelError, match=said):
        ln.perplexity(at.model, at.text, **QUIET)


def test_a_recording_says_which_language_and_text_it_failed_on():
    at = setting("float32")
    with damaged(at.model, "embedding", "nan"), pytest.raises(StatisticsError) as refused:
        VERBS["record"](at)
    assert "'en' cannot be recorded" in str(refused.value)
    assert "w21" in str(refused.value)
    assert "layer 0" in str(refused.value)


def test_a_worse_model_never_gets_a_better_perplexity_by_losses_that_are_nan():
    rows = pd.DataFrame(
        {"language": "en", "item": [0, 1], "cluster": [0, 1], "nll": [8.0, math.nan], "tokens": 4, "bytes": 9}
    )
    with pytest.raises(EffectError, match="1 of 2 rows have a loss that is not finite"):
        summarise(rows.assign(bytes=9))


def test_training_says_where_its_loss_stops_being_finite():
    at = setting("float32")
    with (
        damaged(at.model, "pre 1", "nan"),
        pytest.raises(TrainingError, match=r"layer 1, unit 1 is nan .* on training item"),
    ):
        VERBS["finetune"](at)


def test_a_head_of_numbers_that_are_not_finite_is_refused():
    with pytest.raises(TaskError, match="2 of the head's numbers are not finite"):
        ClassificationHead(torch.full((2, 1), torch.nan), torch.zeros(2), ("a", "b"))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_coordinate_that_is_not_finite_never_leaves_the_histogram(wrong):
    """A pre-activation may be infinite where the activation function makes a finite number of it, as ReLU does."""
    z = torch.randn(40, 5)
    grid, folds = Grid.covering(z.amin(0)[None], z.amax(0)[None]), torch.zeros(40, dtype=torch.int64)
    z[7, 2] = wrong
    sums = Accumulators.zeros(1, 5, 40, z.device)
    if math.isnan(wrong):  # no activation function hides it; if one does, the values are what counts
        sums.add(0, z, z.nan_to_num(0).relu(), folds, grid)
    else:
        with pytest.raises(StatisticsError, match=rf"in layer 0, unit 2 is {wrong}"):
            sums.add(0, z, z.relu().clamp(max=3), folds, grid)
    assert sums.histogram.sum(-1).tolist() == [[40] * 5]


def test_activations_are_finite_in_the_models_own_range_after_all_that():
    at = setting("float32")
    assert not view(at.model).hooked
    assert ln.activations(at.model, "w21 w5 w6", at.neurons).notna().all(axis=None)
