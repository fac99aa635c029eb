"""Signs of a gated neuron's two factors, against torch hooks on the Hugging Face model."""

import numpy as np
import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.analysis.quadrants import mean_up, shares
from langneurons.views.pages import _outputs
from tests.analysis.ablation_models import neurons_at, texts, tiny
from tests.backends import BACKENDS
from tests.tiny_models import tiny_model, tiny_tokenizer

LENGTH = 24


def profile_of(model, corpus, neurons, **options):
    return ln.profile(model, neurons, corpus, k=1, context_length=LENGTH, similar=0, progress=False, **options)


def hooked(plain, layer: int, ids: list[int]) -> dict[str, np.ndarray]:
    """What the gate, ``up`` and their product are in the Hugging Face model itself."""
    mlp, values = plain.model.layers[layer].mlp, {}
    handles = [
        mlp.gate_proj.register_forward_hook(lambda _, inputs, out: values.update(pre=out[0])),
        mlp.up_proj.register_forward_hook(lambda _, inputs, out: values.update(up=out[0])),
        mlp.down_proj.register_forward_pre_hook(lambda _, inputs: values.update(post=inputs[0][0])),
    ]
    with torch.no_grad():
        plain(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {name: value.numpy() for name, value in values.items()}


def by_hand(plain, corpus, language: str, layer: int, unit: int) -> pd.DataFrame:
    """Gate, up and product on every token of every text, with the text."""
    tokenizer, rows = tiny_tokenizer(), []
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for number in range(len(corpus[language])):
        text = corpus.text(language, number)
        ids = [*start, *tokenizer(text, add_special_tokens=False)["input_ids"]][:LENGTH]
        values = {name: value[len(start) :, unit] for name, value in hooked(plain, layer, ids).items()}
        rows.append(pd.DataFrame(values).assign(text=text))
    return pd.concat(rows, ignore_index=True)


@pytest.mark.parametrize(
    ("backend", "site"), [*((backend, "act") for backend in BACKENDS), ("bridge", "pre"), ("bridge", "post")]
)
def test_quadrants_are_those_of_hooks_on_the_hugging_face_model(backend, site):
    model, corpus = tiny("llama", backend), texts()
    neurons = neurons_at(model, site, units=[(0, 1), (1, 20)])
    profiles = profile_of(model, corpus, neurons)
    assert len(profiles.quadrants) == 4 * len(neurons) * len(corpus.languages)
    plain = tiny_model("llama").eval()
    for layer, unit in profiles.neurons:
        for language, rows in profiles[layer, unit].quadrants.groupby("language"):
            expected = by_hand(plain, corpus, str(language), layer, unit)
            assert rows["tokens"].sum() == len(expected)
            for row in rows.to_dict("records"):
                part = expected[
                    ((expected["pre"] > 0) == (row["gate"] == "+")) & ((expected["up"] > 0) == (row["up"] == "+"))
                ]
                assert row["tokens"] == len(part)
                if len(part):
                    strongest = part.loc[part["post"].abs().idxmax()]
                    assert row["mean_up"] == pytest.approx(part["up"].mean(), abs=1e-5)
                    assert row["value"] == pytest.approx(strongest["post"], abs=1e-5)
                    assert row["text"] in strongest["text"]
                    assert row["text"][row["start"] : row["end"]].strip()


@pytest.mark.parametrize(("architecture", "site"), [("gpt2", "act"), ("llama", "head"), ("llama", "resid_post")])
def test_what_has_no_gate_has_no_quadrants_and_no_section(architecture, site):
    model = tiny(architecture, BACKENDS[0])
    profiles = profile_of(model, texts(), neurons_at(model, site, units=[(0, 1)]))
    assert profiles.quadrants is None
    page = ln.views.neuron_page(profiles, (0, 1)).body
    assert "Signs of the gate" not in page
    assert ("promoted output tokens" in page) == (site != "head")


@pytest.fixture(scope="module")
def model():
    return tiny("llama", BACKENDS[0])


@pytest.fixture(scope="module")
def profiles(model):
    return profile_of(model, texts(), neurons_at(model, units=[(0, 1), (1, 20)]))


def test_quadrants_are_read_back_and_older_profiles_have_none(profiles, tmp_path):
    again = ln.analysis.Profiles.load(profiles.save(tmp_path / "profiles"))
    pd.testing.assert_frame_equal(again.quadrants, profiles.quadrants)
    older = ln.analysis.Profiles(
        profiles.texts, profiles.examples, profiles.outputs, profiles.similar, profiles.settings
    )
    again = ln.analysis.Profiles.load(older.save(tmp_path / "older"))
    assert again[0, 1].quadrants.empty
    assert "promoted output tokens" in ln.views.neuron_page(again, (0, 1)).body


def test_what_was_read_before_an_interruption_gives_the_same_quadrants(model, tmp_path):
    neurons = neurons_at(model, units=[(0, 1)])
    first = profile_of(model, texts(), neurons, out=tmp_path)
    again = profile_of(model, texts(), neurons, out=tmp_path)
    pd.testing.assert_frame_equal(first.quadrants, again.quadrants)
    pd.testing.assert_frame_equal(first.examples, again.examples)
    pd.testing.assert_frame_equal(first.quadrants, profile_of(model, texts(), neurons).quadrants)


def test_a_page_signs_output_tokens_by_the_mean_up_of_each_language(profiles):
    neuron = profiles.neurons[0]
    profile = profiles[neuron]
    languages = list(profiles.languages)
    rows = profile.quadrants.assign(mean_up=1.0, tokens=1)
    rows.loc[rows["language"] == languages[0], "mean_up"] = -2.0
    signed = ln.analysis.Profiles(
        profiles.texts, profiles.examples, profiles.outputs, profiles.similar, profiles.settings, rows
    )
    assert mean_up(rows) == {language: -2.0 if language == languages[0] else 1.0 for language in languages}
    promoted, suppressed = (
        profile.outputs.loc[profile.outputs["effect"] == effect, "token"].tolist()
        for effect in ("promoted", "suppressed")
    )
    paragraphs = {(heading.split()[1], heading.split()[-1]): part for heading, part in _outputs(signed[neuron])}
    assert paragraphs[languages[0], "promotes"]["token"].tolist() == suppressed
    assert paragraphs[languages[0], "suppresses"]["token"].tolist() == promoted
    assert bool((paragraphs[languages[0], "promotes"]["change"] > 0).all())
    assert paragraphs[languages[1], "promotes"]["token"].tolist() == promoted
    page = str(ln.views.neuron_page(signed, neuron).body)
    assert f"<b>in {languages[0]} (-2) it promotes</b>" in page


def test_a_page_shows_shares_that_sum_to_one_and_a_text_of_each_quadrant(profiles):
    neuron = profiles.neurons[0]
    quadrants = profiles[neuron].quadrants
    assert np.allclose(shares(quadrants).sum(axis=1), 1)
    page = ln.views.neuron_page(profiles, neuron).body
    assert "Signs of the gate and of up" in page
    for row in quadrants[quadrants["tokens"] > 0].to_dict("records"):
        assert row["text"][row["start"] : row["end"]].strip() in page


def test_a_page_says_where_a_neuron_is_above_the_bar_and_highest(profiles):
    (layer, unit), width = profiles.neurons[0], profiles.settings["shape"][1]
    flat = np.array([layer * width + unit])
    about = profiles.settings["fingerprint"], "LAPE"
    members = {"hi": flat, "ur": flat}

    def page(highest, *labels):
        neurons = ln.NeuronSet(members, tuple(profiles.settings["shape"]), "act", *about, highest=highest)
        return ln.views.neuron_page(profiles, (layer, unit), neurons={"LAPE": neurons.select(labels)}).body

    assert "LAPE: <b>hi, ur</b> (highest in ur)." in page({"ur": flat}, "hi", "ur")
    assert "LAPE: <b>hi</b> (above the bar also in ur; highest in ur)." in page({"ur": flat}, "hi")
    assert "LAPE: <b>hi, ur</b>." in page({}, "hi", "ur")
    members = {"hi": flat}
    assert "LAPE: <b>hi</b> (in no other language)." in page({"hi": flat}, "hi")
