"""One file from the hub to the disk: resumed where it stopped, verified, and complete before it has its name.

The library's `hf_hub_download` throws a half-fetched file away. Here it grows in a file of ours, by the function that
`hf_hub_download` fetches with, so that a later run goes on in the middle; only what is too large for HTTP takes Xet.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # documented there

from tune.errors import HubError
from tune.hub.connection import Hub, translate_hub_errors, with_retries
from tune.hub.listing import RemoteFile, Repository
from tune.utils import get_logger

__all__ = ["fetch_file", "holds", "partial_file"]

WORK_FOLDER = ".tune_download"
# What a lost connection loses at most, and how often the bar moves; the library's own 10 MB is a minute of a slow line.
CHUNK = 1 << 20


class _Stopped(Exception):
    """The download was called off while a file was on its way; what has arrived is kept."""


def holds(path: Path, file: RemoteFile) -> bool:
    """Tell whether `path` is `file`, whole and unchanged.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return path.stat().st_size == file.size and _digest_of(path, file) == file.digest
    except FileNotFoundError:
        return False


def _digest_of(path: Path, file: RemoteFile) -> str:
    digest = hashlib.sha256()
    if len(file.digest) == 40:
        # git's name for a file's content: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
        digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: digest).hexdigest()


def partial_file(folder: Path, file: RemoteFile) -> Path:
    """Return where `file` grows: named after its content, so that another version never continues it."""
    key = hashlib.sha256(f"{file.name}\0{file.size}\0{file.digest}".encode()).hexdigest()[:24]
    return folder / WORK_FOLDER / f"{key}.part"


def fetch_file(
    hub: Hub, repository: Repository, file: RemoteFile, folder: Path, stop: threading.Event
) -> None:
    """Put `file` at its name below `folder`, whole and verified; a damaged transfer is repeated once.

    Args:
        hub: where from.
        repository: what it belongs to.
        file: name, size and digest.
        folder: where the repository's files go.
        stop: once set, the transfer ends soon.

    Raises:
        HubError: it cannot be fetched; the message says why.
        OSError: it cannot be written.
    """
    part = partial_file(folder, file)
    for last in (False, True):
        _add_what_lacks(hub, repository, file, part, stop)
        if holds(part, file):
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


def _add_what_lacks(
    hub: Hub, repository: Repository, file: RemoteFile, part: Path, stop: threading.Event
) -> None:
    """Let the library add to `part` what it lacks of `file`; what is then there need not be right."""
    repo, commit, endpoint = repository.name, repository.commit, hub.endpoint
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK
    part.touch()
    if part.stat().st_size > file.size:
        os.truncate(part, 0)

    class Bar(tqdm):
        """The library's bar, which ends what nobody waits for, and what has no end."""

        def update(self, n: float | None = 1) -> Any:
            if stop.is_set():
                raise _Stopped
            if part.stat().st_size > file.size:
                raise OSError(f"more than {file.size:,} bytes came")
            return super().update(n)

    def by_http() -> None:
        url = hf_hub_url(repo, file.name, revision=commit, endpoint=endpoint)
        # Sizes and ranges count the file's own bytes, not compressed ones.
        headers = {**hub.headers, "Accept-Encoding": "identity"}
        with part.open("ab") as stream:
            done = stream.tell()
            http_get(
                url,
                stream,
                resume_size=done,
                headers=headers,
                expected_size=file.size,
                displayed_filename=file.name,
                tqdm_class=Bar,
            )

    def by_xet() -> None:
        where, token = part.parent / "xet", hub.token or False
        path = hf_hub_download(
            repo, file.name, revision=commit, local_dir=where, token=token, endpoint=endpoint, tqdm_class=Bar
        )
        os.replace(path, part)

    request, fetch = hub.request(repo, commit), by_http
    if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        fetch = by_xet
    try:
        with translate_hub_errors(hub, request, f"fetching {file.name}", ValueError, RuntimeError):
            with_retries(fetch, lost=False)
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
        start = stream.read(100).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page came in its place, perhaps the log-in of a network or a proxy"
    size, digest = part.stat().st_size, _digest_of(part, file)
    return (
        f"its digest is {digest[:12]}... (of {size:,} bytes), the hub's {file.digest[:12]}... ({file.size:,})"
    )
