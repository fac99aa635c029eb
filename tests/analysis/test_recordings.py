import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import langneurons as ln
from langneurons.analysis.validity import (
    ValidityTable,
    nulls,
    nulls_of,
    record_halves,
    record_nulls,
    split_half,
)
from langneurons.errors import CorpusError
from tests.planted.model import planted_model
from tests.recording.conftest import same
from tests.running.conftest import PiecesHere

LAPE = ln.LAPE(top=0.1, filter_quantile=0.75)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model_and_corpus():
    truth = planted_model()
    return truth.model(), truth.corpus()


@pytest.fixture(scope="module")
def recorded(model_and_corpus):
    model, corpus = model_and_corpus
    return record_nulls(model, corpus, context_length=128, language="en", progress=False)


def test_every_recording_holds_equally_many_tokens_and_labels(recorded):
    tokens = {name: [half.tokens.tolist() for half in pair] for name, pair in recorded.nulls.items()}
    assert set(tokens) == {"shuffled", "source", "topic"}
    expected = [half.tokens.tolist() for half in recorded.real]
    assert all(found == expected for found in tokens.values())
    assert expected[0] == expected[1]
    assert len(expected[0]) == 4


def test_lape_passes_on_planted_neurons_what_activity_alone_fails(recorded):
    chance = {name: recorded.nulls[name] for name in ("shuffled", "source")}
    found = nulls_of(LAPE, recorded.real, chance)
    assert found.passes
    assert found.jaccard("real") > 0.7 > 0.4 > found.jaccard("shuffled")
    for method in (ln.identification.MeanActivation(top=0.04), ln.ActivationProbability(top=0.04)):
        assert not nulls_of(method, recorded.real, chance).passes


def test_lape_is_reliable_on_planted_neurons(recorded):
    first, second = recorded.real
    assert split_half(LAPE, first + second, splits=5).overall["jaccard"] > 0.7
    assert split_half(ln.AUROC(top=0.04), recorded.real).overall["jaccard"] > 0.3


def test_parts_that_differ_in_topic_are_told_apart_again_and_stretches_without_topics_are_not(recorded):
    """The planted documents have one topic or none, in no order: stretches of them differ in nothing."""
    found = nulls_of(ln.MeanDifference(top=0.04), recorded.real, recorded.nulls)
    assert found.jaccard("topic") > 2 * found.jaccard("source")


def test_nulls_records_and_judges_in_one_call(model_and_corpus):
    model, corpus = model_and_corpus
    options = {"tokens_per_language": 800, "context_length": 64, "which": ["shuffled"], "progress": False}
    found = nulls(LAPE, model, corpus, **options)
    again = record_nulls(model, corpus, **options)
    assert found.rows.equals(nulls_of(LAPE, again.real, again.nulls).rows)


def test_recordings_cut_in_pieces_are_the_same(model_and_corpus):
    model, corpus = model_and_corpus
    options = {"tokens_per_language": 800, "context_length": 64, "which": ["source"], "progress": False}
    whole, cut = (record_nulls(model, corpus, executor=one, **options) for one in (None, PiecesHere(3)))
    for here, there in zip((*whole.real, *whole.nulls["source"]), (*cut.real, *cut.nulls["source"]), strict=True):
        assert same(here, there)


def test_recordings_in_a_folder_are_found_again(model_and_corpus, tmp_path, monkeypatch):
    model, corpus = model_and_corpus
    halves = corpus.split(0.5)
    options = {"tokens_per_language": 600, "context_length": 64, "out": tmp_path, "progress": False}
    first = record_halves(model, halves, **options)
    monkeypatch.setattr(type(ln.models.view(model)), "forward", lambda *_: pytest.fail("recorded again"))
    second = record_halves(model, halves, **options)
    assert [one.manifest() for one in first] == [one.manifest() for one in second]
    assert np.array_equal(first[0].probability(), second[0].probability())


def test_bad_input_is_one_sentence(model_and_corpus):
    model, corpus = model_and_corpus
    with pytest.raises(CorpusError, match="two languages or more; this corpus holds 1"):
        nulls(LAPE, model, corpus.select(["en"]))
    with pytest.raises(CorpusError, match="Unknown null 'shuffle'"):
        nulls(LAPE, model, corpus, which=["shuffle"])


@pytest.mark.slow
def test_the_script_measures_everything_and_finds_its_recordings_again(tmp_path):
    methods = ["LAPE", "Random, drawn anew for every text"]
    command = [sys.executable, "scripts/measure_validity.py", "babel", str(tmp_path), "--languages", "en", "hi"]
    command += ["--tokens", "400", "--context", "64", "--nulls", "shuffled", "--parallel", "40", "--methods", *methods]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    table = ValidityTable.load(tmp_path)
    assert table.rows["method"].tolist() == methods
    assert methods[1] in table.failing("null_shuffled")
    assert methods[1] in table.failing("jaccard")
    assert "| LAPE |" in (tmp_path / "validity.md").read_text("utf-8")
    again = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert again.stderr.count("already holds this recording") == 7
