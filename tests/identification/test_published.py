"""Neuron lists in other programs' formats: each goes round; what a file does not say is asked for, never guessed."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from langneurons.errors import (
    CorruptArtefactError,
    LangNeuronsError,
    LangNeuronsWarning,
    LanguageError,
    NeuronSetError,
    SiteMismatchError,
    StorageError,
)
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import ActivationStats

SHAPE = (3, 8)
PAIRS = {"hi": [(0, 3), (2, 1), (2, 7)], "ur": [(1, 0)], "en": []}
NEURONS = NeuronSet.of(PAIRS, SHAPE, "act", model="f" * 32, method="LAPE")
MASKS = {language: NEURONS.mask(language) for language in PAIRS}
LISTS = {
    language: [torch.tensor([n for layer, n in pairs if layer == each], dtype=torch.long) for each in range(3)]
    for language, pairs in PAIRS.items()
}


def same(neurons: NeuronSet) -> bool:
    return {label: neurons[label].indices().tolist() for label in neurons.languages} == {
        label: [list(pair) for pair in pairs] for label, pairs in PAIRS.items()
    }


@pytest.mark.parametrize("name", ["x.neuron.pth", "x.pt", "x.csv", "x.json"])
@pytest.mark.parametrize("neurons", [NEURONS, NEURONS["hi"], NEURONS["en"]], ids=["three", "one", "empty"])
def test_what_is_written_is_read_with_everything_that_is_known(tmp_path, neurons, name):
    path = neurons.write(tmp_path / name)
    again = NeuronSet.read(path)
    assert again == neurons
    assert (again.languages, again.method) == (neurons.languages, neurons.method)
    assert again.write(tmp_path / f"again-{name}").read_bytes() == path.read_bytes()


def test_scores_go_round_in_a_table(tmp_path):
    random = np.random.default_rng(0)
    scores = {"hi": random.random(3) / 3}
    neurons = NeuronSet(NEURONS.members, SHAPE, "act", scores=scores)
    again = NeuronSet.read(neurons.write(tmp_path / "x.csv"))
    assert again.scores["hi"].tolist() == scores["hi"].tolist()
    assert list(again.scores) == ["hi"]


def test_a_torch_file_is_tangs_list_without_anything_of_ours(tmp_path):
    path = NEURONS.write(tmp_path / "x.neuron.pth")
    lists = torch.load(path, weights_only=True)
    assert [[layer.tolist() for layer in of_language] for of_language in lists] == [
        [[3], [], [1, 7]],
        [[], [0], []],
        [[], [], []],
    ]
    assert {layer.dtype for of_language in lists for layer in of_language} == {torch.int64}
    assert json.loads((tmp_path / "x.neuron.pth.json").read_text())["languages"] == ["hi", "ur", "en"]
    (tmp_path / "x.neuron.pth.json").unlink()
    assert same(NeuronSet.from_rucaibox(path, list(PAIRS), SHAPE))
    neurons = NeuronSet.read(path, languages=list(PAIRS), shape=SHAPE)
    assert same(neurons)
    assert neurons.site == "act"


@pytest.mark.parametrize("ending", ["x.npz", "x", "x.parquet"])
def test_other_endings_are_refused(tmp_path, ending):
    with pytest.raises(NeuronSetError, match=r"Unknown ending .* Possible: \.json, \.csv, \.pth, \.pt"):
        NEURONS.write(tmp_path / ending)
    with pytest.raises(NeuronSetError, match="has no language"):
        NeuronSet({}, SHAPE, "act").write(tmp_path / "x.csv")


FORMS = {
    "masks by name": MASKS,
    "lists by name": LISTS,
    "lists of numbers by name": {language: [layer.tolist() for layer in of] for language, of in LISTS.items()},
    "sets by layer by name": {
        language: {layer: set(indices.tolist()) for layer, indices in enumerate(of)} for language, of in LISTS.items()
    },
    "rows of masks by name": {language: list(mask) for language, mask in MASKS.items()},
    "pairs by name": {
        language: torch.tensor(pairs, dtype=torch.long).reshape(-1, 2) for language, pairs in PAIRS.items()
    },
    "masks": list(MASKS.values()),
    "one tensor": torch.stack(list(MASKS.values())),
    "one array": np.stack([mask.numpy() for mask in MASKS.values()]),
    "lists": list(LISTS.values()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_from_memory(form):
    languages = None if form.endswith("by name") else list(PAIRS)
    neurons = NeuronSet.read(FORMS[form], languages=languages, shape=SHAPE, site="post")
    assert same(neurons)
    assert neurons.site == "post"


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("one array", "sets by layer by name")])
def test_every_form_is_read_from_a_torch_file(form, tmp_path):
    torch.save(FORMS[form], tmp_path / "x.pt")
    languages = None if form.endswith("by name") else list(PAIRS)
    assert same(NeuronSet.read(tmp_path / "x.pt", languages=languages, shape=SHAPE, site="act"))


def test_safetensors_and_json_are_read(tmp_path):
    save_file(MASKS, tmp_path / "x.safetensors")
    assert same(NeuronSet.read(tmp_path / "x.safetensors", ["hi", "ur", "en"], site="act"))
    (tmp_path / "x.json").write_text(json.dumps(FORMS["lists of numbers by name"]))
    assert same(NeuronSet.read(tmp_path / "x.json", shape=SHAPE, site="act"))
    (tmp_path / "y.json").write_text(json.dumps({"hi": {"0": [3], "2": [7, 1]}, "ur": {"1": [0]}, "en": {}}))
    assert same(NeuronSet.read(tmp_path / "y.json", shape=SHAPE, site="act"))


def test_one_language_needs_no_list_around_it():
    for form in (MASKS["hi"], {0: [3], 2: [1, 7]}):
        neurons = NeuronSet.read(form, languages=["hi"], shape=SHAPE, site="act")
        assert neurons["hi"].indices().tolist() == [[0, 3], [2, 1], [2, 7]]


def test_languages_that_a_file_names_are_chosen_by_any_code():
    assert NeuronSet.read(MASKS, languages=["urd_Arab", "hin"], site="act").languages == ("ur", "hi")
    with pytest.raises(LanguageError, match="did you mean 'hi'"):
        NeuronSet.read(MASKS, languages=["hii"], site="act")


def test_masks_of_neuron_by_layer_are_read_only_where_that_is_said():
    turned = {language: mask.T for language, mask in MASKS.items()}
    assert same(NeuronSet.read(turned, site="act", transposed=True))
    assert same(NeuronSet.read(turned, shape=SHAPE, site="act", transposed=True))
    with pytest.raises(
        NeuronSetError, match=r"8 layers x 3 neurons, which does not fit shape=\(3, 8\): give transposed=True"
    ):
        NeuronSet.read(turned, shape=SHAPE, site="act")
    with pytest.raises(NeuronSetError, match=r"8 layers x 3 neurons: give shape=.* or transposed=True"):
        NeuronSet.read(turned, site="act")
    assert NeuronSet.read(turned, shape=(8, 3), site="act").shape == (8, 3)
    with pytest.raises(NeuronSetError, match="indices, not masks: leave transposed=True out"):
        NeuronSet.read(LISTS, shape=SHAPE, site="act", transposed=True)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        (list(MASKS.values()), {}, r"holds 3 languages, but not which: give languages="),
        (list(MASKS.values()), {"languages": ["hi", "ur"]}, r"3 languages, but 2 were named \(hi, ur\)"),
        (list(MASKS.values()), {"languages": ["hi", "ur", "hi"]}, "'hi' is named twice"),
        (MASKS, {"site": None}, "does not say at which site .*give site="),
        (MASKS, {"shape": (3, 9)}, r"3 layers x 8 neurons, which does not fit shape=\(3, 9\)\.$"),
        (LISTS, {}, "lists 3 layers, but not how many neurons a layer has: give shape="),
        (LISTS, {"shape": (4, 8)}, r"3 layers and neurons up to 7, which does not fit shape=\(4, 8\)"),
        (LISTS, {"shape": (3, 7)}, r"3 layers and neurons up to 7, which does not fit shape=\(3, 7\)"),
        ({"hi": MASKS["hi"], "ur": MASKS["ur"][:2]}, {}, "different numbers of layers"),
        ({"hi": MASKS["hi"].float()}, {}, "does not hold boolean masks"),
        ({"hi": MASKS["hi"].long()}, {}, "does not hold boolean masks"),
        ({"hi": [MASKS["hi"][0], torch.tensor([3])]}, {}, "does not hold boolean masks"),
        ({"hi": torch.tensor([[-1, 2]])}, {"shape": SHAPE}, "holds indices outside 0 to 2,147,483,647"),
        ({"hi": {3: [1]}}, {"shape": SHAPE}, r"neuron \(3, 1\), but there are 3 layers x 8"),
        (LISTS["hi"], {"languages": ["hi"]}, "does not hold boolean masks"),
        ({"hi": "neurons"}, {}, "does not hold boolean masks"),
        ({"n": 4, "over_zero": torch.ones(3, 8)}, {}, r"holds counts, not neurons: .*ActivationStats\.read_counts"),
        ([], {}, "does not hold boolean masks"),
        ({}, {}, "does not hold boolean masks"),
        (5, {}, "does not hold boolean masks"),
        (None, {}, "does not hold boolean masks"),
        (torch.zeros(2, 2, 2, 2, dtype=torch.bool), {}, "does not hold boolean masks"),
        ({"hi": torch.zeros(3, 8, dtype=torch.bool, device="meta")}, {}, "does not hold boolean masks"),
        ({"hi": torch.zeros(3, 8).bool().to_sparse()}, {}, "does not hold boolean masks"),
        ({"hi": torch.zeros(1, dtype=torch.bool).expand(3000, 8000)}, {}, "does not hold boolean masks"),
    ],
)
def test_what_is_missing_or_wrong_is_one_sentence(source, options, said):
    with pytest.raises(NeuronSetError, match=said) as error:
        NeuronSet.read(source, **{"site": "act", **options})
    assert "\n" not in str(error.value)


def test_what_a_file_says_must_agree_with_what_is_given(tmp_path):
    for name in ("x.pth", "x.csv", "x.json"):
        path = NEURONS.write(tmp_path / name)
        with pytest.raises(SiteMismatchError, match="site 'act', not 'pre'"):
            NeuronSet.read(path, site="pre")
        with pytest.raises(NeuronSetError, match="does not fit shape"):
            NeuronSet.read(path, shape=(3, 9))
        assert NeuronSet.read(path, languages=["ur"]).languages == ("ur",)
    (tmp_path / "x.pth.json").write_text((tmp_path / "x.pth.json").read_text().replace('"ur"', '"hi"'))
    with pytest.raises(CorruptArtefactError, match="checksum"):
        NeuronSet.read(tmp_path / "x.pth")


def test_a_table_of_another_program_is_read_and_one_of_something_else_is_not(tmp_path):
    (tmp_path / "x.tsv").write_text("language\tlayer\tneuron\nnan\t0\t3\nNA\t2\t1\n")
    neurons = NeuronSet.read(tmp_path / "x.tsv", shape=SHAPE, site="act")
    assert {label: neurons[label].indices().tolist() for label in neurons.languages} == {
        "nan": [[0, 3]],
        "NA": [[2, 1]],
    }
    for content, said in (
        ("language,neuron\nhi,3\n", "has the columns language, neuron; a table of neurons has"),
        ("language,layer,neuron\nhi,0,\n", "no whole number"),
        ("language,layer,neuron\nhi,0,1.5\n", "no whole number"),
        ('"', "is not a table"),
        ("", "is not a table"),
    ):
        (tmp_path / "y.csv").write_text(content)
        with pytest.raises(LangNeuronsError, match=said):
            NeuronSet.read(tmp_path / "y.csv", shape=SHAPE, site="act")
    with pytest.raises(StorageError, match="no such file"):
        NeuronSet.read(tmp_path / "missing.csv")


def expertise(**modules: list[tuple[str, int, float]]) -> pd.DataFrame:
    """A table in the columns of Kojima et al.'s code: concept -> (module, unit, average precision)."""
    rows = [
        (ap, 0.0, 0.1, 0.2, 0.3, f"{module}:0", unit, concept)
        for concept, of in modules.items()
        for module, unit, ap in of
    ]
    columns = ["ap", "off_mean", "off_p50", "on_p50", "on_p90", "layer", "unit", "concept"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(uuid=range(len(table)), group="sense")


def test_kojimas_tables_are_read_with_their_average_precision(tmp_path):
    gate = "model.layers.{}.mlp.gate_proj"
    table = expertise(de=[(gate.format(2), 7, 0.91), (gate.format(0), 3, 0.99)], ja=[(gate.format(1), 0, 0.125)])
    table.to_csv(tmp_path / "expertise_limited_2_both.csv", index=False)
    neurons = NeuronSet.read(tmp_path / "expertise_limited_2_both.csv", shape=SHAPE)
    assert neurons.site == "pre"
    assert neurons["de"].indices().tolist() == [[0, 3], [2, 7]]
    assert neurons.scores["de"].tolist() == [0.99, 0.91]
    assert neurons.scores["ja"].tolist() == [0.125]


@pytest.mark.parametrize(
    "module", ["transformer.h.1.mlp.dense_h_to_4h", "model.layers.1.fc1", "transformer.h.1.mlp.c_fc"]
)
def test_kojimas_other_models_have_other_names(tmp_path, module):
    expertise(fr=[(module, 5, 0.5)]).to_csv(tmp_path / "x.csv", index=False)
    assert NeuronSet.read(tmp_path / "x.csv", shape=SHAPE)["fr"].indices().tolist() == [[1, 5]]


def test_of_kojimas_units_those_of_the_site_are_read_that_is_asked_for(tmp_path):
    units = {"mlp.gate_proj": 3, "mlp.up_proj": 4, "self_attn.q_proj": 5, "self_attn.k_proj": 6, "self_attn.v_proj": 7}
    rows = [(f"model.layers.0.{module}", unit, 0.9) for module, unit in units.items()]
    expertise(de=[*rows, ("model.layers.0.self_attn.o_proj", 999, 0.9)]).to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(NeuronSetError, match=r"o_proj 1: say which to read, site='pre' for 1, .*site='v' for 1\.$"):
        NeuronSet.read(tmp_path / "x.csv", shape=SHAPE)
    for site, unit in zip(("pre", "up", "q", "k", "v"), units.values(), strict=True):
        neurons = NeuronSet.read(tmp_path / "x.csv", shape=SHAPE, site=site)
        assert (neurons.site, neurons.indices().tolist()) == (site, [[0, unit]])
    with pytest.raises(NeuronSetError, match="put out, so there is no 'head'"):
        NeuronSet.read(tmp_path / "x.csv", shape=SHAPE, site="head")
    expertise(de=[("model.layers.0.mlp.down_proj", 3, 0.9)]).to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(NeuronSetError, match="holds units of down_proj 1; sites are what gate_proj"):
        NeuronSet.read(tmp_path / "x.csv", shape=SHAPE)
    expertise(de=[("lm_head", 3, 0.9)]).to_csv(tmp_path / "y.csv", index=False)
    with pytest.raises(NeuronSetError, match="names the module 'lm_head:0'"):
        NeuronSet.read(tmp_path / "y.csv", shape=SHAPE)


def test_damos_text_is_read_by_site_and_what_is_left_out_is_said(tmp_path):
    path = tmp_path / "Meta-Llama-3-8Bhindigsm_2000_12000_990.txt"
    up, down = {0: {3}, 1: set(), 2: {7}}, {0: {3}, 1: set(), 2: {1}}
    path.write_text("\n".join(map(str, (up, down, {0: {900}}, {0: set()}, {0: set()}))) + "\n")
    with pytest.warns(LangNeuronsWarning, match="its 1 coordinates of q, k and v are left out"):
        neurons = NeuronSet.read(path, languages=["hi"], shape=SHAPE)
    assert neurons.site == "post"
    assert neurons["hi"].indices().tolist() == [[0, 3], [2, 1], [2, 7]]
    for site, width, members in (("up", 8, [[0, 3], [2, 7]]), ("q", 1024, [[0, 900]]), ("v", 256, [])):
        of_site = NeuronSet.read(path, languages=["hi"], shape=(3, width), site=site)
        assert (of_site.site, of_site["hi"].indices().tolist()) == (site, members)
    with pytest.raises(SiteMismatchError, match="of site 'post', not 'act'"):
        NeuronSet.read(path, languages=["hi"], shape=SHAPE, site="act")


def test_damos_text_of_numpy_2_is_read(tmp_path):
    (tmp_path / "x.txt").write_text("{0: {np.int64(3), np.int64(5)}}\n{0: set()}\n")
    neurons = NeuronSet.read(tmp_path / "x.txt", languages=["hi"], shape=SHAPE)
    assert neurons.indices().tolist() == [[0, 3], [0, 5]]


@pytest.mark.parametrize(
    "content", ["", "{0: {3}}", "{0: {3}}\n__import__('os')", "{0: {3}, 1: [4]}\n{}", "{0: {3}}\n" * 6, "a text\n" * 5]
)
def test_other_texts_are_refused_and_never_executed(tmp_path, content):
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(NeuronSetError, match="no dictionary of layers|one each for up, down"):
        NeuronSet.read(tmp_path / "x.txt", languages=["hi"], shape=SHAPE)


class Malicious:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"hi": Malicious()}, "zip.pt")
    (tmp_path / "plain").write_bytes(pickle.dumps({"n": 4, "over_zero": Malicious()}, protocol=2))
    for name in ("zip.pt", "plain"):
        with pytest.raises(StorageError, match="nothing in it was executed"):
            NeuronSet.read(tmp_path / name, site="act")
        with pytest.raises(StorageError, match="nothing in it was executed"):
            ActivationStats.read_counts({"hi": tmp_path / name})
    assert not (tmp_path / "executed").exists()


