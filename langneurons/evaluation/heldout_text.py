"""Held-out text, tokenised once, and a model's loss on it in rows that conditions can be paired by.

Whatever hooks are attached to the model count: inside ``ln.intervene`` it is the patched model that is measured.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from langneurons import storage
from langneurons.corpora import Blocks, Corpus, PackedCorpus, pack
from langneurons.corpora.blocks import LENGTHS
from langneurons.corpora.corpus import check_corpus
from langneurons.corpora.languages import distinct
from langneurons.corpora.packing import stream_bytes
from langneurons.errors import CorpusError, ModelError, unknown, warn_user
from langneurons.models import ModelView, view
from langneurons.models.finite import check_finite
from langneurons.run import Cost, Progress, timed
from langneurons.settings import whole_number
from langneurons.tasks.batching import scoring, tokenizer_of

EACH = ("block", "text")
EARLIER_EACH = {"document": "text"}  # words of version 0.1.0 -> what they are called
COLUMNS = ["language", "item", "cluster", "nll", "tokens", "bytes"]
USUAL_CONTEXT_LENGTH = 512


@dataclass(frozen=True, eq=False, repr=False)
class HeldoutText:
    """Held-out text, tokenised once and scored as often as wanted; ``HeldoutText.of`` makes it.

    Args:
        each: Unit that is read at once: a "block" of the packed stream, or a "text" alone.
        context_length: Largest number of positions read at once.
        tokenizer: The tokenizer of the text.
        packed: Each language's tokens.
        bytes_of: Each language's UTF-8 bytes, by place in its stream of tokens.
    """

    each: str
    context_length: int
    tokenizer: PreTrainedTokenizerBase
    packed: Mapping[str, PackedCorpus]
    bytes_of: Mapping[str, Int[np.ndarray, " place"]]

    @classmethod
    def of(
        cls,
        model: torch.nn.Module,
        corpus: "Corpus | HeldoutText",
        tokens_per_language: int | None = None,
        context_length: int | None = None,
        each: str = "block",
        folder: str | Path | None = None,
    ) -> "HeldoutText":
        """Tokenise a corpus for a model; a held-out text is returned as it is.

        Args:
            model: A model returned by ``load_model``; its tokenizer is used, and nothing else of it is kept.
            corpus: Text the model was not trained on, and from which no neuron was chosen.
            tokens_per_language: Counted tokens of each language in blocks; by default as many as the smallest has.
            context_length: Positions read at once, a multiple of 16; by default 512, or the model's context if shorter.
            each: "block" packs texts one after the other, for running text. "text" reads every text alone from its
                beginning and cuts it at the context length, for parallel sentences.
            folder: Folder for the tokens; by default a temporary one that lives as long as the held-out text.

        Returns:
            The tokenised text.

        Raises:
            CorpusError: If the corpus is empty, has too few tokens, or an argument is out of range; or if the text is
                tokenised already and other tokens, context length or ``each`` are asked for.
            ModelError: If the context is longer than the model's, or the model has no tokenizer.

        Example:
            >>> from langneurons.evaluation.heldout_text import HeldoutText
            >>> HeldoutText.of(model, ln.load_corpus("babel", ["en", "hi"]), tokens_per_language=500)
            HeldoutText(blocks of 512 positions, counted tokens: en 500, hi 500)
        """
        if isinstance(corpus, HeldoutText):
            if (tokens_per_language, context_length, each) != (None, None, "block"):
                raise CorpusError(
                    "A HeldoutText is tokenised already: its tokens, context length and each= cannot change."
                )
            return corpus
        model_view, each = view(model), current_each(each)
        context_length = _context_length(model_view, context_length)
        _check(corpus, each, tokens_per_language)
        with ExitStack() as stack:
            if folder is None:
                folder = stack.enter_context(storage.temporary_folder())
            tokenizer, folder = model_view.tokenizer, Path(folder)
            if each == "block":
                whole = pack(corpus, tokenizer, context_length, folder, tokens_per_language)
                packed = dict.fromkeys(corpus.languages, whole)
            else:  # each language by itself, so that none is cut to the size of the smallest
                alone = {name: corpus.select([name]) for name in corpus.languages}
                packed = {name: pack(part, tokenizer, context_length, folder / name) for name, part in alone.items()}
            counts = {name: stream_bytes(packed[name], corpus, tokenizer, name) for name in packed}
            text = cls(each, context_length, tokenizer, packed, counts)
            text._check_predictable()
            text._check_whole()
            weakref.finalize(text, stack.pop_all().close)
        return text

    def __repr__(self) -> str:
        tokens = ", ".join(f"{language} {tokens:,}" for language, tokens in self.tokens.items())
        return f"HeldoutText({self.each}s of {self.context_length} positions, counted tokens: {tokens})"

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, in the order of the corpus."""
        return tuple(self.packed)

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Counted tokens of each language: those whose loss is measured."""
        return {
            language: sum(int(batch.counted.sum()) for _, batch in self.batches(language, 256))
            for language in self.languages
        }

    @cached_property
    def positions(self) -> int:
        """Tokens that go through the model when all languages are scored, padding included."""
        return int(sum(self._padded_lengths(language).sum() for language in self.languages))

    def cost(self, model: torch.nn.Module, batch_size: int = 8) -> Cost:
        """Estimate what scoring the text once will take, from one batch of it.

        Args:
            model: The model the text was tokenised for.
            batch_size: Blocks, or documents, per forward pass.
        """
        batch_size = self._checked(view(model), batch_size)
        _, batch = next(self.batches(self.languages[0], batch_size))
        with scoring(model) as model_view:
            memory = model_view.predictions(batch.tokens, batch.counted).bytes
            seconds = timed(lambda: losses(model_view, batch))
        return Cost(tokens=self.positions, memory=memory).at(batch.tokens.numel() / seconds)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the text, the tokenizer and how the text is read."""
        about = [(name, packed.about[name]) for name, packed in self.packed.items()]
        parts = [part for name, of in about for part in (name, of.source, of.fingerprint)]
        tokenizer = str(next(iter(self.packed.values())).made_from["tokenizer"])
        each = "document" if self.each == "text" else self.each  # as what was measured by 0.1.0 is kept
        return storage.fingerprint(each, str(self.context_length), tokenizer, *parts)

    def score(
        self,
        model: torch.nn.Module,
        batch_size: int = 8,
        languages: Sequence[str] | None = None,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Measure a model's loss on the text, with whatever is attached to the model at this moment.

        The loss of a counted token is -log p(token | the tokens before it), in nats. Rows do not depend on the batch
        size.

        Args:
            model: The model the text was tokenised for, or one with the same vocabulary.
            batch_size: Blocks, or documents, per forward pass.
            languages: Languages to score; by default all.
            progress: Whether to show a progress bar on standard error.

        Returns:
            One row per stretch of a text: language; item, "block:text" in blocks and the text's ordinal where texts are
            read alone; cluster, the ordinal of the text's document; source, that of the document's source, where it is
            known; and nll (nats), tokens and bytes, summed over the row's counted tokens.

        Raises:
            LanguageError: If the text has no such language.
            ModelError: If the model's context is too short, or its vocabulary another; or if a loss is not finite.
            CorpusError: If ``batch_size`` is below 1.

        Example:
            >>> from langneurons.evaluation.heldout_text import HeldoutText
            >>> text = HeldoutText.of(model, ln.load_corpus("babel", ["en", "hi"]).take(10), each="text")
            >>> text.score(model, languages=["hi"])[["language", "item", "cluster", "tokens", "bytes"]].head(2)
              language  item  cluster  tokens  bytes
            0       hi     0        0 ...
            1       hi     1        1 ...
        """
        languages = self.languages if languages is None else distinct(languages, self.languages)
        model_view = view(model)
        batch_size = self._checked(model_view, batch_size)
        total = sum(len(group) for language in languages for group in self._groups(language))
        bar = Progress(total=total, unit=self.each, shown=progress, smoothing=0.1)
        with bar, scoring(model):
            parts = [self._scored(model_view, language, batch_size, bar) for language in languages]
        return pd.concat(parts, ignore_index=True)

    def batches(self, language: str, batch_size: int) -> Iterator[tuple[Int[np.ndarray, " block"], Blocks]]:
        """Read a language's blocks, or documents, a batch at a time, each with its ordinals."""
        packed = self.packed[language]
        read = packed.blocks if self.each == "block" else packed.texts
        for group in self._groups(language):
            for start in range(0, len(group), batch_size):
                ordinals = group[start : start + batch_size]
                yield ordinals, read(language, ordinals)

    def _scored(self, model_view: ModelView, language: str, batch_size: int, bar: Progress) -> pd.DataFrame:
        bar.set_description(language)
        parts = []
        for ordinals, batch in self.batches(language, batch_size):
            stretches, counted = self.stretches(language, ordinals, batch), batch.counted.numpy()
            nll = losses(model_view, batch)
            check_finite(model_view, nll, batch.tokens)
            sums = {
                "nll": nll.numpy(),
                "tokens": np.ones(int(counted.sum()), np.int64),
                "bytes": self._bytes(language, batch)[counted],
            }
            starts = stretches["start"].to_numpy()
            parts.append(stretches.assign(**{name: np.add.reduceat(of, starts) for name, of in sums.items()}))
            bar.update(len(ordinals))
        rows = pd.concat(parts, ignore_index=True).sort_values(["block", "text"], ignore_index=True)
        source = ["source"] if "source" in rows.columns else []
        return rows.assign(language=language).reindex(columns=[*COLUMNS[:3], *source, *COLUMNS[3:]])

    def stretches(self, language: str, ordinals: Int[np.ndarray, " block"], batch: Blocks) -> pd.DataFrame:
        """Divide the counted tokens of some blocks into stretches, each of one text in one block.

        Args:
            language: The language.
            ordinals: Ordinals of the blocks, or of the texts that are read alone.
            batch: The blocks.

        Returns:
            One row per stretch: start, the place of its first token among the counted ones; block, text, item, cluster
            (the document), and source where it is known.
        """
        counted = batch.counted.numpy()
        block, text = np.broadcast_to(ordinals[:, None], counted.shape)[counted], batch.text.numpy()[counted]
        starts = np.flatnonzero(np.diff(block, prepend=-1) | np.diff(text, prepend=-1))
        block, text, packed = block[starts], text[starts], self.packed[language]
        in_blocks = [f"{b}:{t}" for b, t in zip(block, text, strict=True)]
        rows = pd.DataFrame({"start": starts, "block": block, "text": text})
        rows = rows.assign(item=text if self.each == "text" else in_blocks, cluster=packed.groups(language)[text])
        sources = packed.about[language].levels
        return rows.assign(source=packed.groups(language, "source")[text]) if "source" in sources else rows

    def _bytes(self, language: str, batch: Blocks) -> Int[np.ndarray, "block position"]:
        place = batch.place.numpy()
        return np.where(place >= 0, self.bytes_of[language][place], 0)

    def _groups(self, language: str) -> list[Int[np.ndarray, " block"]]:
        """What may share a batch: only blocks of one padded length, so that no row depends on its neighbours."""
        lengths = self._padded_lengths(language)
        return [np.flatnonzero(lengths == length) for length in np.unique(lengths)]

    def _padded_lengths(self, language: str) -> Int[np.ndarray, " block"]:
        packed = self.packed[language]
        if self.each == "block":
            return np.full(packed.n_blocks(language), self.context_length)
        return packed.format.padded(packed.lengths(language))

    def _check_predictable(self) -> None:
        for language, tokens in self.tokens.items():
            if not tokens:
                raise CorpusError(
                    f"{language!r} has no token to predict: its documents give one token each, or only special ones."
                )

    def _check_whole(self) -> None:
        for language, packed in self.packed.items() if self.each == "text" else ():
            lengths = packed.lengths(language) + (packed.format.bos is not None)
            if cut := int((lengths > self.context_length).sum()):
                warn_user(
                    f"{language!r}: {cut} of {len(lengths)} documents exceed {self.context_length} positions and are "
                    "cut; bits per item leave out what lies beyond."
                )

    def _checked(self, model_view: ModelView, batch_size: int) -> int:
        """The batch size, if a model can read the text in such batches."""
        batch_size = whole_number(batch_size, "batch_size", CorpusError)
        if batch_size < 1:
            raise CorpusError(f"A batch has at least one {self.each}, not {batch_size}.")
        _context_length(model_view, self.context_length)
        tokenizer = model_view.tokenizer
        if tokenizer is not self.tokenizer and tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise ModelError(
                f"The text was tokenised with another vocabulary than {model_view.name}'s: make another with "
                "HeldoutText.of."
            )
        return batch_size


def losses(model_view: ModelView, batch: Blocks) -> Float[Tensor, " counted"]:
    """Compute the loss of every counted token of some blocks.

    Args:
        model_view: The view of a model.
        batch: The blocks.

    Returns:
        -log p(token | the tokens before it) in nats, in double precision on CPU, block after block.
    """
    predictions = model_view.predictions(batch.tokens, batch.counted)
    return predictions.losses(batch.tokens[batch.counted]).cpu().double()


def usual_context_length(model_view: ModelView) -> int:
    """Positions of a block where nothing else is asked for: 512, or the model's context if shorter."""
    return min(USUAL_CONTEXT_LENGTH, model_view.context_length // LENGTHS * LENGTHS)


def _context_length(model_view: ModelView, context_length: int | None) -> int:
    tokenizer_of(model_view)  # says if there is none
    if context_length is None:
        return usual_context_length(model_view)
    context_length = whole_number(context_length, "context_length", CorpusError)
    if context_length > model_view.context_length:
        raise ModelError(
            f"A context of {context_length} positions is longer than {model_view.name}'s, which is "
            f"{model_view.context_length}."
        )
    return context_length


def current_each(each: str) -> str:
    """What is read at once, by its current name; a warning says what that of version 0.1.0 is called."""
    if each in EARLIER_EACH:
        warn_user(f"each={each!r} is called each={EARLIER_EACH[each]!r}; the old word goes with 1.0.")
    return EARLIER_EACH.get(each, each)


def _check(corpus: Corpus, each: str, tokens_per_language: int | None) -> None:
    if each not in EACH:
        raise CorpusError(unknown("each", each, EACH))
    check_corpus(corpus)
    if not corpus.languages:
        raise CorpusError("The corpus is empty: it has no language.")
    if each == "text" and tokens_per_language is not None:
        raise CorpusError("Documents are read whole: take fewer of them with corpus.take(), not tokens_per_language.")
