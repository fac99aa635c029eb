"""What a model predicts is unembedded a few positions at a time, and only where that gives the model's own logits."""

import pytest
import torch

from langneurons.models import load_model, view
from langneurons.models.running import Predictions
from tests.tiny_models import tiny_model, tiny_tokenizer

BIG = 1 << 18


@pytest.fixture
def counted(tokens):
    counted = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) > 0.4
    counted[:, 0] = False
    return counted


def losses(model_view, tokens, counted):
    return model_view.predictions(tokens, counted).losses(tokens[counted])


def of_whole_logits(model_view, tokens, counted):
    logits = model_view.forward(tokens)[:, :-1][counted[:, 1:]].float()
    return torch.nn.functional.cross_entropy(logits, tokens[counted], reduction="none")


def logits_for(states, matrix):
    """Predictions of a linear unembedding of 2**18 tokens, of which 64 positions are unembedded at once."""
    return Predictions(states, lambda part: part @ matrix, BIG)


def test_as_many_positions_are_unembedded_at_once_as_fit_in_64_megabytes_whatever_the_vocabulary():
    matrix, states = torch.randn(4, BIG), torch.randn(150, 4)
    parts = list(logits_for(states, matrix).logits())
    assert [len(part) for part in parts] == [64, 64, 22]
    torch.testing.assert_close(torch.cat(parts), states @ matrix)


def test_losses_of_several_parts_have_the_gradient_of_all_logits_at_once():
    matrix, states = torch.randn(4, BIG), torch.randn(150, 4, requires_grad=True)
    targets = torch.randint(0, BIG, (150,))
    parted = logits_for(states, matrix).losses(targets)
    whole = torch.nn.functional.cross_entropy(states @ matrix, targets, reduction="none")
    torch.testing.assert_close(parted, whole, rtol=1e-6, atol=0)
    [gradient], [expected] = (torch.autograd.grad(of.sum(), states) for of in (parted, whole))
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_nothing_counted_has_no_losses(some, tokens):
    assert losses(some.view, tokens, torch.zeros_like(tokens, dtype=torch.bool)).shape == (0,)


@torch.no_grad()
def test_losses_do_not_depend_on_the_batch_to_the_bit(some, tokens, counted):
    whole = losses(some.view, tokens, counted)
    rows = [losses(some.view, tokens[row : row + 1], counted[row : row + 1]) for row in range(len(tokens))]
    assert torch.equal(whole, torch.cat(rows))


@torch.no_grad()
def test_a_hook_at_the_unembedding_sees_whole_texts_and_counts(some, tokens, counted):
    seen, shapes = some.view, []
    plain = losses(seen, tokens, counted)

    def later_positions_louder(values, hook):
        shapes.append(tuple(values.shape[:2]))
        return values * torch.arange(values.shape[1])[:, None]

    with seen.model.hooks([("unembed.hook_in", later_positions_louder)]):
        changed, expected = (of(seen, tokens, counted) for of in (losses, of_whole_logits))
    assert shapes == [tuple(tokens.shape)] * 2
    torch.testing.assert_close(changed, expected)
    assert not torch.allclose(changed, plain)
    assert torch.equal(losses(seen, tokens, counted), plain)


@pytest.mark.parametrize("fault", ["wrong", "broken"])
@torch.no_grad()
def test_whole_logits_are_used_where_the_unembedding_alone_gives_others(monkeypatch, tokens, counted, fault):
    def unembed(self, states):
        if fault == "broken":
            raise AttributeError("router_logits")
        return right(self, states) * 1.001

    model = load_model("m", hf_model=tiny_model("gemma2"), tokenizer=tiny_tokenizer(), backend="bridge")
    expected, right = of_whole_logits(view(model), tokens, counted), type(view(model).runner).unembed
    monkeypatch.setattr(type(view(model).runner), "unembed", unembed)
    model = load_model("m", hf_model=tiny_model("gemma2"), tokenizer=tiny_tokenizer(), backend="bridge")
    assert torch.equal(losses(view(model), tokens, counted), expected)
    assert torch.equal(view(model).logits_at(tokens, [3]), view(model).forward(tokens)[:, [3]])


@pytest.mark.hooked
@torch.no_grad()
def test_a_model_without_final_norm_and_with_a_soft_cap_has_its_losses(tokens, counted):
    from transformer_lens import HookedTransformer  # noqa: PLC0415 (absent from TransformerLens 4)

    settings = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_head": 8, "d_mlp": 32, "n_ctx": 64, "d_vocab": 101}
    settings |= {"act_fn": "gelu", "normalization_type": None, "output_logits_soft_cap": 3.0, "seed": 0}
    model_view = view(HookedTransformer(settings | {"initializer_range": 0.8}))
    expected = of_whole_logits(model_view, tokens, counted)
    assert (model_view.forward(tokens).abs() > 2.5).any()
    torch.testing.assert_close(losses(model_view, tokens, counted), expected, rtol=1e-6, atol=0)
