"""Neuron sets: labels, algebra, tables, files, imports, controls."""

import json
import pickle
import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langneurons.errors import (
    CorruptArtefactError,
    LangNeuronsWarning,
    LanguageError,
    NeuronSetError,
    SiteMismatchError,
    StorageError,
)
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import ActivationStats
from langneurons.settings import Controls
from langneurons.storage.result import load
from tests.planted.statistics import statistics_from

SHAPE = (3, 8)
PAIRS = st.sets(st.tuples(st.integers(0, 2), st.integers(0, 7)))


def example():
    return NeuronSet.of({"hi": [(2, 1), (0, 3), (0, 3)], "ur": [(2, 1)], "en": []}, shape=SHAPE, site="act")


def test_a_set_knows_its_labels_size_mask_indices_layers_and_profile():
    neurons = example()
    assert neurons.languages == ("hi", "ur", "en")
    assert (len(neurons), len(neurons["hi"]), len(neurons["en"])) == (2, 2, 0)
    assert neurons.indices().tolist() == [[0, 3], [2, 1]]
    assert neurons.mask("ur").nonzero().tolist() == [[2, 1]]
    assert int(neurons.mask().sum()) == 2
    assert {layer: at.tolist() for layer, at in neurons.per_layer().items()} == {0: [3], 2: [1]}
    assert neurons["en"].per_layer() == {}
    assert neurons["en"].indices().shape == (0, 2)
    assert neurons.counts().loc["hi"].tolist() == [1, 0, 1]
    assert neurons.counts().shape == (3, 3)
    assert repr(neurons) == "NeuronSet of 2 neurons at act (3 layers x 8): hi 2, ur 1, en 0"


def test_an_unknown_label_is_refused_with_the_nearest_one():
    for ask in (lambda: example()["hix"], lambda: example().mask("hix")):
        with pytest.raises(LanguageError, match="did you mean 'hi'"):
            ask()


@settings(max_examples=50, deadline=None)
@given(PAIRS, PAIRS)
def test_algebra_is_that_of_python_sets(mine, theirs):
    hi, ur = NeuronSet.of({"hi": mine}, SHAPE, "act"), NeuronSet.of({"ur": theirs}, SHAPE, "act")
    for sign in ("__and__", "__or__", "__sub__", "__xor__"):
        found, expected = getattr(hi, sign)(ur), getattr(mine, sign)(theirs)
        assert {tuple(pair) for pair in found.indices().tolist()} == expected
        assert len(found) == len(expected)
    assert (hi & ur).languages == ("hi&ur",)


def test_sets_with_the_same_labels_combine_label_by_label():
    mine = example()
    theirs = NeuronSet.of({"en": [(1, 1)], "hi": [(0, 3)], "ur": []}, SHAPE, "act")
    assert (mine - theirs)["hi"].indices().tolist() == [[2, 1]]
    assert (mine | theirs)["en"].indices().tolist() == [[1, 1]]
    with pytest.raises(NeuronSetError, match="cannot be combined"):
        mine & theirs["hi"]
    with pytest.raises(TypeError):
        mine & {"hi"}  # pyright: ignore


def test_sets_of_other_models_and_sites_do_not_combine():
    mine = example()["hi"]
    with pytest.raises(NeuronSetError, match="different models"):
        mine & NeuronSet.of({"hi": []}, (3, 9), "act")
    with pytest.raises(SiteMismatchError):
        mine & NeuronSet.of({"hi": []}, SHAPE, "pre")
    one, other = (NeuronSet.of({"hi": []}, SHAPE, "act", model=name * 16) for name in ("a", "b"))
    with pytest.raises(NeuronSetError, match="different models"):
        one & other
    assert (mine & one).model == "a" * 16


def test_equality_and_hash_follow_the_members_not_how_they_were_found():
    again = NeuronSet.of({"ur": [(2, 1)], "en": [], "hi": [(0, 3), (2, 1)]}, SHAPE, "act", method="another way")
    assert example() == again
    assert hash(example()) == hash(again)
    assert example() != example()["hi"]
    assert example() != "hi"


def test_a_set_cannot_be_changed():
    with pytest.raises(AttributeError):
        example().site = "pre"  # pyright: ignore
    with pytest.raises(ValueError, match="read-only"):
        example().members["hi"][0] = 1


def test_jaccard_within_and_between_sets():
    table = example().jaccard()
    assert table.loc["hi", "ur"] == 0.5
    assert table.loc["hi", "hi"] == 1.0
    assert np.isnan(table.loc["en", "en"])
    other = NeuronSet.of({"zh": [(0, 3)]}, SHAPE, "act")
    assert example().jaccard(other).loc["hi", "zh"] == 0.5


