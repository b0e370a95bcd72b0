"""What a repository on the hub holds: names, sizes and digests, judged before anything is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from huggingface_hub import RepoFile
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from tune.errors import HubError
from tune.hub.connection import TIMEOUT, Hub, translate_hub_errors, with_retries
from tune.hub.short_names import is_repository, nearest_names
from tune.utils.hub_errors import hub_failures

__all__ = ["RemoteFile", "Repository", "check_file_name", "look_up"]


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
    request = hub.request(repo, revision or "main")
    try:
        with translate_hub_errors(hub, request, f"asking for {repo}"):
            info = with_retries(
                lambda: hub.api.model_info(repo, revision=revision or "main", timeout=TIMEOUT)
            )
            if not isinstance(info.sha, str) or not re.fullmatch("[0-9a-f]{40}", info.sha):
                raise TypeError(f"it does not say which commit {repo} is at")
            commit = info.sha
            tree = with_retries(lambda: list(hub.api.list_repo_tree(repo, recursive=True, revision=commit)))
        files = [_remote_file(entry) for entry in tree if isinstance(entry, RepoFile)]
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise HubError(
            f"{hub.endpoint} did not answer as the hub does ({error}); check HF_ENDPOINT"
        ) from error
    except HubError as error:
        raise HubError(str(error) + _what_there_is(hub, repo, error.__cause__)) from error.__cause__
    for file in files:
        check_file_name(file.name, repo)
    name = info.id if isinstance(info.id, str) and is_repository(info.id) else repo
    return Repository(name, commit, tuple(sorted(files, key=lambda file: file.name)), bool(info.private))


def _remote_file(entry: RepoFile) -> RemoteFile:
    """Return what the hub tells of a file, its types made sure of.

    Raises:
        TypeError: it is not what the hub tells.
    """
    name: object = entry.path
    size, digest = (
        (entry.lfs.size, entry.lfs.sha256) if entry.lfs is not None else (entry.size, entry.blob_id)
    )
    if not isinstance(name, str) or not isinstance(size, int) or size < 0:
        raise TypeError(f"it tells no name or size of {name!r}")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest):
        raise TypeError(f"it tells no checksum of {name!r}")
    return RemoteFile(name, size, digest)


def check_file_name(name: str, repo: str) -> None:
    """Refuse a file name that would leave the folder it is written to, or hide in it.

    Raises:
        HubError: the name is not a plain relative path.
    """
    path = PurePosixPath(name)
    problem = None
    if not name or name != path.as_posix() or path.is_absolute() or ".." in path.parts or name == ".":
        problem = "is no plain path inside it"
    elif set("\\:") & set(name) or not name.isprintable() or name.startswith("~"):
        problem = "holds characters that mean something else to some systems"
    elif any(len(part.encode()) > 255 for part in path.parts) or len(path.parts) > 16:
        problem = "is too long"
    elif path.parts[0].casefold() in (".git", ".tune_download"):
        problem = "claims a folder that is not the repository's"
    if problem:
        raise HubError(
            f"{repo} holds a file whose name {problem}: {name!r}. An honest repository has no such file; nothing was "
            "downloaded"
        )


def _what_there_is(hub: Hub, repo: str, cause: BaseException | None) -> str:
    """Return what might have been meant where a repository or a revision of it is not found."""
    if isinstance(cause, RepositoryNotFoundError):
        close = nearest_names(repo.rpartition("/")[2])
        return f".\nShort names that come close: {', '.join(close)}" if close else ""
    if not isinstance(cause, RevisionNotFoundError):
        return ""
    try:
        refs = hub.api.list_repo_refs(repo)
    except hub_failures(KeyError, TypeError, ValueError):
        return ""  # the list is a courtesy
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"; there are {', '.join(names[:8])}{more}" if names else ""
