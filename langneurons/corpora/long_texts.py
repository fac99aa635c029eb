"""Tokenise a long text in pieces that are joined where the tokens of two pieces agree, so that memory stays flat."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

PIECE = 1 << 16  # characters; a longer text is tokenised in pieces
_OVERLAP = 1 << 11  # characters that two pieces share at first
_LEAST_AGREEMENT = 16  # tokens


@dataclass(frozen=True)
class Piece:
    """Some consecutive tokens of a text.

    Attributes:
        ids: The token ids.
        offsets: The characters of the text that each token covers, start and end.
        last: Whether these are the last tokens of the text.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    last: bool


def pieces_of(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[Piece]:
    """Tokenise a text piece by piece, with the tokens that the whole text has.

    Two pieces overlap, and are joined in the middle of the overlap if all tokens but those near its ends are the same
    in both; otherwise the first is tokenised again with more of the text.

    Args:
        tokenizer: A fast tokenizer.
        text: Any text.

    Yields:
        The tokens, in order.
    """
    start, size = 0, PIECE
    piece = _encoded(tokenizer, text, start, size)
    while not piece.last:
        end = start + size
        following = _encoded(tokenizer, text, end - _OVERLAP, PIECE)
        low, high = end - 3 * _OVERLAP // 4, end - _OVERLAP // 4
        ours, theirs = (_inside(tokens, low, high) for tokens in (piece, following))
        agreed = [(piece.ids[i], piece.offsets[i]) for i in ours] == [
            (following.ids[j], following.offsets[j]) for j in theirs
        ]
        joint = _joint(piece, ours) if agreed and len(ours) >= _LEAST_AGREEMENT else None
        if joint is None:
            first = piece.offsets[0][0] if piece.offsets else start
            size *= 2
            longer = _encoded(tokenizer, text, start, size)
            piece = _from(longer, next((i for i, (low, _) in enumerate(longer.offsets) if low >= first), 0))
            continue
        yield Piece(piece.ids[: ours[joint]], piece.offsets[: ours[joint]], last=False)
        start, size = end - _OVERLAP, PIECE
        piece = _from(following, theirs[joint])
    yield piece


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str, start: int, size: int) -> Piece:
    encoded = tokenizer(
        text[start : start + size], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    offsets = [(start + low, start + high) for low, high in cast(list[tuple[int, int]], encoded["offset_mapping"])]
    return Piece(list(cast(list[int], encoded["input_ids"])), offsets, last=start + size >= len(text))


def _from(piece: Piece, index: int) -> Piece:
    return Piece(piece.ids[index:], piece.offsets[index:], piece.last)


def _inside(piece: Piece, low: int, high: int) -> list[int]:
    return [i for i, (start, end) in enumerate(piece.offsets) if low <= start and end <= high]


def _joint(piece: Piece, indices: list[int]) -> int | None:
    """The place nearest to the middle of some tokens where no character is split between two of them."""
    middle = len(indices) // 2
    whole = [k for k in range(1, len(indices)) if piece.offsets[indices[k]][0] >= piece.offsets[indices[k] - 1][1]]
    return min(whole, key=lambda k: abs(k - middle), default=None)
