"""Counts that others published: how often each neuron was above zero, of how many tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Int, Num
from torch import Tensor

from langneurons.errors import StatisticsError
from langneurons.storage.torch_files import is_stored, read_torch

ACTIVE, TOKENS = "over_zero", ("n", "total_tokens")  # as Tang et al. 2024 and those that follow them call them


def read_counts(source: object, language: str) -> tuple[Num[Tensor, "layer neuron"], Num[Tensor, ""]]:
    """Read one language's counts.

    Args:
        source: A torch file (nothing in it is executed), or what it holds: a dictionary with ``over_zero`` and ``n`` or
            ``total_tokens``.
        language: The language, for messages.

    Returns:
        Number of tokens on which each neuron was above zero, and number of tokens.

    Raises:
        StorageError: If the file cannot be read, or holds what would have to be executed.
        StatisticsError: If it holds something else.
    """
    content = read_torch(source) if isinstance(source, str | Path) else source
    name = str(source) if isinstance(source, str | Path) else f"What was given for {language!r}"
    held = content if isinstance(content, Mapping) else {}
    active, tokens = held.get(ACTIVE), next((held[key] for key in TOKENS if key in held), None)
    tokens = torch.tensor(tokens) if isinstance(tokens, int | float) else tokens
    tensors = [tensor for tensor in (active, tokens) if isinstance(tensor, Tensor) and is_stored(tensor)]
    if [tensor.ndim for tensor in tensors] not in ([2, 0], [2, 1]) or tensors[1].numel() != 1:
        raise StatisticsError(
            f"{name} does not hold counts: a dictionary with {ACTIVE!r} (a tensor, layer x neuron) and {TOKENS[0]!r} "
            f"or {TOKENS[1]!r} (a number)."
        )
    return tensors[0].cpu(), tensors[1].cpu().reshape(())


def checked_counts(
    active: Num[Tensor, "language layer neuron"],
    tokens: Num[Tensor, " language"],
    languages: Sequence[str],
    clip: bool = False,
) -> tuple[Int[Tensor, "language layer neuron"], Int[Tensor, " language"]]:
    """Give counts and tokens as whole numbers.

    Args:
        active: Number of tokens on which each neuron was above zero.
        tokens: Counted tokens of each language.
        languages: Their codes.
        clip: Whether a count above its language's tokens becomes that number.

    Raises:
        StatisticsError: If a number is not whole, a language has no token, or a neuron was active on fewer tokens than
            none, or on more than there are and ``clip`` is False.
    """
    totals = [f"{language!r} has {float(n):.10g} tokens" for language, n in zip(languages, tokens, strict=True)]
    if bool((usable := _whole(tokens) & (tokens >= 1)).logical_not().any()):
        raise StatisticsError(f"{totals[int(usable.long().argmin())]}: tokens are a whole number above 0.")
    if (place := _first(~_whole(active))) is not None:
        raise StatisticsError(
            f"{_counted(active, languages, *place)}: counts are whole numbers of tokens. Multiply probabilities by the "
            "tokens that they are shares of, round them, and give those tokens."
        )
    most, impossible = tokens[:, None, None], active < 0
    if (place := _first(impossible | (active > most) & (not clip))) is not None:
        above = int((active > most).sum())
        many = f" ({above:,} of {active.numel():,} counts exceed their tokens)" if above else ""
        advice = "A count is not negative" if bool(impossible.any()) else "Check the counts, or pass clip=True"
        raise StatisticsError(f"{_counted(active, languages, *place)}, but {totals[place[0]]}{many}. {advice}.")
    return torch.minimum(active.long(), most.long()), tokens.long()


def _counted(active: Tensor, languages: Sequence[str], row: int, layer: int, neuron: int) -> str:
    count = active[row, layer, neuron].item()
    shown = f"{count:.10g}" if isinstance(count, float) else f"{count:,}"
    return f"Neuron ({layer}, {neuron}) of {languages[row]!r} has {shown} activations"


def _whole(values: Tensor) -> Bool[Tensor, "*place"]:
    """Which numbers are whole and fit 64 bits."""
    if not values.is_floating_point():
        return torch.ones_like(values, dtype=torch.bool)
    return (values == values.round()) & (values.abs() < 2.0**63)


def _first(wrong: Tensor) -> tuple[int, int, int] | None:
    return tuple(wrong.nonzero()[0].tolist()) if bool(wrong.any()) else None  # pyright: ignore[reportReturnType]
