"""Dictionaries of features as sites: adding and removing them.

A sparse autoencoder or a transcoder with ``encode`` and ``decode`` becomes a site of the model. Then features are
recorded, identified, patched and ablated as neurons are.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import torch
from jaxtyping import Float
from torch import nn

from langneurons import storage
from langneurons.errors import HookSiteError, ModelError, StorageError, unknown
from langneurons.models.feature_sites import MLP_INPUT, Dictionary, FeatureSite, PlacedDictionary, hook_point
from langneurons.models.model_view import view
from langneurons.models.sites import SITES

_HOOK = re.compile(r"blocks\.(\d+)\.")


def add_dictionary(
    model: torch.nn.Module,
    dictionaries: object,
    name: str = "features",
    at: str | None = None,
    reads: str | None = None,
) -> FeatureSite:
    """Make the features of a sparse autoencoder or transcoder a site of the model, until it is removed.

    The features are what ``encode`` gives; written, they change the hook point's tensor by decode(new) - decode(old),
    so the reconstruction error stays in the model (Marks et al. 2024, arXiv 2403.19647) and the model computes what it
    always did where no feature is changed. A site has one layer per dictionary, in the order of the model's layers:
    ``(1, 17)`` of a site with dictionaries at the layers 3 and 5 is feature 17 of the one at layer 5.

    Args:
        model: A model returned by ``load_model``.
        dictionaries: Objects with ``encode`` and ``decode``, by layer, all with the same number of features; or one
            object that knows its place, as SAELens' do (``cfg.metadata.hook_name``).
        name: The site's name.
        at: The hook point in a layer that decoded features are a part of: "resid_post", "mlp_out", "attn_out",
            "attn.hook_z", ... By default where the dictionary says that it belongs.
        reads: The hook point that is encoded, if it is another one (a transcoder's): "mlp_input" is what the MLP reads.

    Returns:
        The site: which layer is which, and how many features it has.

    Raises:
        HookSiteError: If the place is unknown, or a dictionary does not fit there.

    Example:
        >>> from langneurons.models import add_dictionary, remove_dictionary
        >>> class Halves:
        ...     encode = staticmethod(lambda x: torch.cat([x, -x], -1).relu())
        ...     decode = staticmethod(lambda features: features[..., :160] - features[..., 160:])
        >>> add_dictionary(model, {3: Halves()}, at="resid_post")
        Site 'features': 320 features at resid_post; its layer 0 is layer 3 of the model
        >>> remove_dictionary(model)
    """
    if not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        raise HookSiteError(f"A site's name is made of letters, digits, '_', '-' and '.', unlike {name!r}.")
    model_view = view(model)
    if name in (*SITES, *model_view.sites):
        raise HookSiteError(f"{model_view.name!r} has a site {name!r} already: give another name=, or remove it.")
    by_layer = _by_layer(dictionaries)
    if at is None:
        own_reads, at = _place_they_name(by_layer)
        reads = reads or own_reads
    at, reads = _in_block(at), _in_block(reads or at)
    if at == MLP_INPUT or (at == "resid_mid" and model_view.backend == "bridge"):
        raise HookSiteError(f"What stands at {at!r} can only be read here: give a place that the layer writes as at=.")
    placed = []
    for index, dictionary in by_layer.items():
        layer, block = model_view.layer(index), model_view.model.blocks[index]
        writes = hook_point(block, at)
        placed.append(PlacedDictionary(dictionary, layer, writes if reads == at else hook_point(block, reads), writes))
    site, tokens = FeatureSite(name, at, reads, tuple(placed)), torch.arange(min(4, model_view.context_length))[None]
    with torch.no_grad():
        site.check(lambda: model_view.forward(tokens, logits=False))
    model_view.feature_sites[name] = site
    return site


def remove_dictionary(model: torch.nn.Module, name: str = "features") -> None:
    """Remove a site that ``add_dictionary`` made; what was recorded there stays readable.

    Args:
        model: The model.
        name: The site's name.

    Raises:
        HookSiteError: If there is no such site of features.
    """
    sites = view(model).feature_sites
    if name not in sites:
        raise HookSiteError(unknown("site of features", name, sites))
    del sites[name]


def _hook_names(dictionary: object) -> tuple[str | None, str | None]:
    """The hook points that SAELens' objects say they were trained on: where they read, and where they write."""
    cfg = getattr(dictionary, "cfg", None)
    about = getattr(cfg, "metadata", None) or cfg  # SAELens 6, and before
    reads = getattr(about, "hook_name", None)
    return reads, getattr(about, "hook_name_out", None) or reads


def _by_layer(dictionaries: object) -> dict[int, Dictionary]:
    """The dictionaries by layer, in order; one that is given alone names its layer itself."""
    if not isinstance(dictionaries, Mapping):
        if (hook := _HOOK.match(_hook_names(dictionaries)[1] or "")) is None:
            raise HookSiteError(
                f"This {type(dictionaries).__name__} does not say at which layer it belongs (in "
                "cfg.metadata.hook_name): give {layer: dictionary} and at=."
            )
        dictionaries = {int(hook[1]): dictionaries}
    if not dictionaries:
        raise HookSiteError("No dictionary was given: give {layer: dictionary}.")
    for layer, dictionary in dictionaries.items():
        if not isinstance(layer, int):
            raise HookSiteError(f"Dictionaries are given by the number of their layer, not by {layer!r}.")
        if not isinstance(dictionary, Dictionary):
            raise HookSiteError(f"A dictionary has encode and decode; a {type(dictionary).__name__} does not.")
    return dict(sorted(dictionaries.items()))


def _place_they_name(by_layer: Mapping[int, Dictionary]) -> tuple[str, str]:
    """Where dictionaries read and write, which must be the same place at every layer."""
    places = set()
    for layer, dictionary in by_layer.items():
        reads, at = _hook_names(dictionary)
        if reads is None or at is None:
            raise HookSiteError(f"The dictionary of layer {layer} does not say where it belongs: give at=.")
        if (hook := _HOOK.match(at)) is not None and int(hook[1]) != layer:
            raise HookSiteError(f"The dictionary given for layer {layer} says that it belongs at {at}.")
        places.add((_in_block(reads), _in_block(at)))
    if len(places) != 1:
        raise HookSiteError(f"Dictionaries of one site have one place; these say {sorted(places)}.")
    return places.pop()


def _in_block(name: str) -> str:
    """A hook point's name inside its layer, as short as it can be."""
    return _HOOK.sub("", name).removeprefix("hook_")


SCHEMA = "langneurons/sparse-dictionary/1"
ARCHITECTURES = ("standard", "topk", "jumprelu")
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SAELENS_FORMAT = "6.0.0"  # a file without a version is an older one to SAELens, which then leaves its metadata out
_MUST_BE = {"normalize_activations": "none", "rescale_acts_by_decoder_norm": False, "reshape_activations": "none"}
_SETTINGS = {"d_in", "d_sae", "architecture", "k", "apply_b_dec_to_input", "metadata", "dtype", *_MUST_BE}
_WITHOUT_EFFECT = {"device", "schema", "seal", "checksum"}
# What cfg.json of SAELens before 6 says about an autoencoder's origin.
_ORIGIN = {
    "model_name", "model_class_name", "hook_name", "hook_point", "hook_layer", "hook_point_layer", "hook_head_index",
    "hook_point_head_index", "context_size", "prepend_bos", "dataset_path", "dataset_trust_remote_code",
    "sae_lens_training_version", "sae_lens_version", "neuronpedia_id", "model_from_pretrained_kwargs",
    "exclude_special_tokens", "seqpos_slice", "hf_hook_name",
}  # fmt: skip
_ACTIVATION = {"activation_fn_str", "activation_fn", "activation_fn_kwargs", "finetuning_scaling_factor"}
_DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class SparseDictionaryConfig:
    """A sparse dictionary's settings, in SAELens' words.

    Attributes:
        d_in: Width of what it reads and gives back.
        d_sae: Number of features.
        architecture: ``"standard"``, ``"topk"`` or ``"jumprelu"``.
        hook_name: Where it belongs, such as ``"blocks.4.hook_resid_post"``.
        k: Features that may be active on a token, for ``topk``.
        apply_b_dec_to_input: Whether the decoder's bias is subtracted from the input.
    """

    d_in: int
    d_sae: int
    architecture: str
    hook_name: str | None = None
    k: int | None = None
    apply_b_dec_to_input: bool = True


class SparseDictionary(nn.Module):
    """A sparse autoencoder: few of many features are active on a token, and together they say what stands there.

    Args:
        cfg: Its settings.

    Example:
        >>> from langneurons.models.dictionaries import SparseDictionary, SparseDictionaryConfig
        >>> cfg = SparseDictionaryConfig(d_in=8, d_sae=32, architecture="topk", k=4)
        >>> features = SparseDictionary(cfg).encode(torch.randn(2, 5, 8))
        >>> features.shape, int((features > 0).sum(-1).max()) <= 4
        (torch.Size([2, 5, 32]), True)
    """

    def __init__(self, cfg: SparseDictionaryConfig) -> None:
        super().__init__()
        if cfg.architecture not in ARCHITECTURES:
            raise ModelError(unknown("architecture of a dictionary", cfg.architecture, ARCHITECTURES))
        if cfg.architecture == "topk" and not (cfg.k and 1 <= cfg.k <= cfg.d_sae):
            raise ModelError(f"A topk dictionary of {cfg.d_sae} features needs k from 1 to as many, not {cfg.k}.")
        if cfg.architecture != "topk" and cfg.k is not None:
            raise ModelError(f"Only a topk dictionary has k; this one is {cfg.architecture} with k={cfg.k}.")
        self.cfg = cfg
        directions = nn.functional.normalize(torch.randn(cfg.d_sae, cfg.d_in), dim=1)
        self.W_enc = nn.Parameter(directions.T.clone().contiguous())
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.W_dec = nn.Parameter(directions)
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))
        if cfg.architecture == "jumprelu":
            self.threshold = nn.Parameter(torch.zeros(cfg.d_sae))

    def preactivation(self, x: Float[torch.Tensor, "*token d_in"]) -> Float[torch.Tensor, "*token feature"]:
        """Compute how strongly each feature is called for, before any is silenced."""
        centred = x - self.b_dec if self.cfg.apply_b_dec_to_input else x
        return centred @ self.W_enc + self.b_enc

    def encode(self, x: Float[torch.Tensor, "*token d_in"]) -> Float[torch.Tensor, "*token feature"]:
        """Compute the features of what stands at the hook point; none is negative."""
        wanted = self.preactivation(x)
        features = wanted.relu()
        if self.cfg.architecture == "jumprelu":
            return features * (wanted > self.threshold)
        if self.cfg.k is None:
            return features
        strongest = features.topk(self.cfg.k, dim=-1)
        return torch.zeros_like(features).scatter(-1, strongest.indices, strongest.values)

    def decode(self, feature_acts: Float[torch.Tensor, "*token feature"]) -> Float[torch.Tensor, "*token d_in"]:
        """Compute what features stand for."""
        return feature_acts @ self.W_dec + self.b_dec

    def save(self, folder: str | Path) -> Path:
        """Write weights and configuration as SAELens does (its ``SAE.load_from_disk`` reads them).

        Returns:
            The folder.
        """
        folder, about = Path(folder), asdict(self.cfg)
        about["metadata"] = {"hook_name": about.pop("hook_name"), "sae_lens_version": SAELENS_FORMAT}
        about = {name: value for name, value in about.items() if value is not None}
        weights = {name: weight.detach() for name, weight in self.state_dict().items()}
        checksum = storage.write_tensors(folder / WEIGHTS, weights)
        content = {**_MUST_BE, **about, "dtype": str(self.W_enc.dtype).removeprefix("torch."), "device": "cpu"}
        storage.write_json(folder / CONFIG, SCHEMA, {**content, "checksum": checksum})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "SparseDictionary":
        """Read a dictionary that ``save`` or SAELens wrote.

        Args:
            folder: The folder that holds ``cfg.json`` and ``sae_weights.safetensors``.

        Raises:
            StorageError: If a file is missing or unreadable.
            ModelError: If the dictionary is of a kind that this class cannot compute.
        """
        folder = Path(folder)
        about = _read_config(folder / CONFIG)
        weights = storage.read_tensors(folder / WEIGHTS, about.get("checksum"), foreign=True)
        options = {name: about[name] for name in ("d_in", "d_sae", "k", "apply_b_dec_to_input") if name in about}
        with storage.understood(folder / CONFIG), torch.device("meta"):
            place = (about.get("metadata") or {}).get("hook_name")
            dtype = getattr(torch, str(about.get("dtype", "float32")).removeprefix("torch."))
            cfg = SparseDictionaryConfig(**options, architecture=about["architecture"], hook_name=place)
            dictionary = cls(cfg).requires_grad_(False).to(dtype)
        expected = {name: tuple(weight.shape) for name, weight in dictionary.state_dict().items()}
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        if expected != shapes or not all(map(torch.is_floating_point, weights.values())):
            raise ModelError(f"{folder} holds weights {_listed(shapes)}; its configuration asks for {expected}.")
        dictionary.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
        return dictionary.requires_grad_(False)


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f"{shapes}" if len(shapes) <= 8 else f"{dict(list(shapes.items())[:8])} and {len(shapes) - 8} more"