def test_tables_go_round():
    table = example().to_dataframe()
    assert table.columns.tolist() == ["language", "layer", "neuron"]
    assert NeuronSet.from_dataframe(table) == example()
    bare = pd.DataFrame(table.to_dict("list"))
    assert NeuronSet.from_dataframe(bare, shape=SHAPE, site="act").languages == ("hi", "ur")
    assert NeuronSet.of({"hi": []}, SHAPE, "act").to_dataframe().shape == (0, 3)
    with pytest.raises(NeuronSetError, match="shape"):
        NeuronSet.from_dataframe(bare)
    with pytest.raises(NeuronSetError, match="no column 'layer'"):
        NeuronSet.from_dataframe(bare.drop(columns="layer"))


@pytest.mark.parametrize("pairs", [[(3, 0)], [(0, 8)], [(-1, 0)], [(0, 1, 2)], [(0, 1), (2,)]])
def test_what_is_no_neuron_is_refused(pairs):
    with pytest.raises(NeuronSetError):
        NeuronSet.of({"hi": pairs}, SHAPE, "act")


def test_a_table_of_something_else_is_refused():
    table = example().to_dataframe()
    for column in (table["neuron"] + 0.5, table["language"]):
        with pytest.raises(NeuronSetError, match="whole numbers"):
            NeuronSet.from_dataframe(table.assign(neuron=column))


@pytest.mark.parametrize("absent", [None, float("nan"), pd.NA])
@pytest.mark.parametrize("dtype", ["object", "str", "category"])
def test_a_row_without_a_language_is_refused_and_not_dropped(absent, dtype):
    table = pd.DataFrame({"language": ["hi", absent], "layer": [0, 1], "neuron": [3, 2]}).astype({"language": dtype})
    with pytest.raises(NeuronSetError, match="1 of its 2 rows do not, such as row 1"):
        NeuronSet.from_dataframe(table, shape=SHAPE, site="act")


def test_what_is_no_shape_is_refused():
    with pytest.raises(NeuronSetError, match="A shape is"):
        NeuronSet.from_dataframe(example().to_dataframe(), shape=(0, 8))


def test_saving_goes_round_and_is_the_same_bytes_every_time(tmp_path):
    neurons = example()
    path = neurons.save(tmp_path / "neurons.json")
    loaded = NeuronSet.load(path)
    assert loaded == neurons
    assert loaded.languages == neurons.languages
    assert loaded.save(tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_changed_or_foreign_file_is_noticed(tmp_path):
    path = example().save(tmp_path / "neurons.json")
    content = json.loads(path.read_text())
    content["members"][0][1][0] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(CorruptArtefactError, match="changed"):
        NeuronSet.load(path)
    path.write_text("{}")
    with pytest.raises(CorruptArtefactError):
        NeuronSet.load(path)
    with pytest.raises(StorageError, match="no such file"):
        NeuronSet.load(tmp_path / "missing.json")


def test_algebra_on_a_large_model_is_fast():
    random = np.random.default_rng(0)
    sets = [
        NeuronSet({name: np.sort(random.choice(32 * 14336, 5000, replace=False))}, (32, 14336), "act")
        for name in ("hi", "ur")
    ]
    start = time.perf_counter()
    both = (sets[0] & sets[1]) | (sets[0] - sets[1])
    assert len(both) == 5000
    assert time.perf_counter() - start < 2.0  # about 2 ms; generous for a busy machine


def published(languages=2, layers=3):
    return [[torch.tensor([language, layer + 2]) for layer in range(layers)] for language in range(languages)]


def test_published_masks_are_read(tmp_path):
    path = tmp_path / "model.neuron.pth"
    torch.save(published(), path)
    neurons = NeuronSet.from_rucaibox(path, languages=["en", "zh"], shape=SHAPE)
    assert neurons["zh"].indices().tolist() == [[0, 1], [0, 2], [1, 1], [1, 3], [2, 1], [2, 4]]
    with pytest.warns(LangNeuronsWarning, match="give shape="):
        assert NeuronSet.from_rucaibox(path, languages=["en", "zh"]).shape == (3, 5)
    with pytest.raises(NeuronSetError, match="holds 2 languages, but 3"):
        NeuronSet.from_rucaibox(path, languages=["en", "zh", "fr"], shape=SHAPE)
    with pytest.raises(NeuronSetError, match="does not fit"):
        NeuronSet.from_rucaibox(path, languages=["en", "zh"], shape=(3, 4))


class Malicious:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_a_malicious_mask_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save([Malicious()], tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps([Malicious()], protocol=2))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(StorageError) as caught:
            NeuronSet.from_rucaibox(tmp_path / name, languages=["en"], shape=SHAPE)
        assert str(caught.value).count("\n") == 0
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content",
    [{}, [], [1], [[1]], [[torch.zeros(2)]], [[torch.tensor([-1])]], [[torch.zeros(1, 1).long()]], torch.zeros(3)],
)
def test_masks_that_hold_something_else_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "mask.pth")
    with pytest.raises(NeuronSetError):
        NeuronSet.from_rucaibox(tmp_path / "mask.pth", languages=["en"], shape=SHAPE)


