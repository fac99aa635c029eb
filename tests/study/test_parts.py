"""Patches at shared and exclusive neurons, in the same words in a study and at the command line."""

import pytest

import langneurons as ln
from langneurons.cli.finding import PatchOptions
from langneurons.cli.measuring import patches_of_files
from langneurons.errors import PatchError, StudyError
from langneurons.study.config import parse_config, read_config
from langneurons.study.tables import PatchPart
from langneurons.study.wording import language_patches, patch_maker
from tests.study.hub_files import STUDIES
from tests.study.small import SMALL

WRITE = "shared=scale:1.5; exclusive=scale:0.5"
WITHOUT_MATRIX = {name: part for name, part in SMALL.items() if name != "matrix"}


@pytest.fixture(scope="module")
def neurons():
    members = {"hi": [(0, 3), (1, 2), (1, 3)], "ur": [(1, 2)], "zh": [(0, 1)]}
    return ln.NeuronSet.of(members, shape=(2, 8), site="act")


def written(patches):
    return [patch.fingerprint for patch in patches]


def test_a_study_the_command_line_and_python_write_the_same(neurons, tmp_path):
    by_hand = [ln.Scale(neurons["hi"].shared(), 1.5), ln.Scale(neurons["hi"].exclusive(), 0.5)]
    (of_language,) = language_patches(neurons, {"clas": PatchPart.model_validate({"write": WRITE})}, None).values()
    assert written(of_language("hi")) == written(by_hand)
    options = PatchOptions(neurons=neurons.save(tmp_path / "neurons.json"), patch=(WRITE,))
    (of_language,) = language_patches(neurons, options.patches(), None).values()
    assert written(of_language("hi")) == written(by_hand)
    assert written(patches_of_files(options, "hi")) == written(by_hand)


def test_a_part_without_neurons_is_left_out_and_a_language_without_any_is_named(neurons):
    both, shared = (
        language_patches(neurons, {"p": PatchPart.model_validate({"write": write})}, None)["p"]
        for write in (WRITE, "shared=0")
    )
    assert written(both("zh")) == written([ln.Scale(neurons["zh"], 0.5)])
    with pytest.raises(PatchError, match="'zh' has no neuron that is shared: leave the language out"):
        shared("zh")


def test_layers_choose_among_the_parts(neurons):
    part = PatchPart.model_validate({"write": WRITE, "layers": [0, 0]})
    (patch,) = language_patches(neurons, {"p": part}, None)["p"]("hi")
    assert {layer: units.tolist() for layer, units in patch.by_layer.items()} == {0: [3]}
    part = PatchPart.model_validate({"write": "shared=0", "layers": [0, 0]})
    with pytest.raises(PatchError, match="no neuron that is shared in layers 0 to 0"):
        language_patches(neurons, {"p": part}, None)["p"]("hi")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        ("sharde=0", "Unknown part of a language's neurons 'sharde': did you mean 'shared'"),
        ("shared=0; 1", "Unknown part of a language's neurons ''"),
        ("shared=0; shared=1", "writes twice at the shared neurons"),
        ("shared=scale:x", "A factor is a number"),
    ],
)
def test_words_that_mean_nothing_are_refused_before_anything_runs(write, message):
    with pytest.raises(StudyError, match=message):
        parse_config({**WITHOUT_MATRIX, "patches": {"p": {"write": write}}})


def test_a_matrix_writes_at_all_of_a_languages_neurons():
    with pytest.raises(StudyError, match="at parts of them"):
        parse_config({**SMALL, "patches": {"p": {"write": WRITE}}, "matrix": {}})
    with pytest.raises(PatchError, match="only tasks, transfers and bake do"):
        patch_maker(WRITE, None)


def test_what_has_a_dose_of_another_adds_at_every_part():
    patches = {"mean": {"write": "mean"}, "p": {"write": "shared=add:1; exclusive=add:2", "dose_of": "mean"}}
    parse_config({**WITHOUT_MATRIX, "patches": patches})
    patches["p"]["write"] = "shared=add:1; exclusive=scale:2"
    with pytest.raises(StudyError, match="dose_of scales what add or diffmean add"):
        parse_config({**WITHOUT_MATRIX, "patches": patches})


def test_clas_scales_shared_neurons_up_and_exclusive_ones_down_in_late_layers():
    patches = read_config(STUDIES / "clas.toml").patches
    assert patches["clas"].parts == patches["reversed"].parts == ["shared", "exclusive"]
    assert {patch.layers for patch in patches.values()} == {(4, 7)}
