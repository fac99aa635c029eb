"""profile(): the texts that activate chosen neurons, the tokens they promote, and similar neurons."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Unpack

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from langneurons import storage
from langneurons.analysis.profiles import EXAMPLES, OUTPUTS, SIMILAR, TEXTS, Profiles
from langneurons.analysis.quadrants import OF_MLP, QUADRANTS, Tally
from langneurons.corpora import Corpus
from langneurons.corpora.purity import script
from langneurons.errors import FINITE_ADVICE, ModelError, NeuronSetError, SiteMismatchError, StaleArtefactError
from langneurons.evaluation.measuring import Job, measure_jobs
from langneurons.identification import NeuronSet
from langneurons.models import ModelView, view
from langneurons.models.sites import ATTENTION_SITES, SITES
from langneurons.recording.looking import examples, token_values
from langneurons.recording.statistics import PUBLISHED, ActivationStats
from langneurons.run import alone_in_out
from langneurons.settings import Profiling, ProfilingOptions, Run, with_options

BATCH_SIZE = 16
PROCEDURE = "langneurons/examples/2"  # part of the name under which what was read is kept
AT_ONCE = 64  # units; a large vocabulary times these are held at once
OTHER = "other"
QUADRANT = "quadrant"  # the kind of the rows of quadrants among those of examples
REPLACEMENT = "�"  # what decoding gives for bytes that are no character by themselves


@alone_in_out
def profile(
    model: torch.nn.Module,
    neurons: NeuronSet,
    corpus: Corpus,
    stats: ActivationStats | None = None,
    *,
    profiling: Profiling = Profiling(),
    run: Run = Run(),
    **options: Unpack[ProfilingOptions],
) -> Profiles:
    """Look at chosen neurons: the texts that move them, the tokens they promote, and the neurons like them.

    Args:
        model: A model returned by ``load_model``.
        neurons: A neuron set, of some hundreds at most; ``neurons.clearest`` chooses from larger ones.
        corpus: Texts to look through.
        stats: Statistics of the same model, to find neurons that are active alike.
        profiling: What profiles show, and how many texts are looked through.
        run: Where texts are read, one language by itself, and the folder that keeps what was read; texts per forward
            pass, 16 by default.
        options: Single fields of ``Profiling`` and ``Run``, such as ``k=3``.

    Returns:
        What the pages of these neurons need beside statistics.

    Raises:
        NeuronSetError: If the set is empty or does not fit the model.
        SiteMismatchError: If the neurons belong to another model.
        StaleArtefactError: If the statistics belong to another model.
        StatisticsError: If an option is out of range.

    Example:
        >>> neurons = ln.LAPE(top=0.001).identify(stats)
        >>> texts = ln.load_corpus("babel", ["en", "hi"]).take(20)
        >>> profiles = ln.profile(model, neurons, texts, stats, k=1, progress=False)
        >>> profiles[profiles.neurons[0]].examples["kind"].unique().tolist()
        ['top', 'median', 'random']
    """
    profiling, run = with_options(options, profiling, run)
    model_view = view(model)
    _check_fits(model_view, neurons, stats)
    choices = profiling.model_dump(include={"k", "context_length", "documents", "seed"})
    jobs = {}
    for language in corpus.languages:
        texts = corpus.select([language])
        about = PROCEDURE, texts.fingerprint, neurons.site, repr(neurons.indices().tolist()), repr(choices)
        score = partial(_examples, model, texts, neurons, profiling, run)
        jobs[(language,)] = Job((), storage.fingerprint(*about), score)
    rows = pd.concat(measure_jobs(model, jobs, run).values(), ignore_index=True)
    of_quadrants = rows["kind"] == QUADRANT
    quadrants = rows.loc[of_quadrants].reindex(columns=QUADRANTS).reset_index(drop=True)
    rows = rows.loc[~of_quadrants].astype({"rank": "int64", "document": "int64", "cut": bool})
    rows["text"] = rows.groupby(["language", "document"], sort=False).ngroup()
    return Profiles(
        rows.drop_duplicates("text", ignore_index=True).reindex(columns=TEXTS),
        rows.reindex(columns=EXAMPLES),
        output_tokens(model_view, neurons, profiling.output_tokens),
        similar_neurons(model_view, neurons, None if stats is None else stats.at(neurons.site), profiling.similar),
        {
            "model": model_view.name,
            "fingerprint": model_view.fingerprint_at(neurons.site),
            "dtype": str(model_view.dtype).removeprefix("torch."),
            "site": neurons.site,
            "gated": model_view.gated,
            "shape": list(neurons.shape),
            "method": neurons.method,
            "neurons": neurons.indices().tolist(),
            "languages": list(corpus.languages),
            "corpus": corpus.fingerprint,
            **choices,
        },
        quadrants.astype({"tokens": "int64", "start": "int64", "end": "int64"}) if len(quadrants) else None,
    )


def _check_fits(model_view: ModelView, neurons: NeuronSet, stats: ActivationStats | None) -> None:
    shape, here = model_view.shape(neurons.site), model_view.fingerprint_at(neurons.site)
    if neurons.shape != shape:
        raise NeuronSetError(
            f"The neuron set is of a model of {neurons.shape[0]} layers x {neurons.shape[1]} units at "
            f"{neurons.site!r}; {model_view.name!r} has {shape[0]} x {shape[1]}."
        )
    if neurons.model and neurons.model != here:
        raise SiteMismatchError(
            f"The neurons belong to model {neurons.model[:8]}, but {model_view.name!r} is {here[:8]}: identify its own."
        )
    if stats is not None and stats.at(neurons.site).fingerprint not in (here, PUBLISHED):
        raise StaleArtefactError(
            f"The statistics belong to model {stats.at(neurons.site).fingerprint[:8]}, but {model_view.name!r} is "
            f"{here[:8]}: record it again."
        )


def _examples(
    model: torch.nn.Module, corpus: Corpus, neurons: NeuronSet, profiling: Profiling, run: Run
) -> pd.DataFrame:
    """Examples of one language, and, from reading their texts once more, pieces and every piece's value; quadrants."""
    model_view, indices = view(model), neurons.indices()
    batch_size, progress = run.batch_size or BATCH_SIZE, bool(run.progress)
    tally = Tally(indices.numpy()) if model_view.gated and neurons.site in OF_MLP else None
    options = {"batch_size": batch_size, "seed": profiling.seed, "progress": progress, "watch": tally}
    rows = examples(model, corpus, neurons, profiling.k, profiling.documents, profiling.context_length, **options)
    of_text = rows.groupby("text", sort=False)
    length = min(profiling.context_length, model_view.context_length)
    texts = rows["text"].drop_duplicates().tolist()
    read = token_values(model_view, [neurons.site], indices, texts, length, batch_size, progress)
    column_of = {place: column for column, place in enumerate(map(tuple, indices.tolist()))}
    parts = []
    for (text, part), (offsets, (values,)) in zip(of_text, read, strict=True):
        pieces = pieces_of(str(text), offsets)
        columns = [column_of[place] for place in zip(part["layer"], part["neuron"], strict=True)]
        cut = len(str(text)) > sum(map(len, pieces))
        parts.append(part.assign(pieces=[pieces] * len(part), cut=cut, values=values[:, columns].T.tolist()))
    examples_of_all = pd.concat(parts).sort_index().drop(columns=["text", "start", "end"])
    if tally is None:
        return examples_of_all
    (language,) = corpus.languages
    return pd.concat([examples_of_all, tally.rows(language).assign(kind=QUADRANT)], ignore_index=True)


