import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langneurons.errors import (
    CorruptArtefactError,
    LanguageError,
    SiteMismatchError,
    StaleArtefactError,
    StatisticsError,
    StorageError,
)
from langneurons.recording.accumulation import FOLDS, Accumulators, Grid
from langneurons.recording.records import LanguageRecord
from langneurons.recording.site_values import SiteValues
from langneurons.recording.statistics import ActivationStats
from tests.planted.statistics import statistics_from

LANGUAGES = ("en", "hi", "ur")


def activations(seed: int = 0, tokens: int = 400, layers: int = 2, neurons: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        language: torch.randn(tokens, layers, neurons, generator=generator) * (1 + i) - 0.3 * i
        for i, language in enumerate(LANGUAGES)
    }


@pytest.fixture(scope="module")
def raw():
    return activations()


@pytest.fixture(scope="module")
def stats(raw):
    return statistics_from(raw, site="pre")


def test_moments_and_probabilities_equal_those_of_the_raw_activations(raw, stats):
    for i, language in enumerate(LANGUAGES):
        values = raw[language].double()
        assert torch.equal(stats.probability()[i], (values > 0).double().mean(0))
        assert torch.allclose(stats.mean()[i], values.mean(0), atol=1e-6)
        assert torch.allclose(stats.std()[i].double(), values.std(0, correction=0), rtol=1e-4)
        assert torch.allclose(stats.mean_magnitude()[i], values.abs().mean(0), atol=1e-6)
        assert torch.equal(stats[language].minimum().values, raw[language].amin(0))
        assert torch.equal(stats[language].maximum().values, raw[language].amax(0))


def test_the_probability_at_any_threshold_agrees_with_the_raw_share(raw, stats):
    for threshold in (-1.0, -0.2, 0.0, 0.7, 50.0):
        exact = torch.stack([(raw[language] > threshold).double().mean(0) for language in LANGUAGES])
        assert (stats.probability(threshold) - exact).abs().max() <= 0.02


def test_pooling_weighs_languages_equally_whatever_their_tokens():
    raw = activations()
    raw["en"] = raw["en"].repeat(3, 1, 1)
    pooled = statistics_from(raw, site="pre").pooled()
    expected = torch.stack([one.double().mean(0) for one in raw.values()]).mean(0)
    assert torch.allclose(pooled.mean().values.double(), expected, atol=1e-6)
    square = torch.stack([one.double().square().mean(0) for one in raw.values()]).mean(0)
    assert torch.allclose(pooled.std().values.double(), (square - expected**2).sqrt(), rtol=1e-4)
    assert pooled.mean().language is None


def shards(grid: Grid, pieces: int, seed: int = 0) -> list[LanguageRecord]:
    generator = torch.Generator().manual_seed(seed)
    records = []
    for piece in range(pieces):
        values = torch.randn(30, 4, generator=generator)
        folds = torch.randint(0, FOLDS, (30,), generator=generator)
        sums = Accumulators.zeros(1, 4, 30, torch.device("cpu"))
        sums.add(0, values, values, folds, grid)
        records.append(
            LanguageRecord.of(sums, grid, torch.bincount(folds, minlength=FOLDS), {"c": ((piece, piece + 1),)})
        )
    return records


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(5)), cut=st.integers(1, 4))
def test_merging_is_associative_and_commutative(order, cut):
    grid = Grid.covering(torch.full((1, 4), -3.0), torch.full((1, 4), 3.0))
    parts = shards(grid, 5)

    def added(records: list[LanguageRecord]) -> LanguageRecord:
        total = records[0]
        for record in records[1:]:
            total = total + record
        return total

    mixed = [parts[i] for i in order]
    whole, other = added(parts), added(mixed[:cut]) + added(mixed[cut:])
    assert torch.equal(whole.tokens, other.tokens)
    assert dict(other.sources) == {"c": ((0, 5),)}
    assert all(torch.equal(whole.tensors[name], other.tensors[name]) for name in whole.tensors)


def test_the_same_block_is_never_added_twice():
    grid = Grid.covering(torch.full((1, 4), -3.0), torch.full((1, 4), 3.0))
    first, second = shards(grid, 2)
    with pytest.raises(StatisticsError, match="count it twice"):
        first + second + first


def test_unequal_edges_never_merge(raw):
    left = statistics_from({"en": raw["en"]}, site="pre")
    right = statistics_from({"en": raw["en"] * 2}, site="pre")
    with pytest.raises(StatisticsError, match="like="):
        left + right


def test_statistics_of_another_model_or_site_never_merge(stats, raw):
    other = statistics_from(raw, site="act")
    with pytest.raises(StaleArtefactError, match="sites"):
        stats + other


def test_other_languages_are_joined_and_selected_in_the_order_given(raw):
    joined = statistics_from({"en": raw["en"]}, site="pre") + statistics_from({"hi": raw["hi"]}, site="pre")
    assert joined.languages == ("en", "hi")
    assert joined.select(["hi", "en"]).languages == ("hi", "en")
    with pytest.raises(LanguageError, match="did you mean 'hi'"):
        joined.select(["hix"])


