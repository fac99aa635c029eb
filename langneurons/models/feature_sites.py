"""A site whose units are features: what a dictionary (a sparse autoencoder, a transcoder) encodes at a hook point.

Features are read by ``encode``. Written, they change what stands at the hook point by decode(new) - decode(old), so
what the dictionary cannot reconstruct stays as it is, and writing back what was read changes nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import nn

from langneurons.errors import HookSiteError, in_short
from langneurons.models.internals import HookPoint, times_changed
from langneurons.models.sites import Change, Hook, Layer, Reader, attached, written
from langneurons.models.weights import weights_fingerprint
from langneurons.storage import fingerprint

MLP_INPUT = "mlp_input"
_ROWS = 1024  # features decoded at once where their output weights must be found by decoding


@runtime_checkable
class Dictionary(Protocol):
    """Anything with ``encode`` and ``decode``, such as SAELens' SAE and Transcoder."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """From "batch position d_in" to features, "batch position feature"."""
        ...

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """From features, "... feature", to what they stand for, "... d_out"."""
        ...


class NormOutput:
    """What a norm gives the MLP, with the interface of a hook point: HookedTransformer has none there."""

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm
        self.name: str | None = MLP_INPUT
        self.fwd_hooks: list[Any] = []

    def add_hook(self, hook: Callable[..., object]) -> None:
        """Call a function of (values, hook=) whenever the norm has run."""
        handle = self.norm.register_forward_hook(lambda module, inputs, values: hook(values, hook=self))
        self.fwd_hooks.append(SimpleNamespace(hook=handle))


def hook_point(block: nn.Module, name: str) -> HookPoint:
    """Find a hook point of a layer.

    Args:
        block: The layer's TransformerLens block.
        name: TransformerLens' name for it inside the block, with or without "hook_" in front: "resid_post", "mlp_out",
            "attn.hook_z"; or "mlp_input", what the MLP's matrices are given.

    Raises:
        HookSiteError: If there is none.
    """
    if name == MLP_INPUT:
        return NormOutput(block.get_submodule("ln2"))
    for path in (name, f"hook_{name}"):
        try:
            point = attrgetter(path)(block)
        except AttributeError:
            continue
        if hasattr(point, "add_hook"):
            return point
    raise HookSiteError(
        f"There is no hook point {name!r} in a layer. Possible are TransformerLens' names, such as resid_pre, "
        "resid_post, attn_out, mlp_out, attn.hook_z, mlp.hook_post; and mlp_input, to read only."
    )