def pieces_of(text: str, offsets: Sequence[tuple[int, int]]) -> list[str]:
    """Cut a text into the characters of each token, so that the pieces together are the text up to the last of them.

    What stands between two tokens (a space that a tokenizer does not count) goes to the second; bytes that go on with
    a character already shown give an empty piece.

    Example:
        >>> pieces_of("two words", [(0, 3), (4, 9)])
        ['two', ' words']
    """
    pieces, end_of_last = [], 0
    for _, end in offsets:
        pieces.append(text[end_of_last : max(end, end_of_last)])
        end_of_last = max(end, end_of_last)
    return pieces


def output_tokens(model_view: ModelView, neurons: NeuronSet, count: int) -> pd.DataFrame:
    """Find the output tokens whose logits each neuron raises and lowers most by the direct path.

    Args:
        model_view: The model.
        neurons: A neuron set.
        count: Number of tokens promoted, and of tokens suppressed.

    Returns:
        Rows as ``Profiles.outputs`` has them; none at sites whose units have no direction of their own.
    """
    rows: list[tuple] = []
    names: dict[int, tuple[str, str]] = {}
    for layer, units in neurons.per_layer().items() if count else ():
        changes = token_changes(model_view, neurons.site, layer, units)
        if changes is None:
            break
        for effect, sign in (("promoted", 1), ("suppressed", -1)):
            most = (sign * changes).topk(min(count, changes.shape[1]), dim=1)
            for unit, values, tokens in zip(units.tolist(), most.values.tolist(), most.indices.tolist(), strict=True):
                names |= {token: named(model_view, token) for token in tokens if token not in names}
                ranked = enumerate(zip(tokens, values, strict=True))
                rows += [(layer, unit, effect, rank, *names[token], sign * value) for rank, (token, value) in ranked]
    return pd.DataFrame(rows, columns=pd.Index(OUTPUTS))


