"""The command line.

Exit status: 0 done; 1 the reader of the output went away; 2 the user can mend it (one or two lines on standard error);
130 interrupted, run again to go on.
"""

# Nothing but what starts at once: Ctrl-C is understood from main() on, and what commands need takes seconds to import.
import errno
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

AGAIN = "interrupted. Run the same command again to go on from here."
INTERRUPTED = 130  # what typer makes of Ctrl-C
READER_GONE = 1  # what typer makes of a closed pipe
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main() -> None:
    """Run the command line and turn errors into a sentence and an exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before the program began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        if hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # such as a path that is no text
    # Read when torch is imported. Threads that spin while they wait take a shared machine's cores from each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with suppress(ValueError):  # only the main thread may
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
    try:
        status = _ran()
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C does not wait for what is being put away
        say(AGAIN)
    sys.exit(status)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; end at once inside an import, where compiled libraries abort on an exception.

    Raises:
        KeyboardInterrupt: Outside imports.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            say(AGAIN)
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _ran() -> int:
    """Run the command, see that its output arrives, and give the exit status."""
    try:
        from langneurons.cli.commands import run

        status = run(sys.argv[1:])
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in (*FULL, errno.EPIPE) or "--debug" in sys.argv:
            raise
        with suppress(OSError, ValueError):  # or Python would try to write the rest when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            return READER_GONE
        say(f"Cannot write the output: {error.strerror}. What is kept in a folder is not lost.")
        return 2
    return status


def say(message: str) -> None:
    """Write a sentence to standard error.

    Args:
        message: The sentence.
    """
    with suppress(OSError):
        print(f"langneurons: {message}", file=sys.stderr)