def test_a_small_file_cannot_list_more_than_it_holds(tmp_path):
    mask = torch.ones(100, 1000, dtype=torch.bool)
    torch.save({str(f"l{number}"): mask for number in range(1000)}, tmp_path / "x.pt")
    with pytest.raises(NeuronSetError, match="lists more neurons than its .* bytes can hold"):
        NeuronSet.read(tmp_path / "x.pt", site="act")


def test_from_rucaibox_reads_names_where_the_file_has_them(tmp_path):
    torch.save(LISTS, tmp_path / "x.neuron.pth")
    assert same(NeuronSet.from_rucaibox(tmp_path / "x.neuron.pth", shape=SHAPE))
    torch.save(list(LISTS.values()), tmp_path / "x.neuron.pth")
    with pytest.raises(NeuronSetError, match="give languages="):
        NeuronSet.from_rucaibox(tmp_path / "x.neuron.pth", shape=SHAPE)


@pytest.mark.parametrize("ending", ["pth", "csv", "json"])
def test_a_published_selection_goes_round(shared_data, tmp_path, ending):
    order = "en ar bo da de es fr hi it ja ko mt nl no pl pt ru sv tr zh sk el kk sw ka uk fa th id vi cs ro"
    names = order.split()
    published = shared_data("published") / "clas-bench.llama-3.1-8b-instruct.lape.pth"
    neurons = NeuronSet.read(published, languages=names, shape=(32, 14336))
    again = NeuronSet.read(neurons.write(tmp_path / f"x.{ending}"))
    assert again == neurons
    assert again.languages == tuple(names)
    lists = torch.load(published, weights_only=True)
    assert neurons["hi"].per_layer()[31].tolist() == sorted(lists[7][31].tolist())
    assert sum(len(neurons[name]) for name in names) == sum(len(layer) for of in lists for layer in of)


