"""LoRA as peft stores it: ``adapter_config.json`` and ``adapter_model.safetensors``, full-size, zero where not trained.

Projections that the Hugging Face model fuses in one module become one adapter with a block for each: A stacked, B
block-diagonal, ranks and alphas summed, which is exact.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from langneurons import storage
from langneurons.errors import CorruptArtefactError, StorageError, TrainingError, in_short
from langneurons.identification.neurons import NeuronSet
from langneurons.models import ModelView, Projection
from langneurons.models.projections import ATTENTION_TARGETS, MLP_TARGETS, HuggingFaceModule, rows_of
from langneurons.training.pieces import Form, LowRank, Piece

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_READ = {
    "peft_type", "bias", "init_lora_weights", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
}  # fmt: skip
# What concerns training, first values or other modules, and changes nothing that A and B of a projection compute.
_WITHOUT_EFFECT = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "fan_in_fan_out", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
_OF_OLD_PEFT = {"enable_lora": None, "merge_weights": False}  # adapters of 2023 still hold them
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")  # others change the base weights


@dataclass(frozen=True)
class FullSize:
    """A and B of one module of the Hugging Face model, and what scales their product."""

    A: Tensor
    B: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(self.A)


def write(folder: Path, pieces: Sequence[Piece]) -> dict[str, str]:
    """Write LoRA such that plain peft loads it onto the plain Hugging Face model.

    Args:
        folder: The folder.
        pieces: Trained parts of projections, each of form LowRank.

    Returns:
        The checksum of each file.
    """
    by_module: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        by_module[piece.module.name].append(piece)
    full = {name: _full_size(fused) for name, fused in by_module.items()}
    tensors = {}
    for name, module in full.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = module.A
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = module.B
    checksum = storage.write_tensors(folder / WEIGHTS, tensors)
    transposed = any(piece.module.transposed for piece in pieces)
    storage.write_text(folder / CONFIG, json.dumps(_config(full, transposed), indent=1, sort_keys=True) + "\n")
    return {WEIGHTS: checksum, CONFIG: storage.checksum(folder / CONFIG)}


def _full_size(pieces: Sequence[Piece]) -> FullSize:
    alpha = 0
    A, columns = [], []
    for piece in pieces:
        assert isinstance(piece.form, LowRank)
        piece_A, piece_B = _unmasked(piece)
        column = torch.zeros(piece.module.size, piece.form.rank, dtype=piece_B.dtype)
        columns.append(column.index_copy(0, rows_of(piece.module.runs), piece_B))
        A.append(piece_A)
        alpha += piece.form.alpha
    return FullSize(torch.cat(A), torch.cat(columns, dim=1), alpha)


def _unmasked(piece: Piece) -> tuple[Tensor, Tensor]:
    """A and B with zeros for the neurons that are not trained."""
    A, B = (piece.parameters[name].detach().cpu() for name in ("lora_A", "lora_B"))
    if piece.units is None:
        return A, B
    units, (outputs, inputs) = piece.units.cpu(), piece.shape
    if piece.axis == 0:
        return A, torch.zeros(outputs, B.shape[1], dtype=B.dtype).index_copy(0, units, B)
    return torch.zeros(A.shape[0], inputs, dtype=A.dtype).index_copy(1, units, A), B


def _config(full: Mapping[str, FullSize], transposed: bool) -> storage.JsonObject:
    smallest = min(full.values(), key=lambda module: module.rank)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": smallest.rank,
        "lora_alpha": smallest.alpha,
        "rank_pattern": {name: module.rank for name, module in full.items() if module.rank != smallest.rank},
        "alpha_pattern": {name: module.alpha for name, module in full.items() if module.alpha != smallest.alpha},
        "target_modules": sorted(full),
        "fan_in_fan_out": transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def read(folder: Path, model_view: ModelView) -> tuple[NeuronSet | None, list[Piece]]:
    """Read an adapter that peft wrote, for the projections of a model.

    Args:
        folder: The folder with both files.
        model_view: The model.

    Returns:
        The neurons with a row (of down: a column) that is not zero, or all where nothing was trained yet; the pieces.

    Raises:
        TrainingError: If the adapter is of another kind, or its keys or shapes are not the model's.
    """
    full = _read_modules(folder)
    own = _projections_by_module(model_view)
    if unknown_names := sorted(full.keys() - own.keys()):
        names = ", ".join(unknown_names[:3])
        raise TrainingError(f"{folder} has keys that fit nothing in {model_view.name!r}: {names}.")
    blocks = [(projection, _block(module, projection)) for name, module in full.items() for projection in own[name]]
    # Beside modules that were trained, one whose B is zero does nothing and may be left out.
    begun = any(bool(module.B.any()) for module in full.values())
    blocks = [(projection, block) for projection, block in blocks if not begun or bool(block.B.any())]
    neurons = _neurons(model_view, [block for block in blocks if block[0].target in MLP_TARGETS])
    return neurons, [_piece(projection, block, neurons) for projection, block in blocks]


def _read_modules(folder: Path) -> dict[str, FullSize]:
    config = _read_config(folder / CONFIG)
    tensors = storage.read_tensors(folder / WEIGHTS, foreign=True)
    names = sorted({key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for key in tensors})
    expected = {f"{_PREFIX}{name}.lora_{factor}.weight" for name in names for factor in "AB"}
    if expected != tensors.keys():
        odd = sorted(expected ^ tensors.keys())
        raise TrainingError(
            f"{folder / WEIGHTS} should hold lora_A and lora_B of every module; odd: {', '.join(odd[:3])}."
        )
    for key, tensor in tensors.items():
        if tensor.ndim != 2 or not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise TrainingError(f"{key[:100]} of {folder / WEIGHTS} is no matrix of finite numbers.")
    modules = {}
    for name in names:
        A, B = (tensors[f"{_PREFIX}{name}.lora_{factor}.weight"] for factor in "AB")
        modules[name] = FullSize(A, B, _alpha(config, name, len(A), folder / CONFIG))
    if untargeted := _untargeted(config, names, folder / CONFIG):
        raise TrainingError(f"{folder} holds weights of {untargeted[0]}, but its target_modules leave that module out.")
    return modules


def _read_config(path: Path) -> storage.JsonObject:
    """The settings of an adapter, each of which is either computed here or without effect."""
    config = storage.read_object(path)
    if not {"peft_type", "lora_alpha"} <= set(config):
        raise CorruptArtefactError(f"{path} is not the configuration of a LoRA adapter.")
    kind, bias = config["peft_type"], config.get("bias", "none")
    if kind != "LORA" or bias != "none":
        raise TrainingError(
            f"{path.parent} is {str(kind):.40} with bias {bias!r:.40}: possible is LORA with bias 'none'."
        )
    peft = _peft(path)
    defaults = {field.name: field.default for field in fields(peft.LoraConfig)} | _OF_OLD_PEFT
    for name, value in config.items():
        if name in _READ | _WITHOUT_EFFECT:
            continue
        if name not in defaults:
            raise TrainingError(
                f"{path} sets {name!r:.60}, which is no setting of LoRA in the installed peft {peft.__version__}: "
                "update peft, or remove the setting if it changes nothing."
            )
        if value is not None and value != defaults[name]:
            raise TrainingError(f"{path.parent} uses {name} ({value!r:.60}), which masked LoRA does not have.")
    if (start := config.get("init_lora_weights")) not in _PLAIN_STARTS:
        raise TrainingError(f"{path.parent} was started by {start!r:.60}, which changes the model's weights, too.")
    return config


def _peft(path: Path) -> ModuleType:
    try:
        return import_module("peft")
    except ImportError as error:
        raise TrainingError(
            f"{path} was written by peft, whose rules say what its settings mean: pip install 'langneurons[peft]'."
        ) from error


@contextmanager
def _as_peft_reads(path: Path) -> Iterator[None]:
    """Turn a setting that is not of its type, or no regular expression, into a sentence."""
    try:
        with storage.understood(path):
            yield
    except re.error as error:
        raise CorruptArtefactError(
            f"{path} holds {error.pattern!r:.60}, no regular expression ({in_short(error)})."
        ) from error


def _alpha(config: storage.JsonObject, name: str, rank: int, path: Path) -> float:
    """What scales a module's product, times its rank; patterns are peft's regular expressions for ends of names."""
    get_pattern_key = import_module("peft.utils.other").get_pattern_key
    with _as_peft_reads(path):
        patterns = {setting: config.get(f"{setting}_pattern") or {} for setting in ("rank", "alpha")}
        keys = {setting: get_pattern_key(list(pattern), name) for setting, pattern in patterns.items()}
        stated_rank = patterns["rank"].get(keys["rank"], config.get("r", rank))
        alpha = patterns["alpha"].get(keys["alpha"], config["lora_alpha"])
        for value in (alpha, stated_rank):
            if isinstance(value, bool) or not isinstance(value, float | int) or not math.isfinite(value):
                raise ValueError(f"alpha or rank is not a number but {value!r:.40}")
        if not isinstance(rank_stabilised := config.get("use_rslora") or False, bool):
            raise ValueError(f"use_rslora is not true or false but {rank_stabilised!r:.40}")
    if stated_rank != rank:
        raise TrainingError(f"{path} gives {name} rank {stated_rank}, but its weights have rank {rank}.")
    return alpha * math.sqrt(rank) if rank_stabilised else alpha


def _untargeted(config: storage.JsonObject, names: Sequence[str], path: Path) -> list[str]:
    """The modules that peft would not adapt, whatever weights the file holds for them."""
    targets = config.get("target_modules")
    if targets is None or targets == "all-linear":
        return []
    is_targeted = import_module("peft.tuners.tuners_utils").check_target_module_exists
    rules = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    with _as_peft_reads(path):
        peft_config = _peft(path).LoraConfig(**{name: config[name] for name in rules if name in config})
        return [name for name in names if not is_targeted(peft_config, name)]


def _projections_by_module(model_view: ModelView) -> dict[str, list[Projection]]:
    targets = [target for target in MLP_TARGETS + ATTENTION_TARGETS if target != "up" or model_view.gated]
    projections: dict[str, list[Projection]] = defaultdict(list)
    for layer in range(model_view.n_layers):
        for target in targets:
            with suppress(TrainingError):  # one that cannot be trained is refused where an adapter has it
                projection = model_view.projection(layer, target)
                projections[projection.hugging_face.name].append(projection)
    return projections


def _block(module: FullSize, projection: Projection) -> FullSize:
    """The part of a module's adapter that belongs to one of the projections fused in it."""
    outputs, inputs = projection.shape
    name, size = projection.hugging_face.name, projection.hugging_face.size
    if module.A.shape != (module.rank, inputs) or module.B.shape != (size, module.rank):
        raise TrainingError(
            f"The adapter of {name} is {tuple(module.B.shape)} x {tuple(module.A.shape)}; the model's weight is "
            f"{size} x {inputs}."
        )
    return FullSize(module.A, module.B.index_select(0, rows_of(projection.hugging_face.runs)), module.alpha)


