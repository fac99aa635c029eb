"""The classes a model can be loaded as: TransformerLens 4 has TransformerBridge alone."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from langneurons.models import view
from langneurons.models.backends.hooked import Hooked
from langneurons.models.internals import hooked_class

HookedTransformer: Any = hooked_class()
BACKENDS = ("bridge",) if HookedTransformer is None else ("hooked", "bridge")


@contextmanager
def unfused(model: Any) -> Iterator[None]:
    """Run TransformerLens' own layers inside the block, as a HookedTransformer does where every point has a hook."""
    runner = view(model).runner
    if not isinstance(runner, Hooked):
        yield
        return
    runner.fuse(False)
    try:
        yield
    finally:
        runner.fuse(True)


def loadable(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of some pairs of architecture and backend whose class there is."""
    return [pair for pair in pairs if pair[1] in BACKENDS]
