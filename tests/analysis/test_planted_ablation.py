"""ablate() tells apart neurons of which it is known what hangs on them: language, task, both, a token, nothing."""

import pytest
import torch

import langneurons as ln
from langneurons.analysis.ablating import ablate
from tests.planted.carriers import KINDS, LANGUAGES, LAYERS, NAME, WIDTH, planted_carriers

EVERY = set(LANGUAGES)
INSIDE = ("no effect", "slightly worse", "slightly better")  # verdicts of effects shown to be within the margin
HINDI, YES = [f"hi{word}" for word in range(12)], [f"{language}-yes" for language in LANGUAGES]


@pytest.fixture(scope="module")
def writing():
    """The planted carriers of the upper layer, each writing what it stands for, which alone is read; with its model."""
    planted = planted_carriers(clusters=12)
    words, network = planted.tokenizer.get_vocab(), planted.hf_model
    hindi, yes, name = torch.linalg.svd(network.model.embed_tokens.weight).Vh[-3:]  # no word is told by these
    written = {"language": hindi, "task": yes, "both": hindi + yes, "dead": yes, "token": name}
    with torch.no_grad():
        network.lm_head.weight.zero_()
        for some, direction in ((HINDI, hindi), (YES, yes), ([NAME], name)):
            network.lm_head.weight[[words[word] for word in some]] = 50 * direction
        for kind, direction in written.items():
            layer, unit = planted.neurons[kind][1]
            mlp = network.model.layers[layer].mlp
            mlp.up_proj.weight[unit] = network.model.embed_tokens.weight.mean(0)  # so that nothing is turned around
            mlp.down_proj.weight[:, unit] = 0.002 * direction
    return planted, planted.model()


def mean_logits(words, planted):
    """A metric: the logit of some words, those of words that nobody writes being 0, at the mean position."""
    index = torch.tensor([planted.tokenizer.get_vocab()[word] for word in words])

    def metric(logits, tokens, mask, labels):
        return (logits[..., index].mean(-1) * mask).sum(1) / mask.sum(1)

    return metric


def carriers(writing, words, margin):
    """Where some words hang on a neuron: kind -> languages of a verdict that they do."""
    planted, model = writing
    neurons = ln.NeuronSet.of({kind: [planted.neurons[kind][1]] for kind in KINDS}, (LAYERS, WIDTH), "act")
    metric = mean_logits(words, planted)
    rows = ablate(model, neurons, planted.texts, metric, margin=margin, resamples=200, progress=False).rows
    assert {"worse"} < set(rows["verdict"]) <= {"worse", *INSIDE}
    found = rows.loc[rows["verdict"] == "worse"].groupby("label")["language"].agg(set)
    return dict.fromkeys(KINDS, set()) | found.to_dict(), rows.set_index(["label", "language"])["effect"]


def test_a_language_hangs_on_its_own_neuron_in_that_language_alone(writing):
    found, effects = carriers(writing, HINDI, margin=2)
    assert found == {"language": {"hi"}, "task": set(), "both": EVERY, "dead": set(), "token": set()}
    assert effects["both", "hi"] < 2 * effects["both", "en"] < 0  # elsewhere it fires on the label's cue only


def test_a_label_hangs_on_the_neurons_that_carry_it_in_every_language(writing):
    found, _ = carriers(writing, YES, margin=0.6)
    assert found == {"language": set(), "task": EVERY, "both": EVERY, "dead": set(), "token": set()}


def test_a_word_hangs_on_its_detector_alone(writing):
    found, _ = carriers(writing, [NAME], margin=0.6)
    assert found == {"language": set(), "task": set(), "both": set(), "dead": set(), "token": EVERY}


def test_nothing_hangs_on_a_dead_neuron(writing):
    assert carriers(writing, YES, margin=0.6)[1]["dead"].tolist() == [0, 0, 0]
