"""Activation statistics as Mondal et al. 2025 compute them: two passes over different random batches of ``pre``."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from langneurons import storage
from langneurons.corpora import Corpus
from langneurons.corpora.corpus import batches
from langneurons.corpora.languages import label_of
from langneurons.errors import CorpusError, StatisticsError, unknown
from langneurons.models import ModelView, view
from langneurons.models.finite import check_finite
from langneurons.recording.site_values import SiteValues
from langneurons.run import Progress, alone_in_out, chosen_executor
from langneurons.settings import Recording, RecordingOptions, Run, with_options
from langneurons.storage.layouts import layout
from langneurons.storage.objects import JsonObject
from langneurons.storage.result import Result
from langneurons.tasks.batching import scoring

PERCENTILES = (5, 10, 25, 50, 75, 90, 95)
MEANS = ("mean_mu_act", "mean_std_act", *(f"mean_p{percentile}_act" for percentile in PERCENTILES))
BATCH_SIZE = 4  # chunks, as published

ByLanguage = Float[Tensor, "language layer neuron"]
ByNeuron = Float[Tensor, "layer neuron"]


@dataclass(frozen=True, eq=False, repr=False)
class PublishedStatistics(Result, kind="published-statistics"):
    """Statistics of the published procedure, under the names they have there; made by ``published_statistics``.

    Every array is of the pre-activation z, although the published code writes them after the activation function. Its
    ``mean_std_act`` and percentiles are means of batches' values, not values of the corpus.

    Attributes:
        languages: The languages, in the order of the arrays.
        model: Fingerprint of the model.
        about: Settings: context length, batch size, seed, and per language the corpus and the tokens of each pass.
        mean_mu_act: Mean of z.
        mean_std_act: Mean over batches of the standard deviation of z in the batch.
        mean_p5_act: Mean over batches of the batch's 5th percentile of z; likewise p10, p25, p50, p75, p90 and p95.
        act_prob_90p: In other batches, the share of tokens above the same language's ``mean_p90_act``.
        act_prob_zero: In those batches, the share of tokens with z > 0.
    """

    languages: tuple[str, ...]
    model: str
    about: dict[str, Any]
    mean_mu_act: ByLanguage
    mean_std_act: ByLanguage
    mean_p5_act: ByLanguage
    mean_p10_act: ByLanguage
    mean_p25_act: ByLanguage
    mean_p50_act: ByLanguage
    mean_p75_act: ByLanguage
    mean_p90_act: ByLanguage
    mean_p95_act: ByLanguage
    act_prob_90p: ByLanguage
    act_prob_zero: ByLanguage

    @property
    def shape(self) -> tuple[int, int]:
        """Number of layers, and of neurons per layer."""
        return tuple(self.mean_mu_act.shape[1:])  # pyright: ignore[reportReturnType]

    def __repr__(self) -> str:
        return f"PublishedStatistics({', '.join(self.languages)}: {self.shape[0]} layers x {self.shape[1]})"

    def values(self, name: str, language: str) -> SiteValues:
        """One array of one language; it belongs to ``pre``, so that patches refuse to write it at ``act`` unasked.

        Raises:
            StatisticsError: If there is no array of that name.
            LanguageError: If the language is not there.
        """
        return SiteValues(self.array(name, [language])[0], "pre", self.model, language)

    def array(self, name: str, languages: Iterable[str]) -> ByLanguage:
        """One array of some languages, in the order given.

        Raises:
            StatisticsError: If there is no array of that name.
            LanguageError: If a language is not there.
        """
        if name not in ARRAYS:
            raise StatisticsError(unknown("published statistic", name, ARRAYS))
        return getattr(self, name)[[self.languages.index(label_of(code, self.languages)) for code in languages]]

    def _check_parts(self) -> None:
        layout(text="model", texts="languages", mapping="about").check("the statistics", vars(self))
        shape = self.mean_mu_act.shape
        for name in ARRAYS:
            values = getattr(self, name)
            if len(shape) != 3 or values.shape != shape or not bool(values.isfinite().all()):
                raise ValueError(f"{name} is not a finite number for each language and neuron")
        if not len(self.languages) == len(set(self.languages)) == shape[0] or not min(shape):
            raise ValueError("the arrays do not fit the languages")

    def _write(self, folder: Path) -> JsonObject:
        arrays = {name: getattr(self, name) for name in ARRAYS}
        checksum = storage.write_tensors(folder / f"{self.file}.safetensors", arrays)
        return {"languages": list(self.languages), "model": self.model, "about": self.about, "checksum": checksum}

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        arrays = storage.read_tensors(folder / f"{cls.file}.safetensors", content["checksum"])
        about = {name: content[name] for name in ("model", "about")}
        return {**about, "languages": tuple(content["languages"]), **arrays}


ARRAYS = tuple(field.name for field in fields(PublishedStatistics) if field.name.startswith(("mean_", "act_")))


@alone_in_out
def published_statistics(
    model: torch.nn.Module,
    corpus: Corpus,
    languages: Iterable[str] | None = None,
    *,
    seed: int = 0,
    recording: Recording = Recording(),
    run: Run = Run(),
    **options: Unpack[RecordingOptions],
) -> PublishedStatistics:
    """Compute the activation statistics of Mondal et al. 2025 as their code does.

    What is wrong: it measures z where the patches write act_fn(z), counts special tokens and position 0, averages
    percentiles of batches instead of taking those of the corpus, and compares with a language's own 90th percentile, so
    that ``act_prob_90p`` is about 0.10 for every neuron whatever the neuron responds to.

    Articles, tokenised with the tokenizer's own special tokens, are joined and cut into chunks without overlap; each of
    two passes reads its own random chunks. First pass, per batch: mean, standard deviation and P5 to P95 of z (linear
    interpolation), then averaged over the batches. Second pass: shares of z above the first pass' P90, and above 0.
    Departures: the random choice follows the seed; shares are exact counts (half precision there); the
    model is as it was loaded (4-bit there).

    Source: github.com/soumenkm/LangSpecificNeurons, code/activation.py and code/dataset.py.

    Args:
        model: A model returned by ``load_model``.
        corpus: Text in every language.
        languages: Languages to read; by default all of the corpus.
        seed: Seed of the random choice.
        recording: Context length, and tokens that each pass reads in a language, rounded down to whole batches; by
            default half of the language's chunks. The site is always ``pre``.
        run: Where it runs, one language as one piece of work, chunks per batch (4 by default), on which the percentiles
            depend, and progress.
        options: Single fields of ``Recording`` and ``Run``, such as ``context_length=64`` or ``batch_size=8``.

    Returns:
        The statistics, in float32.

    Raises:
        CorpusError: If a language has too few tokens, or the context is longer than the model's.
        LanguageError: If the corpus lacks a language.
        ModelError: If an activation is not finite.

    Example:
        >>> from langneurons.replication.statistics import published_statistics
        >>> corpus = ln.load_corpus("babel", ["en", "hi"])
        >>> published = published_statistics(model, corpus, tokens_per_language=512, context_length=64, progress=False)
        >>> published.values("mean_p90_act", "hi").site
        'pre'
        >>> round(float(published.act_prob_90p.mean()), 1), published.act_prob_90p.std() < 0.05
        (0.1, tensor(True))
    """
    recording, run = with_options(options, recording, run)
    sizes = {"context_length": recording.context_length, "batch_size": run.batch_size or BATCH_SIZE}
    languages, model_view = corpus.languages if languages is None else tuple(languages), view(model)
    corpus = corpus.select(languages)
    if sizes["context_length"] > model_view.context_length:
        raise CorpusError(
            f"{model_view.name!r} takes chunks of 1 to {model_view.context_length} tokens, not "
            f"{sizes['context_length']}."
        )
    work = partial(
        language_statistics, tokens=recording.tokens_per_language, seed=seed, progress=bool(run.progress), **sizes
    )
    by_language = list(chosen_executor(run.executor).map(model, work, [corpus.select([name]) for name in languages]))
    tokens = {language: count for language, (count, _) in zip(languages, by_language, strict=True)}
    arrays = {name: torch.stack([of_language[name] for _, of_language in by_language]) for name in ARRAYS}
    about = {**sizes, "seed": seed, "tokens": tokens, "corpus": corpus.fingerprints}
    return PublishedStatistics(languages, model_view.fingerprint, about, **arrays)


def language_statistics(
    model: torch.nn.Module,
    corpus: Corpus,
    tokens: int | None,
    context_length: int,
    batch_size: int,
    seed: int,
    progress: bool,
) -> tuple[int, dict[str, ByNeuron]]:
    """Compute the statistics of one language, wherever that is.

    Args:
        model: A model returned by ``load_model``.
        corpus: Text in this language only.
        tokens: Tokens that each pass reads; by default half of the chunks.
        context_length: Tokens per chunk.
        batch_size: Chunks per batch.
        seed: Seed of the random choice.
        progress: Whether to show progress bars on standard error.

    Returns:
        Number of tokens that each pass read, and the arrays by name.
    """
    (language,) = corpus.languages
    with scoring(model) as model_view:
        chunks = _cut_chunks(corpus, language, model_view, context_length)
        n_batches = _batches_a_pass(language, chunks, batch_size, tokens)
        first, second = (
            Progress(
                _random_batches(chunks, n_batches, batch_size, seed, name, language),
                desc=f"{language}, {name} pass",
                total=n_batches,
                unit="batch",
                shown=progress,
            )
            for name in ("first", "second")
        )
        n_tokens = n_batches * batch_size * context_length
        means = _summed(model_view, first, len(MEANS), lambda layer, z: _batch_statistics(z)) / n_batches
        arrays = dict(zip(MEANS, means.float(), strict=True))
        p90 = arrays["mean_p90_act"]
        above = _summed(
            model_view, second, 2, lambda layer, z: torch.stack([(z > p90[layer].to(z.device)).sum(0), (z > 0).sum(0)])
        )
        shares = (above.long() / n_tokens).float()
    return n_tokens, {**arrays, "act_prob_90p": shares[0], "act_prob_zero": shares[1]}


def _cut_chunks(
    corpus: Corpus, language: str, model_view: ModelView, context_length: int
) -> Int[np.ndarray, "chunk position"]:
    """Join a language's tokenised documents and cut them; the rest that fills no chunk is dropped."""
    if model_view.tokenizer is None:
        raise CorpusError(f"{model_view.name!r} has no tokenizer, and text must be tokenised: load it with one.")
    documents = chain.from_iterable(
        model_view.tokenizer(texts, verbose=False)["input_ids"] for texts in batches(corpus.tables[language])
    )
    stream = np.fromiter(chain.from_iterable(documents), np.int64)
    whole = len(stream) // context_length * context_length
    return rearrange(stream[:whole], "(chunk position) -> chunk position", position=context_length)


