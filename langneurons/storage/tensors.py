"""Tensors as safetensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from langneurons.errors import CorruptArtefactError, in_short
from langneurons.storage.checksums import check_whole, write_summed
from langneurons.storage.files import check_regular, said_plainly


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], sidecar: bool = False) -> str:
    """Write tensors as safetensors atomically, sorted by name.

    Args:
        path: The file.
        tensors: Name -> tensor.
        sidecar: Whether to write the checksum into a file beside it, for files whose checksum nothing else records.

    Returns:
        The checksum of the file.
    """
    by_name = {name: tensors[name].contiguous() for name in sorted(tensors)}
    return write_summed(path, lambda file: save_file(by_name, file), sidecar)


def read_tensors(path: Path, expected_checksum: str | None = None, foreign: bool = False) -> dict[str, torch.Tensor]:
    """Read safetensors, memory-mapped, after verifying every byte.

    Args:
        path: The file.
        expected_checksum: The checksum that was recorded; by default it is read from the file beside it.
        foreign: Whether another program may have written the file: without a recorded checksum, none is needed.

    Raises:
        StorageError: If the file is missing.
        CorruptArtefactError: If it is truncated, differs from its checksum, or has none.
    """
    check_regular(path)
    check_whole(path, expected_checksum, foreign)
    with said_plainly(path, "read"):
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except SafetensorError as error:
            raise CorruptArtefactError(
                f"{path} is not a whole safetensors file ({in_short(error)}); record or save it again."
            ) from error
