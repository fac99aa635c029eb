import pytest
import torch

import langneurons as ln
from langneurons.errors import EffectError, LanguageError, PatchError
from langneurons.models import view
from tests.planted.patching import setting
from tests.tiny_models import save_tiny


@pytest.fixture(
    scope="module", params=[("llama", "hooked"), ("llama", "bridge"), ("opt", "hooked"), ("bloom", "bridge")]
)
def tiny(request, tmp_path_factory):
    architecture, backend = request.param
    model = ln.load_model(save_tiny(tmp_path_factory.mktemp(architecture), architecture), backend=backend)
    corpus = ln.load_corpus(
        {"en": ["w5 w9 w7 w11 w20 w30 w8", "w44 w6 w5 w17 w80"], "hi": ["w61 w70 w5 w62", "w9 w61 w7"]}
    )
    return model, ln.HeldoutText.of(model, corpus, context_length=16)


def some(model, site, neurons=((0, 3), (1, 2))):
    seen = view(model)
    return ln.NeuronSet.of({"hi": neurons}, (seen.n_layers, seen.width(site)), site)


@pytest.mark.parametrize("site", ["pre", "act", "post", "head", "resid_post"])
def test_a_patch_that_changes_nothing_has_no_dose(tiny, site):
    model, text = tiny
    table = ln.evaluation.dose(model, ln.Scale(some(model, site), 1.0), text)
    assert table["write_norm"].tolist() == [0.0, 0.0]
    assert table["kl"].tolist() == [0.0, 0.0]


def test_what_is_added_at_post_is_written_through_the_output_weights(tiny):
    model, text = tiny
    table = ln.evaluation.dose(model, ln.Add(some(model, "post", [(1, 2)]), 0.7), text)
    norm = 0.7 * float(view(model).output_norm("post")[1, 2])
    assert table["write_norm"].tolist() == pytest.approx([norm, norm], rel=1e-4)


def test_what_is_added_to_the_residual_stream_is_what_is_written(tiny):
    model, text = tiny
    table = ln.evaluation.dose(model, ln.Add(some(model, "resid_post", [(0, 1), (0, 2), (1, 5)]), 0.5), text)
    assert table["write_norm"].tolist() == pytest.approx([0.5 * 3**0.5] * 2, rel=1e-4)


@pytest.mark.parametrize("site", ["pre", "act"])
def test_the_dose_at_other_mlp_sites_is_the_change_of_what_the_layer_adds(tiny, site):
    """Against the last layer's residual stream with and without a patch of that layer alone."""
    model, text = tiny
    patch = ln.Scale(some(model, site, [(1, 2), (1, 3)]), -2.0)
    expected = []
    for language in text.languages:
        total, tokens = 0.0, 0
        for _, batch in text.batches(language, 8):
            plain, changed = (_last_residual(model, batch, patches) for patches in ([], [patch]))
            norms = (changed - plain).double().norm(dim=-1)[batch.counted]
            total, tokens = total + float(norms.sum()), tokens + len(norms)
        expected.append(total / tokens)
    assert ln.evaluation.dose(model, patch, text)["write_norm"].tolist() == pytest.approx(expected, rel=1e-3)


def test_the_dose_of_a_head_is_what_the_head_itself_adds(tiny):
    """What the layer's MLP makes of it is not counted: against the norm of the head's own output."""
    model, text = tiny
    seen, expected = view(model), []
    for language in text.languages:
        found = []
        for _, batch in text.batches(language, 8):
            outputs = {}
            with torch.no_grad(), seen.reading({"head": outputs.__setitem__}):
                seen.forward(batch.tokens)
            weights = seen.output_weights(1, "head").unflatten(0, (seen.width("head"), -1))[2]
            found.append((outputs[1][:, :, 2] @ weights).norm(dim=-1)[batch.counted].detach())
        expected.append(float(torch.cat(found).mean()))
    table = ln.evaluation.dose(model, ln.Scale(some(model, "head", [(1, 2)]), 0.0), text)
    assert table["write_norm"].tolist() == pytest.approx(expected, rel=1e-4)


def _last_residual(model, batch, patches):
    seen, streams = view(model), {}
    with torch.no_grad(), seen.reading({"resid_post": streams.__setitem__}), ln.intervene(model, *patches):
        seen.forward(batch.tokens)
    return streams[1]


def test_kl_is_that_of_the_patched_predictions(tiny):
    model, text = tiny
    patch = ln.SetTo(some(model, "act"), 2.0)
    expected = []
    for language in text.languages:
        total, tokens = 0.0, 0
        for _, batch in text.batches(language, 8):
            with torch.no_grad():
                plain = view(model).forward(batch.tokens).log_softmax(-1)
                with ln.intervene(model, patch):
                    changed = view(model).forward(batch.tokens).log_softmax(-1)
            for block, position in batch.counted.nonzero().tolist():
                p, q = plain[block, position - 1], changed[block, position - 1]
                total, tokens = total + float((p.exp() * (p - q)).sum()), tokens + 1
        expected.append(total / tokens)
    assert ln.evaluation.dose(model, patch, text)["kl"].tolist() == pytest.approx(expected, rel=1e-3)


def test_values_that_the_activation_function_cannot_give_are_counted(tiny):
    model, text = tiny
    shares = {
        value: ln.evaluation.dose(model, ln.Add(some(model, "act"), value), text)["unreachable"]
        for value in (-9.0, 0.0, 9.0)
    }
    assert (shares[-9.0] > 0.9).all()
    assert (shares[0.0] == 0).all()
    assert (shares[9.0] == 0).all()


def test_two_patches_of_one_neuron_have_the_dose_of_their_sum(tiny):
    model, text = tiny
    one = some(model, "post", [(1, 2)])
    table = ln.evaluation.dose(model, [ln.Add(one, 0.5), ln.Add(one, 0.2)], text)
    assert table["write_norm"].tolist() == pytest.approx(
        ln.evaluation.dose(model, ln.Add(one, 0.7), text)["write_norm"].tolist(), rel=1e-4
    )


def test_an_equal_dose_is_found(tiny):
    model, text = tiny
    one, other = some(model, "post", [(1, 2)]), some(model, "post", [(1, 7)])
    norms = view(model).output_norm("post")[1]
    amount = ln.equal_dose(
        model, lambda value: ln.Add(other, value), text, float(0.7 * norms[2]), between=(0, 20), tolerance=1e-6
    )
    assert amount == pytest.approx(float(0.7 * norms[2] / norms[7]), rel=1e-3)
    assert one.site == other.site


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"target": 1e9}, EffectError, "does not lie between"),
        ({"measure": "size"}, EffectError, "Unknown measure"),
        ({"language": "xx"}, LanguageError, "Unknown language"),
    ],
)
def test_an_equal_dose_that_cannot_be_found_is_one_sentence(options, error, sentence):
    model, heldout, _, neurons = setting()
    text = ln.HeldoutText.of(model, heldout.take(2), context_length=64)
    options = {"target": 1.0, **options}
    with pytest.raises(error, match=sentence):
        ln.equal_dose(model, lambda value: ln.Add(neurons["hi"], value), text, **options)


def test_no_patch_has_no_dose():
    model, heldout, _, _ = setting()
    text = ln.HeldoutText.of(model, heldout.take(2), context_length=64)
    with pytest.raises(PatchError, match="No patch"):
        ln.evaluation.dose(model, [], text)
