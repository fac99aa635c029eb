"""Tensors as safetensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from langneurons.errors import CorruptArtefactError
from langneurons.storage.sealing import read_sealed, write_sealed


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write tensors as safetensors atomically, sorted by name, with a seal.

    Returns:
        The checksum of the file.
    """
    by_name = {name: tensors[name].contiguous() for name in sorted(tensors)}
    return write_sealed(path, lambda file, metadata: save_file(by_name, file, metadata))


def read_tensors(path: Path, expected_checksum: str | None = None, foreign: bool = False) -> dict[str, torch.Tensor]:
    """Read safetensors, memory-mapped, after verifying every byte.

    Args:
        path: The file.
        expected_checksum: Stored elsewhere; its seal is enough.
        foreign: Whether another program may have written it, which leaves no seal.

    Raises:
        CorruptArtefactError: If the file is truncated, or differs from its checksum or seal.
    """
    return read_sealed(path, _read, expected_checksum, foreign)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        raise CorruptArtefactError(
            f"{path} is not a whole safetensors file ({error}); record or save it again."
        ) from error
