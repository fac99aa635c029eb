"""JSON artefacts with a schema and a seal, JSON of other programs, and TOML that somebody wrote."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langneurons.errors import CorruptArtefactError, LangNeuronsError, StaleArtefactError, StorageError, in_short
from langneurons.storage.checksums import seal, unseal
from langneurons.storage.files import check_regular, path_of, said_plainly, write_text

JsonObject = dict[str, Any]
ADVICE = "give another path (--out on the command line), or remove this one"


def write_json(path: Path, schema: str, content: Mapping[str, Any]) -> None:
    """Write a JSON artefact atomically, keys sorted, with its schema and seal."""
    stored = json.loads(
        _dumped({"schema": schema, **content})
    )  # keys are text here, as they are when the seal is verified
    write_text(path, _dumped(seal(stored)) + "\n")


def read_json(path: Path, schema: str) -> JsonObject:
    """Read a JSON artefact and check its schema.

    Raises:
        StorageError: If the file is missing or unreadable.
        CorruptArtefactError: If it is not JSON of the expected kind.
        StaleArtefactError: If it was written in another schema version.
    """
    content = _parsed(path)
    if "schema" not in content:
        raise CorruptArtefactError(f"{path} is not an artefact of langneurons: it lacks the schema {schema!r}.")
    if content["schema"] != schema:
        raise StaleArtefactError(
            f"{path} holds {content['schema']!r:.100}, but this version of langneurons reads {schema!r}."
        )
    return {name: value for name, value in unseal(path, content).items() if name != "schema"}


def read_object(path: Path) -> JsonObject:
    """Read a JSON object, of ours or of another program; one of ours is verified by its seal.

    Raises:
        StorageError: If the file is missing or unreadable.
        CorruptArtefactError: If it is no JSON object, or was changed since it was sealed.
    """
    return unseal(path, _parsed(path))


def check_same(path: Path, what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse to replace, or to go on with, what something else made.

    Args:
        path: Where it stands.
        what: What stands there, such as "recording".
        there: What it was made with, by name.
        here: What it would be replaced by, or gone on with.

    Raises:
        StaleArtefactError: If they differ.

    Example:
        >>> from langneurons.storage import check_same
        >>> check_same(Path("runs/neurons.json"), "neuron set", {"method": "LAPE()"}, {"method": "Contrast()"})
        Traceback (most recent call last):
        langneurons.errors.StaleArtefactError: runs/neurons.json holds another neuron set, which differs in method
        (there LAPE(), here Contrast()): give another path (--out on the command line), or remove this one.
    """
    differing = [
        f"{name} (there {there.get(name)!s:.240}, here {here.get(name)!s:.240})"
        for name in {**here, **there}
        if there.get(name) != here.get(name)
    ]
    if differing:
        raise StaleArtefactError(f"{path} holds another {what}, which differs in {'; '.join(differing)}: {ADVICE}.")


def schema_of(path: Path) -> str:
    """The schema that a JSON file carries, "" where it is no artefact of ours.

    Raises:
        StorageError: If the file is missing or unreadable.
    """
    try:
        schema = _parsed(path).get("schema", "")
    except CorruptArtefactError:
        return ""
    return schema if isinstance(schema, str) else ""


def read_toml(path: Path, what: str, wrong: type[LangNeuronsError]) -> JsonObject:
    """Read a TOML file that somebody wrote.

    Args:
        path: The file.
        what: What is read, for the message: "the study", "templates from".
        wrong: The error to raise.

    Raises:
        LangNeuronsError: The error ``wrong``, if the file cannot be read, is no TOML, no UTF-8, or nested too deep.
    """
    try:
        check_regular(path_of(path))
        with path.open("rb") as file:
            return tomllib.load(file)
    except StorageError as error:
        raise wrong(str(error)) from error
    except OSError as error:
        raise wrong(f"Cannot read {what} {path}: {error.strerror or error}.") from error
    except RecursionError:
        raise wrong(f"{path} is no TOML file that can be read: it is nested too deep.") from None
    except ValueError as error:
        raise wrong(f"{path} is no TOML file: {in_short(error)}.") from error


def _dumped(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _parsed(path: Path) -> JsonObject:
    with said_plainly(path, "read"):
        check_regular(path)
        data = path.read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptArtefactError(f"{path} is not whole JSON ({in_short(error)}). Write it again.") from error
    if not isinstance(content, dict):
        raise CorruptArtefactError(f"{path} holds no JSON object but {content!r:.40}.")
    return content