def test_merging_keeps_every_label_and_unites_those_of_one_name():
    scored = NeuronSet(NEURONS["ur"].members, SHAPE, "act", scores={"ur": np.array([0.5])})
    merged = NEURONS["hi"].merge(scored, NeuronSet.of({"hi": [(1, 1)], "fr": []}, SHAPE, "act"))
    assert merged.languages == ("hi", "ur", "fr")
    assert merged["hi"].indices().tolist() == [[0, 3], [1, 1], [2, 1], [2, 7]]
    assert merged.scores["ur"].tolist() == [0.5]
    assert merged.model == NEURONS.model
    assert NEURONS.merge() == NEURONS
    assert NEURONS.merge(NEURONS) == NEURONS
    with pytest.raises(NeuronSetError, match="different models"):
        scored.merge(NEURONS, NeuronSet.of({"de": []}, SHAPE, "act", model="e" * 32))
    with pytest.raises(SiteMismatchError):
        NEURONS.merge(NeuronSet.of({"de": []}, SHAPE, "pre"))
    with pytest.raises(NeuronSetError, match=r"merge\(\) puts different labels"):
        NEURONS | NeuronSet.of({"de": [], "fr": []}, SHAPE, "act")


def test_a_score_does_not_outlive_a_change_of_its_neurons():
    scored = NeuronSet(NEURONS["ur"].members, SHAPE, "act", scores={"ur": np.array([0.5])})
    assert scored.merge(NeuronSet.of({"ur": [(0, 0)]}, SHAPE, "act")).scores == {}
