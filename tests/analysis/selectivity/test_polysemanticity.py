import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import langneurons as ln
from langneurons import storage
from langneurons.analysis import reading
from langneurons.analysis.polysemanticity import Polysemanticity, beside_controls
from langneurons.analysis.probing import polysemanticity
from langneurons.analysis.reading import decompose, read
from langneurons.analysis.texts import LabelledTexts
from langneurons.errors import (
    CorruptArtefactError,
    EffectError,
    LanguageError,
    NeuronSetError,
    PatchError,
    SiteMismatchError,
    StatisticsError,
    StorageError,
    TaskError,
)
from langneurons.models import view
from langneurons.settings import Run
from tests.planted.carriers import KINDS, LAYERS, WIDTH, planted_carriers
from tests.training.lora_models import fresh

QUIET = Run(progress=False)
FEW = {"permutations": 199, "controls": 0, "probe_sizes": (), "progress": False}


@pytest.fixture(scope="module")
def planted():
    return planted_carriers()


@pytest.fixture(scope="module")
def model(planted):
    return planted.model()


@pytest.fixture(scope="module")
def found(planted, model):
    neurons = planted.set_of(hi=" ".join(KINDS), none="dead token")
    return polysemanticity(
        model, neurons, planted.texts, controls=5, permutations=199, probe_sizes=(1, 4), progress=False
    )


def tiny_texts(languages=("en", "hi"), items=8):
    words = {
        one: [f"w{5 + place + item} w{9 + item} " + "w7 " * item for item in range(items)]
        for place, one in enumerate(languages)
    }
    return LabelledTexts.parallel(words, [("a", "b")[item % 2] for item in range(items)])


def apart(own, other):
    """Texts whose labels follow from their language."""
    rows = [(item, item, f"w{5 + item} w9 w7") for item in range(8)]
    table = pd.DataFrame(rows, columns=["item", "cluster", "text"])
    en, hi = table.assign(label=list(own * 4)), table.assign(label=list(other * 4))
    return LabelledTexts({"en": en, "hi": hi.assign(item=hi["item"] + 8, cluster=hi["cluster"] + 8)})


def few_clusters():
    labels, clusters = list("abacbc"), [0, 0, 1, 1, 2, 2]
    return LabelledTexts.parallel({one: ["w5 w6 w7"] * 6 for one in ("en", "hi")}, labels, clusters)


def test_planted_neurons_carry_what_was_planted(planted, found):
    of_hi = found.rows[found.rows["language"] == "hi"].set_index(["layer", "neuron"])["verdict"]
    expected = {"language": "language", "task": "task", "both": "both", "dead": "neither", "token": "neither"}
    for kind, verdict in expected.items():
        assert [of_hi[one] for one in planted.neurons[kind]] == [verdict] * LAYERS, kind


def test_sets_are_counted_beside_their_controls(found):
    sets = found.sets.set_index(["language", "carries"])
    assert sets.loc[("hi", "task"), ["neurons", "count"]].tolist() == [10, 4]
    assert sets.loc[("hi", "both"), "count"] == 2
    assert sets.loc[("none", "task"), "count"] == 0
    assert (sets["control_draws"] == 5).all()
    assert (sets["detectable"] > 0).all()


def test_a_single_neuron_of_the_set_predicts_the_label_and_four_the_language_of_texts_left_out(found):
    accuracy = found.probes.set_index(["language", "predicts", "k"])["accuracy"]
    assert accuracy["hi", "task", 1] > 0.85
    assert accuracy["none", "task", 1] < 0.75
    assert accuracy["hi", "language", 4] > accuracy["none", "language", 4]


def test_bits_and_auroc_agree_with_the_verdicts(planted, found):
    rows = found.rows.drop_duplicates(["layer", "neuron"]).set_index(["layer", "neuron"])
    tells = found.auroc.set_index(["language", "layer", "neuron", "factor", "level"])["auroc"]
    for layer in range(LAYERS):
        language, task, _, dead, _ = (planted.neurons[kind][layer] for kind in KINDS)
        assert rows.loc[task, "task_bits"] > 0.3 > rows.loc[language, "task_bits"]
        assert rows.loc[language, "language_bits"] > 0.6
        assert rows.loc[dead, ["language_share", "task_share", "language_bits", "task_bits"]].tolist() == [0] * 4
        assert tells["hi", *task, "task", "yes"] > 0.85
        assert tells["hi", *language, "language", "hi"] > 0.99


