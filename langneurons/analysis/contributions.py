"""Direct contributions: what each part of a model adds to the difference of two logits, by the direct path alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from langneurons.analysis.profiling import through_norm
from langneurons.analysis.running import writes_directly
from langneurons.errors import ModelError
from langneurons.models import ModelView
from langneurons.models.sites import attached
from langneurons.tasks.batching import Tokens, batches, scoring

PRECISION, ROUNDING_STEPS = 1e-3, 64  # shares of the difference, the second of its precision, that rounding explains


@dataclass(frozen=True)
class Contributions:
    """What adds up to logit(token) - logit(rival) at some points.

    With x the residual stream after the last layer, the final norm is N(x) = L(x) / s(x) + b, with L linear: centring
    and weights. Its scale s is frozen at what it is at the point. Then the difference is linear in x, and so in
    everything that was added to x.

    Attributes:
        difference: The difference of the logits.
        neurons: Contribution of every neuron: its value x its row of W_out, through the norm and the unembedding.
        attention: Contribution of each layer's attention heads.
        biases: Contribution of each layer's biases, and of what patches add to the residual stream.
        embedding: Contribution of the embeddings.
        output: Contribution of the biases of the final norm and the unembedding.
    """

    difference: Float[np.ndarray, " point"]
    neurons: Float[np.ndarray, "point layer neuron"]
    attention: Float[np.ndarray, "point layer"]
    biases: Float[np.ndarray, "point layer"]
    embedding: Float[np.ndarray, " point"]
    output: Float[np.ndarray, " point"]


def contributions_at(
    model: torch.nn.Module, texts: Sequence[Tokens], pairs: Sequence[tuple[int, int]], batch_size: int = 8
) -> Contributions:
    """Divide the difference of two logits after each text among everything that the model adds up.

    Args:
        model: A model returned by ``load_model``; whatever is attached to it at this moment counts.
        texts: Token ids, special tokens included; the logits are those after the last.
        pairs: Token and rival of each text.
        batch_size: Texts per forward pass.

    Raises:
        ModelError: If the model norms what its MLPs write before it is added, or does more to its logits than a norm
            and an unembedding.

    Example:
        >>> from langneurons.analysis.contributions import contributions_at
        >>> parts = contributions_at(model, [(1, 50, 60)], [(70, 80)])
        >>> total = parts.embedding + parts.attention.sum(1) + parts.neurons.sum((1, 2)) + parts.output
        >>> bool(abs(total - parts.difference).max() < 1e-3)
        True
    """
    by_row: dict[int, dict[str, np.ndarray]] = {}
    with scoring(model) as model_view:
        for layer in range(model_view.n_layers):
            if not writes_directly(model_view, layer):
                raise ModelError(
                    f"{model_view.name!r} norms or scales what its MLPs write before it is added (layer {layer}), so "
                    "its neurons have no contribution of their own by the direct path; ln.ablate measures their effect."
                )
        reading = _Reading(model_view)
        for rows, tokens in batches(texts, batch_size, model_view.context_length):
            places = torch.tensor([len(texts[row]) - 1 for row in rows])
            compared = torch.tensor([pairs[row] for row in rows])
            read = reading.parts(tokens, places, compared)
            by_row |= {int(row): {name: part[i] for name, part in read.items()} for i, row in enumerate(rows)}
    names = Contributions.__dataclass_fields__
    return Contributions(**{name: np.stack([by_row[row][name] for row in range(len(texts))]) for name in names})


class _Reading:
    """One model's final norm and unembedding, and what is read while it runs."""

    def __init__(self, model_view: ModelView) -> None:
        self._view = model_view
        self._norm, self._unembed = model_view.model.ln_final, model_view.model.unembed
        width = model_view.output_weights(0, "post").shape[1]
        like = {"dtype": model_view.dtype, "device": model_view.device}
        # Row j is what the norm makes of coordinate j, its scale taken for 1.
        self._linear = through_norm(self._norm, torch.eye(width, **like)).double()
        probe = torch.ones(1, 1, width, **like)
        probe[..., 1::2] = -1
        self._bias = ((self._norm(probe) + self._norm(-probe)) / 2)[0, 0].double()

    def parts(self, tokens: Tensor, places: Tensor, compared: Tensor) -> dict[str, np.ndarray]:
        """The contributions at one position of each row."""
        own = torch.arange(len(tokens))
        held: dict[str, dict[int, Tensor]] = {"resid_post": {}, "post": {}, "head": {}}
        before: list[Tensor] = []

        def at_places(values: Tensor) -> Tensor:
            return values[own.to(values.device), places.to(values.device)].double()

        readers = {
            site: lambda layer, values, by_layer=by_layer: by_layer.__setitem__(layer, at_places(values))
            for site, by_layer in held.items()
        }
        # Patches may write at the end of the last layer, so what the norm reads is read there.
        begin = attached([(self._view.layer(0).input_point, lambda values: before.append(at_places(values)))])
        counted = torch.zeros(len(tokens), tokens.shape[1] + 1, dtype=torch.bool)
        counted[own, places + 1] = True
        with begin, self._view.reading(readers):
            logits = torch.cat(list(self._view.predictions(tokens, counted).logits())).double()
        difference = (logits[own, compared[:, 0]] - logits[own, compared[:, 1]]).cpu()
        final = held["resid_post"][self._view.n_layers - 1]
        direction, constant = self._directions(final, compared)
        contribution = {"embedding": (before[-1] * direction).sum(1)}
        below, layers = before[-1], range(self._view.n_layers)
        by_part: dict[str, list[Tensor]] = {"neurons": [], "attention": [], "biases": []}
        for layer in layers:
            neurons = held["post"][layer] * (direction @ self._weights(layer, "post").T)
            heads = held["head"][layer].flatten(1) * (direction @ self._weights(layer, "head").T)
            whole = ((held["resid_post"][layer] - below) * direction).sum(1)
            below = held["resid_post"][layer]
            by_part["neurons"].append(neurons)
            by_part["attention"].append(heads.sum(1))
            by_part["biases"].append(whole - heads.sum(1) - neurons.sum(1))
        contribution |= {name: torch.stack(parts, 1) for name, parts in by_part.items()}
        self._check(difference, ((final * direction).sum(1) + constant).cpu())
        contribution |= {"output": constant, "difference": difference}
        return {name: part.cpu().numpy() for name, part in contribution.items()}

    def _weights(self, layer: int, site: str) -> Float[Tensor, "unit d_model"]:
        return self._view.output_weights(layer, site).detach().to(self._linear)

    def _directions(self, final: Tensor, compared: Tensor) -> tuple[Tensor, Tensor]:
        """What each coordinate of the residual stream adds per unit at every point, and what is added anyway."""
        normed = self._norm(final.to(self._view.dtype)[:, None])[:, 0].double() - self._bias
        linear = final @ self._linear
        scale = einsum(linear, linear, "point d, point d -> point") / einsum(
            normed, linear, "point d, point d -> point"
        )
        of_logits, constant = self._unembedding(compared)
        direction = einsum(self._linear, of_logits, "d e, point e -> point d") / scale[:, None]
        return direction, constant + einsum(of_logits, self._bias, "point e, e -> point")

    def _unembedding(self, compared: Tensor) -> tuple[Tensor, Tensor]:
        """The difference of two logits as a linear function of what the unembedding reads: gradient and constant."""
        like = {"dtype": self._view.dtype, "device": self._view.device}
        with torch.inference_mode(False), torch.enable_grad():
            zeros = torch.zeros(len(compared), 1, len(self._linear), **like, requires_grad=True)
            logits = self._unembed(zeros)[:, 0]
            pairs = logits.gather(1, compared.clone().to(logits.device))
            constant = pairs[:, 0] - pairs[:, 1]
            (gradient,) = torch.autograd.grad(constant.sum(), zeros)
        return gradient[:, 0].double(), constant.detach().double()

    def _check(self, difference: Tensor, linear: Tensor) -> None:
        error, size = float((difference - linear).abs().max()), max(1.0, float(difference.abs().max()))
        if not error <= max(PRECISION, ROUNDING_STEPS * torch.finfo(self._view.dtype).eps) * size:
            raise ModelError(
                f"The logits of {self._view.name!r} are not what its final norm and its unembedding give (they differ "
                f"by {error:.2g}), as where they are capped: contributions would not add up."
            )
