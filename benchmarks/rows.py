"""One measured number, what it is held to, and the table it stands in."""

from dataclasses import dataclass

HEADER = "| what | base | hold | measured | verdict |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        what: What is measured.
        base: What it is measured against; empty where the number stands for itself.
        measured: The number, in ``unit``; with a base, how many times the base it is.
        unit: ``"x"`` for a ratio.
        at_most: The largest number that holds, or None.
        at_least: The smallest number that holds, or None.
        detail: What the number was made from, in brief.
    """

    what: str
    base: str
    measured: float
    unit: str = "x"
    at_most: float | None = None
    at_least: float | None = None
    detail: str = ""

    @property
    def hold(self) -> str:
        """What the number is held to, in words; empty where to nothing."""
        if self.at_most is not None and self.at_least is not None:
            return self._said(f"{written(self.at_least)} to {written(self.at_most)}")
        if self.at_most is not None:
            return self._said(f"<= {written(self.at_most)}")
        return "" if self.at_least is None else self._said(f">= {written(self.at_least)}")

    @property
    def verdict(self) -> str:
        """``"held"`` or ``"falls short"``; empty where nothing is to be held. What is no number falls short.

        The number is judged as it is written, so that no line of the table contradicts itself.
        """
        if self.at_most is None and self.at_least is None:
            return ""
        number = float(written(self.measured).replace(",", ""))
        high = self.at_most is None or number <= self.at_most
        low = self.at_least is None or number >= self.at_least
        return "held" if high and low else "falls short"

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        measured = self._said(written(self.measured)) + detail
        return f"| {self.what} | {self.base} | {self.hold} | {measured} | {self.verdict} |"

    def _said(self, number: str) -> str:
        return f"{number} {self.unit}".rstrip()


def written(number: float) -> str:
    """Write a number with four digits, which is more than any of them is exact to.

    Example:
        >>> written(1.05163), written(12345.6), written(0)
        ('1.052', '12,346', '0')
    """
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"
