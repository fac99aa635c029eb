"""Neuron lists as others publish them, recognised by what they hold: nothing in a file is executed, nothing is guessed.

What is read here: boolean masks and lists of indices by layer, named or not (Tang et al. 2024,
github.com/RUCAIBox/Language-Specific-Neurons, and those that follow them), tables of neurons, the expertise tables of
Kojima et al. 2024 (github.com/kojima-takeshi188/lang_neuron), and the text files of Zhao et al. 2024
(github.com/DAMO-NLP-SG/multilingual_analysis).
"""

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from langneurons import storage
from langneurons.errors import CorruptArtefactError, NeuronSetError, in_short, warn_user
from langneurons.storage.files import check_regular, said_plainly
from langneurons.storage.layouts import layout
from langneurons.storage.torch_files import is_stored, read_torch

EXPECTED = (
    "boolean masks (layer x neuron), lists of neuron indices by layer, or pairs of layer and neuron, for each language"
)
ABOUT = "langneurons/neuron-list/1"  # schema of the file beside a list that does not say itself what it holds
COUNTS = "over_zero"
TABLE, EXPERTISE = ("language", "layer", "neuron"), ("concept", "layer", "unit")
# The site of what each of Kojima's modules puts out; what down and o put out is no site.
SITE_OF_MODULE = dict.fromkeys(("gate_proj", "dense_h_to_4h", "fc1", "c_fc"), "pre")
SITE_OF_MODULE |= {"up_proj": "up", "q_proj": "q", "k_proj": "k", "v_proj": "v"}
WIDEST = 2**31  # neurons of a layer
# The lines of DAMO's files: rows of up_proj, columns of down_proj, rows of q, k and v.
LINES_OF_SITE = {"post": (0, 1), "up": (0,), "q": (2,), "k": (3,), "v": (4,)}
MOST_LINES = 5
_LAYER = re.compile(r"(\d{1,9}): (?:\{(\d{1,9}(?:, \d{1,9})*)\}|set\(\))")
_NUMPY_NUMBER = re.compile(r"np\.int\d+\((\d+)\)")


@dataclass(frozen=True)
class Part:
    """The neurons that a file lists for one language.

    Attributes:
        pairs: Layer and neuron, one row each.
        layers: Number of layers that it has, where it says so.
        width: Neurons per layer that it has, where it says so, as masks do.
        scores: One per row, where it has any.
        texts: Column, ``above`` or ``highest`` -> the languages that it names for every row, where it has any.
    """

    pairs: np.ndarray
    layers: int | None = None
    width: int | None = None
    scores: np.ndarray | None = None
    texts: Mapping[str, list[str]] = field(default_factory=dict)


NOTHING = Part(np.empty((0, 2), np.int64))


@dataclass(frozen=True)
class Listing:
    """What a file lists, and what it says about it.

    Attributes:
        name: Name of the file, for messages.
        parts: The neurons of each language.
        languages: Names of the languages, None where the file does not say them.
        shape: Layers and neurons per layer, where it says them.
        site: The site, where the format implies it.
        model: Fingerprint of the model's weights, where it says one.
        method: How the neurons were chosen, where it says so.
    """

    name: str
    parts: tuple[Part, ...]
    languages: tuple[str, ...] | None = None
    shape: tuple[int, int] | None = None
    site: str | None = None
    model: str | None = None
    method: str = ""

    @property
    def largest(self) -> int:
        """The largest index of a neuron, -1 where there are none."""
        return max((int(part.pairs[:, 1].max()) for part in self.parts if len(part.pairs)), default=-1)

    @property
    def first(self) -> Part:
        """The neurons of the first language; all languages have as many layers."""
        return self.parts[0] if self.parts else NOTHING