@dataclass(eq=False)
class PlacedDictionary:
    """A dictionary at its layer, and what the running forward has shown of its features.

    Attributes:
        dictionary: The dictionary.
        layer: The layer.
        reads: The hook point whose tensor it encodes.
        writes: The hook point whose tensor its decoded features are a part of; the same for an autoencoder.
        width: Number of its features, once ``check`` has counted them.
    """

    dictionary: Dictionary
    layer: Layer
    reads: HookPoint
    writes: HookPoint
    width: int = 0
    _values: torch.Tensor | None = None
    _input: torch.Tensor | None = None
    _features: torch.Tensor | None = None
    _decoded: bool = False
    _fingerprint: tuple[tuple, str] | None = None

    def hooks(self, at_output: Hook) -> list[tuple[HookPoint, Hook]]:
        """Build the hooks after which ``features`` holds when ``at_output`` is called."""
        return [*self.layer.batch_hooks(), (self.reads, self._read), (self.writes, at_output)]

    @property
    def features(self) -> torch.Tensor:
        """The features of the running forward, as written so far: "batch position feature"."""
        assert self._features is not None
        return self._features

    def encoded(self, values: torch.Tensor) -> torch.Tensor:
        """Encode a tensor of the hook point, on the device and in the dtype of the dictionary's weights."""
        values = self._shaped(values)
        weight = next(iter(self.tensors().values()), values)
        return self.dictionary.encode(values.to(weight.device, weight.dtype))

    def write(self, row: int, units: Int[torch.Tensor, " unit"], change: Change) -> Hook:
        """Build the hook that writes new values of some features."""

        def hook(values: torch.Tensor) -> torch.Tensor:
            old, index = self.features, units.to(self.features.device)
            new = written(old, index, change(row, old.index_select(-1, index)))
            moved = self._moved(new, old)
            out = values + moved.reshape(values.shape).to(values.device, values.dtype)
            self._features = new
            if self.reads is self.writes:
                self._values = out  # a writing entered later starts from these features
            return out

        return hook

    def _moved(self, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        if self._decoded and self._input is not None:
            self.encoded(self._input)
        # One call, and none before it: dictionaries that normalise their input forget its scale when they decode.
        decoded_new, decoded_old = self.dictionary.decode(torch.stack([new, old]))
        self._decoded = True
        moved = decoded_new - decoded_old
        unchanged = (new == old).all(-1, keepdim=True)
        if moved.ndim > unchanged.ndim:
            unchanged = unchanged[..., None]
        # Where nothing was changed nothing is added, not even rounding, and gradients still flow.
        return torch.where(unchanged, moved - moved.detach(), moved)

    def check(self, values: torch.Tensor) -> None:
        """Decode what was read, if something was, and count the features.

        Raises:
            HookSiteError: If features are not finite numbers "batch position feature", or what is decoded does not
                have the shape of what stands at the hook point.
        """
        if self._features is None:
            return
        there = self._shaped(values)
        if not isinstance(self._features, torch.Tensor) or self._features.shape[:2] != there.shape[:2]:
            raise HookSiteError(f"The dictionary of layer {self.layer.index} does not encode to a tensor of tokens.")
        if not self._features.isfinite().all():
            raise HookSiteError(f"The dictionary of layer {self.layer.index} gives features that are not finite.")
        decoded = self.dictionary.decode(self.features)
        if decoded.shape != there.shape:
            raise HookSiteError(
                f"The dictionary of layer {self.layer.index} decodes to {decoded.shape[-1]} values a token; at its "
                f"hook point there are {there.shape[-1]}: it belongs to another model, or another place."
            )
        self.width = self.features.shape[-1]

    def _read(self, values: torch.Tensor) -> None:
        # By address, because some hook points hand each hook a new view of the one tensor.
        last = self._values
        if last is None or (values.data_ptr(), values.numel()) != (last.data_ptr(), last.numel()):
            self._values = self._input = values
            self._features, self._decoded = self.encoded(values), False

    def _shaped(self, values: torch.Tensor) -> torch.Tensor:
        """View a hook point's tensor as "batch position d", or with heads apart where the dictionary joins them."""
        if getattr(getattr(self.dictionary, "cfg", None), "reshape_activations", None) == "hook_z":
            return self.layer.shaped("head", values)
        return self.layer.shaped("post", values) if values.ndim == 2 else values.flatten(2)

    @torch.no_grad()
    def output_weights(self) -> Float[torch.Tensor, "feature d_out"]:
        """What each feature adds where it is decoded."""
        weights = getattr(self.dictionary, "W_dec", None)
        if isinstance(weights, torch.Tensor) and weights.shape[0] == self.width:
            return weights
        like = next(iter(self.tensors().values()), torch.empty(0))
        units = rearrange(torch.eye(self.width, device=like.device, dtype=like.dtype), "row feature -> row 1 1 feature")
        nothing = self.dictionary.decode(torch.zeros_like(units[0]))
        return torch.cat([(self.dictionary.decode(rows) - nothing).flatten(1) for rows in units.split(_ROWS)])

    def tensors(self) -> dict[str, torch.Tensor]:
        """The dictionary's weights."""
        if isinstance(self.dictionary, nn.Module):
            return self.dictionary.state_dict()
        return {name: value for name, value in vars(self.dictionary).items() if isinstance(value, torch.Tensor)}

    @property
    def fingerprint(self) -> str:
        """Which dictionary: its class, settings, and weights as they are at this moment."""
        tensors = self.tensors()
        addresses = [(name, weight.data_ptr(), weight.dtype) for name, weight in tensors.items()]
        version = (*addresses, *times_changed(list(tensors.values())))
        if self._fingerprint is None or self._fingerprint[0] != version:
            parts = (type(self.dictionary).__name__, *_settings(self.dictionary), weights_fingerprint(tensors))
            self._fingerprint = version, fingerprint(*parts)
        return self._fingerprint[1]

    def forget(self) -> None:
        """Let go of the tensors of the last forward."""
        self._values = self._input = self._features = None


def _settings(dictionary: Dictionary) -> list[str]:
    """A dictionary's settings that change what it encodes, such as how many features may be active at once."""
    settings: Any = getattr(dictionary, "cfg", dictionary)
    named = settings.to_dict() if hasattr(settings, "to_dict") else vars(settings)
    return sorted(
        f"{name}={value}"
        for name, value in named.items()
        if isinstance(value, bool | int | float | str) and name not in ("device", "training") and name[0] != "_"
    )


@dataclass(frozen=True, eq=False)
class FeatureSite:
    """Dictionaries, one per layer, as one site; its layers are the dictionaries in the order of the model's layers.

    Attributes:
        name: The site's name.
        at: The hook point whose tensor decoded features are a part of.
        reads: The hook point whose tensor is encoded.
        placed: Each dictionary at its layer, from the bottom up.
    """

    name: str
    at: str
    reads: str
    placed: tuple[PlacedDictionary, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """The model's layer of each dictionary."""
        return tuple(placed.layer.index for placed in self.placed)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of dictionaries, and of features that each of them has."""
        return len(self.placed), self.placed[0].width

    @property
    def fingerprint(self) -> str:
        """Which dictionaries, and where they read and write."""
        dictionaries = (f"{placed.layer.index} {placed.fingerprint}" for placed in self.placed)
        return fingerprint(self.at, self.reads, *dictionaries)

    def __repr__(self) -> str:
        rows = ", ".join(f"{row} is layer {layer}" for row, layer in enumerate(self.layers))
        from_ = "" if self.reads == self.at else f", read from {self.reads}"
        return f"Site {self.name!r}: {self.shape[1]:,} features at {self.at}{from_}; its layer {rows} of the model"

    def check(self, run: Callable[[], object]) -> None:
        """Run the model once and check that every dictionary fits, and how many features it has.

        Args:
            run: Runs the model.

        Raises:
            HookSiteError: If a hook point does not fire, a dictionary does not fit, or their widths differ.
        """
        with self._attached([placed.hooks(placed.check) for placed in self.placed]):
            try:
                run()
            except RuntimeError as error:
                shapes = {name: tuple(weight.shape) for name, weight in self.placed[0].tensors().items()}
                raise HookSiteError(
                    f"A dictionary of site {self.name!r} cannot take what {self.reads} gives, or cannot decode to its "
                    f"shape: {in_short(error)}. Weights of the first: {shapes}."
                ) from error
        if silent := [placed.layer.index for placed in self.placed if not placed.width]:
            raise HookSiteError(
                f"The hook points {self.reads!r} and {self.at!r} do not both fire at layer {silent[0]}: what the MLP "
                f"reads is {MLP_INPUT!r}, and what the norm before it reads is 'resid_mid'."
            )
        if len(widths := {placed.width for placed in self.placed}) != 1:
            raise HookSiteError(
                f"Dictionaries of one site all have the same number of features; these have {sorted(widths)}: add them "
                "as sites of different names."
            )

    @contextmanager
    def reading(self, reader: Reader) -> Iterator[None]:
        """Hand each layer's features to a function of (row, values) during every forward inside the block."""

        def report(row: int, placed: PlacedDictionary) -> Hook:
            def hook(values: torch.Tensor) -> None:
                reader(row, placed.features)

            return hook

        with self._attached([placed.hooks(report(row, placed)) for row, placed in enumerate(self.placed)]):
            yield

    @contextmanager
    def writing(self, features: Mapping[int, Int[torch.Tensor, " unit"]], change: Change) -> Iterator[None]:
        """Write new values of some features, by row, during every forward inside the block."""
        hooks = [self.placed[row].hooks(self.placed[row].write(row, units, change)) for row, units in features.items()]
        with self._attached(hooks):
            yield

    @contextmanager
    def _attached(self, hooks: Sequence[list[tuple[HookPoint, Hook]]]) -> Iterator[None]:
        try:
            with attached([hook for group in hooks for hook in group]):
                yield
        finally:
            for placed in self.placed:
                placed.forget()

    def output_norm(self) -> Float[torch.Tensor, "layer unit"]:
        """How strongly each feature writes, in float32 on CPU."""
        return torch.stack([placed.output_weights().float().norm(dim=1).cpu() for placed in self.placed])
