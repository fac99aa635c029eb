"""Forwards that begin above a layer give what whole forwards give."""

import pytest
import torch

from langneurons.errors import HookSiteError


@torch.no_grad()
def residuals(seen, tokens):
    found = {}
    with seen.reading({"resid_post": found.__setitem__}):
        logits = seen.forward(tokens)
    return found, logits


def test_a_resumed_forward_gives_the_logits_of_the_whole_one(loaded, tokens):
    seen = loaded.view
    found, logits = residuals(seen, tokens)
    for layer in range(-1, seen.n_layers):
        with torch.no_grad(), seen.above(layer, lambda _, layer=layer: found.get(layer)):
            resumed = seen.forward(tokens)
        assert (resumed - logits).abs().max() <= 1e-5 * logits.std()


def test_it_gives_the_same_hidden_states_and_chosen_logits(some, tokens):
    seen = some.view
    found, _ = residuals(seen, tokens)
    with torch.no_grad():
        hidden, chosen = seen.hidden(tokens), seen.logits_at(tokens, [3, 9])
        with seen.above(0, lambda _: found[0]), seen.native_attention():
            torch.testing.assert_close(seen.hidden(tokens), hidden, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(seen.logits_at(tokens, [3, 9]), chosen, atol=1e-5, rtol=1e-5)


def test_another_residual_stream_gives_other_logits(some, tokens):
    found, logits = residuals(some.view, tokens)
    with torch.no_grad(), some.view.above(0, lambda _: found[0].flip(1)):
        assert (some.view.forward(tokens) - logits).abs().max() > 0.1 * logits.std()


def test_sites_above_the_layer_fire_and_those_up_to_it_do_not(some, tokens):
    seen, layers = some.view, []
    found, _ = residuals(seen, tokens)
    with (
        torch.no_grad(),
        seen.above(0, lambda _: found[0]),
        seen.reading({"post": lambda layer, _: layers.append(layer)}),
    ):
        seen.forward(tokens)
    assert layers == [1]


def test_only_forwards_whose_residual_stream_is_known_are_resumed(some, tokens):
    seen = some.view
    found, logits = residuals(seen, tokens)
    with torch.no_grad(), seen.above(0, lambda given: found[0] if torch.equal(given, tokens) else None):
        other = seen.forward(tokens.flip(0))
        again = seen.forward(tokens)
    assert (other - logits.flip(0)).abs().max() <= 1e-5 * logits.std()
    assert (again - logits).abs().max() <= 1e-5 * logits.std()


def test_the_model_is_as_before_when_the_block_ends_by_an_error(some, tokens):
    seen = some.view
    found, logits = residuals(seen, tokens)
    with pytest.raises(KeyboardInterrupt), seen.above(0, lambda _: found[0] + 1):
        raise KeyboardInterrupt
    with torch.no_grad():
        assert torch.equal(seen.forward(tokens), logits)


def test_a_layer_that_does_not_exist_is_refused(some):
    with pytest.raises(HookSiteError, match="layers are 0 to 1"), some.view.above(2, lambda _: None):
        pass
