"""Results on Hugging Face's hub: pushed with a card that says what they are, and loaded by an address.

An address is ``hub:user/repo/name``, with ``@`` and a branch, tag or commit where one is meant. A repository may hold
several results, each in a folder of its name.
"""

import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import pyarrow.parquet

from langneurons.errors import LangNeuronsError, StorageError, in_short, unknown
from langneurons.storage.files import names_a_file, path_of, temporary_folder
from langneurons.storage.presenting import MISSING, Table

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hub:"
TYPES = ("dataset", "model")
STATED = ("model", "revision", "weights", "corpus", "tokens", "method", "options", "licence")
TEXTS = {"text", "pieces", "prediction", "gold", "answer", "answers", "premise", "hypothesis", "question", "context"}
CARD = "README.md"
_ADDRESS = re.compile(r"hub:/*([\w.-]+/[\w.-]+)(?:/([^@/]+))?(?:@(\S+))?")
_ABOUT_THE_CARD = "Results of [langneurons](https://pypi.org/project/langneurons), which reads them.\n"


class Shareable:
    """What can be pushed to the hub: a class with ``save`` and ``kind``.

    Attributes:
        kind: What it is, in a word or two.
        hub_type: Kind of repository, "dataset" or "model".
    """

    kind: ClassVar[str] = ""
    hub_type: ClassVar[str] = "dataset"

    def push_to_hub(self, repo: str, name: str | None = None, *, private: bool = True, **about: object) -> str:
        """Upload it into a folder of a repository on Hugging Face's hub, with a card that says what it is.

        The files that ``save`` writes are uploaded, and no others. What that is, and which of them hold texts, is
        written to standard error first. Log in before, with ``hf auth login`` or the variable ``HF_TOKEN``.

        Args:
            repo: The repository, ``user/name``; it is created where it is missing.
            name: Name of the folder; by default the kind of result. What was in it before is replaced.
            private: Whether a repository that is created is private.
            about: What the card says beyond what is known: model, revision, weights, corpus, tokens, method, options,
                licence.

        Returns:
            Its address with the commit, which ``ln.load`` reads.

        Raises:
            StorageError: If the hub cannot be reached, or refuses; if a name is none.
        """
        name = self.kind.replace(" ", "-") if name is None else name
        _check_repository(repo)
        if not isinstance(name, str) or not names_a_file(name) or "@" in name:
            raise StorageError(f"A result on the hub needs a name such as 'lape', not {name!r:.80}.")
        if odd := [key for key in about if key not in STATED]:
            raise StorageError(unknown("part of a card", odd[0], STATED))
        with temporary_folder() as folder:
            self._save_into(folder / name)
            sys.stderr.write(_announcement(folder / name, repo, name))
            stated = {"kind": self.kind, **dict.fromkeys(STATED), **self._about(), **about}
            address = f"{PREFIX}{repo}/{name}"
            commit = _upload(folder, repo, name, self.hub_type, private, _section(name, stated, self._loading(address)))
        return f"{address}@{commit}"

    def _save_into(self, folder: Path) -> None:
        """Write everything into a folder; by default what ``save`` writes."""
        save: Any = getattr(self, "save")  # noqa: B009 (a subclass has it)
        save(folder)

    def _about(self) -> dict[str, object]:
        """What is known of ``STATED``."""
        return {}

    def _loading(self, address: str) -> str:
        """The line of Python that loads it."""
        return f"result = ln.load({address!r})"


