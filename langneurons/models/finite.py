"""Refusing what a model computed where it is no finite number, and saying where that began."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from langneurons.errors import FINITE_ADVICE, ModelError

SHOWN_TOKENS, SHOWN_CHARACTERS = 12, 60


@runtime_checkable
class Runs(Protocol):
    """What is needed of a model: a ModelView, or what looks like one."""

    name: str
    tokenizer: Any

    @property
    def sites(self) -> tuple[str, ...]: ...  # noqa: D102 (as ModelView's)

    def layer(self, index: int) -> Any: ...  # noqa: D102

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor | None: ...  # noqa: D102

    def reading(self, readers: Mapping[str, Callable[[int, Tensor], object]]) -> AbstractContextManager[None]: ...  # noqa: D102


def check_finite(
    model_view: Runs,
    outcome: Tensor,
    tokens: Int[Tensor, "row position"],
    attention_mask: Int[Tensor, "row position"] | None = None,
) -> None:
    """Refuse what a forward pass gave unless all of it is finite.

    Args:
        model_view: The model.
        outcome: What was made of the forward pass, such as losses.
        tokens: The tokens that went in.
        attention_mask: 0 for padding; None where there is none, or only on the right.

    Raises:
        ModelError: If a number is not finite; it names the first layer, site and unit that gave one, and the text.
    """
    if not bool(outcome.isfinite().all()):
        of_logits = f"What {model_view.name!r} predicts is not finite, though its logits are. {FINITE_ADVICE}"
        raise ModelError(refusal(model_view, tokens, attention_mask) or of_logits)


@torch.no_grad()
def refusal(
    model_view: Runs,
    tokens: Int[Tensor, "row position"],
    attention_mask: Int[Tensor, "row position"] | None = None,
    counted: Bool[Tensor, "row position"] | None = None,
) -> str | None:
    """Run a forward pass again, and say where its numbers stop being finite; None where all are.

    Args:
        model_view: The model.
        tokens: The tokens.
        attention_mask: 0 for padding; None where there is none, or only on the right.
        counted: The positions that count; by default all that are not padding.
    """
    if counted is None and attention_mask is not None:
        counted = attention_mask.bool()
    outcomes: list[Tensor] = []
    origin = first_origin(
        model_view, lambda: outcomes.append(cast(Tensor, model_view.forward(tokens, attention_mask))), counted
    )
    if origin is None and bool(_wrong(outcomes[0], counted).any()):
        row, position = first_wrong(outcomes[0], counted)[:2]
        origin = ("its layers do, but its final norm or its unembedding does not", row, position)
    if origin is None:
        return None
    where, row, position = origin
    start = 0 if attention_mask is None else int(attention_mask[row].argmax())
    text = _decoded(model_view, tokens[row, start : position + 1])
    return f"{model_view.name!r} does not compute finite numbers: {where}, on the text {text!r}. {FINITE_ADVICE}"


@torch.no_grad()
def first_origin(
    model_view: Runs, run: Callable[[], object], counted: Bool[Tensor, "row position"] | None = None
) -> tuple[str, int, int] | None:
    """Find the first value that is not finite while a model runs.

    Args:
        model_view: The model.
        run: Runs it once.
        counted: The positions that count; by default all.

    Returns:
        Where it is in words, its row and its position; None where every site's values are finite.
    """
    origins: list[tuple[str, int, int]] = []

    def look(where: str, values: Tensor) -> None:
        units = values.flatten(2)
        if not origins and (sentence := units_in_words(units, counted)) is not None:
            row, position = first_wrong(units, counted)[:2]
            origins.append((f"{where}, {sentence}", row, position))

    def reader(site: str) -> Callable[[int, Tensor], None]:
        return lambda layer, values: look(f"at site {site!r} of layer {layer}", values)

    # In this order: a token whose embedding is not finite spoils the heads of all positions, also before it.
    embedded: torch.nn.Module = model_view.layer(0).input_point
    handle = embedded.register_forward_hook(lambda module, inputs, output: look("before layer 0", cast(Tensor, output)))
    try:
        with model_view.reading({site: reader(site) for site in model_view.sites}):
            run()
    finally:
        handle.remove()
    return origins[0] if origins else None


def units_in_words(values: Tensor, counted: Tensor | None = None) -> str | None:
    """Name the first unit whose value is not finite, and say how many are not; None where all are.

    Args:
        values: Values of a layer, units last.
        counted: Where a value counts, by all axes but the last; by default everywhere.

    Example:
        >>> units_in_words(torch.tensor([[0.0, torch.nan, torch.inf]]))
        'unit 1 is nan (2 of 3 units are not finite)'
    """
    wrong = _wrong(values, counted)
    if not bool(wrong.any()):
        return None
    *_, unit = place = first_wrong(values, counted)
    units = int(wrong.reshape(-1, values.shape[-1]).any(0).sum())
    return f"unit {unit} is {float(values[place])} ({units:,} of {values.shape[-1]:,} units are not finite)"


def first_wrong(values: Tensor, counted: Tensor | None = None) -> tuple[int, ...]:
    """The place of the first value that is not finite."""
    return tuple(_wrong(values, counted).nonzero()[0].tolist())


def _wrong(values: Tensor, counted: Tensor | None) -> Tensor:
    wrong = ~values.isfinite()
    return wrong if counted is None else wrong & counted.to(wrong.device)[..., None]


def _decoded(model_view: Runs, ids: Tensor) -> str:
    """The last tokens up to a place, as text."""
    if model_view.tokenizer is None:
        return str(ids[-SHOWN_TOKENS:].tolist())
    return str(model_view.tokenizer.decode(ids[-SHOWN_TOKENS:].tolist()))[-SHOWN_CHARACTERS:]
