"""A packed corpus read back: blocks of token ids in which every counted token and its text is known.

The tokens of a language's texts, each followed by a separator, are one stream; a block is a stretch of it, with the
beginning-of-sequence token in front where the tokenizer has one. A counted token is never padding, a special token, a
separator, or at position 0 of a block. A text can also be read alone, in a block of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int

from langneurons.corpora.corpus import LEVELS
from langneurons.corpora.languages import label_of
from langneurons.errors import CorpusError, CorruptArtefactError, StorageError
from langneurons.storage import read_json, understood, verify

SCHEMA = "langneurons/packed-corpus/2"
_LARGEST = 1 << 24  # of ids and positions, for which tables are made
LENGTHS = 16  # the padded length of a text alone is a multiple of this


@dataclass(frozen=True)
class Blocks:
    """Some blocks of one language, ready for a model.

    Args:
        tokens: Token ids; the last block of a language, and texts read alone, are right-padded.
        counted: Which tokens enter statistics and losses.
        text: The ordinal of the token's text within its language; -1 where the token is not counted.
        attention_mask: 1 for tokens, 0 for padding.
        place: Where in the language's stream the token lies; -1 for padding and for the token in front.
    """

    tokens: Int[torch.Tensor, "block position"]
    counted: Bool[torch.Tensor, "block position"]
    text: Int[torch.Tensor, "block position"]
    attention_mask: Int[torch.Tensor, "block position"]
    place: Int[torch.Tensor, "block position"]


@dataclass(frozen=True)
class BlockFormat:
    """How a stream of token ids becomes blocks.

    Args:
        context_length: Positions per block.
        bos: The id in front of every block, if any.
        separator: The id after every text, if any.
        padding: The id that fills the last block.
        special: The ids that are never counted.
    """

    context_length: int
    bos: int | None
    separator: int | None
    padding: int
    special: tuple[int, ...]

    @property
    def stride(self) -> int:
        """Stream tokens per block."""
        return self.context_length - (self.bos is not None)

    def padded(self, tokens: np.ndarray) -> np.ndarray:
        """Positions a text takes alone, given its tokens: a multiple of 16, at most the context length."""
        fronted = np.maximum(tokens + (self.bos is not None), 1)
        return np.minimum(-(-fronted // LENGTHS) * LENGTHS, self.context_length)

    def counted(self, tokens: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Which stream tokens are counted, given their places in the stream."""
        counted = ~self._is_special[np.minimum(tokens, len(self._is_special) - 1)]
        # Without a token in front, a stream token stands at position 0.
        return counted if self.bos is not None else counted & (places % self.context_length != 0)

    @cached_property
    def _is_special(self) -> np.ndarray:
        table = np.zeros(max(self.special, default=-1) + 2, bool)
        table[list(self.special)] = True
        return table


@dataclass(frozen=True)
class PackedLanguage:
    """What the manifest says of one language's files.

    Args:
        in_corpus: Texts in the corpus.
        texts: Texts in the files.
        stream: Stream tokens in the files.
        stop: The place in the stream just after the last counted token.
        source: A hash of the texts in the files.
        fingerprint: A hash of the counted tokens, their texts and documents, and their places in the blocks.
        checksums: The checksums of the file of tokens, of the file of texts' ends, and of that of their documents and
            sources, where these are known.
        levels: What is known of where the texts stand: nothing, "document", or "document" and "source".
    """

    in_corpus: int
    texts: int
    stream: int
    stop: int
    source: str
    fingerprint: str
    checksums: Sequence[str]
    levels: Sequence[str] = ()


