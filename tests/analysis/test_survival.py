"""Neurons that read a script, words, or nothing of a language are told apart by what happens when text is altered."""

import inspect
import sys
from functools import reduce
from operator import add
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import langneurons as ln
from langneurons.analysis.validity import AlteredRecordings, record_altered, survival, survival_of
from langneurons.cli import checking, commands
from langneurons.errors import CorpusError, LangNeuronsWarning, StatisticsError, StudyError
from langneurons.identification.random_tokens import without_active_on
from langneurons.settings import Altering
from langneurons.study.config import parse_config
from langneurons.study.stages.survival import SurvivalPart
from tests.planted import script
from tests.planted.recordings import LABELS, recording
from tests.study.small import SMALL

CONDITIONS = ["parallel", "words", "characters", "romanised", "random"]
SIZE = {"tokens_per_language": 360, "context_length": 64, "progress": False}


class Named:
    """Names those of some planted neurons that are mostly active in a language, and there most of all."""

    needs = ()

    def __init__(self, kind: str):
        self.flat = np.array(sorted(layer * script.WIDTH + place for layer, place in script.planted(kind)))

    def scores(self, stats):
        return ln.ActivationProbability().scores(stats)

    def identify(self, stats):
        p = stats.probability().flatten(1).numpy()[:, self.flat]
        chosen = (p > 0.5) & (p == p.max(0))
        members = {name: self.flat[of] for name, of in zip(stats.languages, chosen, strict=True)}
        return ln.NeuronSet(members, stats.shape, stats.site, stats.fingerprint)


@pytest.fixture(scope="module")
def recordings():
    transliterator = SimpleNamespace(Uroman=lambda: SimpleNamespace(romanize_string=script.in_latin))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "uroman", transliterator)
        corpus = script.planted_text()
        return record_altered(script.planted_script().model(), corpus, conditions=CONDITIONS, parts=3, **SIZE)


def stays(recordings, kind: str) -> pd.DataFrame:
    table = survival_of({kind: Named(kind)}, recordings).rows
    return table[table["language"] == "hi"].set_index("condition")


def test_a_neuron_of_a_script_is_lost_in_latin_letters_and_stays_in_shuffled_characters(recordings):
    rows = stays(recordings, "script")
    assert rows["neurons"].eq(script.LAYERS).all()
    assert rows["again"].eq(1).all()
    assert rows["stays"].to_dict() == {"parallel": 1, "words": 1, "characters": 1, "romanised": 0, "random": 1}
    assert rows.loc["romanised", "change"] == -1


def test_a_neuron_of_words_stays_in_latin_letters_and_is_lost_in_shuffled_characters(recordings):
    rows = stays(recordings, "word")
    assert rows["stays"].to_dict() == {"parallel": 1, "words": 1, "characters": 0, "romanised": 1, "random": 1}


def test_published_methods_tell_them_apart_too(recordings):
    methods = {"difference": ln.MeanDifference(top=2 / script.WIDTH), "auroc": ln.AUROC(top=2 / script.WIDTH)}
    table = survival_of(methods, recordings).rows.set_index(["method", "condition", "language"])
    for method in methods:
        # Script and word neurons are Hindi's four; in Latin letters the script's two are no longer among them.
        assert table.loc[(method, "words", "hi"), "stays"] == 1
        assert table.loc[(method, "romanised", "hi"), "stays"] == pytest.approx(0.5)
        assert table.loc[(method, "characters", "hi"), "stays"] >= 0.5


def test_every_language_of_a_parallel_text_reads_the_same_texts(recordings):
    first = recordings.altered["parallel"][0]
    assert first.tokens.tolist()[0] == first.tokens.tolist()[1] <= SIZE["tokens_per_language"] // 3


def test_languages_that_cannot_be_altered_have_no_row(recordings):
    rows = survival_of({"random": ln.Random(top=0.05)}, recordings).rows
    assert set(rows.loc[rows["condition"] == "romanised", "language"]) == {"hi", "overall"}