def read_listing(source: object, site: str | None = None, transposed: bool = False) -> Listing:
    """Read neurons in whatever format they are.

    Args:
        source: A file, or what such a file holds.
        site: The site, which chooses among those that a table or text has.
        transposed: Whether masks are neuron x layer.

    Raises:
        StorageError: If a file cannot be read, or holds what would have to be executed.
        NeuronSetError: If it holds something else.
    """
    if not isinstance(source, str | Path):
        return _of_content("What was given", source, transposed, math.inf)
    path = storage.path_of(source)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        listing = _of_table(str(path), _read_table(path, "\t" if suffix == ".tsv" else ","), site)
    elif suffix == ".txt":
        listing = _of_text(path, site)
    else:
        content = _READERS.get(suffix, read_torch)(path)
        listing = _of_content(str(path), content, transposed, path.stat().st_size)
        if listing.languages is None and listing.first.layers is not None and listing.first.width is None:
            listing = replace(listing, site="act")  # Tang et al.'s lists
    return _with_about(listing, path.with_name(f"{path.name}.json"))


def write_about(path: Path, about: Mapping[str, Any]) -> None:
    """Write beside a list what the list itself does not say: languages in its order, shape, site, model and method."""
    file = path.with_name(f"{path.name}.json")
    if path.exists() and file.exists():
        with suppress(CorruptArtefactError):  # what is broken is worth nothing
            storage.check_same(path, "list of neurons", storage.read_json(file, ABOUT), about)
    storage.write_json(file, ABOUT, about)


def _with_about(listing: Listing, file: Path) -> Listing:
    """A list with what the file beside it says, if there is one."""
    if not file.is_file() or storage.schema_of(file) != ABOUT:
        return listing
    about = storage.read_json(file, ABOUT)
    with storage.understood(file):
        layout(text="site method model?", numbers="shape", texts="languages").check("it", about)
        languages, parts = tuple(about["languages"]), listing.parts
        if listing.languages is not None:  # a table leaves out languages without neurons
            by_name = dict(zip(listing.languages, parts, strict=True))
            parts = tuple(by_name.pop(name, NOTHING) for name in languages)
            if by_name:
                raise ValueError(f"it does not name {', '.join(by_name)}")
        shape = (int(about["shape"][0]), int(about["shape"][1]))
        return replace(
            listing,
            parts=parts,
            languages=languages,
            shape=shape,
            site=about["site"],
            model=about["model"],
            method=about["method"],
        )


@dataclass
class _Reader:
    """Turns what is held into arrays, and counts the numbers: one tensor can stand in a list as often as one likes."""

    name: str
    transposed: bool
    limit: float
    masks: bool = field(default=False, init=False)
    _numbers: int = field(default=0, init=False)

    def part(self, value: object) -> Part:
        """The neurons of one language: a mask, pairs, or indices by layer."""
        if isinstance(value, Tensor | np.ndarray):
            array = self._array(value)
            if array.ndim == 2 and array.dtype == bool:
                return self._of_mask(array)
            if array.ndim == 2 and array.shape[1] == 2 and array.dtype != bool:
                return Part(array)
            raise self._refused()
        if isinstance(value, Mapping) and all(_is_layer(key) for key in value):
            return self._of_rows([int(str(key)) for key in value], list(value.values()), None)
        if isinstance(value, list | tuple) and not any(isinstance(row, str | Mapping) for row in value):
            return self._of_rows(list(range(len(value))), value, len(value))
        raise self._refused()

    def _of_rows(self, numbers: list[int], values: Iterable[object], layers: int | None) -> Part:
        rows = [self._array(row) for row in values]
        if any(row.ndim != 1 for row in rows):
            raise self._refused()
        if rows and all(row.dtype == bool for row in rows) and len({len(row) for row in rows}) == 1 and layers:
            return self._of_mask(np.stack(rows))
        if any(row.dtype == bool for row in rows):
            raise self._refused()
        places = np.repeat(np.array(numbers, np.int64), [len(row) for row in rows])
        return Part(np.stack([places, np.concatenate([np.empty(0, np.int64), *rows])], axis=1), layers)

    def _of_mask(self, mask: np.ndarray) -> Part:
        self.masks = True
        mask = mask.T if self.transposed else mask
        return Part(np.argwhere(mask).astype(np.int64), *mask.shape)

    def _array(self, value: object) -> np.ndarray:
        """Whole numbers or truths that are really there, not only claimed by a tensor's shape."""
        if isinstance(value, Tensor):
            if not is_stored(value) or value.is_floating_point() or value.is_complex():
                raise self._refused()
            value = value.detach().cpu().numpy()
        elif not isinstance(value, np.ndarray):
            if not isinstance(value, list | tuple | set) or not all(isinstance(each, int) for each in value):
                raise self._refused()
            value = np.array(sorted(value) if isinstance(value, set) else value, None if value else np.int64)
        self._numbers += value.size
        if self._numbers > self.limit:
            raise NeuronSetError(f"{self.name} lists more neurons than its {self.limit:,} bytes can hold.")
        if value.dtype != bool and not np.issubdtype(value.dtype, np.integer):
            raise self._refused()
        if value.dtype != bool and value.size and not 0 <= int(value.min()) <= int(value.max()) < WIDEST:
            raise NeuronSetError(f"{self.name} holds indices outside 0 to {WIDEST - 1:,}, which no layer has.")
        return value if value.dtype == bool else value.astype(np.int64)

    def _refused(self) -> NeuronSetError:
        return NeuronSetError(f"{self.name} does not hold {EXPECTED}.")


