"""Updates, which fine-tuning trains; MaskedLoRA, MaskedRows and MaskedIA3 train the weights of some neurons only."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from langneurons.errors import TrainingError, warn_user
from langneurons.identification.neurons import NeuronSet
from langneurons.models import view
from langneurons.models.projections import ATTENTION_TARGETS, MLP_TARGETS
from langneurons.settings import whole_number
from langneurons.storage.hub import located
from langneurons.training import peft_format
from langneurons.training.masked import MaskedUpdate
from langneurons.training.pieces import Direct, Form, LowRank, Piece, ScaledInputs, ScaledOutputs


@runtime_checkable
class Update(Protocol):
    """A change of some weights of a model, with parameters of its own; the parameters of the model are never touched.

    MaskedLoRA, MaskedRows and MaskedIA3 are updates. Parameters exist from ``prepare``, or the first ``attach``, on;
    they start such that the model computes what it did before.
    """

    @property
    def name(self) -> str:
        """The kind of update, with its settings, for tables."""
        ...

    @property
    def neurons(self) -> NeuronSet | None:
        """The neurons whose weights are trained; None where only attention is."""
        ...

    def prepare(self, model: nn.Module) -> None:
        """Create the parameters for a model; does nothing where that was done before for the same model."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained."""
        ...

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is trained, by name, such as ``"3.gate.lora_A"``: layer, projection, factor."""
        ...

    def count(self) -> int:
        """Count the trained numbers."""
        ...

    def attach(self, model: nn.Module) -> AbstractContextManager[None]:
        """Let the model compute with the update inside the block; its own parameters get no gradients there."""
        ...

    def merge(self, model: nn.Module) -> None:
        """Write the update into the model's weights."""
        ...

    def unmerge(self, model: nn.Module) -> None:
        """Give the model the weights it had before, bit for bit."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Copy the parameters' values, by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set the parameters' values.

        Raises:
            TrainingError: If names or shapes are not this update's.
        """
        ...

    def save(self, folder: str | Path) -> Path:
        """Write the update into a folder; returns the folder."""
        ...


class MaskedLoRA(MaskedUpdate):
    """LoRA on the weights of chosen neurons: dW = alpha / rank x M (B A), computed for the neurons' rows alone.

    The neurons' rows of ``gate`` and ``up`` (A "rank d_model", B "neuron rank"), their columns of ``down`` (A "rank
    neuron", B "d_model rank"), chosen rows of ``q``, ``k`` or ``v``, and whole matrices of attention. Every layer has
    the same rank, also one in which fewer neurons were chosen.

    Args:
        neurons: Neurons whose weights are trained, of all languages in the set; None trains attention only.
        rank: Rank of LoRA; lowered to the number of neurons, with a warning, where that is smaller.
        alpha: Scale of LoRA, divided by the rank.
        targets: Projections of the MLP: gate (where there is no gate: the first matrix), up, down; for coordinates at
            ``q``, ``k`` or ``v`` the matrix of that name.
        attention: Projections of attention: q, k, v, o; all of their rows.
        seed: Seed for A; a layer's projection of attention starts equal whichever neurons are trained.
        projections: Another name for ``targets``.

    Raises:
        TrainingError: If nothing would be trained.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> lora = ln.MaskedLoRA(neurons["hi"], rank=4, targets=("gate", "up", "down"))
        >>> with lora.attach(model):
        ...     model("नमस्ते", return_type="loss").backward()
        >>> all(parameter.grad is not None for parameter in lora.parameters())
        True
        >>> any(parameter.grad is not None for parameter in model.parameters())
        False
    """

    kind = "masked LoRA"

    def __init__(
        self,
        neurons: NeuronSet | None,
        rank: int = 8,
        alpha: float = 16,
        targets: Sequence[str] = ("gate",),
        attention: Sequence[str] = (),
        seed: int = 0,
        projections: Sequence[str] | None = None,
    ) -> None:
        rank = whole_number(rank, "rank", TrainingError, least=1)
        if isinstance(neurons, NeuronSet) and 0 < len(neurons) < rank:
            warn_user(f"Rank {rank} is larger than the selection of {len(neurons)} neurons and is lowered to it.")
            rank = len(neurons)
        super().__init__(neurons, targets, attention, rank, alpha, seed, projections)

    def form(self, target: str) -> Form:
        """Low rank, whatever the projection."""
        assert self.rank is not None
        return LowRank(self.rank, self.alpha)

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module | None = None) -> "MaskedLoRA":
        """Read a saved masked LoRA, or an adapter that peft wrote.

        Args:
            folder: Folder of the adapter, or ``hub:user/repo/name``. In one that peft wrote, the neurons are those with
                a row (of down: a column) that is not zero, and all of them where B is still zero.
            model: A model; if there is one, it is checked that the update was made for it. An adapter that peft wrote
                needs one.

        Raises:
            StorageError: If there is neither.
            CorruptArtefactError: If a file that langneurons wrote was changed since.
            TrainingError: If keys or shapes are not the model's, or it is of another class.
        """
        folder = located(folder)
        if peft_format.is_ours(folder):
            return super().load(folder, model)
        if model is None:
            raise TrainingError(f"{folder} was written by peft: give model=, to find what its keys stand for.")
        model_view = view(model)
        neurons, pieces = peft_format.read(folder, model_view)
        update = cls(neurons, *_settings(pieces))
        update.pieces, update._model = pieces, model_view.fingerprint
        return update