def test_an_interval_has_a_width_where_all_neurons_agree_and_holds_what_halves_share():
    """Independent recordings of the same planted neurons: the share that stays in a third is within the interval."""
    parts = [recording("real", seed=seed).folds(4) for seed in range(3)]
    method = ln.MeanDifference(top=0.04)
    rows = survival_of({"m": method}, AlteredRecordings(parts[0], parts[1], {"words": parts[2]})).rows
    assert set(rows["language"]) == {*LABELS, "overall"}
    assert ((rows["stays_low"] < rows["stays"]) | (rows["stays_high"] > rows["stays"])).all()
    overall = rows.iloc[-1]
    assert overall["change_low"] <= 0 <= overall["change_high"]
    assert overall["stays"] - overall["again"] == pytest.approx(overall["change"])


def test_overall_is_the_share_of_all_labels():
    parts = [recording("real", seed=seed).folds(4) for seed in range(2)]
    method = ln.LAPE(top=0.16, filter_quantile=0.8)
    rows = survival_of({"m": method}, AlteredRecordings(parts[0], parts[0], {"words": parts[1]})).rows
    first, other = (method.identify(reduce(add, of)) for of in parts)
    shared = {name: len(np.intersect1d(first.members[name], other.members[name])) for name in LABELS}
    by_language = rows.set_index("language")
    for name in LABELS:
        assert by_language.loc[name, "stays"] == pytest.approx(shared[name] / len(first.members[name]))
    named = sum(len(first.members[name]) for name in LABELS)
    assert by_language.loc["overall", "stays"] == pytest.approx(sum(shared.values()) / named)
    assert by_language.loc["overall", "neurons"] == named


def test_neurons_that_are_active_on_random_tokens_are_left_out():
    stats = recording("real")
    neurons = ln.identification.MeanActivation(top=0.2).identify(stats)
    random = stats.select(["en"])
    staying = without_active_on(neurons, stats, random, share=0.5)
    p = dict(zip(stats.languages, stats.probability().flatten(1), strict=True))
    for language in neurons.languages:
        expected = [n for n in neurons.members[language].tolist() if p["en"][n] < 0.5 * p[language][n]]
        assert staying.members[language].tolist() == expected
        assert len(staying.scores[language]) == len(expected)
    assert 0 < len(staying) < len(neurons)


def test_python_a_study_and_the_command_line_have_the_same_options():
    assert checking.survival
    defaults = [about.default for about in inspect.signature(survival).parameters.values()]
    in_python = next(default for default in defaults if isinstance(default, Altering))
    assert in_python == commands.GROUPS["survival"]["altering"] == SurvivalPart().altering
    content = {**SMALL, "survival": {"tokens": 600, "altering": {"conditions": ["words"], "parts": 3}}}
    config = parse_config(content)
    assert config.survival.altering == Altering(conditions=("words",), parts=3)
    with pytest.raises(StudyError, match="conditions"):
        parse_config({**SMALL, "survival": {"altering": {"conditions": ["backwards"]}}})


def test_a_condition_that_alters_nothing_is_left_out_beside_others():
    corpus = script.planted_text().select(["en"])
    with pytest.warns(LangNeuronsWarning, match="Latin letters already.*'romanised' is left out"):
        recordings = record_altered(
            script.planted_script().model(), corpus, conditions=["romanised", "characters"], parts=3, **SIZE
        )
    assert set(recordings.altered) == {"characters"}


def test_bad_input_is_one_sentence():
    corpus = script.planted_text()
    model = script.planted_script().model()
    without_ids = ln.load_corpus({name: list(corpus[name]) for name in corpus})
    with pytest.raises(CorpusError, match="has no ids"):
        survival(ln.LAPE(), model, without_ids, conditions=["parallel"], parts=3, **SIZE)
    with pytest.raises(CorpusError, match="en are in Latin letters already"):
        survival(ln.LAPE(), model, corpus.select(["en"]), conditions=["romanised"], parts=3, **SIZE)
    with pytest.raises(StatisticsError, match="at least 3"):
        survival(ln.LAPE(), model, corpus, parts=2, **SIZE)
    with pytest.raises(StatisticsError, match="conditions"):
        survival(ln.LAPE(), model, corpus, conditions=["backwards"], **SIZE)
    with pytest.raises(StatisticsError, match="three parts"):
        survival_of({}, AlteredRecordings([], [], {}))
    with pytest.raises(StatisticsError, match="under one label"):
        without_active_on(ln.LAPE(top=0.1).identify(recording("real")), recording("real"), recording("real"))
