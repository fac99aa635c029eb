"""Tables as readers see them: values in the unit of the text beside them, with the digits that their size deserves."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import SupportsFloat

import numpy as np
import pandas as pd
from markupsafe import Markup

MISSING = "–"
INDICES = {  # columns that are indices wherever they are printed
    "layer",
    "neuron",
    "other_layer",
    "other_neuron",
    "seed",
    "draw",
    "rank",
    "item",
    "cluster",
}
SMALLEST_EXPONENT = -5  # smaller numbers are printed with an exponent
ROUNDING = 1e-12  # what sums of differences leave where they are zero, as a share of the interval around it
_LATEX = {char: f"\\{char}" for char in "%&_#${}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", MISSING: "--"}
_MARKUP = re.compile(r"<(?=[a-z/!?])|(?<=\])(?=[(\[])", re.IGNORECASE)  # where a tag, or the target of a link, begins
_LATEX |= {"∞": r"$\infty$", "±": r"$\pm$", "−": "$-$", "≤": r"$\leq$", "<": "$<$", ">": "$>$"}


@dataclass(frozen=True)
class Column:
    """The way in which the numbers of one column are printed.

    Attributes:
        heading: Text above the column; by default its name.
        unit: Unit that is added to the heading, such as "%" or "points".
        scale: Factor by which values are multiplied; 100 prints shares as per cent or points.
        digits: Significant digits.
        signed: Whether positive numbers get a sign, as differences do.
        bounds: Names of the two columns with the ends of its interval, which is printed in the same cell.
        floor: Smallest value that could be measured, such as the smallest p-value of a number of resamples; values
            that are not larger are printed as "<= floor".
        index: Whether numbers are indices, printed without thousands separators.
    """

    heading: str = ""
    unit: str = ""
    scale: float = 1.0
    digits: int = 3
    signed: bool = False
    bounds: tuple[str, str] | None = None
    floor: float | None = None
    index: bool = False

    def title(self, name: str) -> str:
        """Heading and unit of a column of this name."""
        heading = self.heading or name.replace("_", " ")
        return f"{heading} ({self.unit})" if self.unit else heading

    def text(
        self, value: SupportsFloat | None, low: SupportsFloat | None = None, high: SupportsFloat | None = None
    ) -> str:
        """Print a value, with its interval where both ends are there.

        Example:
            >>> points = Column(unit="points", scale=100, signed=True, bounds=("low", "high"))
            >>> points.text(0.003051, 0.0021, 0.00411), points.text(-0.0731), points.text(float("nan"), None, None)
            ('+0.305 [+0.21, +0.411]', '-7.31', '–')
            >>> points.text(0.1 + 0.2 - 0.3, -0.07, 0.07)
            '0 [-7, +7]'
        """
        if value is None or is_missing(value):
            return MISSING
        if self.index:
            return f"{float(value):.0f}"
        if self.floor is not None and float(value) <= self.floor:
            return f"<= {self._number(self.floor)}"
        if low is None or high is None or is_missing(low) or is_missing(high):
            return self._number(value)
        rounding = ROUNDING * (float(high) - float(low))
        shown = (0.0 if abs(float(number)) < rounding else number for number in (value, low, high))
        middle, *ends = map(self._number, shown)
        return f"{middle} [{', '.join(ends)}]"

    def _number(self, value: SupportsFloat) -> str:
        if isinstance(value, Integral) and self.scale == 1:
            return f"{int(value):{'+' if self.signed and value else ''},}"
        return number(self.scale * float(value), self.digits, self.signed)


P_VALUE = Column(digits=2)


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Rows to print as text, HTML, Markdown or LaTeX.

    Attributes:
        frame: The values, unrounded, one column each; columns that are ``bounds`` of another are printed with it.
        columns: Column name -> how its numbers are printed; other columns are printed with three significant digits.
        title: Text above the table.
        caption: Text below the table: what was measured, in which unit and family.
        limit: Number of rows that text and HTML show at most; LaTeX and Markdown show all.

    Example:
        >>> effects = pd.DataFrame({"language": ["hi", "ur"], "loss": [0.0312, None], "low": [0.02, None]})
        >>> Table(effects.assign(high=[0.04, None]), {"loss": Column(unit="%", scale=100, bounds=("low", "high"))})
        language    loss (%)
              hi 3.12 [2, 4]
              ur           –
    """

    frame: pd.DataFrame
    columns: Mapping[str, Column] = field(default_factory=dict)
    title: str = ""
    caption: str = ""
    limit: int = 60

    def __len__(self) -> int:
        return len(self.frame)

    def texts(self) -> pd.DataFrame:
        """Every cell as it is printed, under the headings that are printed."""
        bounds = {name for column in self.columns.values() for name in column.bounds or ()}
        names = [str(name) for name in self.frame.columns if name not in bounds]
        texts = {self.columns.get(name, Column()).title(name): self._cells(name) for name in names}
        return pd.DataFrame(texts, dtype=object)

    def to_string(self) -> str:
        """The table as text, with title and caption."""
        texts = self.texts()
        table = texts.head(self.limit).to_string(index=False) if len(texts) else "(no rows)"
        return "\n".join(part for part in (self.title, table, self._cut(), self.caption) if part)

    def to_markdown(self) -> str:
        """The table in Markdown, with title and caption."""
        texts = self.texts()
        lines = [list(texts.columns), ["---"] * len(texts.columns), *texts.to_numpy().tolist()]
        cells = ([_markdown(str(cell)).replace("|", "\\|") for cell in line] for line in lines)
        table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        return "\n\n".join(part for part in (_markdown(self.title), table, _markdown(self.caption)) if part)

    def latex(self) -> str:
        """The table in LaTeX, with title and caption as its caption."""
        texts = self.texts().map(_latex).rename(columns=_latex)
        numeric = [self._is_numeric(str(name)) for name in self.frame.columns if self._is_printed(str(name))]
        alignment = "".join("r" if is_numeric else "l" for is_numeric in numeric)
        caption = _latex(" ".join(part for part in (self.title, self.caption) if part))
        return texts.to_latex(index=False, escape=False, column_format=alignment, caption=caption or None)

    def __repr__(self) -> str:
        return self.to_string()

    def _repr_html_(self) -> str:
        table = Markup(self.texts().head(self.limit).to_html(index=False, border=0, escape=True))  # noqa: S704
        around = (self.title, self._cut(), self.caption)
        title, *below = (Markup("<p>{}</p>").format(part) if part else "" for part in around)
        # The classes keep a notebook from setting text between dollar signs as formulas, which can hold links.
        return Markup('<div class="tex2jax_ignore mathjax_ignore">{}{}{}{}</div>').format(title, table, *below)

    def _cut(self) -> str:
        return f"The first {self.limit:,} of {len(self):,} rows." if len(self) > self.limit else ""

    def _is_printed(self, name: str) -> bool:
        return not any(name in (column.bounds or ()) for column in self.columns.values())

    def _is_numeric(self, name: str) -> bool:
        return name in self.columns or pd.api.types.is_numeric_dtype(self.frame[name])

    def _cells(self, name: str) -> list[str]:
        column = self.columns.get(name, Column())
        if column.bounds is not None:
            values = zip(*map(self._values, (name, *column.bounds)), strict=True)
            return [column.text(*cell) for cell in values]
        if name in INDICES:
            column = replace(column, index=True)
        return [_cell(column, value) for value in self._values(name)]

    def _values(self, name: str) -> list:
        return [None if is_missing(value) else value for value in self.frame[name].tolist()]


