"""A planted mixture of experts: its experts are recorded, found, told apart, matched and left out."""

import pytest
import torch

import langneurons as ln
from langneurons.errors import PatchError
from langneurons.models import view
from tests.planted.experts import DEFAULT, HINDI, LANGUAGES, NEVER, TOPIC, WORDS, documents, loaded, of_topic
from tests.recording.conftest import record, same

SITES = ("router", "router_logits", "head")
EXPERT = (1, HINDI)


@pytest.fixture(scope="module")
def model():
    return loaded()


@pytest.fixture(scope="module")
def corpus():
    return ln.load_corpus(documents())


@pytest.fixture(scope="module")
def stats(model, corpus):
    return record(model, corpus, sites=SITES)


def neurons_of(model, members):
    return ln.NeuronSet.of(members, view(model).shape("router"), "router")


def test_an_expert_is_active_where_it_is_chosen_and_its_value_is_its_probability(model, corpus, stats):
    for language in LANGUAGES:
        probabilities, chosen = [], []
        for text in corpus[language]:
            tokens = torch.tensor([model.tokenizer(text)["input_ids"]])
            router = view(model).routers["router"].placed[1]
            with (
                torch.no_grad(),
                view(model).reading(
                    {
                        "router": lambda row, values, to=probabilities: (
                            to.append(values[0, 1:].double()) if row else None
                        ),
                        "chosen": lambda row, values, to=chosen: to.append(values[0, 1:].double()) if row else None,
                    }
                ),
            ):
                view(model).forward(tokens)
            assert router.top_k == 2
        responses = stats[language]
        torch.testing.assert_close(
            responses.probability().values[1].double(), torch.cat(chosen).mean(0), atol=0.02, rtol=0
        )
        torch.testing.assert_close(
            responses.mean().values[1].double(), torch.cat(probabilities).mean(0), atol=0.02, rtol=0
        )


def test_planted_experts_are_found_and_told_apart(stats):
    p = {language: stats[language].probability().values[1] for language in LANGUAGES}
    assert [float(p[language][HINDI]) for language in LANGUAGES] == [0, 1, 0]
    assert [float(p[language][NEVER]) for language in LANGUAGES] == [0, 0, 0]
    assert all(0.15 < float(p[language][TOPIC]) < 0.35 for language in LANGUAGES)
    assert float(stats["hi"].minimum().values[1, NEVER]) > 0
    methods = [ln.LAPE(top=0.1, filter_quantile=0.7), ln.AUROC(top=0.1), ln.MeanDifference(top=0.1)]
    for method in methods:
        assert method.identify(stats)["hi"].indices().tolist() == [list(EXPERT)], method
    lape = methods[0].identify(stats)
    assert lape["en"].indices().tolist() == lape["zh"].indices().tolist() == []


def test_a_rare_quantile_of_a_probability_is_no_zero_because_the_expert_is_not_chosen(stats):
    assert (stats["en"].quantile(0.3).values[1] > 0).all()
    assert (stats["en"].probability().values[1, [HINDI, NEVER]] == 0).all()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_does_not_change_a_byte(model, corpus, stats, batch_size):
    assert same(record(model, corpus, sites=SITES, batch_size=batch_size), stats)


def test_a_kill_and_shards_do_not_change_a_byte(model, corpus, stats, tmp_path, interrupted_at):
    shards = [record(model, corpus, sites=SITES, shard=(part, 3), batch_size=2) for part in range(3)]
    assert same(shards[0] + shards[1] + shards[2], stats)
    interrupted_at(5)
    with pytest.raises(KeyboardInterrupt):
        record(model, corpus, sites=SITES, out=tmp_path, batch_size=2)
    assert same(record(model, corpus, sites=SITES, out=tmp_path, batch_size=2), stats)


