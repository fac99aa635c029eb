"""Which weights a model has: one short fingerprint, remembered until they change."""

import hashlib
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from langneurons.errors import TrainingError
from langneurons.models.internals import times_changed
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
    return weights_fingerprint(dict(module.named_parameters(remove_duplicate=False)))


def _tensor_parts(name: str, weight: torch.Tensor) -> tuple[str, bytes, bytes]:
    bits = weight.detach().contiguous().view(_INTEGERS[weight.element_size()])
    rows = bits.reshape(bits.shape[0], -1) if bits.ndim > 1 and bits.numel() else bits.reshape(-1, 1)
    sums = rows.sum(dim=1, dtype=torch.int64)
    sample = bits.flatten()[:: max(1, bits.numel() // _SAMPLE)]
    return f"{name} {tuple(weight.shape)} {weight.dtype}", _bytes(sums), _bytes(sample)


def _bytes(values: torch.Tensor) -> bytes:
    return hashlib.blake2b(values.cpu().numpy().tobytes(), digest_size=16).digest()


class WeightsVersion:
    """Which parameters a module has, and how often each was changed: cheap to compare, without reading a weight.

    Changes made through ``parameter.data`` escape it, as they escape autograd.

    Args:
        module: The module as it is at this moment.
    """

    def __init__(self, module: nn.Module) -> None:
        # Held weakly and compared by identity: the id of a parameter that is gone may be given to another.
        self._parameters = [(weakref.ref(weight), about) for weight, about in _versions(module)]

    def current(self, module: nn.Module) -> bool:
        """Whether no parameter was changed in place, exchanged or cast since."""
        versions = _versions(module)
        return len(versions) == len(self._parameters) and all(
            reference() is weight and before == about
            for (reference, before), (weight, about) in zip(self._parameters, versions, strict=True)
        )


def _versions(module: nn.Module) -> list[tuple[nn.Parameter, tuple[str, int, torch.dtype]]]:
    weights = list(module.named_parameters(remove_duplicate=False))
    counts = times_changed([weight for _, weight in weights])
    return [(weight, (name, count, weight.dtype)) for (name, weight), count in zip(weights, counts, strict=True)]


class Weights:
    """Which weights a model has: found once, kept until they change, and known under what they were before merging.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._fingerprint: tuple[WeightsVersion, str] | None = None
        self._held: str | None = None
        self._before_merging: dict[str, str] = {}

    @property
    def fingerprint(self) -> str:
        """The fingerprint that load_model found, or that of the weights as they are if they were changed since."""
        if self._held is not None:
            return self._held
        if self._fingerprint is None or not self._fingerprint[0].current(self._model):
            self.remember(module_fingerprint(self._model))
        assert self._fingerprint is not None
        return self._fingerprint[1]

    def remember(self, fingerprint: str) -> None:
        """Keep a fingerprint for the weights as they are, until they change."""
        self._fingerprint = (WeightsVersion(self._model), fingerprint)

    def remember_merging(self, before: str) -> None:
        """Note that an update was written into the weights whose fingerprint was ``before``."""
        self._before_merging[self.fingerprint] = self._before_merging.get(before, before)

    def is_of(self, fingerprint: str) -> bool:
        """Whether the weights have this fingerprint, or had it before updates were merged into them."""
        return fingerprint in (self.fingerprint, self._before_merging.get(self.fingerprint))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the fingerprint stay what it is inside the block, where parameters have other names."""
        before = self._held
        if self._fingerprint is not None:
            self._held = self.fingerprint
        try:
            yield
        finally:
            self._held = before

    def check_writable(self) -> None:
        """Refuse to have weights written where the change would not be noticed.

        Raises:
            TrainingError: Inside ``native_attention``.
        """
        if self._held is not None:
            raise TrainingError("Weights cannot be written inside native_attention(): leave it first.")