def _read_config(path: Path) -> storage.JsonObject:
    """The settings of a dictionary in SAELens 6's words, each of which is computed here or without effect."""
    about = storage.read_object(path)
    with storage.understood(path):
        older = "schema" not in about and _before_six(about)
    if older:
        about = _as_saelens_reads(about, path)
    if unknown_names := sorted(about.keys() - _SETTINGS - _WITHOUT_EFFECT):
        raise _needs_saelens(path, unknown_names[0], about[unknown_names[0]])
    for name, value in _MUST_BE.items():
        if about.get(name, value) != value:
            raise _needs_saelens(path, name, about[name])
    if missing := {"d_in", "d_sae", "architecture"} - set(about):
        raise StorageError(f"{path} does not describe a dictionary: it lacks {', '.join(sorted(missing))}.")
    for name in ("d_in", "d_sae", "k"):
        size = about.get(name, 1)
        if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and name != "k"):
            raise StorageError(f"{path} does not describe a dictionary: {name} is {size!r:.40}.")
    if not isinstance(centred := about.get("apply_b_dec_to_input", True), bool):
        raise StorageError(f"{path} does not describe a dictionary: apply_b_dec_to_input is {centred!r:.40}.")
    if not isinstance(dtype := about.get("dtype", "float32"), str) or dtype.removeprefix("torch.") not in _DTYPES:
        raise StorageError(f"{path} does not describe a dictionary: dtype is {dtype!r:.40}.")
    return about


