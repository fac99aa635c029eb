"""The tokens that neurons promote and suppress, with the script each is written in."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons.analysis.profiles import EXAMPLES, OUTPUTS, SIMILAR, Profiles
from langneurons.corpora import Corpus
from langneurons.corpora.purity import script
from langneurons.errors import NeuronSetError, SiteMismatchError, StaleArtefactError
from langneurons.identification.matching import fitting_statistics
from langneurons.identification.neurons import NeuronSet
from langneurons.models import ModelView, view
from langneurons.models.sites import SITES
from langneurons.models.view import ModelView
from langneurons.recording.looking import examples, token_values
from langneurons.recording.statistics import PUBLISHED, ActivationStats

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


def profile(
    model: torch.nn.Module,
    neurons: NeuronSet,
    corpus: Corpus,
    stats: ActivationStats | None = None,
    k: int = 5,
    context_length: int = 64,
    documents: int | None = 2000,
    output_tokens: int = 10,
    similar: int = 8,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> Profiles:
    """Look at chosen neurons: the texts that move them, the tokens they promote, and the neurons like them.

    Args:
        model: From ``load_model``.
        neurons: A neuron set; choose some hundreds at most, see ``clearest_neurons``.
        corpus: Texts to look through.
        stats: Statistics of the same model, to find neurons that are active alike.
        k: Texts of each kind (top, median, random), language and neuron.
        context_length: Tokens of a text to read, special ones included.
        documents: Look through this many random documents a language; None looks through all.
        output_tokens: Tokens promoted, and as many suppressed.
        similar: Similar neurons by activity, and as many by output direction.
        batch_size: Texts a forward.
        seed: Of the documents and the random texts.
        progress: Show a progress bar on standard error.

    Returns:
        What the pages of these neurons need beside statistics.

    Raises:
        NeuronSetError: If the set is empty, does not fit the model, or a number is too small.
        SiteMismatchError: If the neurons belong to another model.
        StaleArtefactError: If the statistics do.

    Example:
        >>> neurons = ln.LAPE(top=0.001).identify(stats)
        >>> texts = ln.load_corpus("babel", ["en", "hi"]).take(20)
        >>> profiles = ln.profile(model, neurons, texts, stats, k=1, progress=False)
        >>> profiles[profiles.neurons[0]].examples["kind"].unique().tolist()
        ['top', 'median', 'random']
    """
    seen = view(model)
    _check_fits(seen, neurons, stats)
    for name, given, least in (("k", k, 1), ("output_tokens", output_tokens, 0), ("similar", similar, 0)):
        if given < least:
            raise NeuronSetError(f"{name} is {least} or more, not {given}.")
    found = examples(model, corpus, neurons, k, documents, context_length, batch_size, seed, progress)
    texts, numbered = _with_values(seen, neurons, found, context_length, batch_size, progress)
    settings = {
        "model": seen.name,
        "fingerprint": seen.fingerprint_at(neurons.site),
        "dtype": str(seen.dtype).removeprefix("torch."),
        "site": neurons.site,
        "gated": seen.gated,
        "shape": list(neurons.shape),
        "method": neurons.method,
        "neurons": neurons.indices().tolist(),
        "languages": list(corpus.languages),
        "corpus": corpus.fingerprint,
        "k": k,
        "context_length": context_length,
        "documents": documents,
        "seed": seed,
    }
    return Profiles(
        texts,
        numbered,
        output_tokens_of(seen, neurons, output_tokens),
        similar_neurons(seen, neurons, None if stats is None else stats.at(neurons.site), similar),
        settings,
    )


def _check_fits(seen: ModelView, neurons: NeuronSet, stats: ActivationStats | None) -> None:
    shape, here = seen.shape(neurons.site), seen.fingerprint_at(neurons.site)
    if neurons.shape != shape:
        raise NeuronSetError(
            f"The neuron set is of a model of {neurons.shape[0]} layers x {neurons.shape[1]} units at "
            f"{neurons.site!r}; {seen.name!r} has {shape[0]} x {shape[1]}."
        )
    if neurons.model and neurons.model != here:
        raise SiteMismatchError(
            f"The neurons belong to model {neurons.model[:8]}, but {seen.name!r} is {here[:8]}: identify its own."
        )
    if stats is not None and stats.at(neurons.site).fingerprint not in (here, PUBLISHED):
        raise StaleArtefactError(
            f"The statistics belong to model {stats.at(neurons.site).fingerprint[:8]}, but {seen.name!r} is "
            f"{here[:8]}: record it again."
        )


def _with_values(
    seen: ModelView, neurons: NeuronSet, found: pd.DataFrame, context_length: int, batch_size: int, progress: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the texts found once more, for every token's value: the table of texts, and of examples."""
    chosen = neurons.indices()
    texts = found.loc[:, ["language", "document", "text"]].drop_duplicates(["language", "document"], ignore_index=True)
    columns = {(int(layer), int(index)): column for column, (layer, index) in enumerate(chosen)}
    number = {key: row for row, key in enumerate(zip(texts["language"], texts["document"], strict=True))}
    wanted: dict[int, list[int]] = {}
    numbers = [number[key] for key in zip(found["language"], found["document"], strict=True)]
    for row, text in enumerate(numbers):
        wanted.setdefault(text, []).append(row)
    places = list(zip(found["layer"], found["neuron"], strict=True))
    values: list[Any] = [None] * len(found)
    pieces: list[list[str]] = []
    length = min(context_length, seen.context_length)
    whole = texts["text"].tolist()
    for text, (offsets, read) in enumerate(
        token_values(seen, neurons.site, chosen, whole, length, batch_size, progress)
    ):
        pieces.append(pieces_of(whole[text], offsets))
        for row in wanted[text]:
            values[row] = read[:, columns[places[row]]].tolist()
    shown = [sum(map(len, parts)) for parts in pieces]
    cut = [given > kept for given, kept in zip(map(len, whole), shown, strict=True)]
    table = pd.DataFrame({"text": range(len(texts)), **texts[["language", "document"]], "pieces": pieces, "cut": cut})
    return table, found.assign(text=numbers, values=values).loc[:, EXAMPLES]


