"""While a patch is in force, a model computes what torch hooks on the Hugging Face model make it compute."""

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import langneurons as ln
from langneurons.errors import HookSiteError, LangNeuronsWarning, PatchError, SiteMismatchError
from langneurons.models import load_model, view
from langneurons.recording.site_values import SiteValues
from tests.backends import loadable
from tests.models.hugging_face import hf_act_set
from tests.patches.conftest import SITES, everything_at, hooks_left, logits_of, set_at
from tests.patches.naive import naively

MLP_SITES = ("pre", "act", "post")


def patch_and_oracle(kind, neurons):
    """A patch with another value for every neuron, and the same in python, neuron by neuron."""
    units = [tuple(unit) for unit in neurons.indices().tolist()]
    values = torch.linspace(0.1, 1.3, len(units))
    numbers = dict(zip(units, values.tolist(), strict=True))
    at = {"site": neurons.site}
    if kind == "Set":
        return ln.SetTo(neurons, values, **at), {
            u: lambda now, v=v: torch.full_like(now, v) for u, v in numbers.items()
        }
    if kind == "Add":
        return ln.Add(neurons, values, **at), {u: lambda now, v=v: now + v for u, v in numbers.items()}
    if kind == "Scale":
        return ln.Scale(neurons, -values, **at), {u: lambda now, v=v: now * -v for u, v in numbers.items()}
    clamp = ln.Clamp(neurons, -0.05 * values, 0.05 * values, **at)
    return clamp, {u: lambda now, v=v: now.clamp(-0.05 * v, 0.05 * v) for u, v in numbers.items()}


@torch.no_grad()
def oracle_logits(hf_model, text, site, changes):
    with naively(hf_model, site, changes):
        return hf_model(text, use_cache=False).logits


def tolerance(backend):
    return 2e-5 if backend == "hooked" else 1e-5


@pytest.mark.parametrize("site", SITES)
def test_every_patch_at_every_site_equals_a_loop_over_neurons_in_the_hugging_face_model(each, tokens, site):
    for kind in ("Set", "Add", "Scale", "Clamp"):
        patch, changes = patch_and_oracle(kind, set_at(each.view.model, site))
        expected = oracle_logits(each.hf_model, tokens, site, changes)
        assert (expected - each.hf["logits"][0]).abs().max() > 1e-3, kind
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LangNeuronsWarning)
            found = logits_of(each.view.model, tokens, patch)
        torch.testing.assert_close(
            found, expected, rtol=0, atol=tolerance(each.view.backend), msg=lambda text, kind=kind: f"{kind}: {text}"
        )


@pytest.mark.parametrize("site", SITES)
def test_patches_that_change_nothing_leave_logits_bit_equal(each, tokens, site):
    model = each.view.model
    neurons = set_at(model, site)
    with torch.no_grad():
        expected = each.view.forward(tokens)
    for patch in (ln.Scale(neurons, 1.0), ln.Add(neurons, 0.0), ln.Clamp(neurons, -1e9, 1e9), ln.Scale(neurons, 1)):
        assert (logits_of(model, tokens, patch) - expected).abs().max() == 0


@pytest.mark.parametrize("site", ["pre", "act", "post", "resid_post"])
def test_setting_what_every_neuron_has_leaves_logits_bit_equal(each, site):
    # A text of one token, in a batch of equals: each neuron has one value, so that a Set can name it.
    view_, text = each.view, torch.full((2, 1), 7)
    had = torch.zeros(view_.n_layers, view_.width(site))
    with torch.no_grad(), view_.reading({site: lambda layer, values: had[layer].copy_(values[0, 0])}):
        expected = view_.forward(text)
    patch = ln.SetTo(everything_at(view_.model, site), had, site=site)
    assert (logits_of(view_.model, text, patch) - expected).abs().max() == 0


@pytest.mark.parametrize("site", SITES)
def test_writing_cached_values_of_every_neuron_leaves_logits_bit_equal(each, tokens, site):
    view_, cached = each.view, {}
    with torch.no_grad():
        with view_.reading({site: lambda layer, values: cached.__setitem__(layer, values.clone())}):
            expected = view_.forward(tokens)
        every = {layer: torch.arange(view_.width(site)) for layer in range(view_.n_layers)}
        with view_.writing(site, every, lambda layer, now: cached[layer]):
            written = view_.forward(tokens)
    assert (written - expected).abs().max() == 0


