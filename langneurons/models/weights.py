"""One short text that says which weights a model has."""

import hashlib
import weakref
from collections.abc import Mapping

import torch
from torch import nn

from langneurons.storage import fingerprint

_SAMPLE = 1024
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """Hash every tensor's name, shape, dtype, exact integer sums of its raw bits along each row, and a strided sample.

    One flipped weight changes a row's sum; reading the weights once is all it costs.

    Args:
        weights: Tensors by name, in any order and on any device.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> before = weights_fingerprint({"w": torch.zeros(2, 3)})
        >>> before == weights_fingerprint({"w": torch.zeros(2, 3, dtype=torch.bfloat16)})
        False
    """
    return fingerprint(*(part for name in sorted(weights) for part in _tensor_parts(name, weights[name])))


def module_fingerprint(module: nn.Module) -> str:
    """Hash a module's parameters; buffers that are not weights (masks, rotary tables) do not count."""
    return weights_fingerprint(module_weights(module))


def module_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Collect a module's parameters by name, tied ones under each of their names."""
    return {name: weight.detach() for name, weight in module.named_parameters(remove_duplicate=False)}


class WeightsVersion:
    """Which parameters a module has, and how often each was changed: cheap to compare, without reading a weight.

    Changes made through ``parameter.data`` escape it, as they escape autograd.

    Args:
        module: The module as it is at this moment.
    """

    def __init__(self, module: nn.Module) -> None:
        weights = module.named_parameters(remove_duplicate=False)
        # Held weakly and compared by identity: the id of a parameter that is gone may be given to another.
        self._seen = [(name, weakref.ref(weight), weight._version, weight.dtype) for name, weight in weights]

    def current(self, module: nn.Module) -> bool:
        """Whether no parameter was changed in place, exchanged or cast since."""
        weights = list(module.named_parameters(remove_duplicate=False))
        return len(weights) == len(self._seen) and all(
            reference() is weight and (name, version, dtype) == (now, weight._version, weight.dtype)
            for (name, reference, version, dtype), (now, weight) in zip(self._seen, weights, strict=True)
        )


def _tensor_parts(name: str, weight: torch.Tensor) -> tuple[str, bytes, bytes]:
    bits = weight.detach().contiguous().view(_INTEGERS[weight.element_size()])
    rows = bits.reshape(bits.shape[0], -1) if bits.ndim > 1 and bits.numel() else bits.reshape(-1, 1)
    sums = rows.sum(dim=1, dtype=torch.int64)
    sample = bits.flatten()[:: max(1, bits.numel() // _SAMPLE)]
    return f"{name} {tuple(weight.shape)} {weight.dtype}", _bytes(sums), _bytes(sample)


def _bytes(values: torch.Tensor) -> bytes:
    return hashlib.blake2b(values.cpu().numpy().tobytes(), digest_size=16).digest()