def push_folder(folder: Path, repo: str, private: bool) -> str:
    """Upload the files of a folder to the top of a model repository, in one commit; other files there stay.

    Args:
        folder: The folder.
        repo: The repository, ``user/name``; it is created where it is missing.
        private: Whether a repository that is created is private.

    Returns:
        The commit.

    Raises:
        StorageError: If the hub cannot be reached, or refuses; if the name is none.
    """
    _check_repository(repo)
    api = _online(repo)
    with _reaching(repo, "write"):
        api.create_repo(repo, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Add a checkpoint").oid


def located(path: str | Path) -> Path:
    """The path that a user gave, on this machine: what an address on the hub names is downloaded to the hub's cache.

    Args:
        path: A path, or ``hub:user/repo/name``, with ``@`` and a branch, tag or commit where one is meant.

    Raises:
        StorageError: If there is no such repository or result, or the hub cannot be reached.
    """
    if not isinstance(path, str | Path) or not str(path).startswith(PREFIX):
        return path_of(path)
    matched = _ADDRESS.fullmatch(str(path))
    if matched is None:
        raise StorageError(f"An address on the hub is hub:user/repo/name, or hub:user/repo/name@revision, not {path}.")
    repo, name, revision = matched.groups()
    missing: StorageError | None = None
    names: list[str] = []
    for kind in TYPES:
        try:
            with _reaching(repo, "read"):
                folder = _downloaded(repo, kind, name, revision, names)
        except _Missing as error:
            missing = missing or error
            continue
        if folder is not None and folder.is_dir():
            return folder
    if missing is not None and not names:
        raise StorageError(str(missing)) from missing
    if name is None:
        raise StorageError(f"{repo} holds {', '.join(names) or 'no result'}: give hub:{repo}/name.")
    raise StorageError(f"{repo} has nothing of that name. {unknown('result', name, names)}")


class _Missing(StorageError):
    """There is no such repository, or revision, of one kind; there may be one of another."""


def _downloaded(repo: str, kind: str, name: str | None, revision: str | None, names: list[str]) -> Path | None:
    """Download a result; without a name, the only one that there is. Names that are there are added to ``names``."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if not constants.is_offline_mode():
        files = HfApi().list_repo_files(repo, repo_type=kind, revision=revision)
        own = sorted({file.partition("/")[0] for file in files if "/" in file})
        names += own
        name = own[0] if name is None and len(own) == 1 else name
        if name not in own:
            return None
    if name is None:
        return None
    return Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=f"{name}/*")) / name


def _upload(folder: Path, repo: str, name: str, kind: str, private: bool, section: str) -> str:
    """Put a folder and its part of the card into a repository, in one commit; returns the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, hf_hub_download

    api = _online(repo)
    with _reaching(repo, "write"):
        api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        there = api.list_repo_files(repo, repo_type=kind)
        card = Path(hf_hub_download(repo, CARD, repo_type=kind)).read_text("utf-8") if CARD in there else None
        files = [file for file in sorted((folder / name).rglob("*")) if file.is_file()]
        added = {file.relative_to(folder).as_posix(): file for file in files}
        stale = [path for path in there if path.startswith(f"{name}/") and path not in added]
        operations = [CommitOperationAdd(path, str(file)) for path, file in added.items()]
        operations.append(CommitOperationAdd(CARD, _card(card, repo, name, section).encode()))
        operations += [CommitOperationDelete(path) for path in stale]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")  # a history's
            commit = api.create_commit(repo, operations, commit_message=f"Add {name}", repo_type=kind)
    return commit.oid


def _online(repo: str) -> "HfApi":
    """The hub's client, to push something to a repository."""
    from huggingface_hub import HfApi, constants

    if constants.is_offline_mode():
        raise StorageError(f"Nothing can be pushed to {repo} offline: unset HF_HUB_OFFLINE.")
    return HfApi()


def _check_repository(repo: object) -> None:
    if not isinstance(repo, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise StorageError(f"A repository is called user/name, not {repo!r:.80}.")


@contextmanager
def _reaching(repo: str, verb: str) -> Iterator[None]:
    """Turn what the hub answers, or that it does not, into a sentence.

    Raises:
        StorageError: If it refuses or does not answer.
    """
    from huggingface_hub import errors

    login = "log in with `hf auth login` or set HF_TOKEN"
    try:
        yield
    except LangNeuronsError:
        raise
    except errors.RevisionNotFoundError as error:
        raise _Missing(f"{repo} has no such revision: give a branch, tag or commit after the @.") from error
    except errors.RepositoryNotFoundError as error:
        raise _Missing(
            f"The hub has no repository {repo!r} that you may {verb}: check the name, and {login} if it is private."
        ) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise _Missing(
            f"{repo} is not on this machine, and the hub is out of reach: check the network, and unset HF_HUB_OFFLINE."
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise StorageError(f"The hub lets nobody {verb} {repo} without a login: {login}.") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise StorageError(f"The hub does not let you {verb} {repo}: {login}, as somebody who may.") from error
        raise StorageError(f"The hub refused to {verb} {repo} ({in_short(error)}).") from error
    except Exception as error:  # no connection: its class depends on the library's version
        raise StorageError(f"The hub cannot be reached to {verb} {repo} ({in_short(error)}).") from error


def _announcement(folder: Path, repo: str, name: str) -> str:
    """What is about to be uploaded, and which files hold texts."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    listed = ", ".join(f"{file.relative_to(folder)} ({file.stat().st_size / 1e3:,.1f} kB)" for file in files[:12])
    more = f" and {len(files) - 12} more files" if len(files) > 12 else ""
    line = f"Uploading to {repo}/{name}: {listed}{more}."
    texts = [f"{file.relative_to(folder)} ({', '.join(columns)})" for file in files if (columns := _text_columns(file))]
    held = f"These hold texts: {', '.join(texts)}." if texts else "None of them holds texts."
    return f"{line} {held}\n"


def _text_columns(file: Path) -> list[str]:
    """Columns of a table, or the page, that show texts, such as a task's answers or what neurons were shown on."""
    if file.suffix == ".html":
        return ["a page"]
    if file.suffix != ".parquet":
        return []
    return [column for column in pyarrow.parquet.read_schema(file).names if column in TEXTS]


def _section(name: str, stated: dict[str, object], loading: str) -> str:
    """The part of a card that is about one result."""
    rows = [(key, MISSING if value in (None, "", {}) else _in_words(value)) for key, value in stated.items()]
    table = Table(pd.DataFrame(rows, columns=pd.Index(["", name]))).to_markdown()
    return f"## {name}\n\n{table}\n\n```python\nimport langneurons as ln\n\n{loading}\n```\n"


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_in_words(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _card(card: str | None, repo: str, name: str, section: str) -> str:
    """A repository's card with the part about one result, in place of an older one of its name."""
    if card is None:
        card = f"---\ntags:\n- langneurons\n---\n\n# {repo.partition('/')[2]}\n\n{_ABOUT_THE_CARD}"
    start, end = f"<!-- langneurons: {name} -->\n", f"<!-- langneurons: end of {name} -->\n"
    before, marker, rest = card.partition(start)
    after = rest.partition(end)[2] if marker else ""
    return f"{before.rstrip()}\n\n{start}{section}{end}{after}"


def copied(path: str | Path, out: Path) -> Path:
    """Copy a folder of the hub, where it must not be changed, to one where work can go on.

    Raises:
        StorageError: If something is there already.
    """
    folder = located(path)
    if out.exists() and any(out.iterdir()):
        raise StorageError(f"{out} is not empty: give another folder to download {path} to.")
    shutil.copytree(folder, out, dirs_exist_ok=True)
    return out