def test_what_an_expert_writes_is_how_often_it_is_chosen_and_controls_match_it(stats):
    torch.testing.assert_close(stats.write("zh").float(), stats["zh"].probability().values)
    often = ln.NeuronSet.of({"zh": [(1, DEFAULT)]}, stats.shape, "router", stats.fingerprint)
    controls, p = ln.Controls(stats=stats, draws=2), stats.write("zh")[1]
    draws = [often.matched_control(controls, draw) for draw in range(2)]
    nearest = int((p - p[DEFAULT]).abs().index_fill(0, torch.tensor([DEFAULT]), 2.0).argmin())
    assert [draw.indices().tolist() for draw in draws] == [[[1, nearest]]] * 2
    [ratio] = often.balance(draws, controls)["write_ratio"]
    assert ratio == pytest.approx(float(p[nearest] / p[DEFAULT]))


def test_leaving_the_hindi_expert_out_costs_hindi_alone_and_exactly(model, stats):
    text = ln.HeldoutText.of(model, ln.load_corpus(documents(seed=5)), context_length=32)
    experts = neurons_of(model, {"hi": [EXPERT], "never": [(1, NEVER)]})
    matrix = ln.perplexity_matrix(model, text, experts, controls=0, resamples=400, progress=False)
    effects = matrix.rows.set_index(["patched", "measured"])["estimate"]
    assert effects["hi", "hi"] != 0
    assert effects["hi", "en"] == effects["hi", "zh"] == 0
    assert (effects["never"] == 0).all()
    tokens = torch.tensor([[1, *WORDS["hi"]]])
    router = view(model).routers["router"].placed[1].module

    def banned(module, inputs, output):
        logits = output[0].index_fill(-1, torch.tensor([HINDI]), -torch.inf)
        best = logits.softmax(-1).topk(2)
        return logits, best.values / best.values.sum(-1, keepdim=True), best.indices

    with torch.no_grad():
        with ln.intervene(model, ln.SetTo(experts["hi"], 0.0)):
            patched = model(tokens)
        handle = router.register_forward_hook(banned)
        by_hand = model(tokens)
        handle.remove()
    torch.testing.assert_close(patched, by_hand, atol=0, rtol=0)


def test_every_expert_alone_is_ablated_as_a_whole_forward_would(model):
    text = ln.load_corpus(documents(seed=6)).take(12)
    every = neurons_of(model, {"all": [(layer, expert) for layer in range(2) for expert in range(5)]})
    alone = ln.ablate(model, every, text, resamples=200, progress=False).rows
    whole = ln.ablate(
        model, neurons_of(model, {"all": [EXPERT]}), text, each="group", resamples=200, progress=False
    ).rows
    own = alone[(alone["layer"] == 1) & (alone["neuron"] == HINDI)].set_index("language")["effect"]
    assert own.to_dict() == pytest.approx(whole.set_index("language")["effect"].to_dict(), abs=1e-6)
    assert abs(own["hi"]) > 0
    never = alone[(alone["layer"] == 1) & (alone["neuron"] == NEVER)]["effect"]
    assert (never.abs() < 1e-6).all()


def test_values_of_a_router_are_written_where_they_belong(model, stats):
    experts = ln.NeuronSet.of({"hi": [EXPERT]}, stats.shape, "router", stats.fingerprint)
    mean, probabilities = stats["hi"].mean(), []
    reading = view(model).reading({"router": lambda row, values: probabilities.append(values)})
    with torch.no_grad(), ln.intervene(model, ln.SetTo(experts, mean)), reading:
        model(torch.tensor([[1, *WORDS["en"]]]))
    assert probabilities[1][..., HINDI].min() == pytest.approx(float(mean[1, HINDI]), abs=1e-5)
    with pytest.raises(ln.errors.SiteMismatchError):
        ln.SetTo(experts, stats.at("router_logits")["hi"].mean())
    text = ln.HeldoutText.of(model, ln.load_corpus(documents(seed=5)).take(4), context_length=32)
    with pytest.raises(PatchError, match="writes no direction of its own"):
        ln.evaluation.dose(model, ln.SetTo(experts, 0.0), text)


def test_the_topic_is_what_the_topic_expert_reads():
    assert {word % 4 for words in WORDS.values() for word in words if of_topic(word)} == {0}