def _touched(projection: Projection, block: FullSize) -> Tensor:
    """The neurons that a block of gate, up or down changes; all where it changes nothing yet."""
    touched = block.A.any(dim=0) if projection.target == "down" else block.B.any(dim=1)
    return touched if bool(touched.any()) else torch.ones_like(touched)


def _neurons(model_view: ModelView, blocks: Sequence[tuple[Projection, FullSize]]) -> NeuronSet | None:
    if not blocks:
        return None
    shape = (model_view.n_layers, model_view.width("act"))
    mask = torch.zeros(shape, dtype=torch.bool)
    for projection, block in blocks:
        mask[projection.layer] |= _touched(projection, block)
    return NeuronSet.of({"adapter": mask.nonzero().tolist()}, shape, "act", model_view.fingerprint, "adapter")


def _piece(projection: Projection, block: FullSize, neurons: NeuronSet | None) -> Piece:
    units = None
    A, B = block.A.clone(), block.B
    if projection.target in MLP_TARGETS:
        assert neurons is not None
        units = neurons.per_layer()[projection.layer]
        A, B = (A.index_select(1, units), B) if projection.target == "down" else (A, B.index_select(0, units))
    form = LowRank(block.rank, block.alpha)
    parameters = {"lora_A": nn.Parameter(A), "lora_B": nn.Parameter(B)}
    return Piece(
        projection.layer, projection.target, projection.shape, units, form, projection.hugging_face, parameters
    )


