"""Features of a dictionary go the whole way that neurons go: recorded, identified, patched, ablated, decomposed."""

import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.analysis.ablating import ablate
from langneurons.analysis.reading import decompose
from langneurons.analysis.screening import screen
from langneurons.analysis.texts import LabelledTexts
from langneurons.errors import PatchError, SiteMismatchError, StaleArtefactError, StatisticsError
from langneurons.models import add_dictionary, remove_dictionary, view
from tests.models.dictionaries import RandomDictionary
from tests.planted.model import LANGUAGES, planted_model
from tests.recording.conftest import same

BAR = 0.3  # of a language's own direction
RARE = "zh59"


class LanguageDictionary(torch.nn.Module):
    """Feature i fires on language i's words; then one on a single word, one that never fires, and random ones."""

    def __init__(self, embedding: torch.Tensor, ids: dict[str, list[int]], rare: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        rows = [embedding[ids[language]].mean(0) for language in LANGUAGES]
        grand = torch.stack(rows).mean(0)
        directions = [row - grand for row in rows]
        directions = [one / one.square().sum() for one in directions]
        word = embedding[rare] / embedding[rare].square().sum()
        others = 0.05 * torch.randn(24, len(grand), generator=generator)
        self.encoder = torch.nn.Parameter(torch.stack([*directions, word, 0 * word, *others]))
        bars = [BAR + float(one @ grand) for one in directions]
        self.bars = torch.nn.Parameter(torch.tensor([*bars, 0.9, 1.0, *[0.0] * 24]))
        self.decoder = torch.nn.Parameter(self.encoder.detach() * 10)

    def encode(self, x):
        return (x @ self.encoder.T - self.bars).relu()

    def decode(self, feature_acts):
        return feature_acts @ self.decoder


@pytest.fixture(scope="module")
def world():
    truth = planted_model(documents=40)
    model = truth.model()
    vocabulary = truth.tokenizer.get_vocab()
    ids = {language: [vocabulary[f"{language}{word}"] for word in range(60)] for language in LANGUAGES}
    dictionary = LanguageDictionary(truth.hf_model.get_input_embeddings().weight.detach(), ids, vocabulary[RARE])
    add_dictionary(model, {0: dictionary}, at="resid_pre")
    corpus = truth.corpus()
    return model, corpus, dictionary, record(model, corpus), vocabulary


def record(model, corpus, **options):
    return ln.record(model, corpus, context_length=64, progress=False, **{"sites": ("act", "features"), **options})


@pytest.fixture(scope="module")
def neurons(world):
    return ln.LAPE(top=0.14, filter_quantile=0.5).identify(world[3].at("features"))


def with_another(model, dictionary):
    """Put another dictionary in the place of the first, for the time of a test."""
    remove_dictionary(model)
    add_dictionary(model, {0: dictionary}, at="resid_pre")


@pytest.fixture
def replaced(world):
    model, _, dictionary, _, _ = world
    with_another(model, RandomDictionary(64, 30))
    yield model
    with_another(model, dictionary)


def test_lape_finds_the_feature_of_each_language(world, neurons):
    stats = world[3].at("features")
    assert stats.shape == (1, 30)
    for place, language in enumerate(LANGUAGES):
        assert neurons[language].indices().tolist() == [[0, place]]
        assert float(stats[language].probability().values[0, place]) > 0.9


def test_features_are_recorded_beside_neurons_without_changing_them(world):
    model, corpus, _, stats, _ = world
    assert same(record(model, corpus, sites=("act",)), stats.at("act"))
    assert stats.at("act").fingerprint == view(model).fingerprint
    assert stats.at("features").fingerprint == view(model).fingerprint_at("features")


def test_recording_does_not_depend_on_batches_and_shards(world):
    model, corpus, _, stats, _ = world
    assert same(record(model, corpus, batch_size=3), stats)
    parts = [record(model, corpus, shard=(part, 2)) for part in range(2)]
    assert same(parts[0] + parts[1], stats)


def test_statistics_of_features_equal_counts_by_hand(world):
    """Features silent in the sample that edges come from too."""
    model, corpus, dictionary, stats, vocabulary = world
    features = stats.at("features")
    embedding = model.embed.W_E if hasattr(model.embed, "W_E") else model.embed.weight
    acts = dictionary.encode(embedding.detach())
    for place, language in enumerate(LANGUAGES):
        words = [vocabulary[word] for document in corpus[language] for word in document.split()]
        share = (acts[words] > 0).double().mean(0)
        recorded = features.probability()[place, 0]
        assert (recorded - share).abs().max() < 0.05  # blocks leave out the first position
    assert float(features.probability()[:, 0, 5].max()) == 0.0


def test_quantiles_below_the_share_of_silence_are_exactly_zero(world):
    features = world[3].at("features")
    rare = features["zh"].probability().values[0, 4]
    assert 0 < float(rare) < 0.1
    assert float(features["zh"].quantile(0.5).values[0, 4]) == 0.0
    assert float(features["zh"].rank_error(0.5).values[0, 4]) == 0.0
    top = float(features["zh"].quantile(1 - float(rare) / 2).values[0, 4])
    assert 0 < top <= float(features["zh"].maximum().values[0, 4])
    assert float(features["en"].maximum().values[0, 5]) == 0.0


def test_silencing_a_languages_feature_changes_that_language_most(world, neurons):
    model, corpus, _, _, _ = world
    text = ln.HeldoutText.of(model, corpus, context_length=64)
    plain = ln.perplexity(model, text).set_index("language")["nll"]
    with ln.intervene(model, ln.SetTo(neurons["hi"], 0.0)):
        patched = ln.perplexity(model, text).set_index("language")["nll"]
    change = (patched - plain).abs()
    assert change.idxmax() == "hi"
    assert change["hi"] > 5 * change.drop("hi").max()


def test_every_patch_works_and_one_that_changes_nothing_changes_no_bit(world, neurons):
    model, _, _, stats, _ = world
    tokens = torch.arange(70, 140)[None]  # Hindi and Urdu words
    plain = model(tokens)
    for patch in (ln.Add(neurons["hi"], 0.0), ln.Scale(neurons["hi"], 1.0), ln.Clamp(neurons["hi"], low=0.0)):
        with ln.intervene(model, patch):
            assert torch.equal(model(tokens), plain)
    mean = stats.at("features")["hi"].mean()
    towards = ln.DiffMean(neurons["ur"], stats.at("features"), "ur")
    for patch in (ln.SetTo(neurons["hi"], mean), towards, ln.Clamp(neurons["hi"], high=0.1)):
        with ln.intervene(model, patch):
            assert not torch.equal(model(tokens), plain)
    assert torch.equal(model(tokens), plain)


def test_ablation_equals_one_patch_at_a_time(world, neurons):
    model, corpus, _, _, _ = world
    text = ln.HeldoutText.of(model, corpus.take(6), context_length=64)
    found = ablate(model, neurons, text, resamples=200, progress=False).rows
    with ln.intervene(model, ln.SetTo(neurons["hi"], 0.0)):
        patched = ln.perplexity(model, text).set_index("language")["nll"]
    plain = ln.perplexity(model, text).set_index("language")["nll"]
    rows = found[found["label"] == "hi"].set_index("language")
    for language in LANGUAGES:
        expected = abs(float((patched[language] - plain[language]) / plain[language]))
        assert abs(float(rows.loc[language, "effect"])) == pytest.approx(expected, abs=1e-4)


def test_the_gradient_screen_reaches_features(world):
    model, corpus, _, _, _ = world
    found = screen(model, corpus.take(6), top=1, sample=20, site="features", progress=False)
    assert found.neurons.site == "features"
    assert set(found.agreement.columns) >= {"n"}
    for place, language in enumerate(LANGUAGES):
        assert float(found.predicted[found.languages.index(language), 0, place].abs()) > 0


def test_gradient_relevance_is_recorded(world):
    model, corpus, _, _, _ = world
    stats = record(model, corpus.take(8), sites=("features",), also=("sentence", "gradient"))
    assert stats.shape == (1, 30)


def test_the_decomposition_says_that_a_language_feature_carries_language(world):
    model, _, _, _, _ = world
    rows = [(item, item, item % 2) for item in range(12)]

    def text(language, item, label):
        return " ".join(f"{language}{10 + (item * 7 + place) % 30}" for place in range(6)) + f" {language}{label + 1}"

    tables = {
        language: pd.DataFrame(
            [(item, cluster, text(language, item, label), str(label)) for item, cluster, label in rows],
            columns=["item", "cluster", "text", "label"],
        )
        for language in LANGUAGES
    }
    found = decompose(model, LabelledTexts(tables), site="features", progress=False)
    assert found.shape == (1, 30)
    assert float(found.share("language")[0, :4].min()) > 0.9
    assert float(found.share("language")[0, 5]) == 0.0  # never active


def test_neurons_controls_and_looking_work(world, neurons):
    model, corpus, _, stats, _ = world
    control = neurons["hi"].matched_control(ln.Controls(stats=stats, match="layer"), exclude=neurons)
    assert control.site == "features"
    table = ln.activations(model, "hi1 hi2 zh3", neurons["hi"])
    assert (table.to_numpy()[:2] > 0).all()
    assert float(table.to_numpy()[2, 0]) == 0.0
    assert set(ln.examples(model, corpus.take(4), neurons["hi"], k=1, progress=False)["kind"]) >= {"top"}


def test_caches_give_the_same_statistics(world):
    model, _, dictionary, _, _ = world
    tokens = torch.randint(4, 240, (3, 20), generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(tokens)
    stats = ln.recording.record_caches(model, {"en": [(tokens, cache)]}, sites=("features",))
    values = dictionary.encode(cache["blocks.0.hook_resid_pre"])[:, 1:].flatten(0, 1)
    torch.testing.assert_close(stats.mean()[0, 0].float(), values.mean(0), rtol=1e-4, atol=1e-5)


def test_saved_statistics_remember_their_dictionary(world, tmp_path):
    stats = world[3]
    again = ln.ActivationStats.load(stats.save(tmp_path))
    assert again.at("features").fingerprint == stats.at("features").fingerprint
    assert same(again, stats)


def test_another_dictionary_of_the_same_name_takes_neither_neurons_nor_values(world, neurons, replaced):
    stats = world[3].at("features")
    with (
        pytest.raises(SiteMismatchError, match="record this model"),
        ln.intervene(replaced, ln.SetTo(neurons["hi"], 0.0)),
    ):
        pass
    by_hand = ln.NeuronSet.of({"hi": [(0, 1)]}, (1, 30), "features")
    with pytest.raises(SiteMismatchError), ln.intervene(replaced, ln.SetTo(by_hand, stats["hi"].mean())):
        pass


def test_recordings_with_another_dictionary_are_stale(world, tmp_path):
    model, corpus, dictionary, stats, _ = world
    small = corpus.take(10)
    first = record(model, small, out=tmp_path / "one")
    with_another(model, RandomDictionary(64, 30))
    try:
        with pytest.raises(StaleArtefactError, match="features"):
            record(model, small, out=tmp_path / "one")
        with pytest.raises(StaleArtefactError, match="features"):
            record(model, small, like=stats)
        with pytest.raises(StaleArtefactError, match="features"):
            first + record(model, small)
    finally:
        with_another(model, dictionary)


def test_what_was_measured_with_another_dictionary_is_not_reused(world, tmp_path):
    model, corpus, dictionary, _, _ = world
    by_hand = ln.NeuronSet.of({"hi": [(0, 1)]}, (1, 30), "features")
    text = ln.HeldoutText.of(model, corpus.take(6), context_length=64)

    def matrix():
        table = ln.perplexity_matrix(model, text, by_hand, controls=0, out=tmp_path, progress=False)
        return table.rows["estimate"].to_numpy()

    first = matrix()
    assert (matrix() == first).all()
    with_another(model, RandomDictionary(64, 30))
    try:
        assert (matrix() != first).any()
    finally:
        with_another(model, dictionary)


class SignedDictionary(RandomDictionary):
    def encode(self, x):
        return x @ self.encoder


def test_features_that_can_be_negative_are_not_counted_by_their_sign(world):
    model, corpus, _, _, _ = world
    add_dictionary(model, {1: SignedDictionary(64, 30)}, at="resid_post", name="signed")
    try:
        stats = record(model, corpus.take(10), sites=("signed",))
    finally:
        remove_dictionary(model, "signed")
    with pytest.raises(StatisticsError, match="sign"):
        ln.LAPE(top=0.14).identify(stats)
    assert len(ln.LAPE(top=0.1, magnitude_threshold=0.5).identify(stats)) <= 3


def test_the_dose_of_features_is_refused(world, neurons):
    model, corpus, _, _, _ = world
    text = ln.HeldoutText.of(model, corpus.take(4), context_length=64)
    with pytest.raises(PatchError, match="site of features"):
        ln.evaluation.dose(model, ln.SetTo(neurons["hi"], 0.0), text)
