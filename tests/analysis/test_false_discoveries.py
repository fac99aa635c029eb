import numpy as np
import pytest

import langneurons as ln
from langneurons.analysis.validity import DocumentHeterogeneity, OwnQuantile, RedrawnRandom, nulls_of
from langneurons.errors import StatisticsError
from tests.planted.recordings import LABELS, recording

TOP = 0.04
LAPE = ln.LAPE(top=0.16, filter_quantile=0.8)
KINDS = ("shuffled", "source", "topic")


@pytest.fixture(scope="module")
def real():
    return recording("real")


@pytest.fixture(scope="module")
def nulls():
    return {kind: recording(kind, seed=5) for kind in KINDS}


def shares(method, real, nulls):
    found = nulls_of(method, real, nulls)
    return {kind: found.share(kind) for kind in nulls}


def test_lape_finds_nothing_where_labels_mean_nothing(real, nulls):
    found = nulls_of(LAPE, real, {kind: nulls[kind] for kind in ("shuffled", "source")})
    assert found.passes
    assert found.share("shuffled") == found.share("source") == 0


@pytest.mark.parametrize("method", [ln.identification.MeanActivation(top=TOP), ln.ActivationProbability(top=TOP)])
def test_methods_that_do_not_compare_languages_fail_every_null(real, nulls, method):
    assert min(shares(method, real, nulls).values()) > 0.5


def test_the_own_quantile_fails_the_shuffled_null(real, nulls):
    assert nulls_of(OwnQuantile(top=TOP), real, nulls).share("shuffled") > 0.3


def test_document_heterogeneity_fails_pseudo_languages(real, nulls):
    found = shares(DocumentHeterogeneity(top=0.08), real, nulls)
    assert found["source"] > 0.2


@pytest.mark.parametrize("method", [ln.Random(top=TOP), RedrawnRandom(top=TOP)])
def test_random_neurons_fail(real, nulls, method):
    assert shares(method, real, nulls)["shuffled"] > 0.5


@pytest.mark.parametrize("method", [ln.MeanDifference(top=TOP), LAPE, ln.AUROC(top=TOP)])
def test_comparing_methods_pass_chance_and_fail_topics(real, nulls, method):
    found = shares(method, real, nulls)
    assert found["shuffled"] <= 0.05 < found["topic"]


def test_shares_agree_with_a_naive_count(real, nulls):
    method = ln.MeanDifference(top=0.1)
    found = nulls_of(method, real, {"topic": nulls["topic"]}).per_language.set_index("language")
    chosen, scores = method.identify(real), method.scores(real)
    on_null, null_scores = method.identify(nulls["topic"]), method.scores(nulls["topic"])
    for language in LABELS:
        worst = min(float(scores[language][layer, index]) for layer, index in chosen[language].indices().tolist())
        beyond = [
            sum(float(null_scores[label][layer, index]) >= worst for layer, index in on_null[label].indices().tolist())
            for label in on_null.languages
        ]
        assert found.loc[language, "cutoff_high"] == pytest.approx(worst)
        assert np.isnan(found.loc[language, "cutoff_low"])
        assert found.loc[language, "beyond"] == pytest.approx(np.mean(beyond))
        assert found.loc[language, "share"] == pytest.approx(np.mean(beyond) / len(chosen[language]))


def test_a_score_without_language_has_one_cutoff_that_low_scores_pass(real, nulls):
    table = nulls_of(LAPE, real, {"shuffled": nulls["shuffled"]}).per_language
    assert table["language"].tolist() == ["overall"]
    chosen = LAPE.identify(real)
    worst = max(float(LAPE.scores(real).values[layer, index]) for layer, index in chosen.indices().tolist())
    assert table["cutoff_low"].item() == pytest.approx(worst)
    assert np.isnan(table["cutoff_high"].item())


def test_a_choice_at_both_ends_has_two_cutoffs(real, nulls):
    method = ln.AUROC(top=0.08, side="both")
    table = nulls_of(method, real, {"shuffled": nulls["shuffled"]}).per_language
    assert (table["cutoff_low"] < 0.5).all()
    assert (table["cutoff_high"] > 0.5).all()
    assert (table["beyond"] < table["chosen"] / 2).all()


def test_real_data_against_itself_is_found_again_entirely(real):
    assert nulls_of(LAPE, real, {"itself": real}).share("itself") == 1


def test_nulls_of_other_sizes_are_refused(real, nulls):
    with pytest.raises(StatisticsError, match="holds 2 labels"):
        nulls_of(LAPE, real, {"few": nulls["shuffled"].select(nulls["shuffled"].languages[:2])})
    with pytest.raises(StatisticsError, match="chance finds more in fewer tokens"):
        nulls_of(LAPE, real, {"short": recording("shuffled").folds(2)[0]})
    with pytest.raises(StatisticsError, match="No null was given"):
        nulls_of(LAPE, real, {})


def test_the_verdict_is_printed(real, nulls):
    found = nulls_of(ln.identification.MeanActivation(top=TOP), real, nulls)
    assert "fails (limit 5%)" in repr(found)
    assert "nan" not in repr(found)


def test_a_saved_result_comes_back(real, nulls, tmp_path):
    found = nulls_of(LAPE, real, nulls)
    found.save(tmp_path)
    loaded = ln.load(tmp_path)
    assert loaded.per_language.equals(found.per_language)
    assert (loaded.method, loaded.limit, loaded.passes) == (found.method, found.limit, found.passes)
    assert repr(loaded) == repr(found)