SCHEMA = "langneurons/update/1"
SIDECAR, NEURONS, PARAMETERS = "langneurons.json", "neurons.json", "parameters.safetensors"


def write_update(folder: Path, about: storage.JsonObject, neurons: NeuronSet | None, pieces: Sequence[Piece]) -> None:
    """Write an update; the sidecar comes last, so a folder with one is whole.

    Args:
        folder: The folder.
        about: The kind of the class that writes it, the other arguments of that class as settings, and the fingerprint
            of the model it was made for.
        neurons: The neurons whose weights are trained.
        pieces: Its parameters.
    """
    # First, because other neurons' are refused before anything is lost.
    checksums = {} if neurons is None else {NEURONS: storage.checksum(neurons.save(folder / NEURONS))}
    (folder / SIDECAR).unlink(missing_ok=True)
    tensors = {
        f"{piece.name}.{name}": value.detach().cpu() for piece in pieces for name, value in piece.parameters.items()
    }
    checksums[PARAMETERS] = storage.write_tensors(folder / PARAMETERS, tensors)
    if all(isinstance(piece.form, LowRank) for piece in pieces):
        checksums |= write(folder, pieces)
    content = {**about, "pieces": [_described(piece) for piece in pieces], "checksums": checksums}
    storage.write_json(folder / SIDECAR, SCHEMA, content)


