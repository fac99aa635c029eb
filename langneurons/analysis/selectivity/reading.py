"""Running a model over labelled texts: moments of every neuron, and single texts' values of some neurons."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from tqdm import tqdm

from langneurons import storage
from langneurons.analysis.selectivity.decomposition import Decomposition, Moments
from langneurons.analysis.selectivity.texts import LabelledTexts, Text
from langneurons.errors import PatchError, StorageError, TaskError
from langneurons.models import ModelView, view
from langneurons.settings import Probing, ProbingOptions, Run, with_options
from langneurons.tasks.batching import Tokens, batches, front, scoring, token_ids
from langneurons.tasks.heads import pair_tokens

BATCH_SIZE = 8
READING = "selectivity/1"  # to be raised with every change of what is read: values that were kept are then left alone


@dataclass(frozen=True, eq=False)
class Readings:
    """What neurons did on labelled texts.

    Attributes:
        texts: The texts.
        site: Site at which they were read.
        shape: Number of layers, and of neurons per layer.
        moments: Language -> moments of every neuron for each label.
        values: Language -> values of the neurons asked for, memory-mapped where they were kept on disk.
        cut: Number of texts that were too long for the model, and were cut.
        model: Fingerprint of the model's weights.
    """

    texts: LabelledTexts
    site: str
    shape: tuple[int, int]
    moments: Mapping[str, Moments]
    values: Mapping[str, Float32[np.ndarray, "text neuron"]]
    cut: int
    model: str

    def decomposition(self) -> Decomposition:
        """Divide the variance of every neuron among language, label, and their interaction."""
        together = Moments.stacked(list(self.moments.values()))
        return Decomposition.of(together, self.texts.languages, self.texts.labels, self.shape, self.site)


def decompose(
    model: torch.nn.Module,
    task: Any,
    site: str = "act",
    languages: Iterable[str] | None = None,
    *,
    probing: Probing = Probing(),
    run: Run = Run(),
    **options: Unpack[ProbingOptions],
) -> Decomposition:
    """Measure how much of every neuron's activation language, task label and their interaction explain.

    One pass over the texts; memory does not grow with them.

    Args:
        model: A model returned by ``load_model``; whatever is attached to it counts.
        task: ``XNLI``, ``XQuAD`` or ``LabelledTexts``, in at least two languages.
        site: Site of the neurons (a head is its output's norm).
        languages: Languages to compare; by default all of the task's.
        probing: The position whose values count, and how many items are read.
        run: Texts per forward pass (8 by default; sums agree to the rounding of single precision whatever it is),
            progress, and the folder that keeps what was read.
        options: Single fields of ``Probing`` and ``Run``, such as ``max_items=200``.

    Returns:
        Sums of squares of every neuron.

    Raises:
        TaskError: If texts or labels are malformed, or there is only one language.
        LanguageError: If the task lacks a language.
        HookSiteError: If the model has no such site.

    Example:
        >>> texts = {"en": ["It rains.", "Dry.", "Rain.", "Sun."], "fr": ["Il pleut.", "Sec.", "Pluie.", "Beau."]}
        >>> task = ln.analysis.LabelledTexts.parallel(texts, ["wet", "dry", "wet", "dry"], name="weather")
        >>> bool(ln.analysis.decompose(model, task, progress=False).share("language").max() > 0.5)
        True
    """
    probing, run = with_options(options, probing, run)
    texts = chosen_texts(task, languages, probing)
    return read(model, texts, site, probing.position, np.empty(0, np.int64), run).decomposition()


def chosen_texts(task: Any, languages: Iterable[str] | None, probing: Probing) -> LabelledTexts:
    """Take the texts of some languages, at least two, and draw some of their items.

    Raises:
        TaskError: If texts or labels are malformed, or there is only one language.
        LanguageError: If the task lacks a language.
    """
    texts = LabelledTexts.of(task).select(languages)
    if len(texts.languages) < 2:
        alone = ", ".join(texts.languages)
        raise TaskError(f"What language explains shows between languages: give at least two, not {alone!r} alone.")
    texts = texts if probing.max_items is None else texts.take(probing.max_items, probing.seed)
    _check_crossed(texts)
    return texts


def _check_crossed(texts: LabelledTexts) -> None:
    """Refuse languages that share no label with the others, not even through a third."""
    labels = {language: set(texts.known.loc[table["item"], "label"]) for language, table in texts.items.items()}
    first, *others = texts.languages
    apart, shared = set(others), labels[first]
    while joining := {language for language in apart if labels[language] & shared}:
        apart -= joining
        shared = shared.union(*(labels[language] for language in joining))
    if apart:
        raise TaskError(
            f"{', '.join(sorted(apart))} and {first} have no label in common, so what languages and what labels "
            "explain cannot be told apart: give texts with the same labels in every language."
        )


def read(
    model: torch.nn.Module,
    texts: LabelledTexts,
    site: str,
    position: str,
    neurons: Int[np.ndarray, " neuron"],
    run: Run = Run(),
) -> Readings:
    """Run a model over labelled texts, language by language.

    Args:
        model: A model returned by ``load_model``; whatever is attached to it counts, but then nothing can be kept.
        texts: Texts to read.
        site: Site of the neurons.
        position: "mean" over a text's counted tokens (never special tokens, separators or position 0), or "last".
        neurons: Flat indices of the neurons whose value on every text is kept.
        run: Texts per forward pass (8 by default), progress, and the folder that keeps each language.

    Raises:
        TaskError: If a text has no counted token.
        ModelError: If the model has no tokenizer.
        PatchError: If something is attached to the model while ``out`` is given.
        HookSiteError: If the model has no such site.
        StorageError: If the folder cannot be written.
    """
    model_view = view(model)
    if run.out is not None and model_view.hooked:
        raise PatchError(
            f"Something is attached to {model_view.name!r}, such as a patch, so what is read cannot be kept for the "
            "model as it is: leave the block first, or leave out= away."
        )
    shape = model_view.shape(site)
    if run.out is not None:
        storage.check_writable(run.out)
    prepared = {language: _tokens(model_view, list(table["text"])) for language, table in texts.items.items()}
    moments, values = {}, {}
    with tqdm(total=sum(map(len, texts.items.values())), unit="text", disable=not run.progress) as bar:
        for language, (sequences, _) in prepared.items():
            labels = np.searchsorted(texts.labels, texts.known.loc[texts.items[language]["item"], "label"])
            collected = _Collected(len(texts.labels), labels, neurons, shape)
            collect = partial(_run, model, sequences, site, position, run.batch_size or BATCH_SIZE, collected)
            key = storage.fingerprint(
                READING,
                *_identity(model_view),
                site,
                model_view.fingerprint_at(site),
                position,
                *texts.labels,
                repr(sequences),
                labels.tobytes(),
                neurons.tobytes(),
            )
            moments[language], values[language] = _from_tensors(_kept_or_run(run.out, key, collect))
            bar.update(len(sequences))
    cut = sum(count for _, count in prepared.values())
    return Readings(texts, site, shape, moments, values, cut, model_view.fingerprint)


def _kept_or_run(out: Path | None, key: str, run: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Give back what was kept, or run and keep it; what is kept is memory-mapped."""
    if out is None:
        return run()
    path = out / "readings" / f"{key}.safetensors"
    try:
        return storage.read_tensors(path)
    except StorageError:
        storage.write_tensors(path, run(), sidecar=True)  # it was not there, or not whole
        return storage.read_tensors(path)


class _Collected:
    """One language's moments, and its values of the chosen neurons, while the model runs."""

    def __init__(
        self,
        label_count: int,
        labels: Int[np.ndarray, " text"],
        neurons: Int[np.ndarray, " neuron"],
        shape: tuple[int, int],
    ) -> None:
        self._labels, self._neurons, self.shape = labels, neurons, shape
        size = shape[0] * shape[1]
        empty = np.zeros((label_count, size))
        self._moments = Moments(np.zeros(label_count, np.int64), empty, empty)
        self._values = np.empty((len(labels), len(neurons)), np.float32)

    def add(self, rows: Int[np.ndarray, " row"], values: Float32[np.ndarray, "row neuron"]) -> None:
        self._moments = self._moments + Moments.of(values, self._labels[rows], len(self._moments.counts))
        self._values[rows] = values[:, self._neurons]

    def tensors(self) -> dict[str, Tensor]:
        moments = self._moments
        arrays = {"counts": moments.counts, "means": moments.means, "squares": moments.squares, "values": self._values}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _from_tensors(tensors: Mapping[str, Tensor]) -> tuple[Moments, Float32[np.ndarray, "text neuron"]]:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return Moments(arrays["counts"], arrays["means"], arrays["squares"]), arrays["values"]


def _run(
    model: torch.nn.Module,
    sequences: Sequence[Tokens],
    site: str,
    position: str,
    batch_size: int,
    into: _Collected,
) -> dict[str, Tensor]:
    with scoring(model) as model_view, _pooled(model_view, site, into.shape) as pooled:
        special = torch.tensor(sorted(_special(model_view)), dtype=torch.int64)
        for rows, tokens in batches(sequences, batch_size, model_view.context_length):
            lengths = torch.tensor([len(sequences[row]) for row in rows])
            into.add(rows, pooled(tokens, _weights(tokens, lengths, special, position)))
    return into.tensors()


@contextmanager
def _pooled(model_view: ModelView, site: str, shape: tuple[int, int]) -> Iterator[Any]:
    """Give a function from tokens and weights to every neuron's weighted sum over positions."""
    held: dict[int, Tensor] = {}
    weighting: list[Tensor] = []

    def keep(layer: int, values: Tensor) -> None:
        numbers = torch.linalg.vector_norm(values.float(), dim=-1) if values.ndim == 4 else values.float()
        weights = weighting[0].to(numbers.device)
        held[layer] = torch.einsum("bp,bpn->bn", weights, numbers).cpu()

    def pooled(tokens: Tensor, weights: Float[Tensor, "row position"]) -> Float32[np.ndarray, "row neuron"]:
        weighting[:] = [weights]
        model_view.forward(tokens, logits=False)
        absent = torch.zeros(len(tokens), shape[1])
        return torch.cat([held.pop(layer, absent) for layer in range(shape[0])], dim=1).numpy()

    with model_view.reading({site: keep}):
        yield pooled


def _weights(
    tokens: Int[Tensor, "row position"], lengths: Int[Tensor, " row"], special: Int[Tensor, " id"], position: str
) -> Float[Tensor, "row position"]:
    """The weight of each position; weights sum to 1 in every row."""
    place = torch.arange(tokens.shape[1])
    if position == "last":
        return (place == lengths[:, None] - 1).float()
    counted = (place > 0) & (place < lengths[:, None]) & ~torch.isin(tokens, special)
    return counted.float() / counted.sum(1, keepdim=True)


def _tokens(model_view: ModelView, texts: Sequence[Text]) -> tuple[list[Tokens], int]:
    """Tokenise texts and pairs, cut to the model's context, and count those that were cut."""
    pairs = {place: text for place, text in enumerate(texts) if isinstance(text, tuple)}
    paired, too_long = pair_tokens(model_view, list(pairs.values())) if pairs else ([], np.empty(0, bool))
    singles = {place: text for place, text in enumerate(texts) if isinstance(text, str)}
    whole = [(*front(model_view), *ids) for ids in token_ids(model_view, list(singles.values()))]
    sequences = dict(zip(pairs, paired, strict=True))
    sequences |= {place: ids[: model_view.context_length] for place, ids in zip(singles, whole, strict=True)}
    in_order, special = [sequences[place] for place in range(len(texts))], _special(model_view)
    for text, ids in zip(texts, in_order, strict=True):
        if not set(ids[1:]) - special:
            raise TaskError(f"The text {text!r:.60} has no counted token: only special ones, or one at position 0.")
    return in_order, int(too_long.sum()) + sum(len(ids) > model_view.context_length for ids in whole)


def _special(model_view: ModelView) -> set[int]:
    return set() if model_view.tokenizer is None else set(model_view.tokenizer.all_special_ids)


def _identity(model_view: ModelView) -> list[str]:
    """What of the model decides the values, the text being tokens already."""
    return [model_view.fingerprint, model_view.backend, str(model_view.dtype), repr(sorted(_special(model_view)))]
