import numpy as np
import pandas as pd
import pytest

import langneurons as ln
from langneurons.analysis.validity import TokenFiring, condition, conditioned, firing_by_token
from langneurons.analysis.validity.firing import NO_LETTERS, script_of
from langneurons.errors import NeuronSetError, StatisticsError
from tests.planted_model import planted

SHAPE = (1, 8)
SCRIPTS = {0: "Latin", 1: "Latin", 2: "Latin", 3: "Han", 4: NO_LETTERS, 5: "Latin"}


def counted(fires, tokens=4000, languages=("en", "fr"), seed=0, folds=20):
    """Firing on random tokens: token 5 is frequent in en and rare elsewhere, token 3 only in en."""
    random = np.random.default_rng(seed)
    rows = []
    for language in languages:
        weights = np.array([2, 2, 2, 1, 1, 4] if language == "en" else [2, 2, 2, 0, 1, 0.4])
        ids = random.choice(6, tokens, p=weights / weights.sum())
        active = np.stack([random.random(tokens) < [fire(language, one) for one in ids] for fire in fires], axis=1)
        frame = pd.DataFrame(active.astype(int)).assign(token=ids, fold=random.integers(0, folds, tokens), count=1)
        rows.append(frame.groupby(["fold", "token"], as_index=False).sum().assign(language=language))
    table = pd.concat(rows, ignore_index=True)
    table["script"] = table["token"].map(SCRIPTS)
    columns = list(range(len(fires)))
    return TokenFiring(
        table[["language", "fold", "token", "script", "count"]], table[columns].to_numpy(), np.array(columns)
    )


def of_en(n):
    return ln.NeuronSet.of({"en": [(0, index) for index in range(n)]}, shape=SHAPE, site="act")


FIRES = (
    lambda language, token: 0.8 if language == "en" else 0.2,  # of the language
    lambda language, token: 0.9 if token == 5 else 0.1,  # of one frequent token
    lambda language, token: (0.5 if language == "en" else 0.2) + (0.4 if token == 5 else 0),  # of both
    lambda language, token: 0.3,  # of nothing
)


def test_a_language_neuron_keeps_its_signal_within_tokens_and_a_token_detector_loses_it():
    table = condition(counted(FIRES), of_en(4)).set_index("neuron")
    assert table.loc[0, "share_left_token"] == pytest.approx(1, abs=0.1)
    assert table.loc[1, "raw"] > 0.15
    assert abs(table.loc[1, "share_left_token"]) < 0.2
    assert 0.5 < table.loc[2, "share_left_token"] < 0.9
    # Token 5 is Latin as most others: within the script it is as frequent in en as before.
    assert table.loc[1, "share_left_script"] > 0.7


def test_figures_agree_with_naive_loops():
    firing = counted(FIRES, languages=("en", "fr", "es"))
    table = condition(firing, of_en(4))
    for neuron in range(4):
        raw, within, coverage = naive(firing, neuron, firing.tokens.index == firing.tokens.index)
        row = table[table["neuron"] == neuron].iloc[0]
        assert row["raw"] == pytest.approx(raw)
        assert row["within_token"] == pytest.approx(within)
        assert row["coverage_token"] == pytest.approx(coverage)
        left_out = [naive(firing, neuron, firing.tokens["fold"] != fold) for fold in range(20)]
        shares = np.array([part / whole for whole, part, _ in left_out])
        # The plain jackknife differs from that for folds of unequal size by little.
        plain = np.sqrt(19 / 20 * ((shares - shares.mean()) ** 2).sum())
        if raw > 0.1:
            assert row["share_left_token_se"] == pytest.approx(plain, rel=0.15)


def naive(firing, neuron, rows):
    n, f, seen = {}, {}, firing.tokens[["language", "token", "count"]].to_numpy()
    for row in np.flatnonzero(rows):
        language, token, count = seen[row]
        group = "own" if language == "en" else "other"
        n[group, token] = n.get((group, token), 0) + count
        f[group, token] = f.get((group, token), 0) + firing.fired[row, neuron]
    total = {group: sum(count for key, count in n.items() if key[0] == group) for group in ("own", "other")}
    fired = {group: sum(count for key, count in f.items() if key[0] == group) for group in ("own", "other")}
    raw = fired["own"] / total["own"] - fired["other"] / total["other"]
    moved = weights = shared = 0
    for token in range(6):
        own, other = n.get(("own", token), 0), n.get(("other", token), 0)
        if own and other:
            weight = own * other / (own + other)
            moved += weight * (f["own", token] / own - f["other", token] / other)
            weights, shared = weights + weight, shared + own
    return raw, moved / weights, shared / total["own"]