def test_set_at_act_of_a_gated_mlp_equals_patching_act_fn_inside_the_hugging_face_model(load, tokens):
    for pair in loadable([("llama", "hooked"), ("llama", "bridge"), ("phi3", "hooked"), ("gemma2", "bridge")]):
        one = load(*pair)
        with torch.no_grad(), hf_act_set(one.hf_model, 1, torch.tensor([2, 9, 31]), 0.7):
            expected = one.hf_model(tokens, use_cache=False).logits
        patch = ln.SetTo(set_at(one.view.model, "act", [(1, 2), (1, 9), (1, 31)]), 0.7)
        found = logits_of(one.view.model, tokens, patch)
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance(one.view.backend))


def test_the_hugging_face_model_inside_a_bridge_sees_written_values(load, tokens):
    for architecture in ("llama", "gpt2", "opt", "bloom", "gemma2"):
        one = load(architecture, "bridge")
        for site in SITES:
            patch, changes = patch_and_oracle("Set", set_at(one.view.model, site))
            expected = oracle_logits(one.hf_model, tokens, site, changes)
            with torch.no_grad(), ln.intervene(one.view.model, patch):
                found = one.view.model.original_model(tokens, use_cache=False).logits
            torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


def test_run_with_cache_sees_written_values(few, tokens):
    model = few.view.model
    for site in ("pre", "post", "resid_post"):
        neurons = set_at(model, site)
        with ln.intervene(model, ln.SetTo(neurons, 0.25)):
            _, cache = model.run_with_cache(tokens)
        for layer, unit in neurons.indices().tolist():
            assert (few.view.cached(cache, site, layer)[..., unit] == 0.25).all()


def test_patches_act_in_the_order_given_on_the_same_and_on_different_neurons(few, tokens):
    model = few.view.model
    for site in SITES:
        both, other = set_at(model, site, [(0, 1), (1, 2)]), set_at(model, site, [(1, 2), (1, 3)])
        first, then = ln.Add(both, 0.5), ln.Scale(other, 3.0)
        changes = [
            {(0, 1): lambda now: now + 0.5, (1, 2): lambda now: now + 0.5},
            {(1, 2): lambda now: now * 3, (1, 3): lambda now: now * 3},
        ]
        for patches, order in (((first, then), (0, 1)), ((then, first), (1, 0))):
            before, after = (naively(few.hf_model, site, changes[which]) for which in order)
            with torch.no_grad(), before, after:
                expected = few.hf_model(tokens, use_cache=False).logits
            found = logits_of(model, tokens, *patches)
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
            with ln.intervene(model, patches[0]):
                assert torch.equal(logits_of(model, tokens, patches[1]), found)


def test_patches_of_different_sites_meet_as_the_model_computes_them_whatever_their_order(few, tokens):
    model = few.view.model
    patches = [ln.Add(set_at(model, site, [(0, 1), (1, 2)]), 0.5) for site in reversed(SITES)]
    change = {(0, 1): lambda now: now + 0.5, (1, 2): lambda now: now + 0.5}
    with torch.no_grad():
        a, b, c, d, e = (naively(few.hf_model, site, change) for site in SITES)
        with a, b, c, d, e:
            expected = few.hf_model(tokens, use_cache=False).logits
    found = logits_of(model, tokens, *patches)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert torch.equal(logits_of(model, tokens, *reversed(patches)), found)


def test_one_language_goes_down_while_another_goes_up(few, tokens):
    model = few.view.model
    neurons = ln.NeuronSet.of({"en": [(0, 1), (1, 4)], "hi": [(0, 2), (1, 9)]}, (2, few.view.width("act")), "act")
    values = SiteValues(torch.full(neurons.shape, 0.9), "act", few.view.fingerprint, "hi")
    down, up = ln.SetTo(neurons["en"], 0.0), ln.SetTo(neurons["hi"], values)
    changes = {(0, 1): 0.0, (1, 4): 0.0, (0, 2): 0.9, (1, 9): 0.9}
    changes = {unit: lambda now, value=value: torch.full_like(now, value) for unit, value in changes.items()}
    with torch.no_grad(), ln.intervene(model, down, up):
        found = few.view.forward(tokens)
    torch.testing.assert_close(found, oracle_logits(few.hf_model, tokens, "act", changes), rtol=0, atol=2e-5)
    with ln.intervene(model, down):
        assert torch.equal(logits_of(model, tokens, up), found)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(6)), site=st.sampled_from(SITES))
