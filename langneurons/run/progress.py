"""How far work is, on standard error: a bar at a terminal and in a notebook, else a line soon and then each minute."""

import math
import sys
from collections.abc import Iterable
from time import monotonic
from typing import TypeVar

from tqdm import tqdm

from langneurons.errors import counted

Item = TypeVar("Item")
FIRST_SECONDS, LINE_SECONDS = 5.0, 60.0  # to the first line, which corrects what was foretold, and between later ones
LINE = "{desc}{n_fmt} of {total_fmt} {units} after {elapsed}, {remaining} left{postfix}"


class Progress(tqdm):
    """A bar of tqdm, or lines where nothing can be drawn over, such as in a log.

    Args:
        iterable: Items whose number is shown as they are taken.
        shown: Whether to show anything.
        options: Options of tqdm, such as ``total`` and ``unit``.

    Example:
        >>> from langneurons.run import Progress
        >>> list(Progress(range(3), shown=False, unit="batch"))
        [0, 1, 2]
    """

    def __init__(self, iterable: Iterable[Item] | None = None, *, shown: object = True, **options: object) -> None:
        self._draws = sys.stderr.isatty() or "ipykernel" in sys.modules
        self._began = self._line_at = monotonic()
        self._warm = math.inf, math.inf  # how much was done, and when, after the first piece
        if not self._draws:
            options |= {"bar_format": LINE, "mininterval": FIRST_SECONDS, "maxinterval": FIRST_SECONDS}
        super().__init__(iterable, disable=not shown, **options)  # pyright: ignore[reportCallIssue, reportArgumentType]
        if shown and not self.pos:  # within other work, which has lines of its own, the first may wait
            self._line_at -= LINE_SECONDS - FIRST_SECONDS

    @property
    def format_dict(self) -> dict[str, object]:
        """What a bar or a line is made of: tqdm's values, the unit's plural, and the rate without the first piece."""
        values = dict(super().format_dict)
        values["units"] = counted(self.total or 0, str(values["unit"])).partition(" ")[2]
        first, since = self._warm
        if self.n > first:
            values["rate"] = (self.n - first) / max(monotonic() - since, 1e-9)
        return values

    def update(self, n: float | None = 1) -> bool | None:
        """Count what has been done; the first piece, which takes longer than others, is left out of the rate."""
        shown = super().update(n)
        if math.isinf(self._warm[0]):
            self._warm = self.n, monotonic()
        return shown

    def display(  # pyright: ignore[reportIncompatibleMethodOverride] (tqdm returns a bool, its stub says None)
        self, msg: str | None = None, pos: int | None = None
    ) -> bool:
        """Draw the bar, or write a line if the last one is long ago."""
        if self._draws:
            return bool(super().display(msg, pos))
        now = monotonic()
        steady = self.n > self._warm[0] or now - self._began >= LINE_SECONDS
        due = steady and self.n > self.initial and now - self._line_at >= LINE_SECONDS
        if due:
            self._line_at = now
            sys.stderr.write(f"{self}\n")
        return due

    def clear(self, nolock: bool = False) -> None:
        """Remove the bar before something else is written; a line stays."""
        if self._draws:
            super().clear(nolock)

    def close(self) -> None:
        """End the bar; lines need no end."""
        if not self._draws:
            self.delay = math.inf  # by which tqdm knows that there is no bar to clear
        super().close()


def say(text: object, progress: object = True) -> None:
    """Write a line to standard error, above progress bars.

    Args:
        text: What is written.
        progress: Whether to write it.
    """
    if progress:
        tqdm.write(str(text), file=sys.stderr)
