"""The classes a model can be loaded as: TransformerLens 4 has TransformerBridge alone."""

from collections.abc import Iterable
from typing import Any

from langneurons.models.internals import hooked_class

HookedTransformer: Any = hooked_class()
BACKENDS = ("bridge",) if HookedTransformer is None else ("hooked", "bridge")


def loadable(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of some pairs of architecture and backend whose class there is."""
    return [pair for pair in pairs if pair[1] in BACKENDS]
