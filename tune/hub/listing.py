"""What a repository on the hub holds: names, sizes and digests, judged before anything is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

from huggingface_hub import RepoFile
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from tune.errors import HubError
from tune.hub.short_names import is_repository, nearest_names
from tune.utils.hub_access import Hub, translate_hub_errors, with_retries

__all__ = ["RemoteFile", "Repository", "check_file_name", "look_up"]

# Seconds without an answer after which the hub counts as lost.
TIMEOUT = 30.0
# More than any model has; the hub answers in pages, and a hostile one need not end.
MAX_FILES = 100_000


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository.

    Args:
        name: path inside the repository, with forward slashes.
        size: bytes.
        digest: SHA-256 of the content (large files), or its git blob SHA-1 (small ones), in hexadecimal.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Repository:
    """A model's repository at one commit.

    Args:
        name: owner/name, as the hub spells it.
        commit: the commit the files are of.
        files: every file, sorted by name.
        private: whether only some may see it.
    """

    name: str
    commit: str
    files: tuple[RemoteFile, ...]
    private: bool = False


def look_up(hub: Hub, repo: str, revision: str | None = None) -> Repository:
    """Return what `repo` holds at `revision` (its main branch by default).

    Raises:
        HubError: it cannot be asked, is not there, or holds names no honest repository has.
    """
    revision = revision or "main"
    try:
        with translate_hub_errors(hub, repo, revision, KeyError, TypeError, AttributeError):
            info = with_retries(lambda: hub.api.model_info(repo, revision=revision, timeout=TIMEOUT))
            entries = hub.api.list_repo_tree(repo, recursive=True, revision=_hexadecimal(info.sha, 40))
            tree = list(islice(entries, MAX_FILES + 1))
            files = [_remote_file(entry) for entry in tree if isinstance(entry, RepoFile)]
    except HubError as error:
        raise HubError(f"{error}{_what_there_is(hub, repo, error.__cause__)}") from error.__cause__
    if len(tree) > MAX_FILES:
        raise HubError(f"{repo} lists more than {MAX_FILES:,} files and folders; no model has so many")
    for file in files:
        check_file_name(file.name, repo)
    name = info.id if is_repository(info.id) else repo
    return Repository(
        name, str(info.sha), tuple(sorted(files, key=lambda file: file.name)), bool(info.private)
    )


def _remote_file(entry: RepoFile) -> RemoteFile:
    """Return what the hub tells of a file; a TypeError says that it is no hub that tells it."""
    size, digest = (
        (entry.lfs.size, entry.lfs.sha256) if entry.lfs is not None else (entry.size, entry.blob_id)
    )
    if not isinstance(size, int) or size < 0 or not isinstance(entry.path, str):
        raise TypeError(f"no name or size of {entry.path!r}")
    return RemoteFile(entry.path, size, _hexadecimal(digest, 40, 64))


def _hexadecimal(text: str | None, *lengths: int) -> str:
    if text is None or len(text) not in lengths or not re.fullmatch("[0-9a-f]*", text):
        raise TypeError(f"{text!r} is no checksum")
    return text


def check_file_name(name: str, repo: str) -> None:
    """Refuse a file name that would leave the folder it is written to, or hide in it.

    Raises:
        HubError: the name is not a plain relative path.
    """
    path = PurePosixPath(name)
    honest = (
        name == path.as_posix() != "."
        and not path.is_absolute()
        and ".." not in path.parts
        and path.parts[0].casefold() not in (".git", ".tune_download")
        # These mean something else to some systems.
        and name.isprintable() and not set("\\:") & set(name) and not name.startswith("~")
        and len(path.parts) <= 16 and all(len(part.encode()) <= 255 for part in path.parts)
    )  # fmt: skip
    if not honest:
        raise HubError(
            f"{repo} holds a file whose name is no plain path inside it: {name!r}. An honest repository has no such "
            "file; nothing was downloaded"
        )


def _what_there_is(hub: Hub, repo: str, cause: BaseException | None) -> str:
    """Return what might have been meant where a repository or a revision of it is not found."""
    if isinstance(cause, RepositoryNotFoundError):
        close = nearest_names(repo.rpartition("/")[2])
        return f".\nShort names that come close: {', '.join(close)}" if close else ""
    if not isinstance(cause, RevisionNotFoundError):
        return ""
    try:
        with translate_hub_errors(hub, repo, None, KeyError, TypeError, ValueError):
            refs = hub.api.list_repo_refs(repo)
    except HubError:
        return ""  # the list is a courtesy
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"; there are {', '.join(names[:8])}{more}" if names else ""
