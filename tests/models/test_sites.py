"""Reading and writing neurons gives what torch hooks on the Hugging Face model give."""

import pytest
import torch

from langneurons.errors import HookSiteError
from tests.backends import BACKENDS
from tests.models.hugging_face import hf_act_set


def read(view, run):
    found = {site: {} for site in view.sites}

    def reader(site):
        def note(layer, values):
            assert layer not in found[site], "a site fired twice"
            found[site][layer] = values.detach().clone()

        return note

    with torch.no_grad(), view.reading({site: reader(site) for site in view.sites}):
        out = run()
    return found, out


def hooks_left(view):
    return sum(len(module._forward_hooks) for module in view.model.modules() if type(module).__name__ == "HookPoint")


def all_units(view, site):
    return {layer: torch.arange(view.width(site)) for layer in range(view.n_layers)}


def unchanged(layer, current):
    return current


def test_logits_and_every_site_equal_torch_hooks_on_the_hugging_face_model(loaded, tokens):
    found, logits = read(loaded.view, lambda: loaded.view.forward(tokens))
    assert {*loaded.hf} == {*loaded.view.sites, "logits"}
    for site in loaded.view.sites:
        for layer, expected in enumerate(loaded.hf[site]):
            torch.testing.assert_close(found[site][layer], expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(logits, loaded.hf["logits"][0], rtol=0, atol=2e-5)


def test_act_is_bit_equal_to_act_fn_of_pre(some, tokens):
    found, _ = read(some.view, lambda: some.view.forward(tokens))
    for layer in range(some.view.n_layers):
        assert torch.equal(found["act"][layer], some.view.act_fn(layer)(found["pre"][layer]))


def test_writing_current_values_back_leaves_logits_bit_equal(loaded, tokens):
    view = loaded.view
    with torch.no_grad():
        expected = view.forward(tokens)
        for site in view.sites:
            units = {layer: torch.arange(0, view.width(site), 3) for layer in range(view.n_layers)}
            with view.writing(site, units, unchanged):
                written = view.forward(tokens)
            assert (written - expected).abs().max() == 0, site


def test_setting_act_equals_patching_the_activation_function_of_the_hugging_face_model(loaded, tokens):
    view, units = loaded.view, torch.tensor([1, 5, 40])
    with torch.no_grad():
        with hf_act_set(loaded.hf_model, 1, units, 0.7):
            expected = loaded.hf_model(tokens, use_cache=False).logits
        with view.writing("act", {1: units}, lambda layer, current: torch.full_like(current, 0.7)):
            written = view.forward(tokens)
    assert (expected - loaded.hf["logits"][0]).abs().max() > 1e-2
    torch.testing.assert_close(written, expected, rtol=0, atol=2e-5)


def test_change_sees_and_writes_only_the_units_given(some, tokens):
    for site in some.view.sites:
        check_only_the_units_given(some.view, tokens, site)


def check_only_the_units_given(view, tokens, site):
    units, seen = torch.tensor([0, 2]), {}

    def change(layer, current):
        seen[layer] = current.clone()
        return torch.zeros_like(current)

    before, _ = read(view, lambda: view.forward(tokens))
    with view.writing(site, {1: units}, change):
        after, _ = read(view, lambda: view.forward(tokens))
    assert torch.equal(seen.pop(1), before[site][1][:, :, units])
    assert not seen
    shown = "post" if site == "act" else site
    expected = before[shown][1].clone()
    expected[:, :, units] = 0
    assert torch.equal(after[shown][1], expected)


def test_an_offset_and_a_number_broadcast(some, tokens):
    view = some.view
    with torch.no_grad(), view.writing("post", {0: torch.tensor([3])}, lambda layer, now: torch.tensor(2.0)):
        found, _ = read(view, lambda: view.forward(tokens))
    assert (found["post"][0][..., 3] == 2.0).all()


def test_nested_writings_start_from_what_the_one_before_wrote(some, tokens):
    for site in some.view.sites:
        check_nested(some.view, tokens, site)


def check_nested(view, tokens, site):
    first, second = torch.tensor([0, 1]), torch.tensor([1, 3])
    with torch.no_grad():
        with (
            view.writing(site, {1: first}, lambda layer, now: torch.full_like(now, 0.25)),
            view.writing(site, {1: second}, lambda layer, now: now * 2 + 1),
        ):
            nested = view.forward(tokens)
        before, _ = read(view, lambda: view.forward(tokens))
        third = before[site][1][:, :, 3:4] * 2 + 1
        values = torch.cat([torch.full_like(third, 0.25), torch.full_like(third, 1.5), third], dim=2)
        with view.writing(site, {1: torch.tensor([0, 1, 3])}, lambda layer, now: values):
            at_once = view.forward(tokens)
    assert torch.equal(nested, at_once)


def test_writing_pre_inside_writing_act_reaches_the_neurons_act_leaves_alone(load, tokens):
    for backend in BACKENDS:
        view = load("llama", backend).view
        act = view.writing("act", {0: torch.tensor([1, 2])}, lambda layer, now: now + 1)
        pre = view.writing("pre", {0: torch.tensor([2, 3])}, lambda layer, now: torch.full_like(now, 0.5))
        with act, pre:
            found, _ = read(view, lambda view=view: view.forward(tokens))
        up = load("llama", backend).hf["post"][0] / load("llama", backend).hf["act"][0]
        silu = torch.nn.functional.silu(torch.tensor(0.5))
        torch.testing.assert_close(found["post"][0][..., 2], (silu + 1) * up[..., 2], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found["post"][0][..., 3], silu * up[..., 3], rtol=1e-3, atol=1e-4)


def test_a_reading_inside_a_writing_sees_written_values(some, tokens):
    view = some.view
    for site in set(view.sites) - {"act"}:
        with view.writing(site, all_units(view, site), lambda layer, now: torch.full_like(now, 0.5)):
            found, _ = read(view, lambda: view.forward(tokens))
        assert (found[site][0] == 0.5).all()
    with view.writing("act", all_units(view, "act"), lambda layer, now: torch.zeros_like(now)):
        found, _ = read(view, lambda: view.forward(tokens))
    assert (found["post"][0] == 0).all()


def test_no_hook_and_no_tensor_remains_after_an_exception(some, tokens):
    view = some.view
    before = hooks_left(view)

    def fail(layer, values):
        raise RuntimeError("planted")

    writings = (view.writing(site, all_units(view, site), fail) for site in view.sites)
    for context in [view.reading({"act": fail}), *writings]:
        with pytest.raises(RuntimeError, match="planted"), context:
            view.forward(tokens)
        assert hooks_left(view) == before
    assert all(layer.pre is layer.up is layer.act is None and layer.act_writers == 0 for layer in view._layers)
    torch.testing.assert_close(view.forward(tokens), some.hf["logits"][0], rtol=0, atol=2e-5)


def test_the_users_own_hooks_and_run_with_cache_are_left_alone(some, tokens):
    view, calls = some.view, []
    with view.model.hooks(fwd_hooks=[("blocks.0.mlp.hook_pre", lambda values, hook: calls.append(1))]):
        read(view, lambda: view.forward(tokens))
        view.forward(tokens)
    assert len(calls) == 2
    with torch.no_grad(), view.reading({"post": lambda layer, values: calls.append(layer)}):
        view.model.run_with_cache(tokens)
        view.model.run_with_cache(tokens)
    assert calls[2:] == [0, 1, 0, 1]


def test_readers_are_called_in_generation_and_in_the_models_own_forward(load):
    for backend in BACKENDS:
        view, lengths = load("llama", backend).view, []
        runs = [lambda view=view: view.model.generate("w5 w6 w7", max_new_tokens=3, do_sample=False, verbose=False)]
        if backend == "bridge":
            runs.append(lambda view=view: view.model.original_model(torch.tensor([[5, 6]])))
        for run in runs:
            found = []
            with torch.no_grad(), view.reading({"act": lambda layer, values, found=found: found.append(values.shape)}):
                run()
            lengths.append([shape[1] for shape in found[:: view.n_layers]])
        assert lengths[0] == [4, 1, 1]
        assert lengths[1:] == ([[2]] if backend == "bridge" else [])


def test_writing_is_differentiable(some, tokens):
    view = some.view
    offset, step = torch.zeros(2, requires_grad=True), 1e-2
    for site in set(view.sites) - {"head", "resid_post"}:
        with view.writing(site, {0: torch.tensor([1, 4])}, lambda layer, now: now + offset):
            loss = view.forward(tokens).logsumexp(-1).mean()
        (gradient,) = torch.autograd.grad(loss, offset)
        losses = []
        for sign in (1, -1):
            with (
                torch.no_grad(),
                view.writing(site, {0: torch.tensor([1, 4])}, lambda layer, now, by=sign * step: now + by),
            ):
                losses.append(view.forward(tokens).logsumexp(-1).mean())
        assert gradient.sum().item() == pytest.approx(float(losses[0] - losses[1]) / (2 * step), rel=0.05, abs=1e-4)


def test_unknown_sites_layers_and_units_are_named(some):
    view = some.view
    with pytest.raises(HookSiteError, match="did you mean 'act'"), view.reading({"acts": unchanged}):
        pass
    with pytest.raises(HookSiteError, match="has no layer 7"), view.writing("act", {7: torch.tensor([0])}, unchanged):
        pass
    with (
        pytest.raises(HookSiteError, match="4 units a layer at site 'head'"),
        view.writing("head", {0: torch.tensor([4])}, unchanged),
    ):
        pass