def test_the_order_in_which_neurons_are_named_changes_nothing(load, tokens, order, site):
    model = load("llama", "bridge").view.model
    units = [(0, 0), (0, 2), (0, 3), (1, 0), (1, 1), (1, 3)]
    numbers = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    at_once = ln.SetTo(set_at(model, site, units), torch.tensor(numbers), site=site)
    again = ln.SetTo(set_at(model, site, [units[i] for i in order]), torch.tensor(numbers), site=site)
    assert again.fingerprint == at_once.fingerprint
    one_by_one = [ln.SetTo(set_at(model, site, [units[i]]), numbers[i]) for i in order]
    assert torch.equal(logits_of(model, tokens, *one_by_one), logits_of(model, tokens, at_once))


@pytest.mark.parametrize("site", SITES)
def test_gradients_reach_the_written_values(few, tokens, site):
    model, neurons = few.view.model, set_at(few.view.model, site)
    for kind in (ln.SetTo, ln.Add, ln.Scale):
        values = torch.full((len(neurons),), 0.3, requires_grad=True)
        shared = torch.tensor(0.3, requires_grad=True)
        for given_value in (values, shared):
            with warnings.catch_warnings(), ln.intervene(model, kind(neurons, given_value, site=site)):
                few.view.forward(tokens).logsumexp(-1).mean().backward()
        assert bool((values.grad != 0).all()), kind
        torch.testing.assert_close(shared.grad, values.grad.sum(), rtol=1e-4, atol=1e-6)
    model.zero_grad()


def test_gradients_are_those_of_the_hugging_face_model_with_torch_hooks(few, tokens):
    neurons = set_at(few.view.model, "act")
    units = [tuple(unit) for unit in neurons.indices().tolist()]
    mine, theirs = (torch.full((len(units),), 0.4, requires_grad=True) for _ in range(2))
    with ln.intervene(few.view.model, ln.Add(neurons, mine, site="act")):
        few.view.forward(tokens).logsumexp(-1).mean().backward()
    changes = {unit: lambda now, i=i: now + theirs[i] for i, unit in enumerate(units)}
    with naively(few.hf_model, "act", changes):
        few.hf_model(tokens, use_cache=False).logits.logsumexp(-1).mean().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6)
    few.view.model.zero_grad()
    few.hf_model.zero_grad()


def test_gradients_flow_past_what_is_not_patched_and_stop_at_what_is_set(few, tokens):
    view_, kept = few.view, {}

    def keep(layer, values):
        if layer == 0:
            kept["pre"] = values
            values.retain_grad()

    with view_.reading({"pre": keep}), ln.intervene(view_.model, ln.SetTo(set_at(view_.model, "act"), 0.2)):
        view_.forward(tokens).logsumexp(-1).mean().backward()
    gradient = kept["pre"].grad
    assert (gradient[..., [0, 5, 47]] == 0).all()
    assert (gradient[..., [1, 2, 3]] != 0).any()
    view_.model.zero_grad()


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_a_model_in_bfloat16_is_patched_in_bfloat16(load, tokens, backend):
    for architecture in ("llama", "gpt2"):
        one = load(architecture, backend)
        model = load_model(one.folder, backend=backend, dtype=torch.bfloat16)
        with torch.no_grad():
            plain = view(model).forward(tokens)
        for site in SITES:
            neurons = set_at(model, site)
            assert torch.equal(logits_of(model, tokens, ln.Scale(neurons, 1.0), ln.Add(neurons, 0.0)), plain)
            patch, changes = patch_and_oracle("Set", neurons)
            found = logits_of(model, tokens, patch)
            assert found.dtype == torch.bfloat16
            expected = oracle_logits(one.hf_model, tokens, site, changes)
            # As far from single precision as the unpatched model is.
            rounding = (plain.float() - one.hf["logits"][0]).abs().max()
            assert (found.float() - expected).abs().max() < 3 * rounding