def test_the_standard_error_is_the_spread_of_repeated_samples():
    found = [condition(counted(FIRES[:1], tokens=1000, seed=seed), of_en(1)).iloc[0] for seed in range(60)]
    spread = np.std([row["share_left_token"] for row in found])
    assert np.mean([row["share_left_token_se"] for row in found]) == pytest.approx(spread, rel=0.3)


def test_a_neuron_without_signal_has_no_share_left():
    silent = (lambda language, token: 0.1 if language == "en" else 0.6,)
    row = condition(counted(silent), of_en(1)).iloc[0]
    assert row["raw"] < 0
    assert np.isnan(row["share_left_token"])
    assert np.isnan(row["share_left_token_se"])


def test_languages_without_a_common_token_have_nothing_within():
    tokens = pd.DataFrame(
        {"language": ["en", "hi"], "fold": 0, "token": [1, 2], "script": ["Latin", "Han"], "count": 5}
    )
    row = condition(TokenFiring(tokens, np.array([[4], [1]]), np.array([0])), of_en(1)).iloc[0]
    assert row["raw"] == pytest.approx(0.6)
    assert row["coverage_token"] == 0
    assert np.isnan(row["within_token"])


@pytest.fixture(scope="module")
def model_and_corpus():
    truth = planted(documents=40)
    model = ln.load_model("planted", hf_model=truth.model, tokenizer=truth.tokenizer)
    return model, ln.load_corpus(truth.documents)


def test_counted_firing_adds_up_to_the_recorded_probability(model_and_corpus):
    model, corpus = model_and_corpus
    stats = ln.record(model, corpus, context_length=128, progress=False)
    neurons = ln.LAPE(top=0.1, filter_quantile=0.75).identify(stats)
    firing = firing_by_token(model, corpus, neurons, context_length=128, batch_size=3, progress=False)
    assert firing.tokens.groupby("language")["count"].sum().tolist() == stats.tokens.tolist()
    for position, language in enumerate(stats.languages):
        own = (firing.tokens["language"] == language).to_numpy()
        p = firing.fired[own].sum(0) / int(stats.tokens[position])
        expected = stats.probability()[position].flatten()[firing.neurons]
        assert p == pytest.approx(expected.numpy())
    assert (firing.fired <= firing.tokens["count"].to_numpy()[:, None]).all()


def test_planted_token_detectors_and_language_neurons_share_no_token(model_and_corpus):
    """In the planted corpus every language has its own words: within tokens nothing can be said."""
    model, corpus = model_and_corpus
    neurons = ln.NeuronSet.of({"en": [(0, 1), (1, 5)]}, shape=(2, 160), site="act")
    table = conditioned(model, corpus, neurons, 500, 64, progress=False)
    assert (table["coverage_token"] == 0).all()
    assert (table["coverage_script"] == 1).all()
    assert table["share_left_token"].isna().all()


@pytest.mark.parametrize(
    ("text", "script"),
    [(" la", "Latin"), ("ि", "Devanagari"), ("ہے", "Arabic"), ("的", "Han"), (" 12.", NO_LETTERS), ("é", "Latin")],
)
def test_scripts_of_tokens(text, script):
    assert script_of(text) == script


def test_bad_input_is_one_sentence(model_and_corpus):
    model, corpus = model_and_corpus
    firing = counted(FIRES)
    with pytest.raises(StatisticsError, match="counted were only en, fr"):
        condition(firing, ln.NeuronSet.of({"hi": [(0, 1)]}, shape=SHAPE, site="act"))
    with pytest.raises(NeuronSetError, match="1 of 1 neurons were not watched"):
        condition(firing, ln.NeuronSet.of({"en": [(0, 7)]}, shape=SHAPE, site="act"))
    with pytest.raises(NeuronSetError, match="empty"):
        firing_by_token(model, corpus, ln.NeuronSet.of({"en": []}, shape=(2, 160), site="act"))
    with pytest.raises(StatisticsError, match="does not say that a neuron fires"):
        firing_by_token(model, corpus, ln.NeuronSet.of({"en": [(0, 1)]}, shape=(2, 160), site="post"))


def test_a_set_with_an_empty_label_gives_rows_for_the_others_only():
    neurons = ln.NeuronSet.of({"en": [(0, 0)], "fr": []}, shape=SHAPE, site="act")
    assert condition(counted(FIRES), neurons)["language"].tolist() == ["en"]
    empty = condition(counted(FIRES), ln.NeuronSet.of({"en": []}, shape=SHAPE, site="act"))
    assert len(empty) == 0
