"""Statistics of neurons from easy to hard, of which it is known whether they belong to Hindi."""

import torch

from langneurons.recording.statistics import ActivationStats
from tests.planted.statistics import statistics_from

LANGUAGES = ("en", "hi", "ur", "zh")
LAYERS, WIDTH, DOCUMENTS, LENGTH = 2, 200, 60, 40
EACH = 4  # planted neurons of a kind and layer

OF_HI = ("exclusive", "sixty_forty", "pair")  # belong to hi; neurons of the other kinds must not be found
KINDS = (*OF_HI, "frequent_token", "heterogeneous", "everywhere")


def positions(kind: str) -> slice:
    """The neurons of a kind, the same in every layer."""
    start = KINDS.index(kind) * EACH
    return slice(start, start + EACH)


def graded_statistics(seed: int = 0) -> ActivationStats:
    """Most neurons are active on 20 to 80 % of the tokens, in every language alike; six kinds are not.

    exclusive: active on 80 % of the tokens of hi, 2 % elsewhere. sixty_forty: 60 % in hi, 40 % elsewhere. pair: 80 % in
    hi and ur, 2 % elsewhere. frequent_token: strongly active on one token in 12, in every language. heterogeneous:
    active in a sixth of the documents only, in every language. everywhere: strongly active on 95 % of the tokens.
    """
    random = torch.Generator().manual_seed(seed)
    base = torch.rand(LAYERS, WIDTH, generator=random) * 0.6 + 0.2
    values, documents = {}, {}
    for language in LANGUAGES:
        document = torch.arange(DOCUMENTS * LENGTH) // LENGTH
        share = (base + 0.1 * torch.randn(DOCUMENTS, LAYERS, WIDTH, generator=random)).clamp(0, 1)
        share[..., positions("exclusive")] = 0.8 if language == "hi" else 0.02
        share[..., positions("sixty_forty")] = 0.6 if language == "hi" else 0.4
        share[..., positions("pair")] = 0.8 if language in ("hi", "ur") else 0.02
        share[..., positions("frequent_token")] = 1 / 12
        share[..., positions("heterogeneous")] = (torch.rand(DOCUMENTS, LAYERS, EACH, generator=random) < 1 / 6).float()
        share[..., positions("everywhere")] = 0.95
        share = share[document]
        size = torch.randn(share.shape, generator=random).abs()
        size[..., positions("frequent_token")] *= 3
        size[..., positions("everywhere")] *= 2
        active = torch.rand(share.shape, generator=random) < share
        values[language] = torch.where(active, size, -0.3 * size)
        documents[language] = document
    return statistics_from(values, documents)