class MaskedRows(MaskedUpdate):
    """Every weight in the rows (of down: the columns) of chosen neurons, trained by itself.

    With all three projections it is the update of Gurgurov et al. 2025 (arXiv 2510.13580). Weight decay
    draws the weights to what they were before training, not to zero.

    Args:
        neurons: Neurons whose weights are trained, of all languages in the set; None trains attention only.
        targets: Projections of the MLP: gate, up, down; for coordinates at ``q``, ``k`` or ``v`` that one.
        attention: Projections of attention, trained by LoRA.
        rank: Rank of that LoRA; None trains every weight of them by itself.
        alpha: Scale of that LoRA, divided by the rank.
        seed: Seed for its first values.
        projections: Another name for ``targets``.

    Raises:
        TrainingError: If nothing would be trained.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> rows = ln.MaskedRows(neurons["hi"])
        >>> rows.prepare(model)
        >>> rows.count() == len(neurons["hi"]) * model.cfg.d_model
        True
    """

    kind = "masked rows"

    def form(self, target: str) -> Form:
        """Direct, whatever the projection."""
        return Direct()


class MaskedIA3(MaskedUpdate):
    """One factor per chosen neuron and projection, starting at 1 (IA3: Liu et al. 2022, arXiv 2205.05638).

    On ``down`` it scales the model's own columns, not what another update attached beside it adds to them.

    Args:
        neurons: Neurons whose pre-activation (gate, bias included), factor (up) or activation as down reads it (down)
            is scaled, of all languages in the set; None trains attention only.
        targets: Projections of the MLP: gate, up, down; for coordinates at ``q``, ``k`` or ``v`` that one.
        attention: Projections of attention, trained by LoRA.
        rank: Rank of that LoRA; None trains every weight of them by itself.
        alpha: Scale of that LoRA, divided by the rank.
        seed: Seed for its first values.
        projections: Another name for ``targets``.

    Raises:
        TrainingError: If nothing would be trained.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> factors = ln.MaskedIA3(neurons["hi"], targets=("gate", "down"))
        >>> factors.prepare(model)
        >>> factors.count() == 2 * len(neurons["hi"])
        True
    """

    kind = "masked IA3"

    def form(self, target: str) -> Form:
        """Factors on what gate and up give, and on what down reads."""
        return ScaledInputs() if target == "down" else ScaledOutputs()


def _settings(pieces: Sequence[Piece]) -> tuple[int, float, tuple[str, ...], tuple[str, ...]]:
    """The smallest rank of some pieces, its alpha, and what they are of."""
    form = min((piece.form for piece in pieces if isinstance(piece.form, LowRank)), key=lambda form: form.rank)
    present = {piece.target for piece in pieces}
    of_mlp = tuple(target for target in MLP_TARGETS if target in present)
    return form.rank, form.alpha, of_mlp, tuple(target for target in ATTENTION_TARGETS if target in present)
