"""What goes on while a model runs: rows that are generated, layers that are skipped, and layers that run twice."""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import isgenerator
from itertools import islice
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from langneurons.errors import ModelError
from langneurons.models.internals import HookPoint, replaced, without_cache
from langneurons.models.sites import Reader, attached

Stop = Callable[[Sequence[int]], bool]
ResidualOf = Callable[[torch.Tensor], torch.Tensor | None]
Unembed = Callable[[torch.Tensor], torch.Tensor]
Draw = Callable[[torch.Tensor], torch.Tensor]  # from logits, "row token", to a token of each row

GENERATE = ("generate", "generate_stream")

_LOGITS = 1 << 24  # as many at once, unless 16 positions have more
_ROWS = 16
_PROBED, _ROUNDING_STEPS = 64, 16


class GeneratedRows:
    """What each row of a batch has generated so far, and which rows have ended.

    Args:
        count: Rows in the batch.
        max_new_tokens: Maximum number of tokens that a row generates.
        stop: Whether a row ends with the ids it has generated so far.
        ends: Ids each of which ends a row, and is kept.
        min_new_tokens: Tokens that a row generates before one of those may be chosen.
        draw: Draws the next token of every row; by default the likeliest is taken.
    """

    def __init__(
        self,
        count: int,
        max_new_tokens: int,
        stop: Stop | None = None,
        ends: Collection[int] = (),
        min_new_tokens: int = 0,
        draw: Draw | None = None,
    ) -> None:
        self.ids: list[list[int]] = [[] for _ in range(count)]
        self.ended = [False] * count
        self.steps = 0
        self.max_new_tokens = max_new_tokens
        self._stop, self._ends, self._min_new_tokens, self._draw = stop, tuple(ends), min_new_tokens, draw

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return all(self.ended)

    def allowed(self, logits: Float[torch.Tensor, "row token"]) -> Float[torch.Tensor, "row token"]:
        """The logits of the next token, without what ends a row where it is too early; only that of a drawn token.

        Raises:
            FloatingPointError: If the largest is not finite: nothing can be chosen by it.
        """
        if not bool(logits.amax(1).isfinite().all()):
            raise FloatingPointError
        if self._ends and self.steps < self._min_new_tokens:
            logits = logits.index_fill(1, torch.tensor(self._ends, device=logits.device), -torch.inf)
        return logits if self._draw is None else _only(logits, self._draw(logits))

    def extend(self, tokens: Int[torch.Tensor, " row"]) -> None:
        """Give every row that has not ended its next token."""
        self.steps += 1
        for row, token in enumerate(tokens.tolist()):
            if not self.ended[row]:
                ids = self.ids[row]
                ids.append(token)
                self.ended[row] = (
                    len(ids) >= self.max_new_tokens or token in self._ends or bool(self._stop and self._stop(ids))
                )


class ForcedRows(GeneratedRows):
    """Rows that are continued with tokens decided before, whatever the model would choose.

    Args:
        tokens: The tokens that continue each row.

    Attributes:
        logits: What the model would have chosen each of them from, step by step.
    """

    def __init__(self, tokens: Int[torch.Tensor, "row step"]) -> None:
        super().__init__(len(tokens), tokens.shape[1])
        self._tokens = tokens
        self.logits: list[Float[torch.Tensor, "row token"]] = []

    def allowed(self, logits: Float[torch.Tensor, "row token"]) -> Float[torch.Tensor, "row token"]:
        """Leave nothing but the next token to choose."""
        self.logits.append(logits.clone())
        return _only(logits, self._tokens[:, self.steps])


def _only(
    logits: Float[torch.Tensor, "row token"], tokens: Int[torch.Tensor, " row"]
) -> Float[torch.Tensor, "row token"]:
    """Logits that leave one token of each row to choose."""
    return torch.full_like(logits, -torch.inf).scatter(1, tokens[:, None].to(logits.device), 0.0)


class Following:
    """Where the running forward stands.

    Attributes:
        first_generated: How many of its positions, from the left, are prompt; the rest are generated.
    """

    def __init__(self) -> None:
        self.first_generated = 0
        self._depth = 0
        self._prompt: int | None = None

    def begin_forward(self, values: torch.Tensor) -> None:
        """Note the number of positions of a forward that begins."""
        positions = values.shape[1]
        if not self._depth:
            self.first_generated = positions
        elif self._prompt is None:
            self.first_generated = self._prompt = positions
        else:
            self.first_generated = self._prompt if positions > self._prompt else 0

    @contextmanager
    def generating(self, prompt: int | None = None) -> Iterator[None]:
        """Take the first forward inside for the prompt; a ``generate`` called by another is part of it.

        Args:
            prompt: Positions of the prompt, where it has run already.
        """
        if not self._depth:
            self._prompt = prompt
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def streamed(self, stream: Iterator[object]) -> Iterator[object]:
        """Hand on what a stream generates; between two of its items the model may do something else."""
        prompt, going = None, True
        while going:
            with self.generating(prompt):
                items = list(islice(stream, 1))
                prompt, going = self._prompt, bool(items)
            yield from items


