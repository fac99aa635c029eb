"""Greedy generation for both classes: a left-padded batch, a key-value cache, each row ending where it should."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import isgenerator
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from langneurons.models.sites import attached

Stop = Callable[[Sequence[int]], bool]


class GeneratedRows:
    """What each row of a batch has generated so far, and which rows have ended.

    Args:
        count: Rows in the batch.
        max_new_tokens: The most that a row may generate.
        stop: Whether a row ends with the ids it has generated so far.
        eos: The id that ends a row, and is kept.
        min_new_tokens: How many tokens a row generates before ``eos`` may be chosen.
    """

    def __init__(
        self,
        count: int,
        max_new_tokens: int,
        stop: Stop | None = None,
        eos: int | None = None,
        min_new_tokens: int = 0,
    ) -> None:
        self.ids: list[list[int]] = [[] for _ in range(count)]
        self.ended = [False] * count
        self.steps = 0
        self._max_new_tokens, self._stop, self._eos, self._min_new_tokens = max_new_tokens, stop, eos, min_new_tokens

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return all(self.ended)

    def allowed(self, logits: Float[torch.Tensor, "row token"]) -> Float[torch.Tensor, "row token"]:
        """The logits of the next token, without the end where it is too early."""
        if self._eos is None or self.steps >= self._min_new_tokens:
            return logits
        return logits.index_fill(1, torch.tensor([self._eos], device=logits.device), -torch.inf)

    def extend(self, tokens: Int[torch.Tensor, " row"]) -> None:
        """Give every row that has not ended its next token."""
        self.steps += 1
        for row, token in enumerate(tokens.tolist()):
            if not self.ended[row]:
                self.ids[row].append(token)
                self.ended[row] = self._ends(self.ids[row])

    def _ends(self, ids: list[int]) -> bool:
        if len(ids) >= self._max_new_tokens or ids[-1] == self._eos:
            return True
        return self._stop is not None and self._stop(ids)


def generate_hooked(
    model: Any,
    tokens: Int[torch.Tensor, "row position"],
    attention_mask: Int[torch.Tensor, "row position"],
    rows: GeneratedRows,
) -> None:
    """Generate with a HookedTransformer until every row has ended.

    Args:
        model: The HookedTransformer.
        tokens: Left-padded prompts.
        attention_mask: 0 for padding.
        rows: Where the tokens go.
    """
    from transformer_lens import TransformerLensKeyValueCache  # noqa: PLC0415 (wanted only where the class exists)

    cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, len(tokens))
    while not rows.done:
        residual = model(tokens, attention_mask=attention_mask, past_kv_cache=cache, stop_at_layer=model.cfg.n_layers)
        # Logits of the last position alone; a soft cap would not change which is the largest.
        tokens = rows.allowed(model.unembed(model.ln_final(residual[:, -1:]))[:, 0]).argmax(-1, keepdim=True)
        attention_mask = torch.ones_like(tokens)
        rows.extend(tokens[:, 0])


def generate_hugging_face(
    hf_model: Any,
    tokens: Int[torch.Tensor, "row position"],
    attention_mask: Int[torch.Tensor, "row position"],
    rows: GeneratedRows,
    max_new_tokens: int,
) -> None:
    """Generate with a Hugging Face model, bare or inside a bridge, until every row has ended.

    Args:
        hf_model: The model; its own generate runs.
        tokens: Left-padded prompts.
        attention_mask: 0 for padding.
        rows: Where the tokens go.
        max_new_tokens: As the rows have it.
    """
    settings = GenerationConfig(do_sample=False, use_cache=True, max_new_tokens=max_new_tokens)
    followed = {
        "stopping_criteria": StoppingCriteriaList([_Ending(rows)]),
        "logits_processor": LogitsProcessorList([_Allowing(rows)]),
    }
    with _own_settings_aside(hf_model):
        hf_model.generate(tokens, attention_mask=attention_mask, generation_config=settings, **followed)


@contextmanager
def _own_settings_aside(hf_model: Any) -> Iterator[None]:
    """Set aside what the checkpoint says about generating: with its repetition penalty, say, greedy would not be so."""
    own = hf_model.generation_config
    hf_model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        hf_model.generation_config = own


class _Ending(StoppingCriteria):
    def __init__(self, rows: GeneratedRows) -> None:
        self._rows = rows

    def __call__(self, input_ids: Int[torch.Tensor, "row position"], scores: Any, **options: Any) -> Any:
        self._rows.extend(input_ids[:, -1])
        return torch.tensor(self._rows.ended, device=input_ids.device)


class _Allowing(LogitsProcessor):
    def __init__(self, rows: GeneratedRows) -> None:
        self._rows = rows

    def __call__(self, input_ids: Int[torch.Tensor, "row position"], scores: Any) -> Any:
        return self._rows.allowed(scores)


GENERATE = ("generate", "generate_stream")


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
        """Take the first forward inside for the prompt; what a ``generate`` calls in turn is part of it.

        Args:
            prompt: Positions of the prompt, where it was seen already.
        """
        if not self._depth:
            self._prompt = prompt
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def streamed(self, stream: Iterator[Any]) -> Iterator[Any]:
        """Hand on what a stream generates; between two of its items the model may do something else."""
        prompt, going = None, True
        while going:
            with self.generating(prompt):
                items = list(islice(stream, 1))
                prompt, going = self._prompt, bool(items)
            yield from items


@contextmanager
def following(generators: Sequence[Any], input_point: Any) -> Iterator[Following]:
    """Follow models inside a block.

    Args:
        generators: Objects whose ``generate`` may be called.
        input_point: The hook point that fires first in every forward.
    """
    progress = Following()
    before = [dict(vars(generator)) for generator in generators]
    try:
        for generator in generators:
            for name in GENERATE:
                if hasattr(generator, name):
                    setattr(generator, name, _followed(getattr(generator, name), progress))
        with attached([(input_point, progress.begin_forward)]):
            yield progress
    finally:
        for generator, own in zip(generators, before, strict=True):
            for name in GENERATE:
                vars(generator).pop(name, None)
                if name in own:
                    vars(generator)[name] = own[name]


def _followed(generate: Callable[..., Any], progress: Following) -> Callable[..., Any]:
    @functools.wraps(generate)
    def followed(*arguments: Any, **options: Any) -> Any:
        with progress.generating():
            out = generate(*arguments, **options)
        return progress.streamed(out) if isgenerator(out) else out

    return followed
