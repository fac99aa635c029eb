"""Tokenise a corpus and write it to disk as streams of token ids, as far as a budget of counted tokens needs."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from hashlib import blake2b
from itertools import chain, groupby
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from langneurons.corpora.blocks import (
    SCHEMA,
    BlockFormat,
    PackedCorpus,
    PackedLanguage,
    ends_file,
    files_of,
    level_file,
    stream_file,
)
from langneurons.corpora.corpus import LEVELS, READ_AT_ONCE, Corpus, batches
from langneurons.corpora.long_texts import PIECE, pieces_of
from langneurons.errors import CorpusError, StaleArtefactError, StorageError
from langneurons.models import start_token
from langneurons.settings import whole_number
from langneurons.storage import checksum, fingerprint, replacing, write_json

TOKENS_AT_ONCE = 1 << 20


def pack(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    context_length: int,
    folder: str | Path,
    tokens_per_language: int | None = None,
) -> PackedCorpus:
    """Tokenise a corpus into blocks with exactly the same number of counted tokens in every language.

    What a language's blocks hold depends on its texts, the tokenizer and the budget, not on the other languages. If the
    folder already holds the same texts so packed, it is opened as it is.

    Args:
        corpus: The texts, taken in their order; shuffle first for a fair share of each source.
        tokenizer: A fast tokenizer.
        context_length: Positions per block, a multiple of 16.
        folder: The folder for the token ids, 4 bytes each.
        tokens_per_language: Counted tokens per language; by default as many as the smallest language has.

    Returns:
        The packed corpus, memory-mapped.

    Raises:
        CorpusError: If a language has fewer counted tokens than that, or an argument is out of range.
        StorageError: If the folder cannot be written.
    """
    folder = Path(folder)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CorpusError(f"{type(tokenizer).__name__} is not a fast tokenizer; load it with AutoTokenizer.")
    context_length, tokens_per_language = _checked(context_length, tokens_per_language)
    how = _format_of(tokenizer, context_length)
    made_from = {"tokenizer": tokenizer_fingerprint(tokenizer), "tokens_per_language": tokens_per_language}
    try:
        packed = PackedCorpus(folder)
        if packed.format == how and packed.made_from == made_from and _holds(packed, corpus):
            for language in packed.languages:
                packed.lengths(language)  # verifies its files
            return packed
    except StorageError:
        pass  # nothing there, or not whole: pack
    counted, extents = _write_streams(corpus, tokenizer, how, folder, tokens_per_language)
    about = {
        language: _about(corpus, folder, language, how, counted, extents[language]) for language in corpus.languages
    }
    content = {"languages": list(about), "counted": counted, "format": asdict(how), "made_from": made_from}
    write_json(_manifest(folder), SCHEMA, {**content, "about": {name: asdict(of) for name, of in about.items()}})
    return PackedCorpus(folder)


def _checked(context_length: int, tokens_per_language: int | None) -> tuple[int, int | None]:
    context_length = whole_number(context_length, "context_length", CorpusError)
    if tokens_per_language is not None:
        tokens_per_language = whole_number(tokens_per_language, "tokens_per_language", CorpusError)
    if context_length < 16 or context_length % 16:
        raise CorpusError(f"The context length must be a multiple of 16, given {context_length}.")
    if tokens_per_language is not None and tokens_per_language < 1:
        raise CorpusError(f"The counted tokens per language must be at least 1, given {tokens_per_language}.")
    return context_length, tokens_per_language


def _format_of(tokenizer: PreTrainedTokenizerFast, context_length: int) -> BlockFormat:
    bos = start_token(tokenizer)
    eos, padding = (cast(int | None, index) for index in (tokenizer.eos_token_id, tokenizer.pad_token_id))
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return BlockFormat(
        context_length=context_length,
        bos=bos,
        separator=bos if eos is None else eos,
        padding=next((choice for choice in (padding, eos) if choice is not None), 0),
        special=tuple(sorted(special | set(tokenizer.all_special_ids))),
    )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash of how texts become tokens, special tokens that the tokenizer object adds aside."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    # Whoever used the tokenizer last left its truncation and padding there; packing sets both aside.
    lasting = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return fingerprint(json.dumps(lasting, sort_keys=True))


def _holds(packed: PackedCorpus, corpus: Corpus) -> bool:
    return packed.languages == corpus.languages and all(
        (about.in_corpus, about.source) == (len(corpus[language]), _source(corpus, language, about.texts))
        for language, about in packed.about.items()
    )


def _source(corpus: Corpus, language: str, texts: int) -> str:
    return corpus.select([language]).first_texts(texts).fingerprints[language]


class _Stream:
    """One language's files while they grow."""

    def __init__(
        self,
        texts: Iterator[list[str]],
        tokenizer: PreTrainedTokenizerFast,
        how: BlockFormat,
        files: Sequence[Path],
        stack: ExitStack,
    ) -> None:
        self._how = how
        self._parts = _tokenised(texts, tokenizer)
        self._inside_text = False
        self._tokens, self._ends = (
            stack.enter_context(stack.enter_context(replacing(path)).open("wb")) for path in files
        )
        self.texts, self.length, self.counted = 0, 0, 0

    def extend(self) -> bool:
        """Append some texts, or a piece of a long one; False when there are no more."""
        part = next(self._parts, None)
        if part is None:
            return False
        texts, ended = part
        self._append(texts, ended)
        return True

    def close(self) -> None:
        """End the text in whose middle the stream stops."""
        if self._inside_text:
            self._append([[]], ended=True)

    def _append(self, texts: list[list[int]], ended: bool) -> None:
        separator = [self._how.separator] if ended and self._how.separator is not None else []
        parts = [ids + separator for ids in texts]
        tokens = np.fromiter(chain.from_iterable(parts), "<u4")
        self.counted += int(self._how.counted(tokens, np.arange(self.length, self.length + len(tokens))).sum())
        self._tokens.write(tokens.tobytes())
        if ended:
            ends = self.length + np.cumsum([len(part) for part in parts])
            self._ends.write(ends.astype("<i8").tobytes())
            self.texts += len(parts)
        self.length, self._inside_text = self.length + len(tokens), not ended


