"""Projections read, give and store what the modules of the Hugging Face model do."""

import copy

import pytest
import torch

from langneurons.errors import TrainingError
from langneurons.models import view
from langneurons.models.projections import ATTENTION_TARGETS, MLP_TARGETS
from tests.models.conftest import PAIRS, Loaded


def targets_of(seen):
    return [target for target in MLP_TARGETS + ATTENTION_TARGETS if target != "up" or seen.gated]


def module_of(hf_model, projection):
    return hf_model.get_submodule(projection.hugging_face.name)


def rows_of(projection):
    return torch.cat([torch.arange(start, stop) for start, stop in projection.hugging_face.runs])


def hf_weight(module, projection):
    return module.weight.T if projection.hugging_face.transposed else module.weight


def noted(found, key):
    def change(read, given):
        found[key] = (read.detach().clone(), given.detach().clone())
        return given

    return change


def each_projection(seen):
    return [seen.projection(layer, target) for layer in range(seen.n_layers) for target in targets_of(seen)]


@torch.no_grad()
def test_every_projection_reads_and_gives_what_the_hugging_face_module_does(loaded: Loaded, tokens):
    seen = loaded.view
    for projection in each_projection(seen):
        expected, found = {}, {}
        module = module_of(loaded.hf_model, projection)
        handle = module.register_forward_hook(lambda _, inputs, out, at=expected: at.update(io=(inputs[0], out)))
        loaded.hf_model(tokens)
        handle.remove()
        with projection.changed(noted(found, "io")):
            seen.forward(tokens)
        read, given = (values.flatten(0, -2) for values in found["io"])
        true_read, true_given = (values.flatten(0, -2) for values in expected["io"])
        torch.testing.assert_close(read, true_read, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(given, true_given[:, rows_of(projection)], rtol=1e-4, atol=2e-5)


def test_the_matrix_is_the_hugging_face_modules(loaded: Loaded):
    for projection in each_projection(loaded.view):
        weight = hf_weight(module_of(loaded.hf_model, projection), projection)
        assert projection.hugging_face.size == len(weight)
        assert torch.equal(projection.matrix(), weight[rows_of(projection)])
        assert projection.shape == tuple(projection.matrix().shape)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_adding_to_what_is_given_is_the_same_as_adding_to_the_weight(pair, load, tokens):
    loaded = load(*pair)
    model = copy.deepcopy(loaded.view.model)
    seen = view(model)
    generator = torch.Generator().manual_seed(0)
    for target in targets_of(seen):
        projection = seen.projection(1, target)
        weight = projection.matrix().clone()
        delta = 0.1 * torch.randn(weight.shape, generator=generator)
        with torch.no_grad():
            plain = seen.forward(tokens)
            with projection.changed(lambda read, given, delta=delta: given + read @ delta.T):
                changed = seen.forward(tokens)
                with seen.native_attention():
                    native = seen.forward(tokens)
            before = seen.fingerprint
            projection.set_matrix(weight + delta)
            written = seen.forward(tokens)
            with seen.native_attention():
                written_native = seen.forward(tokens)
            assert seen.fingerprint != before
            projection.set_matrix(weight)
            again = seen.forward(tokens)
        assert not torch.allclose(plain, changed, atol=1e-3)
        for logits in (native, written, written_native):
            torch.testing.assert_close(logits, changed, rtol=1e-4, atol=5e-5)
        assert torch.equal(plain, again)


def counted(name: str, order: list[str], added: int):
    def change(read: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        order.append(name)
        return given + added

    return change


def test_changes_act_in_the_order_entered_and_leave_nothing_behind(some: Loaded, tokens):
    seen = some.view
    for target in targets_of(seen):
        projection, order = seen.projection(0, target), []
        with torch.no_grad():
            plain = seen.forward(tokens)
            with projection.changed(counted("first", order, 0)), projection.changed(counted("second", order, 1)):
                assert seen.hooked
                assert not torch.equal(seen.forward(tokens), plain)
            assert torch.equal(seen.forward(tokens), plain)
        assert order == ["first", "second"]
        assert not seen.hooked


def test_up_is_refused_where_there_is_no_gate_and_unknown_names_are(load):
    with pytest.raises(TrainingError, match="no 'up'"):
        load("gpt2", "bridge").view.projection(0, "up")
    with pytest.raises(TrainingError, match="did you mean 'gate'"):
        load("llama", "bridge").view.projection(0, "gaet")


@pytest.mark.hooked
def test_split_attention_inputs_are_refused_by_name(load):
    model = copy.deepcopy(load("llama", "hooked").view.model)
    model.set_use_split_qkv_input(True)
    projection = view(model).projection(0, "q")
    with (
        pytest.raises(TrainingError, match="use_split_qkv_input"),
        projection.changed(lambda read, given: given),
    ):
        pass
    assert not view(model).hooked
