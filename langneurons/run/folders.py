"""Who works in a folder: one process at a time, which is refused before it has done anything."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from langneurons import storage
from langneurons.errors import StorageError
from langneurons.run.executors import RayExecutor, chosen_executor, patience
from langneurons.settings import Run, with_options

LOCK = ".lock"
Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")
_folders: ContextVar[tuple[Path, ...]] = ContextVar("folders that this process works in", default=())


@contextmanager
def working_in(folder: Path, doing: str) -> Iterator[None]:
    """Keep other processes out of a folder inside the block; the lock ends with the process, whatever ends it.

    What runs inside the block may work in the folder, too.

    Args:
        folder: The folder. It is made, and removed again where the block fails before anything is kept in it.
        doing: What is done there, for the message: "recording".

    Raises:
        StorageError: If another process works there, or the folder cannot be written.
    """
    folder = Path(os.path.realpath(storage.path_of(folder)))  # a link to itself is said when the folder is made
    if folder in _folders.get():
        yield
        return
    deadline = time.monotonic() + patience.get()
    with ExitStack() as stack:
        made_here = not folder.exists()
        storage.check_writable(folder)
        while not stack.enter_context(storage.locked(folder / LOCK)):
            if time.monotonic() > deadline:
                raise StorageError(f"Another process is {doing} in {folder}: wait for it, or use another folder.")
            stack.pop_all().close()
            time.sleep(0.2)
        token = _folders.set((*_folders.get(), folder))
        stack.callback(_folders.reset, token)
        try:
            yield
        except BaseException:
            with suppress(OSError, StorageError):  # not every system removes a lock that is held
                if made_here and [path.name for path in folder.iterdir()] == [LOCK]:
                    storage.remove_folder(folder)
            raise


def alone_in_out(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Make a function that takes ``run`` refuse a folder in use, and a cluster out of reach, before it does anything.

    Args:
        function: A public function with the keyword ``run`` and single options of it.
    """

    @wraps(function)
    def alone(*arguments: Arguments.args, **options: Arguments.kwargs) -> Returned:
        own = {name: value for name, value in options.items() if name in ("out", "executor")}
        (run,) = with_options(own, cast(Run, options.get("run", Run())))
        if isinstance(executor := chosen_executor(run.executor), RayExecutor):
            executor.connect()
        if run.out is None:
            return function(*arguments, **options)
        with working_in(run.out, f"running {function.__name__}()"):
            return function(*arguments, **options)

    return alone
