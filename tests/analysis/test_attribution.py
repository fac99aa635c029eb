"""What neurons add to a token's logit: it adds up, it is exact, and planted confusion is found."""

import numpy as np
import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.analysis.contributions import contributions_at
from langneurons.errors import EffectError, ModelError, PatchError, TaskError
from tests.backends import BACKENDS
from tests.planted.confused import BOTH, PLANTED, WIDTH, planted_confusion
from tests.planted.network import LAYERS
from tests.test_cli import run
from tests.tiny_models import tiny_model, tiny_tokenizer

PAIRS = [(name, backend) for name in ("llama", "gpt2") for backend in BACKENDS]
TEXTS, TOKENS = [(1, 5, 9, 40), (1, 7, 22, 30, 61, 12)], [(50, 60), (7, 90)]


def load(name, backend="auto"):
    return ln.load_model(name, hf_model=tiny_model(name), tokenizer=tiny_tokenizer(), backend=backend)


@pytest.fixture(scope="module")
def planted():
    return planted_confusion()


@pytest.fixture(scope="module")
def found(planted):
    return ln.analysis.confusion_point(planted.model(), planted.task(), exact=40, resamples=500, progress=False)


def test_two_planted_neurons_are_in_the_first_two_places(found):
    for column in ("exact", "direct"):
        largest = found.rows.sort_values(column, key=np.abs, ascending=False)[:2]
        assert set(zip(largest["layer"], largest["neuron"], strict=True)) == set(PLANTED)
        assert (largest[column] > 0).all()
        assert set(largest["verdict"]) == {"worse"}
    numbers = {"language": "hi", "answers": 11, "judged": 11, "failed": 8, "left": 8, "points": 8}
    assert found.answers.to_dict("records") == [numbers]
    assert found.rows["items"].unique().tolist() == found.rows["clusters"].unique().tolist() == [8]


def test_a_neuron_that_writes_both_languages_alike_adds_nothing_directly(found):
    assert abs(found["hi"][BOTH]) < 0.02 * min(float(found["hi"][neuron]) for neuron in PLANTED)


def test_p_values_are_adjusted_over_all_neurons_of_the_model(found):
    total = LAYERS * WIDTH
    strongest = found.rows["p"].min()
    ties = int((found.rows["p"] == strongest).sum())
    assert found.rows["p_adjusted"].min() == pytest.approx(min(1.0, strongest * total / ties))


def test_without_failed_answers_there_is_no_point_to_look_at(planted):
    prompts = planted.prompts[8:]
    task = ln.tasks.Confusion({"hi": prompts}, words=[], max_new_tokens=8)
    with pytest.raises(EffectError, match="hi: 0 of 3 judged answers failed"):
        ln.analysis.confusion_point(planted.model(), task, progress=False)


def test_without_the_planted_neurons_nothing_fails(planted):
    neurons = ln.NeuronSet.of({"hi": PLANTED}, (LAYERS, WIDTH), "act")
    with pytest.raises(EffectError, match="hi: 0 of 11 judged answers failed"):
        ln.analysis.confusion_point(
            planted.model(), planted.task(), patches=lambda language: ln.SetTo(neurons[language], 0.0), progress=False
        )


@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_contributions_add_up_to_the_difference_and_equal_those_of_hooks_on_the_model(name, backend):
    model, hf_model = load(name, backend), tiny_model(name)
    parts = contributions_at(model, TEXTS, TOKENS, batch_size=2)
    total = parts.embedding + parts.output + (parts.attention + parts.biases + parts.neurons.sum(2)).sum(1)
    assert total == pytest.approx(parts.difference, abs=1e-5)
    for row, (text, (token, rival)) in enumerate(zip(TEXTS, TOKENS, strict=True)):
        expected = by_hand(name, hf_model, text, token, rival)
        assert parts.difference[row] == pytest.approx(expected["difference"], abs=1e-5)
        for part in ("neurons", "attention", "biases"):
            assert getattr(parts, part)[row] == pytest.approx(expected[part], abs=1e-5), part


@torch.no_grad()
def by_hand(name, hf_model, text, token, rival):
    """Contributions read with torch's hooks, for one architecture each with other names."""
    gpt2 = name == "gpt2"
    body = hf_model.transformer if gpt2 else hf_model.model
    layers, norm = (body.h, body.ln_f) if gpt2 else (body.layers, body.norm)
    read = {}
    handles = [norm.register_forward_pre_hook(lambda _, inputs: read.__setitem__("final", inputs[0][0, -1].double()))]
    for index, layer in enumerate(layers):
        down, out = (layer.mlp.c_proj, layer.attn.c_proj) if gpt2 else (layer.mlp.down_proj, layer.self_attn.o_proj)
        for part, module in (("neurons", down), ("attention", out)):
            keep = lambda _, inputs, key=(part, index): read.__setitem__(key, inputs[0][0, -1].double())  # noqa: E731
            handles.append(module.register_forward_pre_hook(keep))
    logits = hf_model(torch.tensor([text])).logits[0, -1].double()
    for handle in handles:
        handle.remove()
    final = read["final"]
    scale = (final.var(correction=0) + norm.eps).sqrt() if gpt2 else (final.square().mean() + 1e-6).sqrt()
    rows = hf_model.lm_head.weight.double()
    direction = (rows[token] - rows[rival]) * norm.weight.double() / scale
    direction = direction - direction.mean() if gpt2 else direction
    expected = {"difference": float(logits[token] - logits[rival]), "neurons": [], "attention": [], "biases": []}
    for index, layer in enumerate(layers):
        modules = (layer.mlp.c_proj, layer.attn.c_proj) if gpt2 else (layer.mlp.down_proj, layer.self_attn.o_proj)
        weights = [module.weight.double() if gpt2 else module.weight.double().T for module in modules]
        expected["neurons"].append((read["neurons", index] * (weights[0] @ direction)).numpy())
        expected["attention"].append(float(read["attention", index] @ weights[1] @ direction))
        biases = sum(module.bias.double() for module in modules) if gpt2 else torch.zeros(1, dtype=torch.float64)
        expected["biases"].append(float((biases * direction).sum()))
    return {part: np.array(values) for part, values in expected.items()}


