"""Reading neuron masks that others published as torch files, without running what may be hidden in them."""

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from langneurons.errors import NeuronSetError, StorageError, warn_user
from langneurons.storage.files import check_regular, path_of

WHOLE_NUMBERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
WIDEST = 2**31  # neurons of a layer
EXPECTED = "a list over languages of a list over layers of neuron indices"


def read_rucaibox(
    path: Path, languages: Sequence[str], shape: tuple[int, int] | None
) -> tuple[list[np.ndarray], tuple[int, int]]:
    """Read a ``.neuron.pth`` file of Tang et al. 2024.

    Args:
        path: The file.
        languages: Languages of its lists.
        shape: Layers and neurons per layer, or None to infer the width.

    Returns:
        Flat indices of each language, and the shape.

    Raises:
        StorageError: If the file cannot be read safely.
        NeuronSetError: If it holds something else, or does not fit.
    """
    content = _checked(_load(path), path, languages)
    layers = len(content[0])
    every = [indices for of_language in content for indices in of_language]
    largest = max((int(indices.max()) for indices in every if indices.numel()), default=-1)
    if shape is None:
        shape = (layers, largest + 1)
        warn_user(
            f"The width of {path.name} was inferred from its largest index as {largest + 1}, which may be too small: "
            "give shape=(layers, width)."
        )
    if layers != shape[0] or largest >= shape[1]:
        raise NeuronSetError(
            f"{path} holds {layers} layers and neurons up to {largest}, which does not fit shape={tuple(shape)}."
        )
    return [_flat(of_language, shape[1]) for of_language in content], shape


def _load(path: Path) -> object:
    path_of(path)
    check_regular(path)
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise StorageError(f"Cannot read {path}: there is no such file.") from error
    except pickle.UnpicklingError as error:
        raise StorageError(
            f"{path} was refused: it holds something other than plain tensors and lists; nothing in it was executed."
        ) from error
    except Exception as error:  # what is damaged makes torch's reader fail in every way there is
        raise StorageError(f"{path} is not a whole torch file.") from error


def _check_zip(path: Path) -> None:
    """Compare what a torch file holds with the checksums in it, which torch leaves out; refuse what is compressed."""
    with zipfile.ZipFile(path) as content:
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in content.infolist())
        if packed or content.testzip() is not None:
            raise ValueError


def _checked(content: object, path: Path, languages: Sequence[str]) -> list[list[Tensor]]:
    if not (isinstance(content, list) and content and all(isinstance(of_language, list) for of_language in content)):
        raise NeuronSetError(f"{path} does not hold {EXPECTED}.")
    if len(content) != len(languages):
        raise NeuronSetError(
            f"{path} holds {len(content)} languages, but {len(languages)} were named ({', '.join(languages):.100}): "
            "name them in the file's order."
        )
    if len({len(of_language) for of_language in content}) != 1:
        raise NeuronSetError(f"{path} holds languages with different numbers of layers.")
    numbers, stored = 0, path.stat().st_size
    for indices in (indices for of_language in content for indices in of_language):
        if not _holds_whole_numbers(indices):
            raise NeuronSetError(f"{path} does not hold {EXPECTED}.")
        numbers += indices.numel()
        if numbers > stored:  # one tensor can stand in the lists as often as one likes
            raise NeuronSetError(f"{path} lists more neurons than its {stored:,} bytes can hold.")
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < WIDEST:
            raise NeuronSetError(f"{path} holds indices outside 0 to {WIDEST - 1:,}, which no layer has.")
    return content


def _holds_whole_numbers(indices: object) -> bool:
    """Whether something is a list of whole numbers that are there, not a tensor that only claims a shape."""
    if not isinstance(indices, Tensor) or indices.device.type != "cpu" or indices.layout != torch.strided:
        return False
    # A tensor can be said to be larger than what is stored of it: one number, repeated 10^12 times.
    return indices.ndim == 1 and indices.dtype in WHOLE_NUMBERS and indices.is_contiguous()


def _flat(layers: list[Tensor], width: int) -> np.ndarray:
    return np.concatenate([indices.long().numpy() + layer * width for layer, indices in enumerate(layers)])
