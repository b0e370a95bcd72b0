"""One file from the hub to the disk: resumed where it stopped, verified, and complete before it has its name.

The library's `hf_hub_download` throws a half-fetched file away. Here it grows in a file of ours, by the function that
`hf_hub_download` fetches with, so that a later run goes on in the middle; only what is too large for HTTP takes Xet.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tune.errors import HubError
from tune.hub.connection import Hub, translate_hub_errors, with_retries
from tune.hub.listing import RemoteFile, Repository
from tune.utils import get_logger

__all__ = ["Stopped", "explain_disk_error", "fetch_file", "holds", "partial_file"]

WORK_FOLDER = ".tune_download"
# What a lost connection loses at most, and how often the bar moves; the library's own 10 MB is a minute of a slow line.
CHUNK = 1 << 20


class Stopped(Exception):
    """The download was called off while this file was on its way; what has arrived is kept."""


class _Counter:
    """Stands where the library's bar of one file would be: tells what arrives, and ends what should not go on."""

    def __init__(self, file: RemoteFile, arrived: Callable[[int], None], stop: threading.Event) -> None:
        self._size, self._arrived, self._stop = file.size, arrived, stop
        self._done = 0

    def __call__(self, *, initial: int = 0, **_: Any) -> _Counter:
        """Count on from `initial`: what the library calls to make its bar, at each try anew."""
        self.update(initial - self._done)
        return self

    def __enter__(self) -> _Counter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, num_bytes: int) -> None:
        if self._stop.is_set():
            raise Stopped
        self._done += num_bytes
        self._arrived(num_bytes)
        if self._done > self._size:
            raise OSError(f"more than {self._size:,} bytes came")

    def set_postfix_str(self, *_: object, **__: object) -> None:
        """Xet's speed, which the bar of the whole download shows."""

    update_transfer = set_transfer_postfix_str = set_postfix_str


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
    hub: Hub,
    repository: Repository,
    file: RemoteFile,
    folder: Path,
    arrived: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Put `file` at its name below `folder`, whole and verified; a damaged transfer is repeated once.

    Args:
        hub: where from.
        repository: what it belongs to.
        file: name, size and digest.
        folder: where the repository's files go.
        arrived: told how many bytes came (negative: how many were thrown away).
        stop: once set, the transfer ends soon.

    Raises:
        HubError: it cannot be fetched; the message says why.
        OSError: it cannot be written.
        Stopped: `stop` was set.
    """
    part = partial_file(folder, file)
    counter = _Counter(file, arrived, stop)
    for last in (False, True):
        _transfer(hub, repository, file, part, counter)
        damage = _find_damage(part, file)
        if damage is None:
            break
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


def _transfer(hub: Hub, repository: Repository, file: RemoteFile, part: Path, counter: _Counter) -> None:
    """Let the library add to `part` what it lacks of `file`; what is then there need not be right."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import http_get

    constants.DOWNLOAD_CHUNK_SIZE = CHUNK
    repo, commit = repository.name, repository.commit
    bar: Any = counter

    def get() -> None:
        with part.open("ab") as stream:
            done = stream.tell()
            counter(initial=done)
            http_get(
                hf_hub_url(repo, file.name, revision=commit, endpoint=hub.endpoint),
                stream,
                resume_size=done,
                # Sizes and ranges count the file's own bytes, not compressed ones.
                headers={**hub.headers, "Accept-Encoding": "identity"},
                expected_size=file.size,
                tqdm_class=bar,
            )

    def get_by_xet() -> None:
        path = hf_hub_download(
            repo,
            file.name,
            revision=commit,
            endpoint=hub.endpoint,
            token=hub.token or False,
            local_dir=part.parent / "xet",
            tqdm_class=bar,
        )
        os.replace(path, part)

    try:
        with translate_hub_errors(
            hub, hub.request(repo, commit), f"fetching {file.name}", ValueError, RuntimeError
        ):
            with_retries(get if file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE else get_by_xet, lost=False)
    except HubError as error:
        done = part.stat().st_size if part.exists() else 0
        kept = f"{done:,} of the {file.size:,} bytes of {file.name} have arrived and are kept"
        raise HubError(f"{error}. {kept}: run the same command again" if done else str(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        # Without a number it is the library's or ours about a length that is wrong: damage, which is seen next.
        get_logger().debug("%s: %s", file.name, error)


def _find_damage(part: Path, file: RemoteFile) -> str | None:
    """Return how `part` differs from `file`, or None."""
    size = part.stat().st_size
    digest = _digest_of(part, file) if size == file.size else ""
    if digest == file.digest:
        return None
    with part.open("rb") as stream:
        start = stream.read(100).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page came in its place, perhaps the log-in of a network or a proxy"
    if size != file.size:
        return f"it has {size:,} bytes, the hub's {file.size:,}"
    return f"its digest is {digest[:12]}..., the hub's {file.digest[:12]}..."


def explain_disk_error(error: OSError, folder: Path, file: RemoteFile) -> str:
    """Return why `file` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(folder).free
        return (
            f"the disk of {folder} is full: {file.name} has {file.size:,} bytes, {free:,} are free. What has arrived "
            "is kept: make room and run the same command again"
        )
    if error.errno == errno.EFBIG:
        return f"{file.name} ({file.size:,} bytes) is larger than the file system of {folder}, or `ulimit -f`, allows"
    return f"{folder / file.name} cannot be written: {error.strerror or error}"