def test_folds_partition_the_tokens_and_their_counts_add_up(stats):
    parts = stats.folds(4)
    assert torch.equal(sum(part.tokens for part in parts), stats.tokens)
    active = sum(part.probability() * part.tokens[:, None, None] for part in parts)
    assert torch.allclose(active / stats.tokens[:, None, None], stats.probability())
    with pytest.raises(StatisticsError, match="histogram"):
        parts[0].quantile(0.5)
    with pytest.raises(StatisticsError, match="20 document folds"):
        stats.folds(3)


def test_values_know_their_site_and_refuse_another(stats, raw):
    hi, en = stats["hi"].mean(), stats["en"].mean()
    assert ((2 * hi - 1).site, (2 * hi - 1).language) == ("pre", "hi")
    assert (hi - en).language is None
    assert torch.allclose((hi - en).values, hi.values - en.values)
    assert torch.allclose((1 - hi).values, 1 - hi.values)
    other = SiteValues(hi.values, "act", hi.model)
    with pytest.raises(SiteMismatchError, match="cannot be combined"):
        hi + other
    with pytest.raises(SiteMismatchError, match="threshold"):
        stats.probability(other)
    with pytest.raises(StatisticsError, match="shape"):
        stats.probability(torch.zeros(3))


def test_published_counts_answer_probabilities_and_nothing_else():
    published = ActivationStats.from_counts(torch.tensor([[[1, 2]], [[4, 0]]]), torch.tensor([4, 8]), ["en", "hi"])
    assert published.probability().tolist() == [[[0.25, 0.5]], [[0.5, 0.0]]]
    for question in (published.mean, lambda: published.quantile(0.5), lambda: published.probability(1.0)):
        with pytest.raises(StatisticsError, match="published counts"):
            question()
    with pytest.raises(StatisticsError, match=r"Neuron \(0, 0\) of 'en' has 5 activations, but 'en' has 4 tokens"):
        ActivationStats.from_counts(torch.tensor([[[5]]]), torch.tensor([4]), ["en"])


def test_saved_statistics_come_back_equal_and_are_saved_to_the_same_bytes(stats, tmp_path):
    stats.save(tmp_path / "a")
    loaded = ActivationStats.load(tmp_path / "a")
    assert torch.equal(loaded.quantile(0.9), stats.quantile(0.9))
    assert torch.equal(loaded.std(), stats.std())
    loaded.save(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_at_most_800_bytes_a_language_and_neuron_on_disk(tmp_path):
    stats = statistics_from({"en": torch.randn(100, 2, 300)}, act_fn=torch.nn.functional.silu)
    stats.save(tmp_path)
    assert (tmp_path / "en.act.safetensors").stat().st_size <= 800 * 600 + 2000


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_noticed_when_it_is_used(stats, tmp_path, damage):
    stats.save(tmp_path)
    path = tmp_path / "hi.pre.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    loaded = ActivationStats.load(tmp_path)
    assert loaded.select(["en"]).mean().isfinite().all()
    with pytest.raises(StorageError if damage == "remove" else CorruptArtefactError, match="hi.pre.safetensors"):
        loaded.mean()


def test_another_schema_and_other_json_are_refused(stats, tmp_path):
    stats.save(tmp_path)
    manifest = tmp_path / "statistics.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "schema": "langneurons/activation-statistics/99"}))
    with pytest.raises(StaleArtefactError, match="99"):
        ActivationStats.load(tmp_path)
    manifest.write_text("[1, 2")
    with pytest.raises(CorruptArtefactError, match="statistics.json"):
        ActivationStats.load(tmp_path)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_quantile_outside_0_to_1_is_refused(stats, share):
    with pytest.raises(StatisticsError, match="between 0 and 1"):
        stats.quantile(share)


def test_a_neuron_that_does_not_exist_is_refused(stats):
    with pytest.raises(StatisticsError, match=r"possible are \(0, 0\) to \(1, 5\)"):
        stats.histogram("hi", (2, 0))


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(6)))
def test_permuting_neurons_permutes_every_answer(order):
    raw = activations(seed=3, tokens=120)
    stats = statistics_from(raw, site="pre")
    permuted = statistics_from({language: one[:, :, order] for language, one in raw.items()}, site="pre")
    for question in ("probability", "mean", "std"):
        assert torch.equal(getattr(permuted, question)(), getattr(stats, question)()[..., order])
    assert torch.equal(permuted.quantile(0.3), stats.quantile(0.3)[..., order])


def test_statistics_print_their_languages(stats):
    rows = stats.table().frame
    assert rows["language"].tolist() == list(stats.languages)
    assert rows["counted tokens"].tolist() == stats.tokens.tolist()


