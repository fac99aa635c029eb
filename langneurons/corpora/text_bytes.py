"""How many bytes of the text each token stands for, so that losses of different tokenizers can be compared."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from langneurons.corpora.blocks import PackedCorpus
from langneurons.corpora.corpus import READ_AT_ONCE, Corpus
from langneurons.errors import StaleArtefactError


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
        corpus: What it was packed from.
        tokenizer: What it was packed with.
        language: Which.

    Returns:
        Bytes by place in the stream.

    Raises:
        LanguageError: If either has no such language.
        StaleArtefactError: If the packed corpus was made from other documents or with another tokenizer.
    """
    lengths = packed.lengths(language)
    texts = corpus[language][: len(lengths)]
    starts = range(0, len(texts), READ_AT_ONCE)
    counts = [found for start in starts for found in _each(texts[start : start + READ_AT_ONCE], tokenizer)]
    if [len(of) for of in counts] != lengths.tolist():
        raise StaleArtefactError(f"The packed tokens of {language!r} are not those of the corpus; pack it again.")
    separator = np.zeros(int(packed.format.separator is not None), np.int64)
    return np.concatenate([part for of in counts for part in (of, separator)])


def _each(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [token_bytes(text, offsets) for text, offsets in zip(texts, encoded["offset_mapping"], strict=True)]
