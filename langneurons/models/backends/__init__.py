"""TransformerLens' two classes behind one interface: how each runs, and where its weights are."""

from functools import partial

import torch
from torch import nn

from langneurons.errors import HookSiteError, ModelError
from langneurons.models import internals
from langneurons.models.backends.bridge import Bridge
from langneurons.models.backends.hooked import Hooked
from langneurons.models.internals import hooked_class
from langneurons.models.sites import Layer


def backend_of(model: object) -> Hooked | Bridge:
    """Find out which class a model is of.

    Args:
        model: A model of TransformerLens.

    Raises:
        ModelError: If it is neither of the two.
    """
    hooked = hooked_class()
    if hooked is not None and isinstance(model, hooked):
        return Hooked(model)
    if isinstance(model, nn.Module) and any(base.__name__ == "TransformerBridge" for base in type(model).__mro__):
        return Bridge(model)
    raise ModelError(f"Not a HookedTransformer or TransformerBridge: {type(model).__name__}; load_model() gives one.")


def layers_of(backend: Hooked | Bridge, name: str) -> list[Layer]:
    """Find every layer of a model with its hook points.

    Args:
        backend: How the model runs.
        name: The model's name.

    Raises:
        HookSiteError: If a layer lacks an MLP or an attention.
        ModelError: If a layer has experts, and nothing beside them that routes to them.
    """
    layers, without_mlp = [], _without_common_mlp(backend, name)
    for index, block in enumerate(backend.model.blocks):
        mlp, attention = None if without_mlp else internals.mlp_of(block), getattr(block, "attn", None)
        points = [] if without_mlp else [getattr(mlp, "hook_pre", None), getattr(mlp, "hook_post", None)]
        if attention is None or None in (*points, getattr(attention, "hook_z", None)):
            raise HookSiteError(f"Layer {index} of {name!r} lacks an MLP or an attention that hooks can reach.")
        gated = getattr(mlp, "hook_pre_linear", None) is not None
        layer = Layer(
            index=index,
            mlp=mlp,
            attention=attention,
            input_point=block.hook_resid_pre,
            output_point=block.hook_resid_post,
            act_fn=_no_act_fn if without_mlp else backend.act_fn(index),
            gated=gated,
            adds_bias=gated and backend.adds_bias,
            n_heads=backend.model.cfg.n_heads,
            outputs=partial(backend.outputs, index),
            router=(internals.experts_in(block) or (None,))[0],
        )
        layers.append(layer)
    backend.check_internals()
    return layers


def _without_common_mlp(backend: Hooked | Bridge, name: str) -> bool:
    """Whether layers have experts, and the MLPs that every token runs are not one of equal width in every layer."""
    experts = [internals.experts_in(block) for block in backend.model.blocks]
    if any(parts is not None and parts[0] is None for parts in experts):
        raise ModelError(
            f"{name!r} is a mixture of experts whose router has another form: none lies beside its experts."
        )
    mlps = [internals.mlp_of(block) for block in backend.model.blocks]
    if not any(experts) or None in mlps:
        return any(experts)
    weights = [internals.readable_weight(mlp, "W_out") for mlp in mlps]
    return len({None if weight is None else tuple(weight.shape) for weight in weights}) > 1


def _no_act_fn(values: torch.Tensor) -> torch.Tensor:
    raise HookSiteError("Not every token runs one MLP in this model, so it has no activation function to speak of.")