def _before_six(about: storage.JsonObject) -> bool:
    """Whether a configuration is older than SAELens 6, in which an architecture says everything."""
    metadata = about.get("metadata")
    version = about.get("sae_lens_version") or (metadata.get("sae_lens_version") if isinstance(metadata, dict) else "")
    return int(str(version or 0).partition(".")[0]) < 6


def _as_saelens_reads(about: storage.JsonObject, path: Path) -> storage.JsonObject:
    """An older configuration in the words of SAELens 6, by SAELens' own rules."""
    if unknown_names := sorted(about.keys() - _SETTINGS - _WITHOUT_EFFECT - _ORIGIN - _ACTIVATION):
        raise _needs_saelens(path, unknown_names[0], about[unknown_names[0]])
    if about.get("finetuning_scaling_factor"):
        raise _needs_saelens(path, "finetuning_scaling_factor", True)
    try:
        loaders = import_module("sae_lens.loading.pretrained_sae_loaders")
    except ImportError as error:
        raise ModelError(
            f"{path} is in the format of SAELens before 6, whose rules say what it means: pip install "
            "'langneurons[sae]'."
        ) from error
    activation = about.get("activation_fn_str", about.get("activation_fn", "relu"))
    with storage.understood(path):
        settings = loaders.handle_config_defaulting(about)
        kwargs = set(about.get("activation_fn_kwargs") or {})
    plain = activation == "relu" and not kwargs
    if not plain and not (activation == settings["architecture"] == "topk" and kwargs == {"k"}):
        raise _needs_saelens(path, "activation_fn", f"{activation} with {', '.join(sorted(kwargs)) or 'no options'}")
    return settings


def _needs_saelens(path: Path, name: str, value: object) -> ModelError:
    return ModelError(
        f"A dictionary with {name}={value!r:.60} ({path}) needs SAELens (pip install 'langneurons[sae]'): load it "
        "there and give it to ln.models.add_dictionary."
    )