class PackedCorpus:
    """Blocks of counted tokens per language, read from disk as they are asked for.

    Every language has equally many counted tokens. Pickled, a packed corpus is its folder.

    Args:
        folder: The folder that ``pack`` wrote it to.

    Raises:
        StorageError: If there is no packed corpus in the folder, or one of its files is truncated.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = read_json(folder / "manifest.json", SCHEMA)
        with understood(folder / "manifest.json"):
            self.format = BlockFormat(**{**manifest["format"], "special": tuple(manifest["format"]["special"])})
            self.about = {name: PackedLanguage(**manifest["about"][name]) for name in manifest["languages"]}
            self.made_from: dict[str, str | int | None] = manifest["made_from"]
            self._budget: int = manifest["counted"]
            _check_numbers(self._budget, self.format, self.about)
            self._streams = {
                name: _mapped(stream_file(folder, name), "<u4", of.stream) for name, of in self.about.items()
            }
            self._ends = {name: _mapped(ends_file(folder, name), "<i8", of.texts) for name, of in self.about.items()}
            self._levels = {
                (name, level): _mapped(level_file(folder, name, level), "<i8", of.texts)
                for name, of in self.about.items()
                for level in of.levels
            }
        self._unverified = {name: files_of(folder, name, of.levels) for name, of in self.about.items()}

    @classmethod
    def open(cls, folder: str | Path) -> "PackedCorpus":
        """Open the packed corpus in a folder; a language's files are verified when they are first read.

        Raises:
            StorageError: If there is none, or one of its files is truncated.
        """
        return cls(Path(folder))

    def __reduce__(self) -> tuple[type["PackedCorpus"], tuple[Path]]:
        return PackedCorpus, (self.folder,)

    def __repr__(self) -> str:
        each = f"{self._budget:,} counted tokens each, context length {self.context_length}"
        return f"PackedCorpus({', '.join(self.languages)}: {each})"

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, in the order of the corpus."""
        return tuple(self.about)

    @property
    def context_length(self) -> int:
        """Positions per block."""
        return self.format.context_length

    @property
    def tokens(self) -> dict[str, int]:
        """Counted tokens of each language."""
        return dict.fromkeys(self.about, self._budget)

    @property
    def fingerprints(self) -> dict[str, str]:
        """A hash of each language's counted tokens, their documents and their places; other languages do not matter."""
        return {language: about.fingerprint for language, about in self.about.items()}

    def n_blocks(self, language: str) -> int:
        """The number of blocks that a language fills, the short last one included."""
        return -(-self.about[label_of(language, self.about)].stop // self.format.stride)

    def text_count(self, language: str) -> int:
        """The number of a language's texts, from its first, that the counted tokens reach into."""
        language, about = self._verified(language)
        last = about.stop - 1
        return int(np.searchsorted(self._ends[language], last, side="right")) + 1

    def blocks(self, language: str, indices: Sequence[int] | np.ndarray) -> Blocks:
        """Read blocks of a language.

        Args:
            language: One of the languages.
            indices: Ordinals of the blocks, from 0 to ``n_blocks(language)`` - 1, in any order.

        Returns:
            The blocks, in that order.

        Raises:
            LanguageError: If the packed corpus has no such language.
            CorpusError: If it has no such block.
        """
        (language, about), indices = self._verified(language), np.asarray(indices, np.int64)
        _check_ordinals(language, "blocks", indices, self.n_blocks(language))
        places = indices[:, None] * self.format.stride + np.arange(self.format.stride)
        return self._read(language, places, places < about.stop)

    def groups(self, language: str, level: str = "document") -> Int[np.ndarray, " text"]:
        """The document, or source, that each text in the files stands in; one of its own where that is not known.

        Args:
            language: One of the languages.
            level: "document" or "source".

        Raises:
            LanguageError: If the packed corpus has no such language.
        """
        language, about = self._verified(language)
        return np.arange(about.texts) if level not in about.levels else self._levels[language, level]

    def lengths(self, language: str) -> Int[np.ndarray, " text"]:
        """Tokens of each text in the files, its separator not included.

        Raises:
            LanguageError: If the packed corpus has no such language.
        """
        language, _ = self._verified(language)
        return np.diff(self._ends[language], prepend=0) - (self.format.separator is not None)

    def texts(self, language: str, ordinals: Sequence[int] | np.ndarray) -> Blocks:
        """Read texts alone: each from its beginning in a block of its own, cut at the context length.

        Args:
            language: One of the languages.
            ordinals: Ordinals of the texts in the files, in any order.

        Returns:
            One block per text, in that order, right-padded to the longest of them.

        Raises:
            LanguageError: If the packed corpus has no such language.
            CorpusError: If its files have no such text.
        """
        (language, about), ordinals = self._verified(language), np.asarray(ordinals, np.int64)
        _check_ordinals(language, "packed texts", ordinals, about.texts)
        lengths = self.lengths(language)[ordinals]
        starts = np.concatenate([[0], self._ends[language]])[ordinals]
        within = np.arange(self.format.padded(lengths).max() - (self.format.bos is not None))
        return self._read(language, starts[:, None] + within, within < lengths[:, None])

    def _read(self, language: str, places: np.ndarray, inside: np.ndarray) -> Blocks:
        within = np.where(inside, places, 0)
        tokens = self._streams[language][within].astype(np.int64)
        counted = self.format.counted(tokens, np.arange(places.shape[1])) & inside
        text = np.where(counted, np.searchsorted(self._ends[language], within, side="right"), -1)
        tokens[~inside] = self.format.padding
        return self._fronted(tokens, counted, text, inside.astype(np.int64), np.where(inside, places, -1))

    def _fronted(self, *parts: np.ndarray) -> Blocks:
        tensors = [torch.from_numpy(part) for part in parts]
        if self.format.bos is None:
            return Blocks(*tensors)
        fronts = (self.format.bos, False, -1, 1, -1)
        pairs = zip(tensors, fronts, strict=True)
        return Blocks(*(torch.nn.functional.pad(tensor, (1, 0), value=front) for tensor, front in pairs))

    def _verified(self, language: str) -> tuple[str, PackedLanguage]:
        """A language's label and what the manifest says of it, once its files were compared with their checksums."""
        language = label_of(language, self.about)
        about = self.about[language]
        for file, expected in zip(self._unverified.pop(language, ()), about.checksums, strict=False):
            verify(file, expected)
        return language, about


def stream_file(folder: Path, language: str) -> Path:
    """The file of a language's stream of token ids: flat little-endian uint32."""
    return folder / f"{language}.tokens"


def ends_file(folder: Path, language: str) -> Path:
    """The file of the places in the stream just after each text and its separator: flat little-endian int64."""
    return folder / f"{language}.ends"


def level_file(folder: Path, language: str, level: str) -> Path:
    """The file of the ordinal of each text's document or source: flat little-endian int64."""
    return folder / f"{language}.{level}s"


def files_of(folder: Path, language: str, levels: Sequence[str]) -> list[Path]:
    """All files of a language, in the order of their checksums."""
    return [
        stream_file(folder, language),
        ends_file(folder, language),
        *(level_file(folder, language, level) for level in levels),
    ]


def _check_ordinals(language: str, what: str, ordinals: np.ndarray, n: int) -> None:
    if ordinals.ndim != 1 or not ordinals.size or ordinals.min() < 0 or ordinals.max() >= n:
        raise CorpusError(f"{language!r} has {what} 0 to {n - 1}, not {np.array2string(ordinals, threshold=8)}.")


def _check_numbers(budget: int, how: BlockFormat, about: Mapping[str, PackedLanguage]) -> None:
    ids = [index for index in (how.bos, how.separator, how.padding, *how.special) if index is not None]
    sizes = [n for of in about.values() for n in (of.in_corpus, of.texts, of.stream, of.stop)]
    if not all(isinstance(n, int) and n >= 0 for n in (budget, how.context_length, *ids, *sizes)):
        raise ValueError("a number is negative or not whole")
    if any(not set(of.levels) <= set(LEVELS) for of in about.values()):
        raise ValueError("a level is unknown")
    if any(len(of.checksums) != 2 + len(of.levels) for of in about.values()):
        raise ValueError("a checksum is missing")
    if not all(isinstance(text, str) for of in about.values() for text in of.checksums):
        raise ValueError("a checksum is not a text")
    if max(how.context_length, *ids) > _LARGEST or any(of.stop > of.stream for of in about.values()):
        raise ValueError("a number is too large")


def _mapped(path: Path, dtype: str, length: int) -> np.ndarray:
    if not path.exists():
        raise StorageError(f"{path} is missing; pack the corpus again.")
    expected = length * np.dtype(dtype).itemsize
    if (size := path.stat().st_size) != expected:
        raise CorruptArtefactError(f"{path} has {size} bytes instead of {expected}: truncated. Pack the corpus again.")
    return np.asarray(np.memmap(path, dtype, mode="r"))
