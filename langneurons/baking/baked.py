"""bake(): an ordinary checkpoint that computes what a patched and trained model does; written, reloaded, compared."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers  # PreTrainedModel is named in quotes, because its module takes seconds to import

import langneurons
from langneurons import storage
from langneurons.baking.card import card_of
from langneurons.baking.checkpoint import Checkpoint, add_biases
from langneurons.baking.folding import Folding, Linear
from langneurons.errors import ModelError, PatchError, TrainingError, check_kind, counted
from langneurons.models import ModelView, rows_of, view
from langneurons.models.checkpoints import load_config, load_weights, reading, standalone_tokenizer
from langneurons.models.gguf import stored_as
from langneurons.models.probing import probe_of
from langneurons.models.projections import Stored
from langneurons.models.weights import module_fingerprint
from langneurons.patches import Patch
from langneurons.patches.intervening import check_fits, patching
from langneurons.storage.hub import push_folder
from langneurons.training.lora import Update
from langneurons.training.masked import MaskedUpdate
from langneurons.training.pieces import Piece


def bake(
    model: torch.nn.Module, patches: Patch | Iterable[Patch] = (), updates: Update | Iterable[Update] = ()
) -> "Baked":
    """Make an ordinary checkpoint of a patched and trained model, which every engine runs without langneurons.

    Updates are merged in the order given, and patches act on what they give, in the order in which ``intervene`` writes
    them. What no weight can do is refused here, before anything is written. A classification head is no part of it.

    Args:
        model: A model returned by ``load_model``, by name or from a folder; it is not changed.
        patches: Patches to write into the weights: SetTo, Scale, Add and DiffMean, at all positions.
        updates: Trained updates to merge: MaskedLoRA, MaskedRows and MaskedIA3, such as ``tuned.updates``.

    Returns:
        What will be written; ``save`` writes it.

    Raises:
        PatchError: If a patch does not fit the model, or does what no weight can.
        TrainingError: If an update is of another kind or model, or is merged or attached already.
        ModelError: If the model was given in memory, or is quantised.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> ln.bake(model, [ln.SetTo(neurons["hi"], 0.0), ln.Scale(neurons["en"], 0.5)])
        Baked(babel: 2 patches, 0 updates)
    """
    model_view = view(model)
    patches = tuple(patches) if isinstance(patches, Iterable) else (patches,)
    merged = tuple(map(_mergeable, updates if isinstance(updates, Iterable) else [updates]))
    if not patches and not merged:
        raise PatchError("There is nothing to bake: give patches or updates.")
    for patch in patches:
        check_kind(patch, Patch, "A patch is a SetTo, Add, Scale or DiffMean", PatchError)
        check_fits(patch, model_view)
    checkpoint = Checkpoint.of(model_view)
    folding = Folding(patches, model_view)
    modules = {model_view.projection(layer, target).hugging_face.name for layer, target in folding.biases}
    baked = Baked(model_view, patches, merged, checkpoint, folding, tuple(checkpoint.biased(modules)))
    with baked.running():  # what does not fit the model is refused
        return baked


def _mergeable(update: Update) -> MaskedUpdate:
    if not isinstance(update, MaskedUpdate):
        raise TrainingError(
            f"Updates that can be baked are MaskedLoRA, MaskedRows and MaskedIA3, not {type(update).__name__}: merge "
            "it into the Hugging Face model, save that, and load it from its folder."
        )
    return update


@dataclass(frozen=True, eq=False, repr=False)
class Baked:
    """A checkpoint to be written; ``bake`` makes it.

    Attributes:
        model_view: The model.
        patches: The patches that are written into its weights.
        updates: The updates that are merged.
        checkpoint: The checkpoint that the model was loaded from.
        folding: What the patches make of the weights.
        options: Options of the configuration that are turned on, because constants need biases.
    """

    model_view: ModelView
    patches: tuple[Patch, ...]
    updates: tuple[MaskedUpdate, ...]
    checkpoint: Checkpoint
    folding: Folding
    options: tuple[str, ...]

    def __repr__(self) -> str:
        parts = f"{counted(len(self.patches), 'patch')}, {counted(len(self.updates), 'update')}"
        return f"Baked({self.checkpoint.name}: {parts})"

    def save(self, folder: str | Path) -> Path:
        """Write the checkpoint as an ordinary Hugging Face folder: weights, configuration, tokenizer, README.

        Weights are computed in float64, and stored in the dtype that the model was loaded in. Before the folder
        appears, plain transformers loads it, and its logits are compared with the patched and updated model's. They may
        differ by 1e-5 standard deviations, or by what four rounding steps of embeddings and changed projections do
        where that is more (large updates, 16-bit weights).

        Args:
            folder: The folder; it must not exist.

        Returns:
            The folder.

        Raises:
            StorageError: If the folder exists or cannot be written.
            ModelError: If the checkpoint cannot be loaded again, or computes other logits. Nothing is left behind.
        """
        folder = storage.path_of(folder)
        self._save(folder, folder.name)
        return folder

    def push_to_hub(self, repo: str, *, private: bool = True) -> str:
        """Upload the checkpoint to a repository on Hugging Face's hub, which any engine loads by its name.

        It is written and checked as ``save`` does, into a temporary folder. Log in before, with ``hf auth login`` or
        the variable ``HF_TOKEN``.

        Args:
            repo: The repository, ``user/name``; it is created where it is missing. Files of the same names go.
            private: Whether a repository that is created is private.

        Returns:
            The commit, for ``ln.load_model(repo, revision=...)``.

        Raises:
            StorageError: If the hub cannot be reached, or refuses; if the name is none.
            ModelError: If the checkpoint cannot be loaded again, or computes other logits.
        """
        with storage.temporary_folder() as place:
            self._save(place / "checkpoint", repo)
            return push_folder(place / "checkpoint", repo, private)

    def _save(self, folder: Path, name: str) -> None:
        with storage.replacing_folder(folder) as partial:
            self._write(partial)
            facts = self._reloaded(partial)
            changes = {"Updates": [repr(update) for update in self.updates], "Patches": list(map(repr, self.patches))}
            storage.write_text(partial / "README.md", card_of(self.checkpoint, name, changes, facts))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the model compute, inside the block, what the checkpoint will.

        Raises:
            PatchError: If something is attached to the model already.
            TrainingError: If an update was made for another model, or is merged.
        """
        if self.model_view.hooked:
            raise PatchError(
                f"Something is attached to {self.model_view.name!r} at this moment: leave the block, and give its "
                "patches and updates to bake."
            )
        with ExitStack() as stack:
            for update in self.updates:
                stack.enter_context(update.attach(self.model_view.model))
            stack.enter_context(patching(self.model_view, self.patches))
            yield

    @property
    def _pieces(self) -> dict[tuple[int, str], list[Piece]]:
        """Layers and projections whose weights change, and the updates' pieces of each: none where only patches do."""
        pieces: dict[tuple[int, str], list[Piece]] = {place: [] for place in self.folding.targets}
        for piece in [piece for update in self.updates for piece in update.pieces]:
            pieces.setdefault((piece.layer, piece.target), []).append(piece)
        return pieces

    def _write(self, folder: Path) -> None:
        hf_model = self.checkpoint.load(self.model_view)
        add_biases(hf_model, self.options)
        for (layer, target), pieces in self._pieces.items():
            self._change(hf_model, layer, target, pieces)
        with reading(folder, "weights"):
            hf_model.save_pretrained(folder)
        if self.model_view.tokenizer is not None:
            standalone_tokenizer(self.model_view.tokenizer).save_pretrained(folder)

    @torch.no_grad()
    def _change(self, hf_model: "transformers.PreTrainedModel", layer: int, target: str, pieces: list[Piece]) -> None:
        """Merge updates into a projection of the plain model, then patches."""
        place = self.model_view.projection(layer, target).hugging_face
        module = hf_model.get_submodule(place.name)
        rows = None if place.runs == ((0, place.size),) else rows_of(place.runs)
        weight = Stored(module.get_parameter("weight"), "d_in d_out" if place.transposed else "d_out d_in", rows)
        bias = None if module.bias is None else Stored(module.get_parameter("bias"), rows=rows)
        linear = own = Linear(weight.read().double(), None if bias is None else bias.read().double())
        for piece in pieces:
            linear = Linear(*piece.merged(linear.matrix, linear.bias, own.matrix))
        linear = self.folding.folded(layer, target, linear)
        weight.write(linear.matrix)
        if bias is not None and linear.bias is not None:
            bias.write(linear.bias)

    @torch.no_grad()
    def _reloaded(self, folder: Path) -> dict[str, object]:
        """Load what was written in plain transformers, compare its logits with the running model's, and say facts."""
        name, dtype, origin = self.checkpoint.name, self.model_view.dtype, self.model_view.loaded_as
        spread = origin is not None and origin["device_map"] is not None
        device = torch.device("cpu") if spread else self.model_view.device
        hf_model = load_weights(folder, load_config(folder), dtype, device, None)
        merged = {self.model_view.projection(*place).hugging_face.name for place in self._pieces}
        probe = probe_of(hf_model, name, merged)
        with self.running():
            logits = self.model_view.forward(probe.tokens)
        assert logits is not None
        difference = float((logits.to(device).float() - probe.logits.float()).abs().max())
        if not difference <= probe.tolerance:
            raise ModelError(
                f"The weights baked from {name!r} compute other logits than the patched model: they differ by "
                f"{difference:.2g}, and rounding explains {probe.tolerance:.2g}, so nothing was written. Load the "
                "model with dtype='float32' if it was not, and report this as a bug if it was."
            )
        allowed = f"{probe.tolerance:.2g} allowed"
        return {
            "Weights of the base model": stored_as(self.checkpoint.folder) or None,
            "Fingerprint of the base weights": self.model_view.fingerprint,
            "Fingerprint of these weights": module_fingerprint(hf_model),
            "Options of the configuration that were turned on": ", ".join(self.options) or None,
            "Largest difference of a logit from the model in langneurons": f"{difference:.2g} ({allowed})",
            "Written by": f"langneurons {langneurons.__version__}",
        }
