"""A sparse autoencoder in SAELens' file format, read and written without SAELens.

Three architectures: ``standard`` (ReLU), ``topk`` (Gao et al. 2024, arXiv 2406.04093) and ``jumprelu`` (Rajamanoharan
et al. 2024, arXiv 2407.14435).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import nn

from langneurons import storage
from langneurons.errors import ModelError, StorageError, unknown

SCHEMA = "langneurons/sparse-dictionary/1"
ARCHITECTURES = ("standard", "topk", "jumprelu")
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SAELENS_FORMAT = "6.0.0"  # a file without a version is an older one to SAELens, which then leaves its metadata out
_MUST_BE = {"normalize_activations": "none", "rescale_acts_by_decoder_norm": False, "reshape_activations": "none"}


@dataclass(frozen=True)
class SparseDictionaryConfig:
    """What a sparse dictionary is, in SAELens' words.

    Attributes:
        d_in: Width of what it reads and gives back.
        d_sae: How many features it has.
        architecture: ``"standard"``, ``"topk"`` or ``"jumprelu"``.
        hook_name: Where it belongs, such as ``"blocks.4.hook_resid_post"``.
        k: At ``topk``, how many features may be active on a token.
        apply_b_dec_to_input: Whether the decoder's bias is taken from what is read.
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
        cfg: What it is.

    Example:
        >>> from langneurons.models.sparse_dictionary import SparseDictionary, SparseDictionaryConfig
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
        kept = {name: value for name, value in about.items() if value is not None}
        weights = {name: weight.detach() for name, weight in self.state_dict().items()}
        checksum = storage.write_tensors(folder / WEIGHTS, weights)
        content = {**_MUST_BE, **kept, "dtype": str(self.W_enc.dtype).removeprefix("torch."), "device": "cpu"}
        storage.write_json(folder / CONFIG, SCHEMA, {**content, "checksum": checksum})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "SparseDictionary":
        """Read a dictionary that ``save`` or SAELens wrote.

        Args:
            folder: Holds ``cfg.json`` and ``sae_weights.safetensors``.

        Raises:
            StorageError: If a file is missing or unreadable.
            ModelError: If the dictionary is of a kind that this class does not compute.
        """
        folder = Path(folder)
        about = _read_config(folder / CONFIG)
        weights = storage.read_tensors(folder / WEIGHTS, about.get("checksum"), foreign=True)
        for name, value in _MUST_BE.items():
            if about.get(name, value) != value:
                raise ModelError(
                    f"A dictionary with {name}={about[name]!r} needs SAELens (pip install 'langneurons[sae]'): load it "
                    "there and give it to ln.add_dictionary."
                )
        known = {name: about[name] for name in ("d_in", "d_sae", "k", "apply_b_dec_to_input") if name in about}
        with storage.understood(folder / CONFIG), torch.device("meta"):
            place = (about.get("metadata") or about).get("hook_name")
            made = cls(SparseDictionaryConfig(**known, architecture=about["architecture"], hook_name=place))
        expected = {name: tuple(weight.shape) for name, weight in made.state_dict().items()}
        found = {name: tuple(weight.shape) for name, weight in weights.items() if weight.is_floating_point()}
        if expected != found:
            raise ModelError(f"{folder} holds weights {found}; its configuration asks for {expected}.")
        made.requires_grad_(False).load_state_dict(weights, assign=True)
        return made.requires_grad_(False)


def _read_config(path: Path) -> dict[str, Any]:
    about = storage.read_object(path)
    if missing := {"d_in", "d_sae", "architecture"} - set(about):
        raise StorageError(f"{path} is no configuration of a dictionary: it lacks {', '.join(sorted(missing))}.")
    for name in ("d_in", "d_sae"):
        if not isinstance(about[name], int) or about[name] < 1:
            raise StorageError(f"{path} is no configuration of a dictionary: {name} is {about[name]!r}.")
    return about