def pieces_of(text: str, offsets: Sequence[tuple[int, int]]) -> list[str]:
    """Cut a text into the characters of each token, so that the pieces together are the text up to the last of them.

    What stands between two tokens (a space that a tokenizer does not count) goes to the second; bytes that go on with
    a character already shown give an empty piece.

    Example:
        >>> pieces_of("two words", [(0, 3), (4, 9)])
        ['two', ' words']
    """
    pieces, shown = [], 0
    for _, end in offsets:
        pieces.append(text[shown : max(end, shown)])
        shown = max(end, shown)
    return pieces


def clearest_neurons(neurons: NeuronSet, stats: ActivationStats, count: int) -> NeuronSet:
    """Keep the neurons that are furthest ahead in their own language, as many of each label as of the others.

    Args:
        neurons: A neuron set; a label that was recorded is a language.
        stats: Statistics of the same model.
        count: The most neurons to keep in all.

    Returns:
        The set, at most ``count`` neurons; of each label those whose activation probability exceeds that of every other
        language most (of a label that was not recorded, the first ones).

    Raises:
        NeuronSetError: If ``count`` is below 1, or the statistics do not fit.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> from langneurons.analysis.profiling import clearest_neurons
        >>> len(clearest_neurons(neurons, stats, 6)) <= 6
        True
    """
    if count < 1:
        raise NeuronSetError(f"At least one neuron is to be looked at, not {count}.")
    stats = fitting_statistics(stats, neurons.shape, neurons.site, neurons.model)
    probability = stats.probability().flatten(1)
    ordered = {}
    for label, flat in neurons.members.items():
        if label not in stats.languages or len(stats.languages) < 2:
            ordered[label] = flat
            continue
        own = stats.languages.index(label)
        others = torch.cat([probability[:own], probability[own + 1 :]]).amax(0)
        ahead = (probability[own] - others).numpy()[flat]
        ordered[label] = flat[np.argsort(-ahead, kind="stable")]
    return NeuronSet(
        _in_turn(ordered, count),
        neurons.shape,
        neurons.site,
        neurons.model,
        f"the {count} furthest ahead of: {neurons.method}",
    )


def _in_turn(ordered: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Take from each label in turn until ``count`` different neurons are taken."""
    taken: set[int] = set()
    kept: dict[str, list[int]] = {label: [] for label in ordered}
    for rank in range(max(map(len, ordered.values()), default=0)):
        for label, flat in ordered.items():
            if rank < len(flat) and (len(taken) < count or int(flat[rank]) in taken):
                taken.add(int(flat[rank]))
                kept[label].append(int(flat[rank]))
    return {label: np.array(sorted(flat), np.int64) for label, flat in kept.items()}