def number(value: float, digits: int = 3, signed: bool = False) -> str:
    """Print a number with some significant digits, the thousands apart and no zeros at the end.

    Args:
        value: The number.
        digits: Significant digits; digits before the decimal point are always printed.
        signed: Whether positive numbers get a sign.

    Example:
        >>> [number(value) for value in (0.0030512, 0.31, 999.7, 372_205.4, 0.000_002, 0.0, math.inf)]
        ['0.00305', '0.31', '1,000', '372,205', '2e-06', '0', '∞']
    """
    sign = "+" if signed and value > 0 else ""
    if math.isinf(value):
        return f"{sign or '-' * (value < 0)}∞"
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # after rounding
    if exponent < SMALLEST_EXPONENT:
        return f"{value:{sign}.{digits}g}"
    text = f"{value:{sign},.{max(0, digits - 1 - exponent)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: None, NaN or pandas' NA."""
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _cell(column: Column, value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if value is None or (isinstance(value, SupportsFloat) and pd.api.types.is_scalar(value)):  # arrays support it, too
        return column.text(value)
    return str(value)


def _markdown(text: str) -> str:
    """A text in which no tag and no link of Markdown begins, on one line.

    Example:
        >>> _markdown("p <= 0.1, <img src=x> at [1, 2]")
        'p <= 0.1, &lt;img src=x> at [1, 2]'
    """
    return _MARKUP.sub(lambda match: "&lt;" if match[0] else "\\", " ".join(text.split("\n")))


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)
