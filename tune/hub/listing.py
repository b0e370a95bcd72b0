"""What a repository on the hub holds: names, sizes and digests, judged before anything is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from tune.errors import HubError
from tune.hub.connection import Hub, explained, patiently
from tune.hub.short_names import nearest_names

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

    request = hub.request(repo, revision)
    try:
        with explained(hub, request, f"asking for {repo}"):
            info = patiently(
                lambda: hub.api.model_info(repo, revision=revision, files_metadata=True, timeout=30.0)
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
    if not info.sha or not re.fullmatch(r"[0-9a-fA-F]{7,64}", info.sha):
        raise HubError(f"{hub.endpoint} does not say which commit {repo} is at; check HF_ENDPOINT")
    names = [sibling.rfilename for sibling in info.siblings or []]
    for name in names:
        judge_name(name, repo)
    files = [_remote_file(hub, repo, info.sha, sibling) for sibling in info.siblings or []]
    return Repository(
        name=info.id if isinstance(info.id, str) and info.id.count("/") == 1 else repo,
        commit=info.sha,
        files=tuple(sorted(files, key=lambda file: file.name)),
        private=bool(info.private),
        gated=bool(info.gated),
    )


def judge_name(name: str, repo: str) -> None:
    """Refuse a file name that would leave the folder it is written to, or hide in it.

    Raises:
        HubError: the name is not a plain relative path.
    """
    path = PurePosixPath(name)
    problem = None
    if not isinstance(name, str) or not name or name != path.as_posix() or path.is_absolute():
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


def _remote_file(hub: Hub, repo: str, commit: str, sibling: object) -> RemoteFile:
    """Return a file with size and digest, asking for them one by one where the listing lacks them."""
    name = getattr(sibling, "rfilename", "")
    lfs = getattr(sibling, "lfs", None)
    size, digest = getattr(sibling, "size", None), getattr(sibling, "blob_id", None)
    if lfs is not None:
        size, digest = lfs["size"], lfs["sha256"]
    if not _is_digest(digest) or not isinstance(size, int):
        size, digest = _ask_for_metadata(hub, repo, commit, name)
    if not isinstance(size, int) or size < 0:
        raise HubError(f"{hub.endpoint} does not tell the size of {name} in {repo}, so it cannot be verified")
    return RemoteFile(name, size, digest if isinstance(digest, str) and _is_digest(digest) else "")


def _is_digest(text: object) -> bool:
    return isinstance(text, str) and bool(_SHA256.fullmatch(text) or _SHA1.fullmatch(text))


def _ask_for_metadata(hub: Hub, repo: str, commit: str, name: str) -> tuple[object, object]:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    address = hf_hub_url(repo, name, revision=commit, endpoint=hub.endpoint)
    with explained(hub, hub.request(repo, commit), f"asking for {name}"):
        found = patiently(
            lambda: get_hf_file_metadata(
                address, token=hub.token or False, timeout=30.0, endpoint=hub.endpoint
            )
        )
    return found.size, found.etag


def _revisions(hub: Hub, repo: str) -> str:
    from tune.utils.hub_errors import hub_failures

    try:
        refs = hub.api.list_repo_refs(repo)
    except hub_failures():
        return ""  # the list is a courtesy
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"; there are {', '.join(names[:8])}{more}" if names else ""


def _other_names(repo: str) -> str:
    close = nearest_names(repo.rpartition("/")[2])
    return f".\nShort names that come close: {', '.join(close)}" if close else ""