def named(model_view: ModelView, token: int) -> tuple[str, str]:
    """What a token reads, and the script it is written in.

    Bytes that are only a part of a character read as hexadecimal digits, such as 0xE0A4; where they begin one, its
    script is known.
    """
    tokenizer: Any = model_view.tokenizer
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


def similar_neurons(
    model_view: ModelView, neurons: NeuronSet, stats: ActivationStats | None, count: int
) -> pd.DataFrame:
    """Find the neurons most like each of some neurons, among all of the model.

    Args:
        model_view: The model.
        neurons: A neuron set.
        stats: Statistics at their site; None leaves activity out.
        count: Number of neurons of each kind.

    Returns:
        Rows as ``Profiles.similar`` has them, the largest absolute similarity first.
    """
    tables = []
    if count and stats is not None:
        cells = standardised(activity(stats))
        tables.append(("activity", list(rearrange(cells, "cell layer neuron -> layer neuron cell"))))
    if count and (directions := list(_directions(model_view, neurons.site))):
        tables.append(("direction", directions))
    rows = [
        (*key[:2], by, *key[2:]) for by, vectors in tables for key in _most_alike(neurons.indices(), vectors, count)
    ]
    return pd.DataFrame(rows, columns=pd.Index(SIMILAR))


def activity(stats: ActivationStats) -> Float[Tensor, "cell layer neuron"]:
    """How often each neuron is active in every language and document fold that has tokens."""
    by_fold = {language: stats.fold_probability(language) for language in stats.languages}
    return torch.cat([shares[stats.fold_tokens(language) > 0].float() for language, shares in by_fold.items()])


def standardised(cells: Float[Tensor, "cell layer neuron"]) -> Float[Tensor, "cell layer neuron"]:
    """Make the sum of products of two neurons over cells their correlation; 0 for neurons that never change."""
    centred = cells - cells.mean(0)
    norm = centred.norm(dim=0)
    return torch.where(norm > 1e-6, centred / norm.clamp(min=1e-6), 0.0)


