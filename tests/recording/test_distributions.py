import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langneurons.recording.accumulation import FOLDS, Accumulators, Grid
from langneurons.recording.distributions import ActivationFunction, Histogram, ValueCdf, quantile, rank_error_bound
from langneurons.recording.sums import LINEAR_PART

FUNCTIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "tanh": torch.tanh,
}
HEAVY = 4  # the index of the heavy-tailed planted neuron
SHARES = [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99]


def recorded(z: torch.Tensor) -> Histogram:
    """The histogram of values "token neuron", edges from their own quantiles."""
    grid = Grid.covering(z.quantile(0.0025, 0)[None], z.quantile(0.9975, 0)[None])
    sums = Accumulators.zeros(1, z.shape[1], len(z), torch.device("cpu"))
    sums.add(0, z, z, torch.arange(len(z)) % FOLDS, grid)
    return Histogram(
        sums.histogram[0], grid.width[0], grid.first[0], sums.coordinate_minimum[0], sums.coordinate_maximum[0]
    )


def rank_error(samples: torch.Tensor, value: torch.Tensor, share: float) -> torch.Tensor:
    below, up_to = (samples < value).double().mean(0), (samples <= value).double().mean(0)
    return torch.maximum(torch.maximum(below - share, share - up_to), torch.zeros(()))


def planted(tokens: int = 20_000) -> torch.Tensor:
    """Neurons no uniform grid likes: on or off, rare, heavy-tailed, skewed, constant."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(tokens, generator=generator)
    rare = torch.rand(tokens, generator=generator)
    other = torch.randn(tokens, generator=generator)
    return torch.stack(
        [
            base,
            torch.where(rare < 0.5, base * 0.3 - 3, base * 0.3 + 4),
            torch.where(rare < 0.02, base * 0.5 + 6, base * 0.3 - 3),
            torch.where(rare < 0.002, base + 30, base * 0.5),
            base / other.abs().clamp(min=0.05),
            base.exp(),
            torch.full_like(base, 1.7),
        ],
        dim=1,
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_quantiles_of_act_have_the_right_rank_also_for_planted_neurons(name):
    z = planted()
    function = FUNCTIONS[name]
    act = function(z.double())
    cdf = ValueCdf(recorded(z), act_fn=ActivationFunction.of(function))
    for share in SHARES:
        found = quantile([cdf], act.amin(0), act.amax(0), share)
        error = rank_error(act, found, share)
        assert error.max() <= 0.005
        assert (error <= rank_error_bound([cdf], found, share) + 1e-6).all()


def test_quantiles_on_an_asinh_grid_have_the_right_rank_or_say_that_they_may_not():
    z = planted()
    x = torch.nn.functional.silu(z) * z.roll(1, 0)
    scale = x.abs().mean(0) * LINEAR_PART
    cdf = ValueCdf(recorded(torch.asinh(x / scale)), scale=scale)
    for share in SHARES:
        found = quantile([cdf], x.amin(0), x.amax(0), share)
        error = rank_error(x.double(), found, share)
        assert (error <= rank_error_bound([cdf], found, share) + 1e-6).all()
        # The heavy-tailed neuron's output is zero to many digits on a tenth of the tokens: one bin holds them all.
        assert error[torch.arange(len(error)) != HEAVY].max() <= 0.005


def test_the_pooled_quantile_weighs_languages_equally():
    generator = torch.Generator().manual_seed(2)
    many, few = torch.randn(30_000, 4, generator=generator), torch.randn(3_000, 4, generator=generator) + 3
    cdfs = [ValueCdf(recorded(many)), ValueCdf(recorded(few))]
    found = quantile(cdfs, many.amin(0), few.amax(0), 0.9)
    share = ((many <= found).double().mean(0) + (few <= found).double().mean(0)) / 2
    assert (share - 0.9).abs().max() <= 0.005


@settings(max_examples=30, deadline=None)
@given(value=st.floats(-5, 5), name=st.sampled_from(sorted(FUNCTIONS)))
def test_the_branches_invert_the_activation_function(value, name):
    function = FUNCTIONS[name]
    table = ActivationFunction.of(function)
    reachable = function(torch.tensor([value], dtype=torch.float64))
    left, right = table.branches(reachable)
    for branch in (left, right):
        if torch.isfinite(branch).all() and branch.abs().max() < 50:
            assert torch.allclose(function(branch), reachable, atol=2e-6)
