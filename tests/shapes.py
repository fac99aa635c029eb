"""What checks shapes in tests: beartype, asked once for a function, however often it is made inside another."""

import inspect
from collections.abc import Callable

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_checked: dict[tuple[str, str, str], Callable] = {}


def check(stub: Callable) -> Callable:
    """Check the arguments of one of jaxtyping's stubs, which have a signature and nothing else."""
    signature = stub.__module__, stub.__qualname__, str(inspect.signature(stub))
    if signature not in _checked:
        _checked[signature] = _check(stub)
    return _checked[signature]
