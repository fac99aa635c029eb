"""Running a model over labelled texts: moments of every neuron, and single texts' values of some neurons."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from langneurons import storage
from langneurons.analysis.decomposition import Decomposition, Moments
from langneurons.analysis.texts import LabelledTexts, Text
from langneurons.errors import ModelError, PatchError, StorageError, TaskError
from langneurons.models import ModelView, view
from langneurons.models.finite import refusal
from langneurons.run import Progress, alone_in_out, chosen_executor
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


@alone_in_out
def decompose(
    model: torch.nn.Module,
    task: object,
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
        run: Where it runs, one language by itself, and the folder that keeps what was read; texts per forward pass, 8
            by default (sums agree to the rounding of single precision whatever it is).
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


def chosen_texts(task: object, languages: Iterable[str] | None, probing: Probing) -> LabelledTexts:
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
        run: Where it runs, the folder that keeps each language, and texts per forward pass (8 by default).

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
            "model as it is: leave the block first, or do not give out=."
        )
    shape = model_view.shape(site)
    if run.out is not None:
        storage.check_writable(run.out)
    prepared = {language: _tokens(model_view, list(table["text"])) for language, table in texts.items.items()}
    jobs, paths, special = {}, {}, repr(sorted(_special(model_view)))
    for language, (sequences, _) in prepared.items():
        labels = np.searchsorted(texts.labels, texts.known.loc[texts.items[language]["item"], "label"])
        of_model = (model_view.fingerprint, model_view.backend, str(model_view.dtype), special)
        of_site = (*of_model, site, model_view.fingerprint_at(site), position)
        of_texts = (*texts.labels, repr(sequences), labels.tobytes(), neurons.tobytes())
        key = storage.fingerprint(READING, *of_site, *of_texts)
        paths[language] = None if run.out is None else run.out / "readings" / f"{key}.safetensors"
        jobs[language] = (sequences, labels)
    kept_readings = {language: _kept(path) for language, path in paths.items()}
    to_do = [job for language, job in jobs.items() if kept_readings[language] is None]
    batch_size, label_count = run.batch_size or BATCH_SIZE, len(texts.labels)
    how = {"site": site, "position": position, "batch_size": batch_size, "label_count": label_count}
    read_language = partial(_run, neurons=neurons, **how)
    new_readings = chosen_executor(run.executor).map(model, read_language, to_do)
    moments, values = {}, {}
    with Progress(total=sum(map(len, texts.items.values())), unit="text", shown=run.progress) as bar:
        for language, path in paths.items():
            tensors = kept_readings[language]
            if tensors is None:
                tensors = next(new_readings)
                if path is not None:
                    storage.write_tensors(path, tensors, sidecar=True)
                    tensors = storage.read_tensors(path)  # memory-mapped
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            values[language] = arrays.pop("values")
            moments[language] = Moments(**arrays)
            bar.update(len(values[language]))
    cut = sum(count for _, count in prepared.values())
    return Readings(texts, site, shape, moments, values, cut, model_view.fingerprint)


def _kept(path: Path | None) -> dict[str, Tensor] | None:
    """What was kept of a language, memory-mapped; None where nothing was, or not whole."""
    try:
        return None if path is None else storage.read_tensors(path)
    except StorageError:
        return None


def _run(
    model: torch.nn.Module,
    texts: tuple[Sequence[Tokens], Int[np.ndarray, " text"]],
    neurons: Int[np.ndarray, " neuron"],
    site: str,
    position: str,
    batch_size: int,
    label_count: int,
) -> dict[str, Tensor]:
    """Read one language: moments of every neuron for each label, and the values of the chosen neurons.

    Args:
        model: The model.
        texts: Tokens of the language's texts, and the number of each one's label.
        neurons: Flat indices of the chosen neurons.
        site: Site that is read.
        position: Whether a neuron's value on a text is its mean, or that at the last token.
        batch_size: Texts per forward pass.
        label_count: Number of labels.
    """
    sequences, labels = texts
    values = np.empty((len(labels), len(neurons)), np.float32)
    by_layer_held: dict[int, Tensor] = {}

    def keep(layer: int, activations: Tensor) -> None:
        numbers = activations.float()
        if numbers.ndim == 4:  # a head is worth the norm of its output
            numbers = torch.linalg.vector_norm(numbers, dim=-1)
        by_layer_held[layer] = torch.einsum("bp,bpn->bn", weights.to(numbers.device), numbers).cpu()

    with scoring(model) as model_view, model_view.reading({site: keep}):
        layers, width = model_view.shape(site)
        empty = np.zeros((label_count, layers * width))
        moments = Moments(np.zeros(label_count, np.int64), empty, empty)
        special = torch.tensor(sorted(_special(model_view)), dtype=torch.int64)
        for rows, tokens in batches(sequences, batch_size, model_view.context_length):
            lengths, absent = torch.tensor([len(sequences[row]) for row in rows]), torch.zeros(len(tokens), width)
            weights = _weights(tokens, lengths, special, position)
            model_view.forward(tokens, logits=False)
            by_layer = [by_layer_held.pop(layer, absent) for layer in range(layers)]
            if not all(bool(of_layer.isfinite().all()) for of_layer in by_layer):
                raise ModelError(str(refusal(model_view, tokens, counted=weights > 0)))
            means = torch.cat(by_layer, dim=1).numpy()
            moments = moments + Moments.of(means, labels[rows], label_count)
            values[rows] = means[:, neurons]
    return {name: torch.from_numpy(array) for name, array in {**vars(moments), "values": values}.items()}


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
