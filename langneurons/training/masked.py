"""The machinery of every masked update: parameters for a model, attaching, merging, keeping."""

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from langneurons.errors import SiteMismatchError, TrainingError, unknown
from langneurons.identification.neurons import NeuronSet, check_neurons
from langneurons.models import ModelView, view
from langneurons.models.projections import ATTENTION_TARGETS, MLP_TARGETS
from langneurons.models.sites import ATTENTION_SITES
from langneurons.settings import finite_number, whole_number
from langneurons.storage import fingerprint, understood
from langneurons.storage.hub import Shareable, located
from langneurons.training import peft_format
from langneurons.training.pieces import Direct, Form, LowRank, Piece

_Kind = TypeVar("_Kind", bound="MaskedUpdate")
MLP_SITES = ("pre", "up", "act", "post")


@dataclass
class Merged:
    """What unmerging needs: the model, its fingerprints, and the values that the update replaced."""

    model: weakref.ref
    before: str
    after: str
    overwritten: list[dict[str, Tensor]]


class MaskedUpdate(Shareable):
    """A change of chosen neurons' weights, and of whole matrices of attention by LoRA.

    Subclasses say by ``form`` how a neuron's rows and columns are changed; everything else is shared.

    Args:
        neurons: Neurons whose rows of gate and up and columns of down are trained, or coordinates whose rows of q, k or
            v are, of all languages in the set; None trains whole matrices of attention only.
        targets: Projections that are trained at the neurons: gate, up, down for those of an MLP; at ``q``, ``k`` or
            ``v`` the matrix of that name.
        attention: Projections of attention that are trained as a whole, by LoRA: q, k, v, o.
        rank: Rank of LoRA; None trains every weight of attention by itself.
        alpha: Scale of LoRA, divided by the rank.
        seed: Seed for the first values; those of a layer's projection do not depend on what else is trained.
        projections: Another name for ``targets``.
    """

    kind: ClassVar[str] = ""
    hub_type: ClassVar[str] = "model"

    def __init__(
        self,
        neurons: NeuronSet | None,
        targets: Sequence[str] = ("gate",),
        attention: Sequence[str] = (),
        rank: int | None = 8,
        alpha: float = 16,
        seed: int = 0,
        projections: Sequence[str] | None = None,
    ) -> None:
        targets = targets if projections is None else projections
        _check_names("projection", targets, MLP_TARGETS + ATTENTION_SITES)
        _check_names("projection of attention", attention, ATTENTION_TARGETS)
        _check_selection(neurons, targets, attention)
        rank = None if rank is None else whole_number(rank, "rank", TrainingError, least=1)
        finite_number(alpha, "alpha", TrainingError)
        self.neurons = neurons
        self.rank = rank
        self.alpha = alpha
        self.targets = tuple(targets) if neurons is not None else ()
        self.attention = tuple(attention)
        self.seed = seed
        self.pieces: list[Piece] = []
        self._model: str | None = None
        self._dtype: str | None = None
        self._attached = False
        self._merged: Merged | None = None

    def form(self, target: str) -> Form:
        """The form of the change of a projection's rows or columns."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The kind of update and its projections."""
        return f"{self.kind} on {', '.join(self.targets + self.attention)}"

    def __repr__(self) -> str:
        of = f" of {len(self.neurons):,} neurons" if self.neurons is not None else ""
        trained = f": {self.count():,} parameters" if self.pieces else ""
        return f"{self.name}{of}{trained}"

    def prepare(self, model: nn.Module) -> None:
        """Create the parameters for a model; where that was done before, check that it is the same model.

        Args:
            model: A model returned by ``load_model``.

        Raises:
            TrainingError: If the model is another one, or lacks a projection.
            SiteMismatchError: If the neurons belong to a model with other weights.
        """
        model_view = view(model)
        if self.pieces:
            self._check_model(model_view)
            return
        pieces = self._new_pieces(model_view)
        for piece in pieces:
            weight = model_view.projection(piece.layer, piece.target).matrix()
            seed = int(fingerprint(str(self.seed), piece.name)[:12], 16)
            piece.begin(torch.Generator().manual_seed(seed), weight)
        self.pieces, self._model, self._dtype = pieces, model_view.fingerprint, _dtype_of(model_view)

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained."""
        return list(self.named_parameters().values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is trained, by name, such as ``"3.gate.lora_A"``."""
        return {f"{piece.name}.{name}": value for piece in self.pieces for name, value in piece.parameters.items()}

    def count(self) -> int:
        """Count the trained numbers; 0 before parameters exist."""
        return sum(parameter.numel() for parameter in self.parameters())

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[None]:
        """Let the model compute with the update during everything inside the block.

        Inside, of the model and this update, only ``parameters()`` get gradients. Several updates act in the order
        attached, as if merged in that order. Patches, entered before or inside, see the trained values. Keep the block
        open until after ``backward`` where gradients are checkpointed.

        Args:
            model: A model returned by ``load_model``.

        Raises:
            TrainingError: If the update was made for another model, is merged, or attached already.
        """
        if self._merged is not None:
            raise TrainingError(f"{self!r} is merged into a model: unmerge it first.")
        if self._attached:
            raise TrainingError(f"{self!r} is attached already.")
        self.prepare(model)
        model_view = view(model)
        with ExitStack() as stack:
            stack.enter_context(frozen(model))
            for piece in self.pieces:
                projection = model_view.projection(piece.layer, piece.target)
                stack.enter_context(projection.changed(piece.change_of(projection)))
            self._attached = True
            try:
                yield
            finally:
                self._attached = False

    def merge(self, model: nn.Module) -> None:
        """Write the update into the model's weights: only the rows and columns of its neurons (and attention) change.

        Args:
            model: A model returned by ``load_model``.

        Raises:
            TrainingError: If the update was made for another model, is merged, or attached.
        """
        if self._merged is not None or self._attached:
            raise TrainingError(f"{self!r} is {'merged' if self._merged else 'attached'} already.")
        self.prepare(model)
        model_view = view(model)
        model_view.weights.check_writable()
        before = model_view.fingerprint
        overwritten = [piece.merge(model_view.projection(piece.layer, piece.target)) for piece in self.pieces]
        model_view.weights.remember_merging(before)
        self._merged = Merged(weakref.ref(model), before, model_view.fingerprint, overwritten)

    def unmerge(self, model: nn.Module) -> None:
        """Give the model the weights it had before ``merge``, bit for bit.

        Args:
            model: The same model.

        Raises:
            TrainingError: If the update is not merged into it, or the weights were changed since.
        """
        if self._merged is None or self._merged.model() is not model:
            raise TrainingError(f"{self!r} is not merged into this model.")
        model_view = view(model)
        if model_view.fingerprint != self._merged.after:
            raise TrainingError("The model's weights were changed since: unmerge in the reverse order of merging.")
        for piece, values in zip(self.pieces, self._merged.overwritten, strict=True):
            piece.write(model_view.projection(piece.layer, piece.target), values)
        model_view.weights.remember(self._merged.before)
        self._merged = None

    def without(self: _Kind, neurons: NeuronSet) -> _Kind:
        """Make a copy in which the rows and columns of some neurons have the values that they had before training.

        Args:
            neurons: The neurons; those that the update does not train are left out.
        """
        copy, by_layer = deepcopy(self), neurons.per_layer()
        for piece in copy.pieces:
            if piece.units is not None:
                piece.put_back(by_layer.get(piece.layer, torch.empty(0, dtype=torch.int64)))
        return copy

    def moved(self, model: nn.Module) -> float:
        """Measure how far the neurons' trained rows and columns moved, relative to their norm before.

        Args:
            model: The model, without the update merged.

        Returns:
            |W' - W| / |W|, of all of them together; NaN where only whole matrices of attention are trained.
        """
        model_view = view(model)
        pieces = [piece for piece in self.pieces if piece.units is not None]
        parts = [piece.distance(model_view.projection(piece.layer, piece.target)) for piece in pieces]
        change, before = (sum(part) for part in zip(*parts, strict=True)) if parts else (math.nan, 1.0)
        return math.sqrt(change / before)

    def state_dict(self) -> dict[str, Tensor]:
        """Copy the parameters' values, by name."""
        return {name: parameter.detach().clone() for name, parameter in self.named_parameters().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set the parameters' values.

        Args:
            state: Values by name, as ``state_dict`` of the same update returns them.

        Raises:
            TrainingError: If names or shapes are not this update's.
        """
        own = self.named_parameters()
        differences = [
            f"{what} {', '.join(keys[:3])}{', ...' * (len(keys) > 3)}"
            for what, keys in (("missing:", sorted(own.keys() - state)), ("unknown:", sorted(state.keys() - own)))
            if keys
        ]
        if differences:
            raise TrainingError(f"The parameters do not fit this update; {'; '.join(differences)}.")
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                raise TrainingError(f"{name} has shape {tuple(state[name].shape)}, not {tuple(parameter.shape)}.")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def save(self, folder: str | Path) -> Path:
        """Write the update into a folder: the neurons, the parameters, and LoRA also as plain peft reads it.

        Args:
            folder: The folder; it is created where it is missing.

        Returns:
            The folder.

        Raises:
            TrainingError: If there are no parameters yet.
        """
        if not self.pieces:
            raise TrainingError(f"{self!r} has no parameters yet: attach it to a model, or prepare(model), first.")
        names = ("rank", "alpha", "seed", "targets", "attention")
        settings = {name: getattr(self, name) for name in names}
        about = {"kind": self.kind, "settings": settings, "model": self._model, "dtype": self._dtype}
        peft_format.write_update(Path(folder), about, self.neurons, self.pieces)
        return Path(folder)

    @classmethod
    def load(cls: type[_Kind], folder: str | Path, model: nn.Module | None = None) -> _Kind:
        """Read a saved update.

        Args:
            folder: Folder that the update was saved to; or ``hub:user/repo/name``.
            model: A model; if there is one, it is checked that the update was made for it.

        Raises:
            StorageError: If there is no update.
            CorruptArtefactError: If a file was changed since.
            TrainingError: If it is of another class, or of another model.
        """
        folder = located(folder)
        content, neurons, tensors = peft_format.read_update(folder)
        with understood(folder / peft_format.SIDECAR):
            if content["kind"] != cls.kind:
                raise TrainingError(f"{folder} holds {content['kind']}, not {cls.kind}.")
            update = cls(neurons, **content["settings"])
            update.pieces = [
                peft_format.piece_of(described, neurons, tensors, update._form) for described in content["pieces"]
            ]
            update._model, update._dtype = content["model"], content.get("dtype")
        if model is not None:
            update.prepare(model)
        return update

    def _about(self) -> dict[str, object]:
        options = {"targets": self.targets, "attention": self.attention, "rank": self.rank, "alpha": self.alpha}
        method = "" if self.neurons is None else self.neurons.method
        return {"weights": self._model, "method": f"{self.kind} of neurons: {method}", "options": options}

    def _loading(self, address: str) -> str:
        return f"update = ln.{type(self).__name__}.load({address!r})"

    def _new_pieces(self, model_view: ModelView) -> list[Piece]:
        by_layer = {} if self.neurons is None else self.neurons.per_layer()
        if self.neurons is not None:
            _check_fits(self.neurons, model_view)
        parts = [(layer, target, units) for layer, units in by_layer.items() for target in self.targets]
        parts += [(layer, target, None) for layer in range(model_view.n_layers) for target in self.attention]
        pieces = []
        for layer, target, units in parts:
            projection = model_view.projection(layer, target)
            pieces.append(Piece(layer, target, projection.shape, units, self._form(target), projection.hugging_face))
        return pieces

    def _form(self, target: str) -> Form:
        if target not in self.attention:
            return self.form(target)
        return Direct() if self.rank is None else LowRank(self.rank, self.alpha)

    def _check_model(self, model_view: ModelView) -> None:
        if self._model is not None and not model_view.weights.is_of(self._model):
            here, dtype = f"{model_view.name!r} is {model_view.fingerprint[:8]}", _dtype_of(model_view)
            if self._dtype not in (None, dtype):
                here += (
                    f", loaded as {dtype} and not as {self._dtype}: weights rounded to another dtype are others, "
                    f"so load the model with dtype={self._dtype!r}"
                )
            raise TrainingError(f"{self!r} was made for the weights {self._model[:8]}; {here}.")
        for piece in self.pieces:
            piece.move(model_view.projection(piece.layer, piece.target).matrix().device)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside the block no parameter of a model requires gradients; afterwards those that did do again."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _dtype_of(model_view: ModelView) -> str:
    """The dtype that a model's weights were loaded in."""
    return str(model_view.dtype).removeprefix("torch.")


def _check_names(what: str, names: Sequence[str], possible: Sequence[str]) -> None:
    if isinstance(names, str):
        raise TrainingError(f"Give the names as a tuple, such as ({names!r},), not as {names!r}.")
    for name in names:
        if name not in possible:
            raise TrainingError(unknown(what, name, possible))
    if len(set(names)) < len(names):
        raise TrainingError(f"Each {what} can be named once, not as in {tuple(names)}.")


def _check_selection(neurons: NeuronSet | None, targets: Sequence[str], attention: Sequence[str]) -> None:
    if neurons is None:
        if not attention:
            raise TrainingError("Nothing would be trained: give neurons, or attention=('q', 'k', 'v', 'o') or some.")
        return
    check_neurons(neurons)
    if neurons.site not in (*MLP_SITES, *ATTENTION_SITES):
        raise TrainingError(
            f"Neurons at {neurons.site!r} have no rows of their own to train: possible are "
            f"{', '.join((*MLP_SITES, *ATTENTION_SITES))}."
        )
    if not len(neurons):
        raise TrainingError("The neuron set is empty: for attention only give neurons=None.")
    possible = MLP_TARGETS if neurons.site in MLP_SITES else (neurons.site,)
    if not targets:
        raise TrainingError(f"Name at least one of {', '.join(possible)} as targets.")
    if odd := [target for target in targets if target not in possible]:
        raise TrainingError(
            f"Units at {neurons.site!r} have rows or columns in {', '.join(possible)}, and none in {odd[0]!r}: name "
            "what is trained at them as targets (projections)."
        )
    if both := [target for target in targets if target in attention]:
        raise TrainingError(f"{both[0]!r} is trained at the units chosen, so it cannot be trained as a whole, too.")


def _check_fits(neurons: NeuronSet, model_view: ModelView) -> None:
    fits = (model_view.n_layers, model_view.width(neurons.site))
    if neurons.shape != fits:
        raise TrainingError(
            f"The neurons are of a model of {neurons.shape[0]} layers x {neurons.shape[1]}; {model_view.name!r} has "
            f"{fits[0]} x {fits[1]}."
        )
    if neurons.model and not model_view.weights.is_of(neurons.model):
        raise SiteMismatchError(
            f"The neurons belong to model {neurons.model[:8]}, but {model_view.name!r} is "
            f"{model_view.fingerprint[:8]}: record and identify with this model."
        )