def test_all_neurons_are_decomposed_though_only_some_are_tested(found):
    assert found.decomposition.shape == (LAYERS, WIDTH)
    row = found.rows.iloc[0]
    assert row["task_share"] == pytest.approx(float(found.decomposition.share("task")[row["layer"], row["neuron"]]))


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_text_is_worth_the_mean_over_its_counted_tokens_or_its_last_one(architecture, backend):
    model, texts = fresh(architecture, backend), tiny_texts()
    chosen = ln.NeuronSet.of({"x": [(0, 3), (1, 7)]}, (2, 48 if architecture == "llama" else 128), "act")
    flat = chosen.members["x"]
    for position in ("mean", "last"):
        found = read(model, texts, "act", position, flat, Run(batch_size=3, progress=False)).values["hi"]
        for row, text in enumerate(texts.items["hi"]["text"]):
            shown = ln.activations(model, text, chosen).to_numpy()
            expected = shown.mean(0) if position == "mean" else shown[-1]
            np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_streaming_in_any_batches_equals_the_decomposition_of_all_values_in_memory():
    model, texts = fresh("llama", "auto"), tiny_texts(items=9)
    streamed = decompose(model, texts, batch_size=2, progress=False)
    values = read(model, texts, "act", "mean", np.arange(96), Run(batch_size=9, progress=False))
    moments = [
        reading.Moments.of(part, (texts.items[one]["label"] == "b").to_numpy(int), 2)
        for one, part in values.values.items()
    ]
    whole = reading.Decomposition.of(reading.Moments.stacked(moments), texts.languages, texts.labels, (2, 48), "act")
    for source in ("language", "task", "interaction"):
        np.testing.assert_allclose(streamed.share(source), whole.share(source), atol=1e-5)


def test_a_decomposition_alone_is_kept_too(tmp_path, planted, model, monkeypatch):
    first = decompose(model, planted.texts.take(8), out=tmp_path, progress=False)
    monkeypatch.setattr(reading, "_run", lambda *args, **options: pytest.fail("the model ran"))
    again = decompose(model, planted.texts.take(8), out=tmp_path, progress=False)
    assert again.share("task").equal(first.share("task"))


def test_heads_are_read_as_norms(planted, model):
    shares = decompose(model, planted.texts.take(8), site="head", progress=False).share("language")
    assert shares.shape == (LAYERS, 4)


def test_pairs_are_read_with_a_separator_that_does_not_count():
    model = fresh("llama", "auto")
    texts = tiny_texts()
    pairs = {one: table.assign(text=[("w5 w6", text) for text in table["text"]]) for one, table in texts.items.items()}
    found = read(model, LabelledTexts(pairs), "act", "mean", np.arange(3), QUIET)
    seen, held = view(model), {}
    with seen.reading({"act": lambda layer, values: held.setdefault(layer, values)}):
        ids = seen.tokenizer(pairs["en"]["text"][0][1], add_special_tokens=False)["input_ids"]
        seen.forward(torch.tensor([[1, 5, 6, 2, *ids]]))
    counted = [1, 2, *range(4, 4 + len(ids))]
    np.testing.assert_allclose(found.values["en"][0], held[0][0, counted, :3].mean(0).detach(), atol=1e-5)


def test_what_was_read_is_kept_and_an_interrupted_run_goes_on(tmp_path, monkeypatch, planted, model):
    neurons, texts = planted.set_of(hi="both"), planted.texts.take(12)
    whole = polysemanticity(model, neurons, texts, **FEW)
    real, calls = reading._run, []

    def stop_at_second(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(reading, "_run", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        polysemanticity(model, neurons, texts, out=tmp_path, **FEW)
    again = polysemanticity(model, neurons, texts, out=tmp_path, **FEW)
    assert len(calls) == 4  # the first language was kept
    assert again.rows.equals(whole.rows)
    kept = next((tmp_path / "readings").iterdir())
    kept.write_bytes(kept.read_bytes()[:-20])
    assert polysemanticity(model, neurons, texts, out=tmp_path, **FEW).rows.equals(whole.rows)
    assert len(calls) == 5


def test_a_result_is_saved_and_read_back(tmp_path, found):
    back = Polysemanticity.load(found.save(tmp_path))
    for name in ("rows", "sets", "probes", "auroc"):
        assert getattr(back, name).equals(getattr(found, name))
    assert back.decomposition.share("task").equal(found.decomposition.share("task"))
    assert repr(back) == repr(found)
    assert not re.search("nan|None|none,", repr(found))
    assert repr(back.decomposition) == repr(found.decomposition)
    assert ln.load(tmp_path).rows.equals(found.rows)
    assert dict(back.settings) == dict(found.settings)
    storage.write_tensors(tmp_path / "decomposition.safetensors", {})
    with pytest.raises(CorruptArtefactError):
        Polysemanticity.load(tmp_path)


def test_the_table_shows_what_carries_most_of_the_task_first(planted, found):
    best = found.table("hi", top=4).frame
    carriers = {*planted.neurons["task"], *planted.neurons["both"]}
    assert set(zip(best["layer"], best["neuron"], strict=True)) == carriers
    assert len(found.table("hi", top=None)) == 10
    with pytest.raises(LanguageError, match="Possible: hi, none"):
        found.table("en")


@pytest.mark.filterwarnings("error")
def test_one_neuron_without_controls_or_probes_is_enough(planted, model):
    alone = polysemanticity(model, planted.set_of(hi="dead"), planted.texts.take(12), **FEW)
    assert alone.rows["verdict"].tolist() == ["neither"] * LAYERS
    assert np.isinf(alone.rows["task_detectable"]).all()
    assert alone.probes.empty
    assert "no effect of a label is found with 80 % power" in repr(alone)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"languages": ["en"]}, TaskError, "at least two, not 'en' alone"),
        ({"languages": ["en", "ur"]}, LanguageError, "'ur'"),
        ({"position": "first"}, StatisticsError, "Unknown position 'first'"),
        ({"permutations": 50}, StatisticsError, "permutations must be a whole number of at least 100, given 50"),
        ({"controls": -1}, EffectError, "draws must be a whole number of at least 0, given -1"),
        ({"probe_sizes": (0,)}, StatisticsError, "probe_sizes must be whole numbers of at least 1, given 0"),
        ({"least_share": 1.0}, StatisticsError, "least_share must be at least 0 and below 1, given 1"),
        ({"task": {}}, TaskError, "no text"),
        ({"task": apart("ab", "cd")}, TaskError, "hi and en have no label in common"),
        ({"task": few_clusters(), "probe_sizes": (1,)}, TaskError, "3 clusters cannot be divided"),
    ],
)
def test_bad_options_are_refused_before_the_model_runs(monkeypatch, planted, model, change, error, sentence):
    monkeypatch.setattr(reading, "_run", lambda *args, **options: pytest.fail("the model ran"))
    options = {"task": planted.texts, **FEW} | change
    with pytest.raises(error, match=sentence):
        polysemanticity(model, planted.set_of(hi="both"), **options)


