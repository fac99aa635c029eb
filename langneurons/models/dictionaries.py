"""Dictionaries of features as sites: adding and removing them.

A sparse autoencoder or a transcoder with ``encode`` and ``decode`` becomes a site of the model. Then features are
recorded, identified, patched and ablated as neurons are.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from langneurons.errors import HookSiteError, unknown
from langneurons.models.feature_sites import MLP_INPUT, Dictionary, FeatureSite, PlacedDictionary, hook_point
from langneurons.models.view import view

_HOOK = re.compile(r"blocks\.(\d+)\.")


def add_dictionary(
    model: torch.nn.Module,
    dictionaries: Any,
    name: str = "features",
    at: str | None = None,
    reads: str | None = None,
) -> FeatureSite:
    """Make the features of a sparse autoencoder or transcoder a site of the model, until it is removed.

    The features are what ``encode`` gives; written, they change the hook point's tensor by decode(new) - decode(old),
    so the reconstruction error stays in the model (Marks et al. 2024, arXiv 2403.19647) and the model computes what it
    always did where no feature is changed. A site has one layer a dictionary, in the order of the model's layers:
    ``(1, 17)`` of a site with dictionaries at the layers 3 and 5 is feature 17 of the one at layer 5.

    Args:
        model: From ``load_model``.
        dictionaries: Objects with ``encode`` and ``decode``, by layer, each with as many features; or one that knows
            its place, as SAELens' do (``cfg.metadata.hook_name``).
        name: What the site is called.
        at: The hook point in a layer that decoded features are a part of: "resid_post", "mlp_out", "attn_out",
            "attn.hook_z", ... None asks the dictionary.
        reads: The hook point that is encoded, where it is another one (a transcoder's): "mlp_input" is what the MLP
            reads.

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
    seen = view(model)
    by_layer = dictionaries if isinstance(dictionaries, Mapping) else _layer_it_names(dictionaries)
    _check_dictionaries(by_layer)
    if at is None:
        told, at = _place_they_name(by_layer)
        reads = reads or told
    at, reads = _in_block(at), _in_block(reads or at)
    if at == MLP_INPUT or (at == "resid_mid" and seen.backend == "bridge"):
        raise HookSiteError(f"What stands at {at!r} can only be read here: give a place that the layer writes as at=.")
    placed = []
    for index, dictionary in sorted(by_layer.items()):
        layer, block = seen.layer(index), seen.model.blocks[index]
        writes = hook_point(block, at)
        placed.append(PlacedDictionary(dictionary, layer, writes if reads == at else hook_point(block, reads), writes))
    site = FeatureSite(name, at, reads, tuple(placed))
    seen.add_features(site)
    return site


def _check_dictionaries(by_layer: Mapping[Any, Any]) -> None:
    if not by_layer:
        raise HookSiteError("No dictionary was given.")
    for layer, dictionary in by_layer.items():
        if not isinstance(layer, int):
            raise HookSiteError(f"Dictionaries are given by the number of their layer, not by {layer!r}.")
        if not isinstance(dictionary, Dictionary):
            raise HookSiteError(f"A dictionary has encode and decode; a {type(dictionary).__name__} does not.")


def remove_dictionary(model: torch.nn.Module, name: str = "features") -> None:
    """Remove a site that ``add_dictionary`` made; what was recorded there stays readable.

    Args:
        model: The model.
        name: The site.

    Raises:
        HookSiteError: If there is no such site of features.
    """
    sites = view(model).feature_sites
    if name not in sites:
        raise HookSiteError(unknown("site of features", name, sites))
    del sites[name]


def _hook_names(dictionary: Dictionary) -> tuple[str | None, str | None]:
    """What SAELens' objects say of the hook points they were trained on: where they read, and where they write."""
    cfg = getattr(dictionary, "cfg", None)
    about = getattr(cfg, "metadata", None) or cfg  # SAELens 6, and before
    reads = getattr(about, "hook_name", None)
    return reads, getattr(about, "hook_name_out", None) or reads


def _layer_it_names(dictionary: Dictionary) -> dict[int, Dictionary]:
    found = _HOOK.match(_hook_names(dictionary)[1] or "")
    if found is None:
        raise HookSiteError(
            f"This {type(dictionary).__name__} does not say at which layer it belongs (in cfg.metadata.hook_name): "
            "give {layer: dictionary} and at=."
        )
    return {int(found[1]): dictionary}


def _place_they_name(by_layer: Mapping[int, Dictionary]) -> tuple[str, str]:
    """Where dictionaries read and write, which must be the same place at the layers given."""
    named = {layer: _hook_names(dictionary) for layer, dictionary in by_layer.items()}
    places = set()
    for layer, (reads, at) in named.items():
        if reads is None or at is None:
            raise HookSiteError(f"The dictionary of layer {layer} does not say where it belongs: give at=.")
        if (found := _HOOK.match(at)) is not None and int(found[1]) != layer:
            raise HookSiteError(f"The dictionary given for layer {layer} says that it belongs at {at}.")
        places.add((_in_block(reads), _in_block(at)))
    if len(places) != 1:
        raise HookSiteError(f"Dictionaries of one site have one place; these say {sorted(places)}.")
    return places.pop()


def _in_block(name: str) -> str:
    """A hook point's name inside its layer, as short as it can be."""
    return _HOOK.sub("", name).removeprefix("hook_")