def read_update(folder: Path) -> tuple[storage.JsonObject, NeuronSet | None, dict[str, Tensor]]:
    """Read an update, and check every byte of it.

    Args:
        folder: Folder that it was saved to.

    Returns:
        What the sidecar says (kind, settings, model, a description of each piece), the neurons, and the parameters of
        the pieces, by name.

    Raises:
        StorageError: If there is none.
        CorruptArtefactError: If a file was changed since.
    """
    content = storage.read_json(folder / SIDECAR, SCHEMA)
    with storage.understood(folder / SIDECAR):
        for name, checksum in content["checksums"].items():
            storage.verify(folder / name, checksum)
        tensors = storage.read_tensors(folder / PARAMETERS, content["checksums"][PARAMETERS])
        neurons = NeuronSet.load(folder / NEURONS) if NEURONS in content["checksums"] else None
        return content, neurons, tensors


def piece_of(
    described: storage.JsonObject,
    neurons: NeuronSet | None,
    tensors: Mapping[str, Tensor],
    form: Callable[[str], Form],
) -> Piece:
    """Make a trained part of an update from what was read of it.

    Args:
        described: Its description in the sidecar.
        neurons: The neurons of the update.
        tensors: The parameters of all parts, by name.
        form: From a projection's name to the form of its change where that is not LoRA.
    """
    layer, target, (outputs, inputs) = described["layer"], described["target"], described["shape"]
    whole = neurons is None or (target in ATTENTION_TARGETS and target != neurons.site)
    module = {**described["module"], "runs": tuple(map(tuple, described["module"]["runs"]))}
    return Piece(
        layer,
        target,
        (outputs, inputs),
        None if whole or neurons is None else neurons.per_layer()[layer],
        LowRank(**described["low_rank"]) if described["low_rank"] else form(target),
        HuggingFaceModule(**module),
        {name: nn.Parameter(tensors[f"{layer}.{target}.{name}"]) for name in described["parameters"]},
    )


def is_ours(folder: Path) -> bool:
    """Whether a folder has the sidecar of langneurons; one without may be plain peft's.

    Raises:
        StorageError: If it has neither.
    """
    if (folder / SIDECAR).exists():
        return True
    if not (folder / CONFIG).exists():
        raise StorageError(f"{folder} holds no update: neither {SIDECAR} nor {CONFIG} is there.")
    return False


def _described(piece: Piece) -> storage.JsonObject:
    return {
        "layer": piece.layer,
        "target": piece.target,
        "shape": list(piece.shape),
        "module": asdict(piece.module),
        "low_rank": asdict(piece.form) if isinstance(piece.form, LowRank) else None,
        "parameters": sorted(piece.parameters),
    }