def _batches_a_pass(language: str, chunks: np.ndarray, batch_size: int, tokens: int | None) -> int:
    n_chunks, context_length = chunks.shape
    chunks_per_pass = n_chunks // 2 if tokens is None else tokens // context_length
    if not batch_size <= chunks_per_pass <= n_chunks:
        raise CorpusError(
            f"{language!r} has {n_chunks} chunks of {context_length} tokens, and a pass would read {chunks_per_pass} "
            f"in batches of {batch_size}: give tokens_per_language from {batch_size * context_length} to "
            f"{n_chunks * context_length}, a smaller batch_size or context_length, or more text."
        )
    return chunks_per_pass // batch_size


def _random_batches(
    chunks: Int[np.ndarray, "chunk position"], n_batches: int, batch_size: int, seed: int, *names: str
) -> Iterator[Int[Tensor, "batch position"]]:
    """Draw random chunks, whole batches of them; other names draw independently."""
    generator = np.random.default_rng([seed, *"/".join(names).encode()])
    rows = generator.choice(len(chunks), n_batches * batch_size, replace=False)
    for batch in rearrange(rows, "(batch row) -> batch row", row=batch_size):
        yield torch.from_numpy(chunks[batch])


def _batch_statistics(z: Float[Tensor, "token neuron"]) -> Float[Tensor, "statistic neuron"]:
    quantiles = torch.quantile(z, torch.tensor(PERCENTILES, dtype=torch.float32, device=z.device) / 100, dim=0)
    return torch.cat([z.mean(0)[None], z.std(0)[None], quantiles])


def _summed(
    model_view: ModelView, batches: Progress, number: int, of_tokens: Callable[[int, Tensor], Tensor]
) -> Float[Tensor, "statistic layer neuron"]:
    """Sum statistics of z, which a function computes of a layer and its tokens, over batches."""
    sums = torch.zeros(number, model_view.n_layers, model_view.width("pre"), dtype=torch.float64)

    def read(layer: int, z: Tensor) -> None:
        sums[:, layer] += of_tokens(layer, rearrange(z, "row position neuron -> (row position) neuron").float()).cpu()

    with model_view.reading({"pre": read}):
        for tokens in batches:
            model_view.forward(tokens, logits=False)
            check_finite(model_view, sums, tokens)
    return sums