def _tokenised(
    texts: Iterator[list[str]], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[list[list[int]], bool]]:
    """The tokens of some texts, or of a piece of a long one, and whether these are the last of their text."""
    for batch in texts:
        for long, group in groupby(batch, key=lambda text: len(text) > PIECE):
            if not long:
                encoded = tokenizer(list(group), add_special_tokens=False, return_attention_mask=False, verbose=False)
                yield cast(list[list[int]], encoded["input_ids"]), True
            else:
                yield from (([piece.ids], piece.last) for text in group for piece in pieces_of(tokenizer, text))


def _write_streams(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, how: BlockFormat, folder: Path, budget: int | None
) -> tuple[int, dict[str, tuple[int, int]]]:
    with ExitStack() as stack:
        streams = {}
        for language in corpus.languages:
            files = stream_file(folder, language), ends_file(folder, language)
            streams[language] = _Stream(batches(corpus.tables[language]), tokenizer, how, files, stack)
        counted = _fill_all(streams) if budget is None else _fill(streams, budget)
        for stream in streams.values():
            stream.close()
        # The files are about to change: what the old manifest says of them no longer holds.
        _manifest(folder).unlink(missing_ok=True)
    return counted, {language: (stream.texts, stream.length) for language, stream in streams.items()}


def _fill(streams: dict[str, _Stream], budget: int) -> int:
    for language, stream in streams.items():
        while stream.counted < budget:
            if not stream.extend():
                has = f"{language!r} has {stream.counted} counted tokens, fewer than the {budget} asked for"
                raise CorpusError(f"{has}; ask for fewer, or for None to take as many as the smallest language has.")
    return budget


def _fill_all(streams: dict[str, _Stream]) -> int:
    while True:
        # The first language that runs out while it is the shortest is the smallest; no other is read beyond its size.
        language = min(streams, key=lambda name: streams[name].counted)
        if not streams[language].extend():
            break
    if not streams[language].counted:
        raise CorpusError(f"{language!r} has no counted token: its texts give only special tokens, or none.")
    return streams[language].counted


def _about(
    corpus: Corpus, folder: Path, language: str, how: BlockFormat, counted: int, extent: tuple[int, int]
) -> PackedLanguage:
    texts, length = extent
    stream = np.memmap(stream_file(folder, language), "<u4", mode="r", shape=(length,))
    ends = np.memmap(ends_file(folder, language), "<i8", mode="r", shape=(texts,))
    groups_of = {level: corpus.groups(language, level)[:texts] for level in LEVELS if corpus.grouped(language, level)}
    # Where every text has a document of its own, its number says nothing more.
    levels = {
        level: groups.astype("<i8") for level, groups in groups_of.items() if (groups != np.arange(len(groups))).any()
    }
    for level, groups in levels.items():
        with replacing(level_file(folder, language, level)) as path, path.open("wb") as file:
            file.write(groups.tobytes())
    stop = _stop(stream, how, counted)
    reached = int(np.searchsorted(ends, stop))
    return PackedLanguage(
        in_corpus=len(corpus[language]),
        texts=texts,
        stream=length,
        stop=stop,
        source=_source(corpus, language, texts),
        fingerprint=_fingerprint(
            how, stream[:stop], ends[:reached], *(groups[: reached + 1] for groups in levels.values())
        ),
        checksums=[checksum(file) for file in files_of(folder, language, list(levels))],
        levels=list(levels),
    )