def test_files_that_are_no_mask_at_all_are_refused(tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("not a mask")
    whole = tmp_path / "whole.pth"
    torch.save(published(), whole)
    (tmp_path / "half.pth").write_bytes(whole.read_bytes()[:400])
    for name in ("empty.pth", "text.pth", "half.pth", "missing.pth"):
        with pytest.raises(StorageError):
            NeuronSet.from_rucaibox(tmp_path / name, languages=["en", "zh"], shape=SHAPE)


@pytest.fixture(scope="module")
def magnitudes():
    """Statistics whose neurons differ in magnitude, in an order of their own per language."""
    random = torch.Generator().manual_seed(0)
    scales = {one: torch.rand(2, 200, generator=random) + 0.1 for one in ("hi", "ur")}
    values = {one: torch.randn(200, 2, 200, generator=random) * scale for one, scale in scales.items()}
    return statistics_from(values, output_norm=torch.rand(2, 200, generator=random))


def planted_set(stats):
    random = np.random.default_rng(1)
    return NeuronSet(
        {one: np.sort(random.choice(400, 40, replace=False)) for one in stats.languages},
        stats.shape,
        "act",
        stats.model.fingerprint,
    )


def deciles(stats, language):
    dose = stats[language].mean_magnitude().values.double() * stats.output_norm()
    return dose.argsort(dim=1).argsort(dim=1) * 10 // stats.shape[1]


def test_controls_of_version_0_1_match_layer_and_decile_and_share_no_neuron_with_the_set(magnitudes):
    neurons = planted_set(magnitudes)
    control = neurons.matched_control(Controls(stats=magnitudes, match="layer+magnitude"), draw=3)
    assert not bool((control.mask() & neurons.mask()).any())
    for language in ("hi", "ur"):
        assert control.counts().loc[language].tolist() == neurons.counts().loc[language].tolist()
        strata = deciles(magnitudes, language)
        for layer in range(2):
            mine = strata[layer][neurons.mask(language)[layer]].bincount(minlength=10)
            theirs = strata[layer][control.mask(language)[layer]].bincount(minlength=10)
            assert torch.equal(mine, theirs)


def test_controls_depend_on_the_seed_and_not_on_other_labels(magnitudes):
    neurons = planted_set(magnitudes)
    assert neurons.matched_control(magnitudes, 0) == neurons.matched_control(magnitudes, 0)
    assert neurons.matched_control(magnitudes, 0) != neurons.matched_control(magnitudes, 1)
    by_layer = neurons.matched_control(Controls(stats=magnitudes, match="layer"))
    assert by_layer.counts().equals(neurons.counts())


def test_too_few_candidates_are_said_and_never_padded(magnitudes):
    crowded = NeuronSet.of({"hi": [(1, index) for index in range(120)]}, (2, 200), "act")
    with pytest.raises(NeuronSetError, match="Layer 1 has 40 neurons too few"):
        crowded.matched_control(Controls(stats=magnitudes, match="layer"))
    with pytest.raises(NeuronSetError, match=r"Layer 1 \(magnitude decile \d+\) has \d+ neurons too few"):
        crowded.matched_control(Controls(stats=magnitudes, match="layer+magnitude"))
    with pytest.raises(NeuronSetError, match="Layer 1 has 40 neurons too few .* or match='dose'"):
        crowded.matched_control(magnitudes)


def test_controls_refuse_other_statistics(magnitudes):
    neurons = planted_set(magnitudes)
    with pytest.raises(LanguageError, match="'layer' only"):
        (neurons["hi"] & neurons["ur"]).matched_control(magnitudes)
    with pytest.raises(SiteMismatchError):
        NeuronSet.of({"hi": []}, (2, 200), "pre").matched_control(magnitudes)
    with pytest.raises(SiteMismatchError, match="belong to model"):
        NeuronSet.of({"hi": []}, (2, 200), "act", model="another").matched_control(magnitudes)
    counts = ActivationStats.from_counts(torch.zeros(1, 2, 9, dtype=torch.long), torch.tensor([4]), ["hi"])
    with pytest.raises(NeuronSetError, match="different models"):
        NeuronSet.of({"hi": []}, (2, 200), "act").matched_control(counts)


def test_controls_leave_out_what_is_excluded():
    neurons = NeuronSet.of({"hi": [(0, 0)]}, (1, 4), "act")
    others = NeuronSet.of({"en": [(0, 1), (0, 2)]}, (1, 4), "act")
    drawn = neurons.matched_control(Controls(match="layer"), exclude=others)
    assert drawn.indices().tolist() == [[0, 3]]


def test_what_is_drawn_depends_on_seed_draw_and_label_alone():
    neurons = NeuronSet.of({"hi": [(0, 0), (0, 7), (1, 3)], "ur": [(1, 4)]}, (2, 50), "act")
    control = neurons.matched_control(Controls(seed=2), draw=1)
    assert {label: flat.tolist() for label, flat in control.members.items()} == {"hi": [19, 38, 64], "ur": [55]}
    singles = neurons.single_controls(Controls(draws=5, seed=3))
    assert singles.members["hi"].tolist() == [14, 19, 20, 70, 94]
    assert singles.members["ur"].tolist() == [57, 63, 68, 71, 85]
    assert neurons.single_controls(Controls(draws=0)).members == {}


def test_statistics_of_the_sets_site_are_taken_from_several():
    random = torch.Generator().manual_seed(0)
    at_act, at_pre = (statistics_from({"hi": torch.randn(60, 1, 40, generator=random)}, site=s) for s in ("act", "pre"))
    neurons = NeuronSet.of({"hi": [(0, 3), (0, 9)]}, (1, 40), "pre")
    both = neurons.matched_control(Controls(stats=[at_act, at_pre]))
    assert both == neurons.matched_control(at_pre)
    with pytest.raises(SiteMismatchError):
        neurons.matched_control(Controls(stats=[at_act]))


OF_VERSION_0_1_0 = """{"members": [["hi", [3, 10]], ["ur", [10]]], "method": "LAPE(top=0.01)", "model": "mmmmmmmm",
"schema": "langneurons/neuron-set/1", "scores": [], "seal": "70965de24e3b2a98613a885946a610c9", "shape": [2, 8],
"site": "act"}"""


def test_a_set_of_version_0_1_0_is_loaded_and_prints_its_labels(tmp_path):
    (tmp_path / "neurons.json").write_text(OF_VERSION_0_1_0)
    neurons = load(tmp_path / "neurons.json")
    assert neurons == NeuronSet.of({"hi": [(0, 3), (1, 2)], "ur": [(1, 2)]}, (2, 8), "act", "m" * 8)
    assert neurons.method == "LAPE(top=0.01)"
    assert neurons.table().frame.to_numpy().tolist() == [["hi", 2, 1, "0 to 1"], ["ur", 1, 0, "1 to 1"]]


def test_coordinates_are_counted_by_head_and_widened_to_whole_heads():
    neurons = NeuronSet.of({"hi": [(0, 1), (0, 3), (1, 6)], "ur": []}, shape=(2, 12), site="v")
    table = neurons.by_head(4)
    assert table.to_dict("list") == {
        "language": ["hi", "hi"],
        "layer": [0, 1],
        "head": [0, 1],
        "coordinates": [2, 1],
    }
    whole = neurons.whole_heads(4)
    assert whole["hi"].indices().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 4], [1, 5], [1, 6], [1, 7]]
    assert not len(whole["ur"])
    assert whole.whole_heads(4) == whole
    assert len(neurons.whole_heads(1)) == 3


@pytest.mark.parametrize(
    ("site", "d_head", "said"),
    [("act", 4, "^Units at 'act' are no coordinates"), ("q", 5, "^12 coordinates"), ("q", 0, "^12")],
)
def test_heads_that_a_site_does_not_have_are_one_sentence(site, d_head, said):
    neurons = NeuronSet.of({"hi": [(0, 1)]}, shape=(2, 12), site=site)
    for use in (neurons.by_head, neurons.whole_heads):
        with pytest.raises(NeuronSetError, match=said):
            use(d_head)
