"""Dictionaries for tests: random ones, some with the habits of SAELens', and its way of saying where they belong."""

from types import SimpleNamespace

import torch
from torch import nn


class RandomDictionary(nn.Module):
    """encode and decode, and nothing else."""

    def __init__(self, d_in: int = 32, features: int = 64, d_out: int | None = None, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.encoder = nn.Parameter(torch.randn(d_in, features, generator=generator) / d_in**0.5)
        self.bias = nn.Parameter(0.3 * torch.randn(features, generator=generator))
        self.decoder = nn.Parameter(torch.randn(features, d_out or d_in, generator=generator) / features**0.5)
        self.offset = nn.Parameter(torch.randn(d_out or d_in, generator=generator))

    def encode(self, x):
        return (x @ self.encoder + self.bias).relu()

    def decode(self, feature_acts):
        return feature_acts @ self.decoder + self.offset


class NormalisingDictionary(RandomDictionary):
    """Keeps its input's scale until decode, and forgets it there, as SAELens with normalize_activations does."""

    def encode(self, x):
        self.scale = x.norm(dim=-1, keepdim=True)
        return super().encode(x / self.scale)

    def decode(self, feature_acts):
        scale = self.scale
        del self.scale
        return super().decode(feature_acts) * scale


class HeadsApart(RandomDictionary):
    """Joins heads itself, as SAELens does at hook_z."""

    def __init__(self, heads: int = 4, **options):
        super().__init__(**options)
        self.heads = heads
        self.cfg = SimpleNamespace(reshape_activations="hook_z")

    def encode(self, x):
        assert x.ndim == 4
        return super().encode(x.flatten(-2))

    def decode(self, feature_acts):
        return super().decode(feature_acts).unflatten(-1, (self.heads, -1))


def placed(dictionary: nn.Module, hook_name: str, hook_name_out: str | None = None, flat: bool = False) -> nn.Module:
    """Let a dictionary say where it belongs: in cfg.metadata as SAELens 6 does, or in cfg as before."""
    about = SimpleNamespace(hook_name=hook_name, hook_name_out=hook_name_out)
    dictionary.cfg = about if flat else SimpleNamespace(metadata=about)
    return dictionary