@pytest.mark.parametrize(
    ("active", "tokens", "said"),
    [
        ([[[0.25, 0.0]]], [1], r"Neuron \(0, 0\) of 'en' has 0\.25 activations: counts are whole .* probabilities"),
        ([[[1.0, math.nan]]], [4], r"Neuron \(0, 1\) of 'en' has nan activations: counts are whole numbers"),
        ([[[1.0, math.inf]]], [4], r"\(0, 1\) of 'en' has inf activations"),
        ([[[1.0, 1e30]]], [4], r"\(0, 1\) of 'en' has 1\.0.*e\+30 activations"),
        ([[[1, -3]]], [4], r"\(0, 1\) of 'en' has -3 activations, but 'en' has 4 tokens\. A count is not negative"),
        ([[[0, 0]]], [0], r"'en' has 0 tokens: tokens are a whole number above 0"),
        ([[[0, 0]]], [math.nan], "'en' has nan tokens"),
        ([[[0, 0]]], [0.5], "'en' has 0.5 tokens"),
        ([[[5, 7]]], [4], r"has 5 activations, but 'en' has 4 tokens \(2 of 2 counts exceed their .*clip=True"),
    ],
)
def test_what_is_no_count_is_refused_where_it_stands(active, tokens, said):
    with pytest.raises(StatisticsError, match=said):
        ActivationStats.from_counts(torch.tensor(active), torch.tensor(tokens), ["en"])


def test_counts_above_their_tokens_can_be_clipped():
    active, tokens = torch.tensor([[[5, 2]], [[1, 9]]]), torch.tensor([4, 8])
    clipped = ActivationStats.from_counts(active, tokens, ["en", "hi"], clip=True)
    assert clipped.probability().tolist() == [[[1.0, 0.5]], [[0.125, 1.0]]]
    with pytest.raises(StatisticsError, match="negative"):
        ActivationStats.from_counts(-active, tokens, ["en", "hi"], clip=True)


def test_whole_counts_may_be_floating_point_numbers():
    counts = torch.tensor([[[3.0, 0.0]]])
    assert ActivationStats.from_counts(counts, torch.tensor([4.0]), ["en"]).probability().tolist() == [[[0.75, 0.0]]]


def test_counts_that_leave_64_bits_when_added_are_refused():
    most = torch.tensor([2**63 - 1])
    large = ActivationStats.from_counts(most[None, None], most, ["en"])
    assert float(large.probability()) == 1.0
    with pytest.raises(StatisticsError, match="does not fit into 64 bits"):
        large + large


@pytest.mark.parametrize("tokens", [{"n": 4}, {"total_tokens": torch.tensor(4)}, {"n": torch.tensor([4])}])
def test_files_of_counts_are_read(tmp_path, tokens):
    files = {}
    for language, active in (("en", [[3, 0], [1, 4]]), ("hi", [[1, 1], [0, 2]])):
        files[language] = tmp_path / f"activation.{language}.train.llama-7b"
        torch.save({**tokens, "sum1": torch.zeros(2, 2), "over_zero": torch.tensor(active).int()}, files[language])
    read = ActivationStats.read_counts(files)
    assert (read.languages, read.site) == (("en", "hi"), "act")
    assert read.probability().tolist() == [[[0.75, 0.0], [0.25, 1.0]], [[0.25, 0.25], [0.0, 0.5]]]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"en": {"over_zero": torch.ones(1, 2)}}, "What was given for 'en' does not hold counts: .*'total_tokens'"),
        ({"en": {"n": 4}}, "does not hold counts"),
        ({"en": {"n": 4, "over_zero": torch.ones(2)}}, "does not hold counts"),
        ({"en": {"n": "4", "over_zero": torch.ones(1, 2)}}, "does not hold counts"),
        ({"en": {"n": 4, "over_zero": torch.ones(1, 1).expand(9, 9)}}, "does not hold counts"),
        ({"en": [[torch.tensor([3])]]}, "does not hold counts"),
        (
            {"en": {"n": 4, "over_zero": torch.tensor([[5]])}},
            r"\(0, 0\) of 'en' has 5 activations, but 'en' has 4 tokens",
        ),
        ({"en": {"n": 4, "over_zero": torch.tensor([[0.5]])}}, "Multiply probabilities by the tokens"),
        ({"en": {"n": 4, "over_zero": torch.ones(1, 2)}, "hi": {"n": 4, "over_zero": torch.ones(2, 1)}}, "hi 2 x 1"),
        ({}, "one shape, not none at all"),
    ],
)
def test_what_holds_no_counts_is_refused(counts, said):
    with pytest.raises(StatisticsError, match=said):
        ActivationStats.read_counts(counts)


def test_counts_that_are_read_can_be_clipped():
    counts = {"en": {"n": 4, "over_zero": torch.tensor([[5, 2]])}}
    assert ActivationStats.read_counts(counts, clip=True).probability().tolist() == [[[1.0, 0.5]]]
