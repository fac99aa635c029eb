"""A fingerprint of weights changes with any one of them, and with nothing else."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import langneurons as ln
from langneurons.models import view
from langneurons.models.weights import WeightsVersion, module_fingerprint, weights_fingerprint
from tests.tiny_models import save_tiny


def weights():
    generator = torch.Generator().manual_seed(0)
    return {"a": torch.randn(60, 70, generator=generator), "b": torch.randn(5, generator=generator)}


@settings(max_examples=30, deadline=None)
@given(row=st.integers(0, 59), column=st.integers(0, 69))
def test_one_flipped_sign_or_two_swapped_rows_change_it(row, column):
    flipped, swapped, same = weights(), weights(), weights_fingerprint(weights())
    flipped["a"][row, column] *= -1
    swapped["a"][[row, (row + 1) % 60]] = swapped["a"][[(row + 1) % 60, row]]
    assert len({same, weights_fingerprint(flipped), weights_fingerprint(swapped)}) == 3


def test_names_shapes_and_dtypes_count_but_order_and_layout_do_not():
    base = weights()
    same = weights_fingerprint(base)
    assert weights_fingerprint({"b": base["b"], "a": base["a"].T.contiguous().T}) == same
    others = [
        {"A": base["a"], "b": base["b"]},
        {"a": base["a"].reshape(70, 60), "b": base["b"]},
        {"a": base["a"].to(torch.bfloat16), "b": base["b"]},
        {"a": base["a"]},
    ]
    assert len({same, *map(weights_fingerprint, others)}) == 5


def test_buffers_do_not_count():
    module = torch.nn.BatchNorm1d(3)
    before = module_fingerprint(module)
    module.running_mean.add_(1)
    assert module_fingerprint(module) == before


def test_empty_scalar_and_half_precision_tensors_are_hashed():
    tensors = {"a": torch.empty(0, 3), "b": torch.tensor(1.0), "c": torch.ones(2, dtype=torch.float16)}
    assert len(weights_fingerprint(tensors)) == 32


def test_changed_exchanged_and_swapped_parameters_are_noticed():
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    version = WeightsVersion(module)
    assert version.current(module)
    with torch.no_grad():
        module[0].weight.add_(1)
    assert not version.current(module)
    for _ in range(20):  # ids of freed parameters are given again
        version = WeightsVersion(module)
        module[0].weight = torch.nn.Parameter(module[0].weight.detach() + 1)
        module[0].weight = torch.nn.Parameter(module[0].weight.detach() + 1)
        assert not version.current(module)
    version = WeightsVersion(module)
    module[0].weight, module[1].weight = module[1].weight, module[0].weight
    assert not version.current(module)


def test_a_bridge_has_one_fingerprint_whatever_attention_it_runs(tmp_path):
    seen = view(ln.load_model(str(save_tiny(tmp_path, "llama")), backend="bridge"))
    with seen.native_attention():
        assert seen.fingerprint == view(seen.model).fingerprint
        inside = seen.fingerprint
    assert inside == seen.fingerprint
