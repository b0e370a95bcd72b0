"""One file from the hub to the disk: resumed where it stopped, verified, and complete before it has its name.

`hf_hub_download` of huggingface_hub 2.4.0, as `snapshot_download` uses it, keeps none of these promises (tried on a hub
on loopback). It writes into a file of a random name, and what a kill leaves of it is neither continued nor removed; at
any other failure it deletes the half file; Ctrl-C waits for the end of the transfer; it compares sizes alone; and it
deletes a file of the user's that has the name. So the bytes come by the function it fetches with, `http_get`, which
adds to a file of ours. What is too large for HTTP comes by `hf_hub_download` and Xet, and starts anew.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented there

from tune.errors import HubError
from tune.hub.listing import RemoteFile, Repository
from tune.utils.hub_access import Hub, translate_hub_errors, with_retries
from tune.utils.logging import get_logger

__all__ = ["fetch_file", "holds", "partial_file"]

WORK_FOLDER = ".tune_download"
# What a lost connection loses at most, and how often the bar moves; the library's own 10 MB is a minute of a slow line.
CHUNK = 1 << 20


def holds(path: Path, size: int, digest: str) -> bool:
    """Tell whether `path` is the file of that size and digest.

    Raises:
        OSError: it cannot be read.
    """
    return path.is_file() and path.stat().st_size == size and _digest_of(path, digest) == digest


def _digest_of(path: Path, like: str) -> str:
    """Return the digest of a file, of the kind that `like` is: SHA-256, or git's name for its content."""
    digest = hashlib.sha256()
    if len(like) == 40:
        # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: digest).hexdigest()


def partial_file(folder: Path, file: RemoteFile) -> Path:
    """Return where `file` grows: named after its content, so that another version never continues it."""
    key = hashlib.sha256(f"{file.name}\0{file.size}\0{file.digest}".encode()).hexdigest()[:24]
    return folder / WORK_FOLDER / f"{key}.part"


def fetch_file(hub: Hub, repository: Repository, file: RemoteFile, folder: Path) -> None:
    """Put `file` at its name below `folder`, whole and verified; a damaged transfer is repeated once.

    Args:
        hub: where from.
        repository: what it belongs to.
        file: name, size and digest.
        folder: where the repository's files go.

    Raises:
        HubError: it cannot be fetched; the message says why.
        OSError: it cannot be written.
    """
    part = partial_file(folder, file)
    for last in (False, True):
        _add_what_lacks(hub, repository, file, part)
        if holds(part, file.size, file.digest):
            break
        damage = _describe_damage(part, file)
        part.unlink()
        if last:
            raise HubError(
                f"{file.name} of {repository.name} arrived damaged twice: {damage}. A proxy may alter it, or the "
                "hub's copy is broken; run again later"
            )
        get_logger().info("%s arrived damaged (%s); fetching it again", file.name, damage)
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, target)


def _add_what_lacks(hub: Hub, repository: Repository, file: RemoteFile, part: Path) -> None:
    """Let the library add to `part` what it lacks of `file`; what is then there need not be right."""
    repo, commit = repository.name, repository.commit
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK

    def by_http() -> None:
        headers = build_hf_headers(token=hub.token or False, library_name="tune")
        # Sizes and ranges count the file's own bytes, not compressed ones.
        headers["Accept-Encoding"] = "identity"
        url = hf_hub_url(repo, file.name, revision=commit, endpoint=hub.endpoint)
        with part.open("ab") as stream:
            http_get(
                url, stream, resume_size=stream.tell(), headers=headers, expected_size=file.size,
                displayed_filename=file.name,
            )  # fmt: skip

    def by_xet() -> None:
        path = hf_hub_download(
            repo, file.name, revision=commit, local_dir=part.parent / "xet", token=hub.token or False,
            endpoint=hub.endpoint,
        )  # fmt: skip
        os.replace(path, part)

    part.touch()
    if part.stat().st_size > file.size:
        os.truncate(part, 0)
    # The hub hands out what is too large for HTTP by Xet alone.
    fetch = by_xet if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE else by_http
    try:
        with translate_hub_errors(hub, repo, commit, ValueError, RuntimeError):
            with_retries(fetch)
    except HubError as error:
        done = part.stat().st_size
        kept = f"{done:,} of the {file.size:,} bytes of {file.name} have arrived and are kept"
        raise HubError(f"{error}. {kept}: run the same command again" if done else str(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        # Without a number it is about a wrong length: damage, which is seen next.
        get_logger().debug("%s: %s", file.name, error)


def _describe_damage(part: Path, file: RemoteFile) -> str:
    with part.open("rb") as stream:
        if stream.read(100).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            return "a web page came in its place, perhaps the log-in of a network or a proxy"
    digest, size = _digest_of(part, file.digest), part.stat().st_size
    return (
        f"its digest is {digest[:12]}... (of {size:,} bytes), the hub's {file.digest[:12]}... ({file.size:,})"
    )
