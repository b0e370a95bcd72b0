"""What a repository on the hub holds: names, sizes and digests, judged before anything is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from tune.errors import HubError
from tune.hub.connection import READ_TIMEOUT, Hub, explained, patiently
from tune.hub.short_names import is_repository, nearest_names
from tune.utils.hub_errors import hub_failures

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

__all__ = ["RemoteFile", "Repository", "judge_name", "look_up"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_MAX_NAME = 255


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository.

    Args:
        name: path inside the repository, with forward slashes.
        size: bytes.
        digest: SHA-256 of the content (large files), or its git blob SHA-1 (small ones); in hexadecimal, and empty
            where the hub tells neither (a mirror may not): then the size alone is checked.
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
        gated: whether terms have to be accepted before files can be fetched.
    """

    name: str
    commit: str
    files: tuple[RemoteFile, ...]
    private: bool = False
    gated: bool = False


def look_up(hub: Hub, repo: str, revision: str | None = None) -> Repository:
    """Return what `repo` holds at `revision` (its main branch by default).

    Raises:
        HubError: it cannot be asked, is not there, or holds names no honest repository has.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    request = hub.request(repo, revision or "main")
    try:
        with explained(hub, request, f"asking for {repo}"):
            info = patiently(
                lambda: hub.api.model_info(
                    repo, revision=revision or "main", files_metadata=True, timeout=READ_TIMEOUT
                )
            )
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise HubError(
            f"{hub.endpoint} did not answer as the hub does ({error}); check HF_ENDPOINT"
        ) from error
    except HubError as error:
        cause = error.__cause__
        if isinstance(cause, RevisionNotFoundError):
            raise HubError(str(error) + _revisions(hub, repo)) from cause
        if isinstance(cause, RepositoryNotFoundError):
            raise HubError(str(error) + _other_names(repo)) from cause
        raise
    if not isinstance(info.sha, str) or not re.fullmatch(r"[0-9a-fA-F]{7,64}", info.sha):
        raise HubError(f"{hub.endpoint} does not say which commit {repo} is at; check HF_ENDPOINT")
    listed = {sibling.rfilename: _from_sibling(sibling) for sibling in info.siblings or []}
    if not listed or None in listed.values():
        listed |= _read_tree(hub, repo, info.sha)
    for name in listed:
        judge_name(name, repo)
    files = [file or _ask_for_metadata(hub, repo, info.sha, name) for name, file in listed.items()]
    return Repository(
        name=info.id if isinstance(info.id, str) and is_repository(info.id) else repo,
        commit=info.sha,
        files=tuple(sorted(files, key=lambda file: file.name)),
        private=bool(info.private),
        gated=bool(info.gated),
    )


def judge_name(name: object, repo: str) -> None:
    """Refuse a file name that would leave the folder it is written to, or hide in it.

    Raises:
        HubError: the name is not a plain relative path.
    """
    if not isinstance(name, str):
        raise HubError(f"{repo} holds a file whose name is no text: {name!r}; nothing was downloaded")
    path = PurePosixPath(name)
    problem = None
    if not name or name != path.as_posix() or path.is_absolute():
        problem = "is no plain relative path"
    elif any(part in ("..", ".", "") for part in path.parts):
        problem = "leads out of the folder"
    elif "\\" in name or ":" in name or not name.isprintable() or name.startswith("~"):
        problem = "holds characters that mean something else to some systems"
    elif any(len(part.encode()) > _MAX_NAME for part in path.parts) or len(path.parts) > 16:
        problem = "is too long"
    elif path.parts[0].casefold() in (".git", ".tune_download"):
        problem = "claims a folder that is not the repository's"
    if problem:
        raise HubError(
            f"{repo} holds a file whose name {problem}: {name!r}. An honest repository has no such file; nothing was "
            "downloaded"
        )


def _from_sibling(sibling: RepoSibling) -> RemoteFile | None:
    """Return a file of the model's page, or None where the page does not tell size and digest."""
    lfs = sibling.lfs
    size, digest = (lfs["size"], lfs["sha256"]) if lfs is not None else (sibling.size, sibling.blob_id)
    return _complete(sibling.rfilename, size, digest)


def _complete(name: str, size: object, digest: object) -> RemoteFile | None:
    if not isinstance(size, int) or size < 0 or not isinstance(digest, str) or not _is_digest(digest):
        return None
    return RemoteFile(name, size, digest)


def _is_digest(text: str) -> bool:
    return bool(_SHA256.fullmatch(text) or _SHA1.fullmatch(text))


def _read_tree(hub: Hub, repo: str, commit: str) -> dict[str, RemoteFile | None]:
    """Return the files of a commit's tree by name; empty where the hub (a mirror, perhaps) has no such listing."""
    from huggingface_hub.hf_api import RepoFile

    try:
        entries = patiently(lambda: list(hub.api.list_repo_tree(repo, recursive=True, revision=commit)))
    except hub_failures(KeyError, TypeError, ValueError):
        return {}
    found: dict[str, RemoteFile | None] = {}
    for entry in entries:
        if isinstance(entry, RepoFile):
            size, digest = (
                (entry.lfs.size, entry.lfs.sha256) if entry.lfs is not None else (entry.size, entry.blob_id)
            )
            found[entry.path] = _complete(entry.path, size, digest)
    return found


def _ask_for_metadata(hub: Hub, repo: str, commit: str, name: str) -> RemoteFile:
    """Return a file as its own headers describe it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    address = hf_hub_url(repo, name, revision=commit, endpoint=hub.endpoint)
    with explained(hub, hub.request(repo, commit), f"asking for {name}"):
        found = patiently(
            lambda: get_hf_file_metadata(
                address, token=hub.token or False, timeout=READ_TIMEOUT, endpoint=hub.endpoint
            )
        )
    if not isinstance(found.size, int) or found.size < 0:
        raise HubError(f"{hub.endpoint} does not tell the size of {name} in {repo}, so it cannot be verified")
    return RemoteFile(name, found.size, found.etag if found.etag and _is_digest(found.etag) else "")


def _revisions(hub: Hub, repo: str) -> str:
    try:
        refs = hub.api.list_repo_refs(repo)
    except hub_failures(KeyError, TypeError, ValueError):
        return ""  # the list is a courtesy
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"; there are {', '.join(names[:8])}{more}" if names else ""


def _other_names(repo: str) -> str:
    close = nearest_names(repo.rpartition("/")[2])
    return f".\nShort names that come close: {', '.join(close)}" if close else ""
