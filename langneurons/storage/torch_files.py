"""Files of ``torch.save``, read without running what may be hidden in them."""

import pickle
import zipfile
from pathlib import Path

import torch

from langneurons.errors import StorageError
from langneurons.storage.files import check_regular, path_of, replacing


def read_torch(path: str | Path) -> object:
    """Read plain tensors, lists and dictionaries.

    Args:
        path: The file.

    Raises:
        StorageError: If there is no such file, it is damaged, or it holds anything else; nothing in it is executed.
    """
    path = path_of(path)
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


def is_stored(tensor: torch.Tensor) -> bool:
    """Whether a tensor's numbers are all there: one can be said to be larger than what is stored of it."""
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def write_torch(path: Path, content: object) -> None:
    """Write tensors, lists and dictionaries of them atomically, in the same bytes each time."""
    with replacing(path) as temporary, temporary.open("wb") as file:  # given a name, torch would store it
        torch.save(content, file)


def _check_zip(path: Path) -> None:
    """Compare what a torch file holds with the checksums in it, which torch leaves out; refuse what is compressed."""
    with zipfile.ZipFile(path) as content:
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in content.infolist())
        if packed or content.testzip() is not None:
            raise ValueError