def _stop(stream: np.ndarray, how: BlockFormat, budget: int) -> int:
    for start in range(0, len(stream), TOKENS_AT_ONCE):
        tokens = stream[start : start + TOKENS_AT_ONCE]
        places = np.flatnonzero(how.counted(tokens, np.arange(start, start + len(tokens))))
        if len(places) >= budget:
            return start + int(places[budget - 1]) + 1
        budget -= len(places)
    raise CorpusError(f"The stream of tokens has {budget} counted tokens fewer than were written: pack it again.")


def _fingerprint(how: BlockFormat, stream: np.ndarray, *parts: np.ndarray) -> str:
    digest = blake2b(
        json.dumps([how.context_length, how.bos, how.separator, how.special, len(stream)]).encode(), digest_size=16
    )
    for values in (stream, *parts):
        for start in range(0, len(values), TOKENS_AT_ONCE):
            digest.update(values[start : start + TOKENS_AT_ONCE].tobytes())
    return digest.hexdigest()


def _manifest(folder: Path) -> Path:
    return folder / "manifest.json"


def token_bytes(text: str, offsets: Sequence[tuple[int, int]]) -> Int[np.ndarray, " token"]:
    """Share out the UTF-8 bytes of a text among its tokens, each byte to exactly one of them.

    A character split over several tokens goes to the first, characters that no token covers (such as white space) go to
    the token after them, or to the last token where none comes after.

    Args:
        text: Any text.
        offsets: The characters each token covers, start and end, as fast tokenizers give them.

    Returns:
        Bytes of each token; they sum to the bytes of the text unless it has no token.

    Example:
        >>> token_bytes("né le", [(0, 1), (1, 2), (1, 2), (3, 5)]).tolist()
        [1, 2, 0, 3]
    """
    if not len(offsets):
        return np.zeros(0, np.int64)
    characters = np.frombuffer(text.encode("utf-32-le"), "<u4")
    before = np.concatenate([[0], np.cumsum(1 + sum(characters >= least for least in (0x80, 0x800, 0x10000)))])
    shown = np.maximum.accumulate([end for _, end in offsets])
    shown[-1] = len(text)
    return np.diff(before[shown], prepend=0)


def stream_bytes(
    packed: PackedCorpus, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, language: str
) -> Int[np.ndarray, " place"]:
    """Count the bytes of every token in a packed language's stream; separators have none.

    Args:
        packed: The packed corpus.
        corpus: The corpus it was packed from.
        tokenizer: The tokenizer it was packed with.
        language: A language of both.

    Returns:
        Bytes by place in the stream.

    Raises:
        LanguageError: If either has no such language.
        StaleArtefactError: If the packed corpus was made from other texts or with another tokenizer.
    """
    lengths = packed.lengths(language)
    texts = corpus[language][: len(lengths)]
    starts = range(0, len(texts), READ_AT_ONCE)
    counts = [
        of
        for start in starts
        for of in _bytes_of(texts[start : start + READ_AT_ONCE], lengths[start : start + READ_AT_ONCE], tokenizer)
    ]
    if [len(of) for of in counts] != lengths.tolist():
        raise StaleArtefactError(f"The packed tokens of {language!r} are not those of the corpus; pack it again.")
    separator = np.zeros(int(packed.format.separator is not None), np.int64)
    return np.concatenate([part for of in counts for part in (of, separator)])


def _bytes_of(
    texts: Sequence[str], lengths: Int[np.ndarray, " text"], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Int[np.ndarray, " token"]]:
    """Bytes of each token of some texts; of a long one as far as its tokens were packed."""
    pairs = zip(texts, lengths.tolist(), strict=True)
    for long, group in groupby(pairs, key=lambda pair: len(pair[0]) > PIECE):
        if long:
            yield from (_bytes_of_long(text, length, tokenizer) for text, length in group)
            continue
        short = [text for text, _ in group]
        encoded = tokenizer(short, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        yield from map(token_bytes, short, encoded["offset_mapping"])


def _bytes_of_long(text: str, length: int, tokenizer: PreTrainedTokenizerBase) -> Int[np.ndarray, " token"]:
    parts, tokens, start = [np.zeros(0, np.int64)], 0, 0
    for piece in pieces_of(tokenizer, text):
        end = len(text) if piece.last else max((high for _, high in piece.offsets), default=start)
        parts.append(token_bytes(text[start:end], [(low - start, high - start) for low, high in piece.offsets]))
        tokens, start = tokens + len(piece.ids), end
        if tokens >= length:
            break
    return np.concatenate(parts)
