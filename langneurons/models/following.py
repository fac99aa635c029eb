"""Following a model while it generates: which positions of a forward are the prompt's, which are generated.

With a key-value cache every forward after the first holds one position, without one it holds the whole text again;
neither class says which. So ``generate`` is wrapped for as long as someone follows, and the first forward in it is the
prompt.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import isgenerator
from itertools import islice
from typing import Any

import torch

from langneurons.models.sites import attached

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
