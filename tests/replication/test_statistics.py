import pytest
import torch
from scipy.stats import spearmanr

import langneurons as ln
from langneurons.errors import (
    CorpusError,
    CorruptArtefactError,
    ExecutorError,
    LanguageError,
    SiteMismatchError,
    StatisticsError,
    StorageError,
)
from langneurons.models import view
from langneurons.replication import statistics
from langneurons.replication.statistics import ARRAYS, PublishedStatistics, published_statistics
from tests.planted.model import LAYERS, WIDTH
from tests.replication import naive
from tests.replication.conftest import BATCH_SIZE, CONTEXT_LENGTH, Backwards

SMALL = {"context_length": CONTEXT_LENGTH, "progress": False}


@pytest.fixture(scope="module")
def ported(model, corpus, truth):
    """The naive port of the Hindi statistics, on the very batches that were drawn."""
    chunks = statistics._cut_chunks(corpus, "hi", view(model), CONTEXT_LENGTH)
    n_batches = len(chunks) // 2 // BATCH_SIZE

    def drawn(which):
        return list(statistics._random_batches(chunks, n_batches, BATCH_SIZE, 0, which, "hi"))

    first = naive.act_stat(truth.hf_model, drawn("first"))
    second = drawn("second")
    scores = {"act_prob_90p": naive.act_prob(truth.hf_model, second, first["mean_p90_act"])}
    return first | scores | {"act_prob_zero": naive.act_prob(truth.hf_model, second, 0.0)}


@pytest.mark.parametrize("name", [name for name in ARRAYS if name.startswith("mean_")])
def test_batch_statistics_equal_those_of_the_naive_port(published, ported, name):
    torch.testing.assert_close(published.values(name, "hi").values, ported[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["act_prob_90p", "act_prob_zero"])
def test_shares_equal_those_of_the_naive_port_up_to_its_half_precision(published, ported, name):
    # A token that lies on the threshold to the last bit may fall on either side.
    mine = published.values(name, "hi").values
    torch.testing.assert_close(mine, ported[name], atol=2e-3, rtol=0)
    assert spearmanr(mine.flatten(), ported[name].flatten()).statistic >= 0.99


def test_the_top_neurons_are_those_of_the_naive_port_up_to_ties(published, ported):
    mine, theirs = published.values("act_prob_90p", "hi").values.flatten(), ported["act_prob_90p"].flatten()
    count = 32
    bar = theirs.sort(descending=True).values[count - 1]
    chosen = mine.topk(count).indices
    assert bool((theirs[chosen] >= bar - 1e-3).all())


def test_chunks_are_the_joined_articles_with_their_special_tokens_and_drop_the_rest(model, corpus):
    seen = view(model)
    stream = [token for text in corpus["ur"] for token in seen.tokenizer(text)["input_ids"]]
    chunks = statistics._cut_chunks(corpus, "ur", seen, 100)
    assert chunks.flatten().tolist() == stream[: len(stream) // 100 * 100]


def test_the_score_is_about_a_tenth_for_every_neuron_whatever_it_responds_to(published, truth):
    exclusive = truth.of("hi", ("exclusive",))
    scores = published.values("act_prob_90p", "hi")
    assert {round(float(scores[place]), 1) for place in exclusive} == {0.1}
    assert abs(float(scores.values.median()) - 0.1) < 0.01


def test_no_batch_is_partial_and_a_pass_reads_what_was_asked(model, corpus):
    asked = 3 * BATCH_SIZE * CONTEXT_LENGTH + 100
    found = published_statistics(model, corpus, ["hi"], tokens_per_language=asked, **SMALL)
    assert found.about["tokens"] == {"hi": 3 * BATCH_SIZE * CONTEXT_LENGTH}


def test_the_seed_decides_and_other_languages_do_not_matter(model, corpus):
    def one(languages, seed):
        found = published_statistics(model, corpus, languages, tokens_per_language=1024, seed=seed, **SMALL)
        return found.values("mean_p90_act", "hi").values

    assert torch.equal(one(["hi"], 1), one(["en", "hi"], 1))
    assert not torch.equal(one(["hi"], 1), one(["hi"], 2))


def test_each_language_is_a_piece_of_work_wherever_and_whenever_it_is_computed(model, corpus, published):
    executor = Backwards()
    found = published_statistics(model, corpus, context_length=CONTEXT_LENGTH, progress=False, executor=executor)
    assert executor.jobs == len(corpus.languages) > 1
    assert (found.languages, found.about) == (published.languages, published.about)
    assert all(torch.equal(getattr(found, name), getattr(published, name)) for name in ARRAYS)


def test_settings_objects_say_the_same_as_single_options(model, corpus):
    recording, run = ln.Recording(tokens_per_language=512, context_length=64), ln.Run(batch_size=2, progress=False)
    whole = published_statistics(model, corpus, ["hi"], recording=recording, run=run)
    options = {"tokens_per_language": 512, "context_length": 64, "batch_size": 2}
    single = published_statistics(model, corpus, ["hi"], **options, progress=False)
    assert whole.about == single.about
    assert all(torch.equal(getattr(whole, name), getattr(single, name)) for name in ARRAYS)


def test_the_two_passes_read_different_batches(model, corpus):
    chunks = statistics._cut_chunks(corpus, "hi", view(model), CONTEXT_LENGTH)
    first, second = (next(statistics._random_batches(chunks, 3, 4, 0, name, "hi")) for name in ("first", "second"))
    assert not torch.equal(first, second)


def test_values_belong_to_pre_and_are_refused_at_act(published):
    values = published.values("mean_mu_act", "hi")
    neurons = ln.NeuronSet.of({"hi": [(0, 1)]}, (LAYERS, WIDTH), "act", published.model)
    assert (values.site, values.language) == ("pre", "hi")
    with pytest.raises(SiteMismatchError):
        ln.SetTo(neurons["hi"], values)


def test_the_statistics_carry_the_fingerprint_of_the_model(model, published):
    assert published.model == view(model).fingerprint


def test_saved_statistics_come_back_equal(published, tmp_path):
    back = PublishedStatistics.load(published.save(tmp_path / "statistics"))
    assert all(torch.equal(getattr(back, name), getattr(published, name)) for name in ARRAYS)
    assert (back.languages, back.model, back.about) == (published.languages, published.model, published.about)


def test_a_changed_file_is_noticed(published, tmp_path):
    folder = published.save(tmp_path)
    path = folder / "published-statistics.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptArtefactError):
        PublishedStatistics.load(folder)
    with pytest.raises(StorageError, match="no such file"):
        PublishedStatistics.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"languages": ["fr"]}, LanguageError, "fr"),
        ({"context_length": 272}, CorpusError, "256"),
        ({"batch_size": 0}, ExecutorError, "at least 1"),
        ({"context_lenght": 64}, StatisticsError, "did you mean 'context_length'"),
        ({"tokens_per_language": 10**6}, CorpusError, "give tokens_per_language from 256 to"),
        ({"tokens_per_language": 100}, CorpusError, "give tokens_per_language from 256 to"),
    ],
)
def test_what_cannot_be_computed_is_said(model, corpus, settings, error, said):
    with pytest.raises(error, match=said):
        published_statistics(model, corpus, **{**SMALL, **settings})


def test_unknown_names_are_said(published):
    with pytest.raises(StatisticsError, match="mean_p90_act"):
        published.values("mean_p91_act", "hi")
    with pytest.raises(LanguageError, match="fr"):
        published.values("mean_p90_act", "fr")