def _of_content(name: str, content: object, transposed: bool, limit: float) -> Listing:
    """A list of what a file of tensors holds."""
    reader = _Reader(name, transposed, limit)
    if isinstance(content, Mapping) and COUNTS in content:
        raise NeuronSetError(
            f"{name} holds counts, not neurons: read those of all languages with ActivationStats.read_counts, and "
            "choose neurons from them with a method such as ln.LAPE."
        )
    languages, values = None, [content]
    if isinstance(content, Mapping) and not all(_is_layer(key) for key in content):
        languages, values = tuple(map(str, content)), list(content.values())
    elif isinstance(content, list | tuple) or (isinstance(content, Tensor | np.ndarray) and content.ndim == 3):
        values = list(content)
    if isinstance(content, Mapping | list | tuple) and not content:
        values = []
    parts = tuple(reader.part(value) for value in values)
    if not parts:
        raise NeuronSetError(f"{name} does not hold {EXPECTED}.")
    if len({(part.layers, part.width) for part in parts}) > 1:
        raise NeuronSetError(f"{name} holds languages with different numbers of layers, or of neurons per layer.")
    if transposed and not reader.masks:
        raise NeuronSetError(f"{name} holds indices, not masks: leave transposed=True out.")
    return Listing(name, parts, languages)


def _is_layer(key: object) -> bool:
    return (isinstance(key, int) and key >= 0) or (isinstance(key, str) and key.isdecimal() and len(key) < 6)


def _read_table(path: Path, separator: str) -> pd.DataFrame:
    with said_plainly(path, "read"):
        check_regular(path)
        try:
            return pd.read_csv(path, sep=separator, keep_default_na=False, dtype=str)  # "nan" is a language
        except (ValueError, pd.errors.ParserError) as error:
            raise CorruptArtefactError(
                f"{path} is not a table of comma-separated values ({in_short(error)})."
            ) from error


