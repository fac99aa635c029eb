"""Settings objects: one declaration, frozen, checked in one sentence, and filled option by option."""

from pathlib import Path
from typing import get_type_hints

import pytest

import langneurons as ln
from langneurons import settings
from langneurons.errors import EffectError, ExecutorError, LangNeuronsWarning, StatisticsError, TrainingError
from langneurons.settings import Settings, controls_of, possible_values, with_options

KINDS = [kind for kind in vars(settings).values() if isinstance(kind, type) and issubclass(kind, Settings)]
GROUPS = [kind for kind in KINDS if kind is not Settings]
OPTIONS = {
    settings.TrainingOptions: [settings.Training],
    settings.TestingOptions: [settings.Testing],
    settings.RunOptions: [settings.Run],
    settings.MeasuringOptions: [settings.Testing, settings.Run],
    settings.ControlledOptions: [settings.Controls, settings.Testing, settings.Run],
    settings.PromptingOptions: [settings.Prompting],
    settings.AttributingOptions: [settings.Attributing, settings.Run],
    settings.ConfusionOptions: [settings.Attributing, settings.Testing, settings.Run],
    settings.TaskScoringOptions: [settings.TaskScoring, settings.Run],
    settings.RecordingOptions: [settings.Recording, settings.Run],
    settings.AlteringOptions: [settings.Altering, settings.Recording, settings.Run],
    settings.FinetuningOptions: [settings.Training, settings.Run],
    settings.ExperimentOptions: [
        settings.Experiment,
        settings.Training,
        settings.Controls,
        settings.Testing,
        settings.Run,
    ],
    settings.ProfilingOptions: [settings.Profiling, settings.Run],
    settings.ProbingOptions: [settings.Probing, settings.Controls, settings.Run],
}


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_has_a_default_and_a_sentence(group):
    for name, field in group.model_fields.items():
        assert not field.is_required(), name
        assert field.description, name
        assert field.description.endswith("."), name
    assert group() == group()


@pytest.mark.parametrize("group", GROUPS)
def test_settings_are_frozen(group):
    name = next(iter(group.model_fields))
    with pytest.raises(ValueError, match="frozen"):
        setattr(group(), name, None)


@pytest.mark.parametrize(("typed", "groups"), OPTIONS.items())
def test_single_options_are_the_fields_of_the_settings(typed, groups):
    fields = {name for group in groups for name in group.model_fields}
    # The number of draws has a parameter of its own, controls=.
    assert set(get_type_hints(typed)) == fields - {"draws"}


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: ln.Training(warmup=1), TrainingError, "warmup must be at least 0 and below 1, given 1."),
        (
            lambda: ln.Training(steps=0),
            TrainingError,
            "steps must be a whole number of at least 1, or None, given 0.",
        ),
        (
            lambda: ln.Training(steps=1.5),
            TrainingError,
            "steps must be a whole number of at least 1, or None, given 1.5.",
        ),
        (
            lambda: ln.Training(betas=(0.9, 1.0)),
            TrainingError,
            "betas must be two numbers from 0 to below 1, given 1.0.",
        ),
        (
            lambda: ln.Training(schedule="lineer"),
            TrainingError,
            "Unknown schedule 'lineer': did you mean 'linear'? Possible: linear, constant.",
        ),
        (lambda: ln.Training(clip=-1), TrainingError, "clip must be above 0 and finite, or None, given -1."),
        (lambda: ln.Testing(margin=0), EffectError, "margin must be above 0 and finite, given 0."),
        (
            lambda: ln.Testing(margin=float("nan")),
            EffectError,
            "margin must be above 0 and finite, given nan.",
        ),
        (lambda: ln.Testing(level=1), EffectError, "level must be above 0 and below 1, given 1."),
        (
            lambda: ln.Testing(resamples=5),
            EffectError,
            "resamples must be a whole number of at least 100, or None, given 5.",
        ),
        (lambda: ln.Controls(draws=-1), EffectError, "draws must be a whole number of at least 0, given -1."),
        (lambda: controls_of(-1), EffectError, "draws must be a whole number of at least 0, given -1."),
        (
            lambda: ln.Run(batch_size=0),
            ExecutorError,
            "batch_size must be a whole number of at least 1, or None, given 0.",
        ),
        (lambda: ln.Run(out=5), ExecutorError, "out must be a path, or None, given 5."),
        (
            lambda: ln.Recording(also=("sentense",)),
            StatisticsError,
            "Unknown also 'sentense': did you mean 'sentence'? Possible: sentence, gradient.",
        ),
    ],
)
def test_a_wrong_value_is_one_sentence_with_what_is_possible(make, error, sentence):
    with pytest.raises(error) as raised:
        make()
    assert str(raised.value) == sentence


def test_a_misspelt_option_names_the_nearest():
    with pytest.raises(TrainingError, match="Unknown option 'learning_rat': did you mean 'learning_rate'"):
        ln.Training(learning_rat=1e-3)
    with pytest.raises(EffectError, match="Unknown option 'resample': did you mean 'resamples'"):
        with_options({"resample": 200}, ln.Testing(), ln.Run())


def test_an_option_that_several_settings_have_is_for_all_and_the_others_stay():
    training, controls, run = with_options({"seed": 3, "out": "x"}, ln.Training(steps=5), ln.Controls(), ln.Run())
    assert (training.seed, training.steps, controls.seed, run.out) == (3, 5, 3, Path("x"))


def test_single_options_are_checked_as_the_objects_are():
    with pytest.raises(EffectError, match="margin must be above 0 and finite, given -1"):
        with_options({"margin": -1}, ln.Testing())


def test_old_names_go_on_working_and_say_what_they_are_called():
    with pytest.warns(LangNeuronsWarning, match="The option delta is called margin"):
        (testing,) = with_options({"delta": 0.02}, ln.Testing())
    assert testing.margin == 0.02


def test_statistics_pass_through_untouched():
    stats = object()
    assert ln.Controls(stats=stats).stats is stats


def test_every_bound_can_be_said():
    for group in GROUPS:
        for name, field in group.model_fields.items():
            assert "inf" not in possible_values(field).split(), name