@contextmanager
def following(generators: Sequence[object], input_point: HookPoint) -> Iterator[Following]:
    """Tell prompt from generated positions inside a block.

    Args:
        generators: Objects whose ``generate`` may be called.
        input_point: The hook point that fires first in every forward.
    """
    progress = Following()
    followed = [
        (generator, name, _followed(getattr(generator, name), progress))
        for generator in generators
        for name in GENERATE
        if hasattr(generator, name)
    ]
    with replaced(followed), attached([(input_point, progress.begin_forward)]):
        yield progress


def _followed(generate: Callable[..., object], progress: Following) -> Callable[..., object]:
    @functools.wraps(generate)
    def followed(*arguments: object, **options: object) -> object:
        with progress.generating():
            out = generate(*arguments, **options)
        return progress.streamed(out) if isgenerator(out) else out

    return followed


class Predictions:
    """What a model predicts at some positions, unembedded a few at a time: all logits at once could fill the memory.

    Args:
        states: What the unembedding reads at each position; or the logits themselves.
        unembed: Makes logits of states; None where ``states`` are logits.
        vocabulary: Number of logits of a position.
    """

    def __init__(
        self, states: Float[torch.Tensor, "prediction number"], unembed: Unembed | None, vocabulary: int
    ) -> None:
        self._states, self._unembed, self._count = states, unembed, len(states)
        # Whole multiples of 16 rows: the bits of a product's row then do not depend on the number of rows.
        self._size = max(_ROWS, _LOGITS // vocabulary // _ROWS * _ROWS)
        if unembed is not None and (lacking := -self._count % _ROWS):
            self._states = torch.cat([states, states.new_zeros(lacking, states.shape[1])])
        self.eps = torch.finfo(states.dtype).eps
        self.bytes = 4 * min(self._size, self._count) * vocabulary + self._states.nbytes

    def logits(self) -> Iterator[Float[torch.Tensor, "prediction token"]]:
        """The logits, in single precision or better, in order, as many at once as fit in 64 MB."""
        for start in range(0, self._count, self._size):
            yield self._logits_of(self._states[start : start + self._size], self._count - start)

    def losses(self, tokens: Int[torch.Tensor, " prediction"]) -> Float[torch.Tensor, " prediction"]:
        """-log p of the token that follows each position, in nats; a backward pass unembeds again.

        Args:
            tokens: The tokens that follow.
        """
        targets = tokens.to(self._states.device).split(self._size)
        parts = zip(self._states.split(self._size), targets, strict=False)
        if torch.is_grad_enabled() and len(targets) > 1:
            return torch.cat([checkpoint(self._losses_of, *part, use_reentrant=False) for part in parts])
        return torch.cat([self._losses_of(*part) for part in parts])

    def loss(self, tokens: Int[torch.Tensor, " prediction"]) -> Float[torch.Tensor, ""]:
        """The sum of ``losses``, for training: its gradient is computed with it, a few positions at a time.

        So no logits are kept, and none are computed twice. Nothing in the unembedding itself gets a gradient.

        Args:
            tokens: The tokens that follow.
        """
        if not (torch.is_grad_enabled() and self._states.requires_grad):
            return self.losses(tokens).sum()
        return cast(torch.Tensor, _SummedLoss.apply(self._states, tokens.to(self._states.device), self._size, self))

    def _losses_of(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self._logits_of(states, len(targets)), targets, reduction="none")

    def _logits_of(self, states: torch.Tensor, count: int) -> torch.Tensor:
        logits = (states if self._unembed is None else self._unembed(states))[:count]
        return logits if logits.dtype == torch.float64 else logits.float()


class _SummedLoss(torch.autograd.Function):
    """The sum of the losses of some states, with its gradient, part by part."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, tokens: torch.Tensor, size: int, predictions: Predictions) -> Any:
        total, gradients = states.new_zeros((), dtype=torch.float64), []
        for part, targets in zip(states.split(size), tokens.split(size), strict=False):
            leaf = part.detach().requires_grad_()
            with torch.enable_grad():
                loss = predictions._losses_of(leaf, targets).sum()
            gradients += torch.autograd.grad(loss, leaf)
            total += loss.detach()
        ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return (outer[0] * gradient).to(gradient.dtype), None, None, None


# From what follows, the rows that it goes on from, and what is predicted of it, to the predictions.
Branching = Callable[[torch.Tensor, Sequence[int], torch.Tensor], Predictions]


def close_to(predictions: Predictions, others: Predictions) -> bool:
    """Whether two computations of the same logits differ by rounding only."""
    for logits, reference in zip(predictions.logits(), others.logits(), strict=True):
        if (logits - reference).abs().max() > _ROUNDING_STEPS * predictions.eps * reference.abs().max():
            return False
    return True


@torch.no_grad()
def unembeds(
    hidden: Callable[[torch.Tensor], torch.Tensor],
    unembed: Unembed,
    tokens: Int[torch.Tensor, "batch position"],
    logits: Float[torch.Tensor, "batch position token"],
) -> bool:
    """Whether a model's logits are what its unembedding makes of its hidden states.

    Args:
        hidden: The states of some tokens.
        unembed: Makes logits of states.
        tokens: Tokens.
        logits: The model's logits of them.
    """
    tokens, logits = tokens[:, :_PROBED], logits[:, :_PROBED].float()
    try:
        states = hidden(tokens)
        difference = (unembed(states).float() - logits).abs().max()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:
        return False  # transformers' models differ in every way there is; whole logits are always right
    return bool(difference <= _ROUNDING_STEPS * torch.finfo(states.dtype).eps * logits.abs().max())


def check_tokens(tokens: Int[torch.Tensor, "batch position"], embedding: nn.Module, name: str) -> None:
    """Refuse ids that have no embedding, such as those of a special token that a text spells out; on CPU only.

    Args:
        tokens: Token ids.
        embedding: The module that turns them into the residual stream.
        name: The model's name.

    Raises:
        ModelError: If an id is negative, or not below the number of embeddings.
    """
    if tokens.device.type != "cpu" or not tokens.numel():
        return  # asking a GPU would make every forward wait for the one before
    size = len(next(embedding.parameters()))
    if (tokens.min() < 0) or tokens.max() >= size:
        outside = tokens[(tokens < 0) | (tokens >= size)][0]
        raise ModelError(
            f"The token id {int(outside)} has no embedding in {name!r}, whose ids are 0 to {size - 1}: does a text "
            "spell out a special token that the model was not made for?"
        )


# How many values a block returns beside the residual stream, None where it returns the bare tensor: Bloom's give two.
_BESIDE: WeakKeyDictionary[nn.Module, int | None] = WeakKeyDictionary()


@contextmanager
def resumed_above(
    blocks: Iterable[nn.Module], embedding: nn.Module, layer: int, residual_of: ResidualOf
) -> Iterator[None]:
    """Begin forwards above a layer, inside the block.

    Args:
        blocks: The model's layers.
        embedding: Its token embedding.
        layer: The last layer that is not run; -1 runs all.
        residual_of: From a forward's tokens to the residual stream after the layer; None runs that forward whole.
    """
    resumed: list[torch.Tensor | None] = [None]

    def begin(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        resumed[0] = residual_of(inputs[0])

    skipped = list(blocks)[: layer + 1]
    handle = embedding.register_forward_pre_hook(begin)
    try:
        with replaced([(b, "forward", _handing_on(b, resumed, index == layer)) for index, b in enumerate(skipped)]):
            yield
    finally:
        handle.remove()


def _handing_on(block: nn.Module, resumed: list[torch.Tensor | None], last: bool) -> Callable[..., object]:
    forward = block.forward

    def run(*inputs: object, **options: object) -> object:
        if resumed[0] is None or block not in _BESIDE:
            out = forward(*inputs, **options)
            _BESIDE[block] = len(out) - 1 if isinstance(out, tuple) else None
            if resumed[0] is None:
                return out
        residual: Any = inputs[0] if inputs else options["hidden_states"]
        handed = resumed[0].to(residual.device) if last else residual
        beside = _BESIDE[block]
        return handed if beside is None else (handed, *[None] * beside)

    return run


def without_gradients(blocks: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Let some layers run without recording gradients, inside the block.

    Args:
        blocks: The layers.
    """
    return replaced([(block, "forward", torch.no_grad()(block.forward)) for block in blocks])


class Checkpointing:
    """Layers of which only the input is kept for a backward pass, where they run again.

    Attributes:
        running_again: Whether a layer runs for the second time at this moment.
    """

    running_again = False

    @contextmanager
    def of(self, blocks: Iterable[nn.Module], config: PretrainedConfig | None) -> Iterator[None]:
        """Checkpoint some layers inside the block.

        Args:
            blocks: The model's layers.
            config: The configuration of the Hugging Face model that runs, if one does: a key-value cache would be
                filled twice.
        """
        twice = [(block, "forward", self._twice(block.forward)) for block in blocks]
        with replaced(twice), without_cache(config):
            yield

    def once(self, reader: Reader) -> Reader:
        """Let a reader have values only the first time that a layer runs."""
        return lambda layer, values: None if self.running_again else reader(layer, values)

    def _twice(self, forward: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(forward)
        def run(*inputs: object, **options: Any) -> object:
            if not torch.is_grad_enabled():
                return forward(*inputs, **options)
            return checkpoint(
                forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), self._again()), **options
            )

        return run

    @contextmanager
    def _again(self) -> Iterator[None]:
        self.running_again = True
        try:
            yield
        finally:
            self.running_again = False