def _of_table(name: str, table: pd.DataFrame, site: str | None) -> Listing:
    """A list of a table: ours, or Kojima's, whose scores are average precisions."""
    if set(EXPERTISE) <= set(table.columns):
        table, site = _of_module(name, table, site)
        label, score, method = "concept", "ap", "expertise of Kojima et al. 2024"
    elif set(TABLE) <= set(table.columns):
        label, score, method, site = "language", "score", "", None
        table = table.assign(index=table["neuron"])
    else:
        raise NeuronSetError(
            f"{name} has the columns {', '.join(map(str, table.columns)):.200}; a table of neurons has "
            f"{', '.join(TABLE)}, or Kojima's {', '.join(EXPERTISE)}."
        )
    parts = {}
    for language in dict.fromkeys(table[label]):
        rows = table.loc[table[label] == language]
        pairs = rows[["layer", "index"]].to_numpy()
        if odd := [text for text in pairs.flat if re.fullmatch(r"\d{1,9}", str(text)) is None]:
            raise NeuronSetError(f"{name} holds {str(odd[0])!r:.40} as a layer or neuron, which is no whole number.")
        scores = np.array([_number(text) for text in rows[score]]) if score in rows else np.array(np.nan)
        texts = {column: rows[column].tolist() for column in ("above", "highest") if column in rows}
        scores = None if np.isnan(scores).all() else scores
        parts[str(language)] = Part(pairs.astype(np.int64), scores=scores, texts=texts)
    return Listing(name, tuple(parts.values()), tuple(parts), site=site, method=method)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _of_module(name: str, table: pd.DataFrame, site: str | None) -> tuple[pd.DataFrame, str]:
    """The rows of Kojima's table that are neurons of a site, with numbers of layers.

    A module is called ``model.layers.3.mlp.gate_proj:0``, and the units are those of its output.
    """
    places = table["layer"].astype(str).str.extract(r"^(?:\w+\.)+?(\d+)\.(?:\w+\.)*(\w+)(?::0)?$")
    if len(table) and places.isna().to_numpy().any():
        odd = table.loc[places.isna().any(axis=1), "layer"].tolist()[0]
        raise NeuronSetError(f"{name} names the module {odd!r:.80}, not one such as 'model.layers.3.mlp.gate_proj:0'.")
    sites = places[1].map(SITE_OF_MODULE)
    counts = sites.value_counts()
    modules = ", ".join(f"{module} {count:,}" for module, count in places[1].value_counts().items())
    if counts.empty or site not in (None, *counts.index):
        raise NeuronSetError(
            f"{name} holds units of {modules}; sites are what "
            + ", ".join(f"{module} ({own})" for module, own in SITE_OF_MODULE.items())
            + f" put out{'' if site is None else f', so there is no {site!r:.40}'}."
        )
    if site is None and int(counts.iloc[0]) < len(table):
        possible = ", ".join(f"site={own!r} for {count:,}" for own, count in counts.items())
        raise NeuronSetError(f"{name} holds units of {modules}: say which to read, {possible}.")
    site = site or str(counts.index[0])
    own = sites == site
    return table[own].assign(layer=places[0], index=table.loc[own, "unit"]), site


def _of_text(path: Path, site: str | None) -> Listing:
    """A list of DAMO's text: Python dictionaries of sets, a line each for up, down, q, k and v.

    A unit of up_proj's rows or down_proj's columns is one that the down projection reads: site ``post``, unless another
    is asked for.
    """
    own = site if site in LINES_OF_SITE else "post"
    lines_read = LINES_OF_SITE[own]
    with said_plainly(path, "read"):
        check_regular(path)
        lines = [line for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
    by_line = []
    for number, line in enumerate(lines, start=1):
        line = _NUMPY_NUMBER.sub(r"\1", line)
        if re.fullmatch(r"\s*\{[\s,]*\}\s*", _LAYER.sub("", line)) is None:
            raise NeuronSetError(
                f"Line {number} of {path} is no dictionary of layers and neurons, such as {{0: {{3, 8}}, 1: set()}}."
            )
        layers = [(int(layer), neurons.split(", ")) for layer, neurons in _LAYER.findall(line) if neurons]
        by_line.append([(layer, int(neuron)) for layer, neurons in layers for neuron in neurons])
    if not max(2, 1 + max(lines_read)) <= len(lines) <= MOST_LINES:
        raise NeuronSetError(
            f"{path} has {len(lines)} lines; Zhao et al.'s files have one each for up, down, q, k and v."
        )
    if site is None and (left_out := sum(map(len, by_line[2:]))):
        warn_user(
            f"{path.name}: its {left_out:,} coordinates of q, k and v are left out; read them with site='q', 'k', 'v'."
        )
    pairs = {pair for line in lines_read for pair in by_line[line]}
    part = Part(np.array(sorted(pairs), np.int64).reshape(-1, 2))
    return Listing(str(path), (part,), site=own, method="PLND of Zhao et al. 2024")


_READERS = {".json": storage.read_object, ".safetensors": lambda path: storage.read_tensors(path, foreign=True)}
