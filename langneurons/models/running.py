"""How each of TransformerLens' two classes is run: whole, up to what it unembeds, at some positions, generating."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from langneurons.models.backends.bridge import bridge_activation, bridge_projection
from langneurons.models.backends.hooked import activation_of
from langneurons.models.backends.hooked_projections import hooked_projection
from langneurons.models.generating import GeneratedRows, generate_hooked, generate_hugging_face
from langneurons.models.sites import Hook, attached


class RunningHooked:
    """A HookedTransformer."""

    build_projection = staticmethod(hooked_projection)
    checkpointing_config = None

    def __init__(self, model: Any):
        self._model = model
        self.act_fn_name: str = model.cfg.act_fn
        self.generators = [model]

    @property
    def embedding(self) -> nn.Module:
        """What turns token ids into the residual stream."""
        return self._model.embed

    def act_fn(self, mlp: Any) -> Any:
        """Find the activation function that an MLP calls."""
        return mlp.act_fn

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None, logits: bool) -> torch.Tensor | None:
        """Run it; without logits, up to the unembedding."""
        mask = self._mask(tokens, mask)
        out = self._model(tokens, attention_mask=mask, stop_at_layer=None if logits else self._model.cfg.n_layers)
        return out if logits else None

    def hidden(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The residual stream after the final norm."""
        # Not by TransformerLens' own mask, which would number padding as the last real token.
        with attached([] if mask is None else self._hiding(mask.to(tokens.device) == 0)):
            residual = self._model(
                tokens, attention_mask=self._mask(tokens, None), stop_at_layer=self._model.cfg.n_layers
            )
        return self._model.ln_final(residual)

    def logits_at(self, tokens: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """The logits of some positions."""
        if self._model.cfg.output_logits_soft_cap > 0:
            return self._model(tokens, attention_mask=self._mask(tokens, None))[:, kept]
        return self._model.unembed(self.hidden(tokens, None)[:, kept])

    def generate(self, tokens: torch.Tensor, mask: torch.Tensor, rows: GeneratedRows, max_new_tokens: int) -> None:
        """Generate into rows, which know when they end."""
        generate_hooked(self._model, tokens, mask, rows)

    def _mask(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        if mask is None and getattr(self._model.tokenizer, "padding_side", "right") == "left":
            # Without a mask HookedTransformer would take every padding token's id for padding.
            return torch.ones_like(tokens)
        return mask

    def _hiding(self, keys: torch.Tensor) -> list[tuple[Any, Hook]]:
        def hide(scores: torch.Tensor) -> torch.Tensor:
            return scores.masked_fill(keys[:, None, None].to(scores.device), -torch.inf)

        return [(block.attn.hook_attn_scores, hide) for block in self._model.blocks]


class RunningBridge:
    """A TransformerBridge over a Hugging Face model."""

    build_projection = staticmethod(bridge_projection)
    act_fn = staticmethod(bridge_activation)

    def __init__(self, model: Any):
        self._model, self._hugging_face = model, model.original_model
        self.act_fn_name: str = activation_of(self._hugging_face.config)
        self.generators = [model, self._hugging_face]
        self.checkpointing_config = self._hugging_face.config

    @property
    def embedding(self) -> nn.Module:
        """What turns token ids into the residual stream."""
        return self._hugging_face.get_input_embeddings()

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None, logits: bool) -> torch.Tensor | None:
        """Run it; without logits, unembed one position only where the model can."""
        options: dict[str, Any] = {"use_cache": False} if self._takes("use_cache") else {}
        if not logits and self._takes("logits_to_keep"):
            options["logits_to_keep"] = 1
        out = self._model(tokens, attention_mask=mask, **options)
        return out if logits else None

    def hidden(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The residual stream after the final norm."""
        return self._hugging_face.base_model(tokens, attention_mask=mask).last_hidden_state

    def logits_at(self, tokens: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """The logits of some positions."""
        if self._takes("logits_to_keep"):
            return self._model(tokens, use_cache=False, logits_to_keep=kept)
        logits = self.forward(tokens, None, logits=True)
        assert logits is not None
        return logits[:, kept]

    def generate(self, tokens: torch.Tensor, mask: torch.Tensor, rows: GeneratedRows, max_new_tokens: int) -> None:
        """Generate into rows, which know when they end."""
        generate_hugging_face(self._hugging_face, tokens, mask, rows, max_new_tokens)

    def _takes(self, option: str) -> bool:
        return option in inspect.signature(self._hugging_face.forward).parameters


ResidualOf = Callable[[torch.Tensor], torch.Tensor | None]

_FORWARD = "forward"
# How many values a block returns beside the residual stream, None where it returns the bare tensor: Bloom's give two.
_BESIDE: WeakKeyDictionary[nn.Module, int | None] = WeakKeyDictionary()


@contextmanager
def resumed_above(blocks: Any, embedding: nn.Module, layer: int, residual_of: ResidualOf) -> Iterator[None]:
    """Begin forwards above a layer, inside the block.

    Args:
        blocks: The model's layers.
        embedding: Its token embedding.
        layer: The last layer that is not run; -1 runs all.
        residual_of: From a forward's tokens to the residual stream after the layer; None runs that forward whole.
    """
    resumed: list[torch.Tensor | None] = [None]

    def begin(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        resumed[0] = residual_of(inputs[0])

    skipped = list(blocks)[: layer + 1]
    before = [vars(block).get(_FORWARD) for block in skipped]
    handle = embedding.register_forward_pre_hook(begin)
    try:
        for index, block in enumerate(skipped):
            vars(block)[_FORWARD] = _handing_on(block, resumed, index == layer)
        yield
    finally:
        handle.remove()
        for block, own in zip(skipped, before, strict=True):
            if own is None:
                vars(block).pop(_FORWARD, None)
            else:
                vars(block)[_FORWARD] = own


def _handing_on(block: nn.Module, resumed: list[torch.Tensor | None], last: bool) -> Callable[..., Any]:
    forward = block.forward

    def run(*inputs: Any, **options: Any) -> Any:
        if resumed[0] is None or block not in _BESIDE:
            out = forward(*inputs, **options)
            _BESIDE[block] = len(out) - 1 if isinstance(out, tuple) else None
            if resumed[0] is None:
                return out
        given = inputs[0] if inputs else options["hidden_states"]
        handed = resumed[0].to(given.device) if last else given
        beside = _BESIDE[block]
        return handed if beside is None else (handed, *[None] * beside)

    return run


@contextmanager
def checkpointed(blocks: Any, config: Any, again: Callable[[], Any]) -> Iterator[None]:
    """Keep only the input of each block for the backward pass, inside the block.

    Args:
        blocks: The model's layers.
        config: Of the Hugging Face model that runs, if one does: a key-value cache would be filled twice.
        again: Makes a context that a block runs in when it runs for the second time.
    """
    before = [vars(block).get(_FORWARD) for block in blocks]
    use_cache = getattr(config, "use_cache", False)
    try:
        for block in blocks:
            vars(block)[_FORWARD] = _twice(block.forward, again)
        if use_cache:
            config.use_cache = False
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                vars(block).pop(_FORWARD, None)
            else:
                vars(block)[_FORWARD] = own
        if use_cache:
            config.use_cache = use_cache


def _twice(forward: Callable[..., Any], again: Callable[[], Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        contexts = functools.partial(_contexts, again)
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **options)

    return run


def _contexts(again: Callable[[], Any]) -> tuple[Any, Any]:
    return nullcontext(), again()
