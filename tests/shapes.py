"""What checks shapes in tests: beartype, which reads a signature once, however often a function inside another is made."""

import functools
import inspect
from collections.abc import Callable

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(stub: Callable) -> Callable:
    """Check the arguments of one of jaxtyping's stubs, which have a signature and nothing else."""
    try:
        return _checked(_Stub(stub))
    except TypeError:  # a default that cannot be hashed
        return _check(stub)


class _Stub:
    """Equal to every other stub of the same signature."""

    def __init__(self, stub: Callable):
        self.stub = stub
        self.signature = stub.__module__, stub.__qualname__, inspect.signature(stub)

    def __hash__(self) -> int:
        return hash(self.signature)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stub) and self.signature == other.signature


@functools.cache
def _checked(stub: _Stub) -> Callable:
    return _check(stub.stub)