def _directions(model_view: ModelView, site: str) -> Iterator[Float[Tensor, "unit d_model"]]:
    if site == "resid_post":
        return  # coordinates are orthogonal: none is like another
    for layer in range(model_view.shape(site)[0]):
        directions = output_directions(model_view, site, layer)
        if directions is None:
            return
        yield torch.nn.functional.normalize(directions.float().cpu(), dim=1)


def _most_alike(
    indices: Int[Tensor, "n 2"], vectors: list[Tensor], count: int
) -> Iterable[tuple[int, int, int, int, int, float]]:
    """For each chosen neuron: layer, neuron, rank, the other's layer and neuron, and the product of their vectors."""
    own = torch.stack([vectors[layer][index] for layer, index in indices.tolist()])
    by_layer: list[tuple[Tensor, Tensor, Tensor]] = []
    for layer, others in enumerate(vectors):
        products = own @ others.T
        here = indices[:, 0] == layer
        products[here, indices[here, 1]] = 0.0  # itself
        most = products.abs().topk(min(count, len(others)), dim=1)
        by_layer.append((products.gather(1, most.indices), torch.full_like(most.indices, layer), most.indices))
    similarity, layers, units = (torch.cat(part, dim=1) for part in zip(*by_layer, strict=True))
    best = similarity.abs().topk(min(count, similarity.shape[1]), dim=1).indices
    for row, (layer, index) in enumerate(indices.tolist()):
        for rank, place in enumerate(best[row].tolist()):
            if similarity[row, place] != 0:
                other = int(layers[row, place]), int(units[row, place])
                yield layer, index, rank, *other, float(similarity[row, place])


def output_directions(model_view: ModelView, site: str, layer: int) -> Float[torch.Tensor, "unit d_model"] | None:
    """Find what each unit of a layer writes when its value is 1.

    Args:
        model_view: The model.
        site: Its site.
        layer: The layer.

    Returns:
        W_out's rows for sites of the MLP, the coordinate itself at ``resid_post``; None for heads, queries, keys,
        values and features, which have no one direction of their own here.
    """
    if site not in SITES or site in ("head", *ATTENTION_SITES):
        return None
    weights = model_view.output_weights(layer, "post").detach()
    return torch.eye(weights.shape[1], dtype=weights.dtype) if site == "resid_post" else weights


@torch.no_grad()
def token_changes(
    model_view: ModelView, site: str, layer: int, units: Int[torch.Tensor, " unit"]
) -> Float[torch.Tensor, "unit token"] | None:
    """Tell what each unit adds to every output token's logit, through the final norm's weight and the unembedding.

    The direct path only: what later layers make of it is left out, and the norm's scale is taken for 1 (the "logit
    lens" of nostalgebraist 2020, for single neurons as in Geva et al. 2022, arXiv 2203.14680). Each token's change is
    given against the mean over all tokens, which no probability depends on.

    Args:
        model_view: The model.
        site: Site of the units.
        layer: Their layer.
        units: Their indices.

    Returns:
        Changes of logits in float32, on CPU; None where units have no direction.
    """
    directions = output_directions(model_view, site, layer)
    if directions is None:
        return None
    own = directions[units.to(directions.device)].to(model_view.device)
    normed = through_norm(model_view.model.ln_final, own)
    rest = _unembedded(model_view, torch.zeros_like(normed[:1]))
    parts = [(_unembedded(model_view, part) - rest).float().cpu() for part in normed.split(AT_ONCE)]
    changes = torch.cat(parts)
    if not bool(changes.isfinite().all()):
        raise ModelError(
            f"What layer {layer} writes at {site!r} changes some logits by values that are not finite. {FINITE_ADVICE}"
        )
    return changes - changes.mean(1, keepdim=True)


def through_norm(norm: torch.nn.Module, directions: torch.Tensor) -> torch.Tensor:
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


def _unembedded(model_view: ModelView, residual: torch.Tensor) -> torch.Tensor:
    return model_view.model.unembed(residual[:, None])[:, 0]
