"""The published statistics, ported naively: torch hooks on the gates of a Llama, half precision, lists."""

from typing import Any

import torch
from torch import Tensor

PERCENTILES = (5, 10, 25, 50, 75, 90, 95)


@torch.no_grad()
def gate_outputs(hf_model: Any, tokens: Tensor) -> list[Tensor]:
    """z of every layer of a Llama, "batch position neuron"."""
    found: list[Tensor] = []
    gates = [layer.mlp.gate_proj for layer in hf_model.model.layers]
    handles = [gate.register_forward_hook(lambda _, inputs, out: found.append(out)) for gate in gates]
    hf_model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    for handle in handles:
        handle.remove()
    return found


def act_stat(hf_model: Any, batches: list[Tensor]) -> dict[str, Tensor]:
    """First pass: batch values, averaged over the batches."""
    sums: dict[str, Any] = {}
    for tokens in batches:
        for name, value in _of_batch(gate_outputs(hf_model, tokens)).items():
            sums[name] = sums.get(name, 0) + value
    return {name: value / len(batches) for name, value in sums.items()}


def _of_batch(layers: list[Tensor]) -> dict[str, Tensor]:
    values = {"mean_mu_act": torch.stack([z.mean(dim=(0, 1)) for z in layers])}
    values["mean_std_act"] = torch.stack([z.std(dim=(0, 1)) for z in layers])
    for percentile in PERCENTILES:
        quantiles = [torch.quantile(z.flatten(0, 1).float(), q=percentile / 100, dim=0) for z in layers]
        values[f"mean_p{percentile}_act"] = torch.stack(quantiles)
    return values


def act_prob(hf_model: Any, batches: list[Tensor], threshold: Tensor | float) -> Tensor:
    """Second pass: shares above a threshold, averaged in half precision within a batch."""
    total: Any = 0
    for tokens in batches:
        layers = gate_outputs(hf_model, tokens)
        over = [
            (z > (threshold[layer] if isinstance(threshold, Tensor) else threshold)).to(torch.float16)
            for layer, z in enumerate(layers)
        ]
        total = total + torch.stack([one.mean(dim=(0, 1)) for one in over]).float()
    return total / len(batches)


def lape(p: dict[str, Tensor], top: float = 0.01, quantile: float = 0.95) -> dict[str, set[tuple[int, int]]]:
    """The published selection, neuron by neuron."""
    stacked = torch.stack(list(p.values())).double()
    normalised = stacked / (stacked.sum(0) + 1e-10)
    scores = -(normalised * torch.log(normalised + 1e-10)).sum(0)
    threshold = stacked.flatten().quantile(quantile).item()
    scores[(stacked > threshold).sum(0) == 0] = torch.inf
    cutoff = scores.flatten().sort()[0][: round(top * scores.numel())].max()
    found: dict[str, set[tuple[int, int]]] = {language: set() for language in p}
    for layer, neuron in torch.nonzero(scores <= cutoff).tolist():
        for number, language in enumerate(p):
            if stacked[number, layer, neuron] > threshold:
                found[language].add((layer, neuron))
    return found
