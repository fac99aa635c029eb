"""TransformerLens' two classes behind one interface: how each runs, and where its weights are."""

from functools import partial

from torch import nn

from langneurons.errors import HookSiteError, ModelError
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
    """
    layers = []
    for index, block in enumerate(backend.model.blocks):
        mlp, attention = getattr(block, "mlp", None), getattr(block, "attn", None)
        points = [getattr(mlp, "hook_pre", None), getattr(mlp, "hook_post", None), getattr(attention, "hook_z", None)]
        if mlp is None or attention is None or None in points:
            raise HookSiteError(f"Layer {index} of {name!r} lacks an MLP or an attention that hooks can reach.")
        gated = getattr(mlp, "hook_pre_linear", None) is not None
        layer = Layer(
            index=index,
            mlp=mlp,
            attention=attention,
            input_point=block.hook_resid_pre,
            output_point=block.hook_resid_post,
            act_fn=backend.act_fn(index),
            gated=gated,
            adds_bias=gated and backend.adds_bias,
            n_heads=backend.model.cfg.n_heads,
            outputs=partial(backend.outputs, index),
        )
        layers.append(layer)
    backend.check_internals()
    return layers
