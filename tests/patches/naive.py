"""The naive oracle: torch hooks on the modules of the Hugging Face model, and a python loop over neurons."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from tests.models.hugging_face import parts

Changes = Mapping[tuple[int, int], Callable[[torch.Tensor], torch.Tensor]]


@contextmanager
def naively(hf_model: Any, site: str, changes: Changes, positions: slice = slice(None)) -> Iterator[None]:
    """Change neurons one by one, each "batch position" (a head "batch position d_head"), at some positions."""

    def changed(layer: int, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        for (of_layer, neuron), change in changes.items():
            wide = values.shape[-1] // hf_model.config.num_attention_heads if site == "head" else 1
            columns = slice(neuron * wide, (neuron + 1) * wide)
            if of_layer == layer:
                values[..., positions, columns] = change(values[..., positions, columns])
        return values

    def after(layer: int) -> Callable[..., Any]:
        def hook(_: Any, inputs: Any, out: Any) -> Any:
            return (changed(layer, out[0]), *out[1:]) if isinstance(out, tuple) else changed(layer, out)

        return hook

    handles = []
    for layer, part in enumerate(parts(hf_model)):
        if site in ("post", "head"):
            module = part.down if site == "post" else part.o
            before = lambda _, inputs, layer=layer: (changed(layer, inputs[0]), *inputs[1:])  # noqa: E731
            handles.append(module.register_forward_pre_hook(before))
        else:
            module = {"pre": part.gate, "act": part.act, "resid_post": part.layer}[site]
            handles.append(module.register_forward_hook(after(layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def naive_greedy(
    hf_model: Any, prompt: torch.Tensor, steps: int, site: str, changes: Mapping[str, Changes]
) -> tuple[torch.Tensor, float]:
    """Generate token by token without a cache, changing neurons at "all", "prompt" or "generated" positions.

    Returns:
        Prompt and generated tokens, and the smallest difference between the two largest logits on the way.
    """
    text, margin = prompt, float("inf")
    where = {"all": slice(None), "prompt": slice(0, prompt.shape[1]), "generated": slice(prompt.shape[1], None)}
    for _ in range(steps):
        with _nested(hf_model, site, [(where[positions], each) for positions, each in changes.items()]):
            logits = hf_model(text, use_cache=False).logits[:, -1]
        best = logits.topk(2).values
        margin = min(margin, float((best[:, 0] - best[:, 1]).min()))
        text = torch.cat([text, logits.argmax(-1, keepdim=True)], dim=1)
    return text, margin


@contextmanager
def _nested(hf_model: Any, site: str, changes: list[tuple[slice, Changes]]) -> Iterator[None]:
    if not changes:
        yield
        return
    (positions, first), *rest = changes
    with naively(hf_model, site, first, positions), _nested(hf_model, site, rest):
        yield
