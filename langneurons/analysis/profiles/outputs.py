"""The tokens that neurons promote and suppress, with the script each is written in."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons.analysis.profiles.result import OUTPUTS, SIMILAR
from langneurons.corpora.purity import script
from langneurons.identification.neurons import NeuronSet
from langneurons.models.sites import SITES
from langneurons.models.view import ModelView
from langneurons.recording.statistics import ActivationStats

OTHER = "other"
REPLACEMENT = "�"  # what decoding gives for bytes that are no character by themselves


def output_tokens(seen: ModelView, neurons: NeuronSet, count: int) -> pd.DataFrame:
    """Find the output tokens whose logits each neuron raises and lowers most by the direct path.

    Args:
        seen: The model.
        neurons: Which neurons.
        count: Tokens promoted, and as many suppressed.

    Returns:
        Rows as ``Profiles.outputs`` has them; none at sites whose units have no direction of their own.
    """
    rows: list[tuple[Any, ...]] = []
    names: dict[int, tuple[str, str]] = {}
    for layer, units in neurons.per_layer().items() if count else ():
        changes = token_changes(seen, neurons.site, layer, units)
        if changes is None:
            break
        for effect, sign in (("promoted", 1), ("suppressed", -1)):
            most = (sign * changes).topk(min(count, changes.shape[1]), dim=1)
            for unit, values, tokens in zip(units.tolist(), most.values, most.indices.tolist(), strict=True):
                for rank, (value, token) in enumerate(zip(values.tolist(), tokens, strict=True)):
                    if token not in names:
                        names[token] = named(seen, token)
                    rows.append((layer, unit, effect, rank, *names[token], sign * value))
    return pd.DataFrame(rows, columns=pd.Index(OUTPUTS))


def named(seen: ModelView, token: int) -> tuple[str, str]:
    """What a token reads, and the script it is written in.

    Bytes that are only a part of a character read as hexadecimal digits, such as 0xE0A4; where they begin one, its
    script is known.
    """
    tokenizer: Any = seen.tokenizer
    if tokenizer is None:
        return f"token {token}", OTHER
    text = tokenizer.decode([token])
    if REPLACEMENT not in text:
        return text, script_of(text)
    raw = bytes_of(str(tokenizer.convert_ids_to_tokens(token)))
    return (text, OTHER) if raw is None else (f"0x{raw.hex().upper()}", script_of(completed(raw)))


def script_of(text: str) -> str:
    """The script of most of a text's letters, such as "Devanagari"; "other" where there is no letter.

    Example:
        >>> script_of("नमस्ते"), script_of("the"), script_of("123")
        ('Devanagari', 'Latin', 'other')
    """
    letters = Counter(name for letter in text if letter.isalpha() and (name := script(letter)))
    return letters.most_common(1)[0][0].title().replace("Cjk", "Chinese") if letters else OTHER


def bytes_of(name: str) -> bytes | None:
    """The bytes that a tokenizer's name of a token stands for, in GPT-2's alphabet of bytes or as <0xE0>."""
    if name.startswith("<0x"):
        return bytes.fromhex(name[3:-1])
    alphabet = _alphabet()
    return bytes(alphabet[letter] for letter in name) if set(name) <= set(alphabet) else None


def completed(raw: bytes) -> str:
    """A character that begins with these bytes, "" where they begin none."""
    start = raw.lstrip(bytes(range(0x80, 0xC0)))
    for missing in range(4):
        try:
            return (start + b"\x85" * missing).decode()
        except UnicodeDecodeError:
            continue
    return ""


def _alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes (Radford et al. 2019, encoder.py): printable ones stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


def similar_neurons(seen: ModelView, neurons: NeuronSet, stats: ActivationStats | None, count: int) -> pd.DataFrame:
    """Find the neurons most like each of some neurons, among all of the model.

    Args:
        seen: The model.
        neurons: Which neurons.
        stats: Statistics at their site; None leaves activity out.
        count: How many of each kind.

    Returns:
        Rows as ``Profiles.similar`` has them, the largest absolute similarity first.
    """
    chosen = neurons.indices()
    tables = []
    if count and stats is not None:
        cells = standardised(activity(stats))
        tables.append(("activity", [cells[:, layer].T for layer in range(cells.shape[1])]))
    if count and (directions := list(_directions(seen, neurons.site))):
        tables.append(("direction", directions))
    rows = [(*key[:2], by, *key[2:]) for by, vectors in tables for key in _most_alike(chosen, vectors, count)]
    return pd.DataFrame(rows, columns=pd.Index(SIMILAR))


def activity(stats: ActivationStats) -> Float[Tensor, "cell layer neuron"]:
    """How often each neuron is active in every language and document fold that has tokens."""
    folds = []
    for language in stats.languages:
        kept = stats.fold_tokens(language) > 0
        folds.append(stats.fold_probability(language)[kept].float())
    return torch.cat(folds)


def standardised(cells: Float[Tensor, "cell layer neuron"]) -> Float[Tensor, "cell layer neuron"]:
    """Make the sum of products of two neurons over cells their correlation; 0 for neurons that never change."""
    centred = cells - cells.mean(0)
    norm = centred.norm(dim=0)
    return torch.where(norm > 1e-6, centred / norm.clamp(min=1e-6), 0.0)


def _directions(seen: ModelView, site: str) -> Iterator[Float[Tensor, "unit d_model"]]:
    if site == "resid_post":
        return  # coordinates are orthogonal: none is like another
    for layer in range(seen.shape(site)[0]):
        directions = output_directions(seen, site, layer)
        if directions is None:
            return
        yield torch.nn.functional.normalize(directions.float().cpu(), dim=1)


def _most_alike(
    chosen: Int[Tensor, "n 2"], vectors: list[Tensor], count: int
) -> Iterable[tuple[int, int, int, int, int, float]]:
    """For each chosen neuron: layer, neuron, rank, the other's layer and neuron, and the product of their vectors."""
    own = torch.stack([vectors[layer][index] for layer, index in chosen.tolist()])
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for layer, units in enumerate(vectors):
        products = own @ units.T
        here = chosen[:, 0] == layer
        products[here, chosen[here, 1]] = 0.0  # itself
        most = products.abs().topk(min(count, len(units)), dim=1)
        found.append((products.gather(1, most.indices), torch.full_like(most.indices, layer), most.indices))
    similarity, layers, indices = (torch.cat(part, dim=1) for part in zip(*found, strict=True))
    best = similarity.abs().topk(min(count, similarity.shape[1]), dim=1).indices
    for row, (layer, index) in enumerate(chosen.tolist()):
        for rank, place in enumerate(best[row].tolist()):
            if similarity[row, place] != 0:
                other = int(layers[row, place]), int(indices[row, place])
                yield layer, index, rank, *other, float(similarity[row, place])


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