def test_sets_that_do_not_fit_are_refused(planted, model):
    neurons = planted.set_of(hi="both")
    with pytest.raises(NeuronSetError, match="nothing to ask"):
        polysemanticity(model, ln.NeuronSet.of({"hi": []}, (LAYERS, WIDTH), "act"), planted.texts, **FEW)
    with pytest.raises(PatchError, match="3 layers"):
        polysemanticity(model, ln.NeuronSet.of({"hi": [(2, 0)]}, (3, WIDTH), "act"), planted.texts, **FEW)
    with pytest.raises(SiteMismatchError):
        polysemanticity(model, dataclasses.replace(neurons, model="0" * 32), planted.texts, **FEW)


def test_nothing_is_kept_of_a_patched_model(tmp_path, planted, model):
    neurons = planted.set_of(hi="both")
    with ln.intervene(model, ln.SetTo(neurons, 0.0)):
        decomposed = decompose(model, planted.texts.take(8), site="post", progress=False)
        with pytest.raises(PatchError, match="leave the block first"):
            decompose(model, planted.texts, out=tmp_path, progress=False)
    assert all(decomposed.share("language")[one] == 0 for one in planted.neurons["both"])


def test_labels_of_several_types_are_one_label():
    table = tiny_texts().items["en"]
    yes = [item % 2 == 0 for item in range(8)]
    texts = LabelledTexts({"en": table.assign(label=yes), "hi": table.assign(label=[int(one) for one in yes])})
    moments = read(fresh("llama", "auto"), texts, "act", "mean", np.arange(3), QUIET).moments
    assert len(texts.labels) == 2
    assert [moments[one].counts.tolist() for one in ("en", "hi")] == [[4, 4], [4, 4]]


@pytest.mark.parametrize("position", ["mean", "last"])
def test_a_text_without_a_counted_token_is_refused_at_every_position(position):
    texts = LabelledTexts.parallel({one: ["w5 w6"] * 7 + ["</s>"] for one in ("en", "hi")}, list("abababab"))
    with pytest.raises(TaskError, match="no counted token"):
        read(fresh("llama", "auto"), texts, "act", position, np.arange(3), QUIET)


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_runs(tmp_path, monkeypatch, planted, model):
    monkeypatch.setattr(reading, "_run", lambda *args, **options: pytest.fail("the model ran"))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Cannot write"):
        decompose(model, planted.texts, out=tmp_path / "file", progress=False)


def test_what_is_printed_says_what_could_not_be_found(found):
    about = {**found.settings, "finest": 199, "cut": 3}
    rows = pd.concat([found.rows[found.rows["language"] == "hi"]] * 5)
    said = repr(dataclasses.replace(found, settings=about, rows=rows))
    assert "3 texts cut" in said
    assert "fewer than 10 of 50 neurons that carry the task cannot be found" in said
    assert "cannot be found" not in repr(found)
    unknown = dataclasses.replace(
        found, rows=found.rows.assign(task_detectable=[0.1, *[np.inf] * (len(found.rows) - 1)])
    )
    assert "no effect of a label" in repr(unknown)


def test_the_interval_of_a_control_is_as_wide_as_its_test():
    table = beside_controls(pd.DataFrame({"share": [0.4, 0.05]}), "share", [[0.0] * 5, [0.0] * 5], [0.1, 0.1])
    assert table["control_high"].tolist() == pytest.approx([stats.t.isf(0.025, 4) * 0.1 * np.sqrt(1.2)] * 2)
    assert ((table["share"] > table["control_high"]) == (table["p"] < 0.05)).tolist() == [True, True]
