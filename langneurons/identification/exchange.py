"""Neuron sets in other programs' formats: read whatever others publish, and written as they read it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch

from langneurons import storage
from langneurons.corpora.languages import label_of
from langneurons.errors import NeuronSetError, SiteMismatchError, unknown, warn_user
from langneurons.identification.indices import LabelledNeurons, Shape, checked_shape, flat_indices, shape_text
from langneurons.identification.published import Listing, Part, read_listing, write_about
from langneurons.identification.standing import ByLanguage, from_texts
from langneurons.storage.files import path_of
from langneurons.storage.result import Result
from langneurons.storage.torch_files import write_torch

Exchanged = TypeVar("Exchanged", bound="ExchangedNeurons")
SUFFIXES = (".json", ".csv", ".pth", ".pt")


class ExchangedNeurons(LabelledNeurons, Result):
    """Labelled neurons that are read from, and written to, files of other programs."""

    @classmethod
    def read(
        cls: type[Exchanged],
        source: object,
        languages: Sequence[str] | None = None,
        shape: Shape | None = None,
        site: str | None = None,
        transposed: bool = False,
    ) -> Exchanged:
        """Read neurons that another program chose, or that ``write`` wrote.

        The kind of file is recognised: boolean masks (a tensor "language layer neuron", or one tensor "layer neuron"
        for each language), Tang et al.'s lists over languages and layers of indices, both also in a dictionary by
        language, as torch, safetensors or JSON files; tables with the columns language, layer, neuron; Kojima et al.'s
        expertise tables; Zhao et al.'s text files. Nothing in a file is executed. What a file does not say must be
        given.

        Args:
            source: A file, or what such a file holds: a mask, a list, a dictionary.
            languages: Names of the languages, in the file's order; where the file names them, those to keep.
            shape: Layers and neurons per layer; masks say it themselves.
            site: The tensor of a layer that holds the neurons, such as "act"; Tang's lists, Kojima's and Zhao's say it.
                Where the last two hold several, it chooses: pre, up, q, k or v; post (the default), up, q, k or v.
            transposed: Whether masks are neuron x layer.

        Raises:
            StorageError: If a file cannot be read, or holds what would have to be executed.
            NeuronSetError: If it holds no neurons, does not fit, or does not say what is not given.
            LanguageError: If a language is none of those that the file names.
            SiteMismatchError: If the file says another site.

        Example:
            >>> mask = torch.zeros(2, 8, dtype=torch.bool)
            >>> mask[1, 3] = True
            >>> ln.NeuronSet.read({"hi": mask, "ur": ~mask}, site="act")
            NeuronSet of 16 neurons at act (2 layers x 8): hi 1, ur 15
        """
        if isinstance(source, str | Path) and storage.path_of(source).suffix.lower() == ".json":
            path = storage.path_of(source)
            if storage.schema_of(path) == cls.schema:
                return _as_given(cls.load(path), languages, shape, site)
        return cls._of_listing(read_listing(source, site, transposed), languages, shape, site)

    @classmethod
    def from_rucaibox(
        cls: type[Exchanged], path: str | Path, languages: Sequence[str] | None = None, shape: Shape | None = None
    ) -> Exchanged:
        """Read a mask published by Tang et al. 2024 (github.com/RUCAIBox/Language-Specific-Neurons).

        Args:
            path: A ``.neuron.pth`` file: a list over languages of a list over layers of index tensors.
            languages: Languages of the lists, in the file's order: their README says en zh fr es vi id ja. Not needed
                for a dictionary by language.
            shape: Layers and neurons per layer; without it the width is the largest index + 1, with a warning.

        Raises:
            StorageError: If the file cannot be read, or holds anything but tensors (nothing in it is executed).
            NeuronSetError: If it is no such list, or for other languages or another shape.
        """
        path = path_of(path)
        listing = read_listing(path)
        _named(listing, languages)
        if shape is None and listing.shape is None and listing.first.layers is not None:
            shape = (listing.first.layers, listing.largest + 1)
            warn_user(
                f"The width of {path.name} was inferred from its largest index as {shape[1]}, which may be too small: "
                "give shape=(layers, width)."
            )
        listing = replace(listing, method=f"published mask {path.name}")
        return cls._of_listing(listing, languages, shape, "act")

    @classmethod
    def _of_listing(
        cls: type[Exchanged], listing: Listing, languages: Sequence[str] | None, shape: Shape | None, site: str | None
    ) -> Exchanged:
        parts = _named(listing, languages)
        if site is None and listing.site is None:
            raise NeuronSetError(
                f"{listing.name} does not say at which site its neurons are: give site=, such as 'act' for neurons "
                "behind the activation function."
            )
        if site is not None and listing.site not in (None, site):
            raise SiteMismatchError(f"{listing.name} holds neurons of site {listing.site!r}, not {site!r:.40}.")
        shape = _shape_of(listing, shape)
        members = {language: flat_indices(language, part.pairs, shape) for language, part in parts.items()}
        scores = {
            language: part.scores[np.unique(part.pairs @ np.array([shape[1], 1]), return_index=True)[1]]
            for language, part in parts.items()
            if part.scores is not None
        }
        above, highest = (_by_language(parts, column, shape) for column in ("above", "highest"))
        about = str(listing.site or site), listing.model, listing.method or f"published list {Path(listing.name).name}"
        return cls(members, shape, *about, scores, above, highest)

    def write(self, path: str | Path) -> Path:
        """Write the neurons in a format that other programs read; ``read`` reads it back.

        Args:
            path: The file. Its ending says the format: ``.pth`` (or ``.pt``) is Tang et al.'s list over languages of a
                list over layers of index tensors, which has no place for more; ``.csv`` has the columns of
                ``to_dataframe``; ``.json`` is what ``save`` writes. Beside the first two a file ``<name>.json`` says
                the languages in their order, the shape, the site, the model and the method.

        Returns:
            The path.

        Raises:
            NeuronSetError: If the ending is another, or the set has no language.
            StorageError: If the file cannot be written.

        Example:
            >>> neurons = ln.NeuronSet.of({"hi": [(0, 3)], "ur": [(1, 2)]}, shape=(2, 8), site="act")
            >>> import tempfile
            >>> path = neurons.write(f"{tempfile.mkdtemp()}/hindustani.neuron.pth")
            >>> torch.load(path)
            [[tensor([3]), tensor([], dtype=torch.int64)], [tensor([], dtype=torch.int64), tensor([2])]]
            >>> ln.NeuronSet.read(path) == neurons
            True
        """
        path = path_of(path)
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise NeuronSetError(unknown("ending of a file of neurons", path.suffix, SUFFIXES))
        if suffix == ".json":
            return self.save(path)
        if not self.members:
            raise NeuronSetError(f"The set has no language: there is nothing to write to {path}.")
        about = {"languages": list(self.languages), "shape": list(self.shape), "site": self.site}
        write_about(path, about | {"model": self.model, "method": self.method})
        if suffix == ".csv":
            storage.write_text(path, pd.concat(map(self._rows, self.languages)).to_csv(index=False))
        else:
            write_torch(path, [self._by_layer(flat) for flat in self.members.values()])
        return path

    def _rows(self, label: str) -> pd.DataFrame:
        layers, neurons = np.divmod(self.members[label], self.shape[1])
        further: dict[str, object] = {"score": self.scores[label]} if label in self.scores else {}
        if self.highest:
            flat = self.members[label]
            further |= {"above": self.languages_above(flat), "highest": self.languages_highest(flat)}
        return pd.DataFrame({"language": label, "layer": layers, "neuron": neurons, **further})

    def _by_layer(self, flat: np.ndarray) -> list[torch.Tensor]:
        layers, neurons = np.divmod(flat, self.shape[1])
        starts = np.searchsorted(layers, np.arange(1, self.shape[0]))
        return [torch.from_numpy(piece.copy()) for piece in np.split(neurons, starts)]


def _as_given(neurons: Exchanged, languages: Sequence[str] | None, shape: Shape | None, site: str | None) -> Exchanged:
    """A set of ours, which says everything itself; what is given must agree."""
    if shape is not None and tuple(shape) != neurons.shape:
        raise NeuronSetError(f"The set has {shape_text(neurons.shape)} neurons, which does not fit shape={shape}.")
    if site not in (None, neurons.site):
        raise SiteMismatchError(f"The set holds neurons of site {neurons.site!r}, not {site!r:.40}.")
    return neurons if languages is None else neurons.select(languages)


def _by_language(parts: Mapping[str, Part], column: str, shape: Shape) -> ByLanguage:
    """What a column of a table says of its neurons."""
    rows = [part for part in parts.values() if column in part.texts]
    flat = np.concatenate([np.empty(0, np.int64), *(part.pairs @ np.array([shape[1], 1]) for part in rows)])
    return from_texts(flat, [text for part in rows for text in part.texts[column]], parts)


def _named(listing: Listing, languages: Sequence[str] | None) -> dict[str, Part]:
    """The neurons of each language by its name.

    Raises:
        NeuronSetError: If names are missing, too many, or one stands there twice.
        LanguageError: If a language is none of those that the file names.
    """
    parts, names = listing.parts, listing.languages
    if languages is None and names is None:
        raise NeuronSetError(
            f"{listing.name} holds {len(parts)} languages, but not which: give languages=[...] in its order."
        )
    if languages is not None and names is not None:
        by_name = dict(zip(names, parts, strict=True))
        return {label: by_name[label] for label in (label_of(language, by_name) for language in languages)}
    names = tuple(names or languages or ())
    if len(parts) != len(names):
        raise NeuronSetError(
            f"{listing.name} holds {len(parts)} languages, but {len(names)} were named ({', '.join(names):.100}): "
            "name them in the file's order."
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise NeuronSetError(f"The language {twice[0]!r:.60} is named twice for {listing.name}.")
    return dict(zip(names, parts, strict=True))


def _shape_of(listing: Listing, shape: Shape | None) -> Shape:
    """Layers and neurons per layer, as they are given and as the file says.

    Raises:
        NeuronSetError: If nobody says them, or they differ.
    """
    name, part, largest = listing.name, listing.first, listing.largest
    if part.layers is not None and part.width is not None:
        layers, width = part.layers, part.width
        if shape is None and layers > width:
            raise NeuronSetError(
                f"{name} holds masks of {layers} layers x {width} neurons: give shape=(layers, neurons per layer) if "
                "that is so, or transposed=True if they are neuron x layer."
            )
        if shape is not None and (layers, width) != tuple(shape):
            hint = ": give transposed=True for masks of neuron x layer" if (width, layers) == tuple(shape) else ""
            raise NeuronSetError(
                f"{name} holds masks of {layers} layers x {width} neurons, which does not fit shape={shape}{hint}."
            )
        return checked_shape((layers, width))
    if shape is None and listing.shape is None:
        layers = f"{part.layers} layers" if part.layers is not None else "neurons"
        raise NeuronSetError(
            f"{name} lists {layers}, but not how many neurons a layer has: give shape=(layers, neurons per layer)."
        )
    if shape is not None and listing.shape not in (None, tuple(shape)):
        raise NeuronSetError(f"{name} is of {shape_text(listing.shape)} neurons, which does not fit shape={shape}.")
    shape = checked_shape(shape or listing.shape or ())
    if part.layers not in (None, shape[0]) or largest >= shape[1]:
        layers = "" if part.layers is None else f"{part.layers} layers and "
        raise NeuronSetError(f"{name} holds {layers}neurons up to {largest}, which does not fit shape={shape}.")
    return shape
