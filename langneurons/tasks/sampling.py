"""Drawing tokens from what a model predicts, each text with random numbers of its own."""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons import storage


class Sampler:
    """Draws the next token of every row.

    A row's random numbers come from its own generator, on the CPU. So what is drawn for a row does not depend on its
    neighbours, the batch size or the device, unless two tokens are equally good up to rounding.

    Args:
        temperature: What logits are divided by, above 0.
        top_p: Probability that the tokens to draw from hold together, likeliest first.
        generators: Generator of each row.

    Example:
        >>> from langneurons.tasks.sampling import Sampler, generator_of
        >>> draw = Sampler(1.0, 0.5, [generator_of(seed=0, prompt=[1, 5])])
        >>> draw(torch.tensor([[0.0, 9.0, 0.0]]))
        tensor([1])
    """

    def __init__(self, temperature: float, top_p: float, generators: Sequence[torch.Generator]) -> None:
        self._temperature, self._top_p, self._generators = temperature, top_p, generators

    def __call__(self, logits: Float[Tensor, "row token"]) -> Int[Tensor, " row"]:
        """Draw a token of each row from its logits."""
        scaled = logits.cpu().double() / self._temperature
        if self._top_p < 1:
            scaled = nucleus(scaled, self._top_p)
        # Of exponential variables divided by the tokens' probabilities, each is the least with its token's probability.
        # Unlike a draw from the cumulative distribution, this hardly ever changes with rounding.
        pairs = zip(scaled, self._generators, strict=True)
        waits = [torch.empty_like(row).exponential_(generator=own) for row, own in pairs]
        return (scaled - torch.stack(waits).log()).argmax(1)


def nucleus(logits: Float[Tensor, "row token"], top_p: float) -> Float[Tensor, "row token"]:
    """Leave only the likeliest tokens, as few as hold a probability together (Holtzman et al. 2020, arXiv 1904.09751).

    Args:
        logits: Logits; those of tokens that are left out become -inf.
        top_p: The probability, above 0.
    """
    probabilities, tokens = logits.softmax(1).sort(dim=1, descending=True, stable=True)
    held = probabilities.cumsum(1) - probabilities  # by the likelier ones
    return logits.masked_fill((held >= top_p).gather(1, tokens.argsort(1)), -torch.inf)


def generator_of(seed: int, prompt: Sequence[int], turn: int = 0) -> torch.Generator:
    """The generator of a prompt, which depends on nothing but its tokens.

    Args:
        seed: Seed of all prompts.
        prompt: Token ids.
        turn: How often the same prompt was completed before, so that it is not completed in the same way again.
    """
    key = storage.fingerprint(str(seed), str(turn), *map(str, prompt))
    return torch.Generator().manual_seed(int(key, 16) % 2**63)


def generators_of(seed: int, prompts: Sequence[Sequence[int]]) -> list[torch.Generator]:
    """The generators of several prompts, among which may be equal ones."""
    turns: Counter[tuple[int, ...]] = Counter()
    generators = []
    for prompt in map(tuple, prompts):
        generators.append(generator_of(seed, prompt, turns[prompt]))
        turns[prompt] += 1
    return generators