def test_diffmean_everywhere_at_resid_post_adds_the_steering_vector(few, tokens):
    model = few.view.model
    texts = {language: [f"w{4 + 20 * i} w{9 + 20 * i} w{11 + 20 * i}"] * 3 for i, language in enumerate(("en", "hi"))}
    stats = ln.record(model, ln.load_corpus(texts), sites=("resid_post",), context_length=16, progress=False)
    vectors = 2.0 * (stats["hi"].mean().values - stats["en"].mean().values)
    assert vectors.shape == (2, 32)
    patch = ln.DiffMean.everywhere(stats, "hi", strength=2.0, layers=[1])
    add = {(1, unit): lambda now, unit=unit: now + vectors[1, unit] for unit in range(32)}
    expected = oracle_logits(few.hf_model, tokens, "resid_post", add)
    torch.testing.assert_close(logits_of(model, tokens, patch), expected, rtol=0, atol=2e-5)
    assert (expected - few.hf["logits"][0]).abs().max() > 1e-2


def test_nothing_remains_when_the_block_ends_also_by_an_exception(few, tokens):
    view_ = few.view
    model, before = view_.model, hooks_left(view_.model)
    with torch.no_grad():
        plain = view_.forward(tokens)
    patches = [
        ln.Add(set_at(model, site), 0.5, positions=positions)
        for site in SITES
        for positions in ("all", "prompt", "generated")
    ]
    assert not torch.equal(logits_of(model, tokens, *patches), plain)
    assert hooks_left(model) == before
    with pytest.raises(RuntimeError, match="planted"), ln.intervene(model, *patches):
        raise RuntimeError("planted")
    with (
        pytest.raises(PatchError),
        ln.intervene(model, patches[0], ln.Add(ln.NeuronSet.of({"hi": [(0, 0)]}, (9, 9), "act"), 1)),
    ):
        pass
    assert hooks_left(model) == before
    assert "generate" not in vars(model)
    assert all(layer.pre is layer.up is layer.act is None and layer.act_writers == 0 for layer in view_._layers)
    with torch.no_grad():
        assert torch.equal(view_.forward(tokens), plain)


def test_neurons_of_a_model_of_another_shape_are_refused(few):
    model = few.view.model
    of_llama = ln.SetTo(ln.NeuronSet.of({"hi": [(21, 431)]}, (32, 14336), "act"), 0.0)
    with pytest.raises(PatchError, match=r"is of a model of 32 layers x 14336 units at 'act'; '\w+' has 2 x"):
        logits_of(model, torch.tensor([[5]]), of_llama)
    nowhere = ln.SetTo(ln.NeuronSet.of({"hi": [(0, 3)]}, (2, 48), "acts"), 0.0)
    with pytest.raises(HookSiteError, match="Unknown site 'acts': did you mean 'act'"):
        logits_of(model, torch.tensor([[5]]), nowhere)


def test_neurons_or_values_of_a_model_with_other_weights_are_refused_unless_allowed(few, tokens):
    model, own = few.view.model, few.view.fingerprint
    shape = (2, few.view.width("act"))
    theirs = SiteValues(torch.full(shape, 0.5), "act", "other-weights", "hi")
    mine = SiteValues(torch.full(shape, 0.5), "act", own, "hi")
    units = {"hi": [(0, 3), (1, 4)]}
    unlabelled, foreign = ln.NeuronSet.of(units, shape, "act"), ln.NeuronSet.of(units, shape, "act", "other-weights")
    with pytest.raises(SiteMismatchError, match=f"The values belong to model other-we, but '.*' is {own[:8]}"):
        logits_of(model, tokens, ln.SetTo(unlabelled, theirs))
    with pytest.raises(SiteMismatchError, match="The neurons belong to model other-we"):
        logits_of(model, tokens, ln.SetTo(foreign, 0.5))
    expected = logits_of(model, tokens, ln.SetTo(unlabelled, mine))
    assert torch.equal(logits_of(model, tokens, ln.SetTo(foreign, theirs, allow_site_mismatch=True)), expected)


def test_values_of_another_site_are_written_as_they_are_where_that_is_allowed(few, tokens):
    model = few.view.model
    neurons = set_at(model, "act")
    values = torch.linspace(-2, 2, 2 * neurons.shape[1]).view(neurons.shape)
    patch = ln.SetTo(neurons, SiteValues(values, "pre", "m", "hi"), allow_site_mismatch=True)
    raw = ln.SetTo(neurons, values, site="act")
    with pytest.warns(LangNeuronsWarning, match="cannot come from this model's activation function"):
        found = logits_of(model, tokens, patch)
    with pytest.warns(LangNeuronsWarning):
        assert torch.equal(found, logits_of(model, tokens, raw))