@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_exact_contributions_equal_ablations_one_by_one_under_a_patch_too(name, backend):
    model = load(name, backend)
    width = ln.models.view(model).width("post")
    some = ln.NeuronSet.of({"any": [(0, 3), (1, 8)]}, (2, width), "act")
    for patches in ([], [ln.SetTo(some, 0.0)]):
        result = ln.analysis.attribute(model, TEXTS[1], TOKENS[1], -3, patches, exact=2 * width, progress=False)
        assert len(result.rows) == 2 * width
        tokens = torch.tensor([TEXTS[1][:-2]])

        def difference(*also, tokens=tokens, patches=patches):
            with torch.no_grad(), ln.intervene(model, *patches, *also):
                logits = model(tokens)[0, -1]
            return float(logits[TOKENS[1][0]] - logits[TOKENS[1][1]])

        assert result.points["difference"].tolist() == pytest.approx([difference()], abs=1e-5)
        assert result.rest["contribution"].sum() == pytest.approx(difference(), abs=1e-4)
        for row in result.rows.to_dict("records")[:: 2 * width // 9]:
            alone = ln.NeuronSet.of({"any": [(row["layer"], row["neuron"])]}, (2, width), "act")
            assert row["exact"] == pytest.approx(difference() - difference(ln.SetTo(alone, 0.0)), abs=1e-5)
        for layer, neuron in some.indices().tolist() if patches else ():
            own = result.rows.loc[(result.rows["layer"] == layer) & (result.rows["neuron"] == neuron)]
            assert own[["exact", "direct"]].to_numpy().tolist() == [[0.0, 0.0]]


def test_a_result_is_saved_loaded_printed_and_drawn(found, tmp_path):
    found.save(tmp_path / "attribution")
    loaded = ln.load(tmp_path / "attribution")
    assert repr(loaded) == repr(found)
    assert torch.equal(loaded.direct, found.direct)
    assert "8 points in 8 clusters, of 8 failed of 11 judged answers" in repr(found)
    figure = found.plot(top=5)
    assert [len(trace.x) for trace in figure.data] == [5, 5]
    assert "frozen" in figure.layout.meta["caption"]


def test_a_single_prompt_has_contributions_but_no_intervals():
    result = ln.analysis.attribute(load("llama"), "w5 w9", ("w7", 8), exact=3, progress=False)
    assert result.rows["low"].isna().all()
    assert "p (BH)" not in repr(result)
    assert len(result.plot().data) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (("w5 w9", ("w7 w8", "w9")), TaskError, "'w7 w8' is 2 tokens"),
        (("w5 w9", ("w7", 7)), TaskError, "The two tokens are the same, 'w7'"),
        (("w5 w9", ("w7", 900)), TaskError, "There is no token 900"),
        (("w5 w9", ("w7", "w8"), 9), TaskError, "The prompt has 3 tokens, so there is no position 9"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        ln.analysis.attribute(load("llama"), *arguments, progress=False)


def test_what_would_not_add_up_is_refused():
    with pytest.raises(ModelError, match="norms or scales what its MLPs write"):
        ln.analysis.attribute(load("gemma2"), "w5 w9", ("w7", "w8"), progress=False)
    neurons = ln.NeuronSet.of({"any": [(0, 3)]}, (2, 48), "act")
    patch = ln.SetTo(neurons, 0.0, positions="generated")
    with pytest.raises(PatchError, match="positions must be 'all'"):
        ln.analysis.attribute(load("llama"), "w5 w9", ("w7", "w8"), patches=patch, progress=False)
    pairs = pd.DataFrame({"premise": ["w5"], "hypothesis": ["w9"], "label": ["neutral"]})
    with pytest.raises(TaskError, match=r"judged by an ln\.tasks\.Confusion, not by a XNLI"):
        ln.analysis.confusion_point(load("llama"), ln.XNLI.load({"en": pairs}))


def test_the_command_gives_what_python_gives(capsys, monkeypatch, planted, found, tmp_path):
    planted.hf_model.save_pretrained(tmp_path / "model")
    planted.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts").mkdir()
    pd.DataFrame(planted.prompts).to_csv(tmp_path / "prompts" / "hi.csv", index=False)
    (tmp_path / "prompts" / "words").write_text("weather", "utf-8")
    places = (str(tmp_path / "model"), str(tmp_path / "prompts"), "--out", str(tmp_path / "out"))
    options = ("--exact", "40", "--resamples", "500", "--max-new-tokens", "8", "--no-progress")
    status, out, error = run(capsys, monkeypatch, "confusion-point", *places, *options)
    assert status == 0, error
    result = ln.load(tmp_path / "out" / "attribution")
    pd.testing.assert_frame_equal(result.rows, found.rows, rtol=1e-3, atol=1e-4)
    assert "8 points in 8 clusters" in out
