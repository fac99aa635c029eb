"""What single units write to the residual stream, and what that would say if the model stopped there."""

import torch
from jaxtyping import Float, Int

from langneurons.models.sites import SITES
from langneurons.models.view import ModelView

AT_ONCE = 64  # units; a large vocabulary times these are held at once


def output_directions(seen: ModelView, site: str, layer: int) -> Float[torch.Tensor, "unit d_model"] | None:
    """Find what each unit of a layer writes when its value is 1.

    Args:
        seen: The model.
        site: Its site.
        layer: The layer.

    Returns:
        W_out's rows for sites of the MLP, the coordinate itself at ``resid_post``; None for heads and features, which
        have no one direction of their own here.
    """
    if site not in SITES or site == "head":
        return None
    weights = seen.output_weights(layer, "post").detach()
    return torch.eye(weights.shape[1], dtype=weights.dtype) if site == "resid_post" else weights


@torch.no_grad()
def token_changes(
    seen: ModelView, site: str, layer: int, units: Int[torch.Tensor, " unit"]
) -> Float[torch.Tensor, "unit token"] | None:
    """Tell what each unit adds to every output token's logit, through the final norm's weight and the unembedding.

    The direct path only: what later layers make of it is left out, and the norm's scale is taken for 1 (the "logit
    lens" of nostalgebraist 2020, for single neurons as in Geva et al. 2022, arXiv 2203.14680). Each token's change is
    given against the mean over all tokens, which no probability depends on.

    Args:
        seen: The model.
        site: Site of the units.
        layer: Their layer.
        units: Their indices.

    Returns:
        Changes of logits in float32, on CPU; None where units have no direction.
    """
    directions = output_directions(seen, site, layer)
    if directions is None:
        return None
    chosen = directions[units.to(directions.device)].to(seen.device)
    normed = _through_norm(seen.model.ln_final, chosen)
    rest = _unembedded(seen, torch.zeros_like(normed[:1]))
    parts = [(_unembedded(seen, part) - rest).float().cpu() for part in normed.split(AT_ONCE)]
    changes = torch.cat(parts)
    return changes - changes.mean(1, keepdim=True)


def _through_norm(norm: torch.nn.Module, directions: torch.Tensor) -> torch.Tensor:
    """Apply a norm's weight, and its centring where it has one, whatever these are called in the module."""
    # A probe of mean 0 and mean square 1, which a norm only multiplies by its weight (and adds a bias to).
    probe = torch.ones(1, 1, directions.shape[1], dtype=directions.dtype, device=directions.device)
    probe[..., 1::2] = -1
    if directions.shape[1] % 2:
        probe[..., -1] = 0
        probe = probe / probe.square().mean().sqrt()
    odd = (norm(probe) - norm(-probe)) / 2
    weight = torch.where(probe != 0, odd / probe.where(probe != 0, 1.0), 1.0)[0, 0]
    centres = torch.allclose(norm(probe), norm(probe + 1), rtol=1e-2, atol=1e-2)
    centred = directions - directions.mean(-1, keepdim=True) if centres else directions
    return centred * weight


def _unembedded(seen: ModelView, residual: torch.Tensor) -> torch.Tensor:
    return seen.model.unembed(residual[:, None])[:, 0]
