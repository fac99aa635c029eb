"""Label likelihood against loops over tokens, its calibration, its templates."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import langneurons as ln
from langneurons.errors import TaskError
from langneurons.models import ModelView, view
from langneurons.tasks import continuations, likelihood
from langneurons.tasks.likelihood import (
    LABELS,
    ORDERS,
    Template,
    alternative_scores,
    label_scores,
    order_of,
    read_templates,
)
from tests.tiny_models import tiny_model, tiny_tokenizer

MODELS = [("llama", "hooked"), ("llama", "bridge"), ("gpt2", "hooked"), ("bloom", "bridge"), ("gemma2", "bridge")]
WORDS = {"entailment": "w10", "neutral": "w11", "contradiction": "w12"}
TEMPLATE = Template("{premise} w4 {hypothesis} w5 {label}", WORDS)


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def model(request):
    architecture, backend = request.param
    return ln.load_model(architecture, hf_model=tiny_model(architecture), tokenizer=tiny_tokenizer(), backend=backend)


@pytest.fixture(scope="module")
def llama():
    return ln.load_model("llama", hf_model=tiny_model("llama"), tokenizer=tiny_tokenizer())


def naive_score(model, tokens: tuple[int, ...], first: int) -> float:
    """One forward a token, without padding."""
    total = 0.0
    for place in range(first, len(tokens)):
        with torch.inference_mode():
            logits = view(model).forward(torch.tensor([tokens[:place]]))[0, -1]
        total += float(torch.log_softmax(logits.float(), 0)[tokens[place]])
    return total


def some_items(count: int, seed: int = 0) -> list[tuple[tuple[int, ...], ...]]:
    draw = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        shared = tuple(draw.integers(4, 101, draw.integers(1, 40)).tolist())
        ends = [(first, *draw.integers(4, 101, draw.integers(0, 4)).tolist()) for first in (10, 11, 12)]
        items.append(tuple((1, *shared, *end) for end in ends))
    return items


def forwards(monkeypatch) -> list[tuple[int, int]]:
    """Notes the shape of every batch that a model runs."""
    shapes, forward = [], ModelView.predictions

    def noting(self, tokens, *rest, **options):
        shapes.append(tuple(tokens.shape))
        return forward(self, tokens, *rest, **options)

    monkeypatch.setattr(ModelView, "predictions", noting)
    return shapes


def test_scores_are_what_a_loop_over_tokens_gives(model):
    items = some_items(12)
    scores = alternative_scores(model, items, batch_size=5)
    for item, found in zip(items, scores, strict=True):
        first = next(place for place in range(99) if len({tokens[place] for tokens in item}) > 1)
        expected = [naive_score(model, tokens, first) for tokens in item]
        np.testing.assert_allclose(found, expected, atol=2e-4)


def families(count: int, seed: int = 0) -> list[tuple[tuple[int, ...], ...]]:
    """Items whose alternatives begin with as many as thirty equal tokens and go on for several."""
    draw = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        shared = tuple(draw.integers(4, 101, draw.integers(12, 30)).tolist())
        items.append(tuple((1, *shared, *draw.integers(4, 101, draw.integers(2, 9)).tolist()) for _ in range(3)))
    return items


def test_what_alternatives_begin_with_is_run_once_and_gives_the_same(model, monkeypatch):
    run, branching = [], ModelView.branching

    def noting(self, tokens):
        run.append(tuple(tokens.shape))
        return branching(self, tokens)

    items = families(7)
    with monkeypatch.context() as noted:
        noted.setattr(ModelView, "branching", noting)
        scores = alternative_scores(model, items, batch_size=7)
    assert sum(rows for rows, _ in run[1:]) == 7  # the first is tried by itself
    monkeypatch.setattr(ModelView, "branching", lambda self, tokens: None)
    np.testing.assert_allclose(scores, alternative_scores(model, items, batch_size=7), atol=2e-5)


def test_a_patch_is_written_in_both_parts_of_a_text(model, monkeypatch):
    neurons = ln.NeuronSet.of(
        {"en": [(0, n) for n in range(20)] + [(1, n) for n in range(20)]}, view(model).shape("act"), "act"
    )
    items = families(4, seed=1)
    with ln.intervene(model, ln.SetTo(neurons, 2.0)):
        scores = alternative_scores(model, items)
        monkeypatch.setattr(ModelView, "branching", lambda self, tokens: None)
        np.testing.assert_allclose(scores, alternative_scores(model, items), atol=2e-5)
    assert np.abs(scores - alternative_scores(model, items)).max() > 1e-2


def test_a_cache_that_is_wrong_is_not_used(llama, monkeypatch):
    branching = ModelView.branching

    def wrong(self, tokens):
        return branching(self, tokens.flip(1))

    items = families(3, seed=2)
    expected = alternative_scores(llama, items)
    monkeypatch.setattr(ModelView, "branching", wrong)
    np.testing.assert_allclose(alternative_scores(llama, items), expected, atol=2e-5)


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=24).map(tuple), min_size=1, unique=True))
@settings(max_examples=200, deadline=None)
def test_families_hold_every_sequence_once_and_share_what_they_say(sequences):
    families_of = continuations._families(sequences, [len(tokens) - 1 for tokens in sequences])
    assert sorted(member for _, members in families_of for member in members) == list(range(len(sequences)))
    for shared, members in families_of:
        assert len({sequences[member][:shared] for member in members}) == 1
        assert all(shared < len(sequences[member]) for member in members)


def test_scores_do_not_depend_on_batch_size_or_order(model):
    items = some_items(20, seed=1)
    expected = alternative_scores(model, items, batch_size=1)
    np.testing.assert_allclose(alternative_scores(model, items, batch_size=7), expected, atol=1e-5)
    np.testing.assert_allclose(alternative_scores(model, items[::-1], batch_size=7)[::-1], expected, atol=1e-5)


def test_labels_of_one_token_take_one_forward_an_item(llama, monkeypatch):
    shapes = forwards(monkeypatch)
    pairs = [(f"w{20 + i} w30", "w31") for i in range(9)]
    label_scores(llama, pairs, [LABELS] * 9, [TEMPLATE], None, batch_size=4)
    assert sum(rows for rows, _ in shapes) == 9


def test_what_is_the_beginning_of_something_longer_is_not_run(llama, monkeypatch):
    shapes = forwards(monkeypatch)
    item = ((1, 20, 21, 10), (1, 20, 21, 11), (1, 20, 21, 12, 13, 14))
    scores = alternative_scores(llama, [item, item])
    assert shapes == [(1, 16)]
    np.testing.assert_allclose(scores[0], [naive_score(llama, tokens, 3) for tokens in item], atol=2e-4)


@given(st.sets(st.lists(st.integers(0, 2), max_size=5).map(tuple), min_size=1))
@settings(max_examples=200, deadline=None)
def test_the_longest_extension_begins_with_the_sequence_and_is_extended_by_none(sequences):
    found = continuations._longest_extensions(sequences)
    assert set(found) == sequences
    for tokens, longest in found.items():
        assert longest in sequences
        assert longest[: len(tokens)] == tokens
        assert not any(len(other) > len(longest) and other[: len(longest)] == longest for other in sequences)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (((1, 5), (1, 5), (1, 6)), None),
        (((1, 5), (1, 5), (1, 5)), "tell the label words apart"),
        (((1, 5), (1, 5, 6), (1, 5, 7)), "begins with another"),
        (((5, 9), (6, 9), (7, 9)), "begin with its label"),
    ],
)
def test_alternatives_that_cannot_be_compared_are_refused(llama, item, said):
    if said is None:
        assert alternative_scores(llama, [item]).shape == (1, 3)
        return
    with pytest.raises(TaskError, match=said):
        alternative_scores(llama, [item])


def test_a_liking_for_a_word_is_calibrated_away(llama, monkeypatch):
    pairs = [(f"w{20 + i} w30", f"w{40 + i}") for i in range(6)]
    ask = {name: lambda name=name: label_scores(llama, pairs, [LABELS] * 6, [TEMPLATE], name)[0] for name in
           ("content-free", "batch", None)}  # fmt: skip
    before = {name: run() for name, run in ask.items()}
    plain = likelihood.alternative_scores
    monkeypatch.setattr(likelihood, "alternative_scores", lambda *given: plain(*given) + [0.0, 3.0, -1.0])
    np.testing.assert_allclose(ask["content-free"](), before["content-free"], atol=1e-9)
    np.testing.assert_allclose(ask["batch"](), before["batch"], atol=1e-9)
    assert (ask[None]().argmax(1) == 1).sum() > (before[None].argmax(1) == 1).sum() or (
        before[None].argmax(1) == 1
    ).all()
    assert not np.allclose(ask[None](), before[None])


def test_content_free_calibration_is_computed_as_written(llama):
    shown = Template("{premise} w4 {hypothesis} {options} w5 {label}", WORDS)
    order = ORDERS[3]
    found, _ = label_scores(llama, [("w20 w21", "w22")], [order], [shown], "content-free")
    tokenizer = llama.tokenizer

    def probabilities(premise, hypothesis):
        texts = [(1, *tokenizer(text, add_special_tokens=False).input_ids) for text in
                 shown.filled(premise, hypothesis, order)]  # fmt: skip
        weights = np.exp([naive_score(llama, tokens, len(tokens) - 1) for tokens in texts])
        return weights / weights.sum()

    prior = np.exp(np.mean([np.log(probabilities(text, text)) for text in ("N/A", "[MASK]", "")], 0))
    expected = probabilities("w20 w21", "w22") / prior
    np.testing.assert_allclose(np.exp(found[0]), expected / expected.sum(), atol=1e-5)


def test_batch_calibration_leaves_equal_mean_weight_to_equal_items(llama):
    found, _ = label_scores(llama, [("w20", "w22")] * 4, [LABELS] * 4, [TEMPLATE], "batch")
    np.testing.assert_allclose(np.exp(found), 1 / 3, atol=1e-6)


def test_scores_are_averaged_over_templates(llama):
    other = Template("w7 {premise} {hypothesis} {label}", WORDS)
    pairs, orders = [("w20", "w22"), ("w23", "w24")], [LABELS, LABELS]
    apart = [label_scores(llama, pairs, orders, [template])[0] for template in (TEMPLATE, other)]
    both, _ = label_scores(llama, pairs, orders, [TEMPLATE, other])
    mean = np.mean(apart, 0)
    np.testing.assert_allclose(both, mean - np.log(np.exp(mean).sum(1, keepdims=True)), atol=1e-6)


def test_a_long_premise_is_cut_no_more_than_needed(llama):
    words = " ".join(f"w{20 + i % 60}" for i in range(200))
    scores, cut = label_scores(llama, [(words, "w22"), ("w20", "w22")], [LABELS] * 2, [TEMPLATE], None)
    assert cut.tolist() == [True, False]
    # <s>, w4, the hypothesis and w5 take four of 96 positions.
    kept = " ".join(words.split()[:92])
    expected, whole = label_scores(llama, [(kept, "w22")], [LABELS], [TEMPLATE], None)
    assert not whole[0]
    np.testing.assert_allclose(scores[0], expected[0], atol=1e-5)


def test_a_hypothesis_that_fits_in_no_way_is_said_plainly(llama):
    with pytest.raises(TaskError, match="even without its premise"):
        label_scores(llama, [("w20", "w21 " * 100)], [LABELS], [TEMPLATE])


def test_whatever_is_attached_counts(llama):
    neurons = ln.NeuronSet.of({"hi": [(0, i) for i in range(40)]}, shape=(2, 48), site="act")
    pairs, orders = [("w20 w21", "w22")], [LABELS]
    plain, _ = label_scores(llama, pairs, orders, [TEMPLATE])
    with ln.intervene(llama, ln.SetTo(neurons["hi"], 0.0)):
        patched, _ = label_scores(llama, pairs, orders, [TEMPLATE])
    again, _ = label_scores(llama, pairs, orders, [TEMPLATE])
    assert not np.allclose(plain, patched, atol=1e-3)
    assert (plain == again).all()


def test_built_in_templates_are_three_in_each_language_of_xnli():
    found = read_templates()
    assert sorted(found) == ["ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"]
    for templates in found.values():
        assert len(templates) == len({template.text for template in templates}) == 3
        assert [template.shows_options for template in templates] == [True, False, True]
        for template in templates:
            assert len({word[0] for word in template.words.values()}) == 3
            assert template.text.endswith("{label}")


def test_babel_tells_all_label_words_apart(babel):
    for templates in read_templates().values():
        scores, _ = label_scores(babel, [("a", "b")], [LABELS], templates, None)
        assert np.isfinite(scores).all()


def test_braces_in_a_text_are_text():
    assert TEMPLATE.filled("{label}", "{x}")[0] == "{label} w4 {x} w5 w10"


def test_options_are_shown_in_the_order_given():
    shown = Template("{premise} {hypothesis} {options} {label}", WORDS)
    assert shown.filled("p", "h", ("neutral", "contradiction", "entailment"))[2] == "p h w11 / w12 / w10 w12"


def test_orders_follow_from_seed_and_item_and_are_balanced():
    orders = [order_of(0, item) for item in range(6000)]
    assert orders == [order_of(0, item) for item in range(6000)]
    assert orders != [order_of(1, item) for item in range(6000)]
    for order in ORDERS:
        assert 850 < orders.count(order) < 1150


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("{premise} {label}", WORDS, "lacks the placeholder {hypothesis}"),
        ("{premise} {hypotesis} {label}", WORDS, "did you mean 'hypothesis'"),
        ("{premise} {hypothesis} {label", WORDS, "malformed"),
        ("{premise} {hypothesis} {label}", {**WORDS, "neutral": "w10"}, "all different"),
        ("{premise} {hypothesis} {label}", {**WORDS, "neutral": ""}, "a word for each"),
        ("{premise} {hypothesis} {label}", {"entailment": "a", "neutral": "b"}, "a word for each"),
        ("{premise} {hypothesis} {label}", {**WORDS, "maybe": "w9"}, "a word for each"),
    ],
)
def test_malformed_templates_are_refused_in_a_sentence(text, words, said):
    with pytest.raises(TaskError, match=said):
        Template(text, words)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("en = 1", r"no \[\[en\]\] tables"),
        ("[[en]]\ntext = 3", r"no \[\[en\]\] tables"),
        ("[[en]]\nneutral = 'x'", "lacks its text"),
        ("[[en", "is no TOML file"),
        (None, "Cannot read"),
    ],
)
def test_malformed_template_files_are_refused_in_a_sentence(tmp_path: Path, content, said):
    path = tmp_path / "templates.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TaskError, match=said):
        read_templates(path)
