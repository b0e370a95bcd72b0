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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get

from tune.errors import HubError
from tune.hub.connection import Hub, translate_hub_errors, with_retries
from tune.hub.listing import RemoteFile, Repository
from tune.utils import get_logger

__all__ = ["Transfer", "explain_disk_error", "holds", "partial_file"]

WORK_FOLDER = ".tune_download"
# What a lost connection loses at most, and how often the bar moves; the library's own 10 MB is a minute of a slow line.
CHUNK = 1 << 20


class Stopped(Exception):
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


@dataclass(frozen=True)
class Transfer:
    """Files of a repository on their way into a folder.

    Args:
        hub: where from.
        repository: what they belong to.
        folder: where they go.
        arrived: told how many bytes came (negative: how many were thrown away).
        stop: once set, every transfer ends soon.
    """

    hub: Hub
    repository: Repository
    folder: Path
    arrived: Callable[[int], object]
    stop: threading.Event = field(default_factory=threading.Event)

    def fetch(self, file: RemoteFile) -> None:
        """Put `file` at its name, whole and verified; a damaged transfer is repeated once.

        Raises:
            HubError: it cannot be fetched; the message says why.
            OSError: it cannot be written.
            Stopped: `stop` was set.
        """
        part = partial_file(self.folder, file)
        counter = _Counter(self, file)
        for last in (False, True):
            self._add_what_lacks(file, part, counter)
            damage = _find_damage(part, file)
            if damage is None:
                break
            part.unlink()
            if last:
                raise HubError(
                    f"{file.name} of {self.repository.name} arrived damaged twice: {damage}. A proxy may alter it, or "
                    "the hub's copy is broken; run again later"
                )
            get_logger().info("%s arrived damaged (%s); fetching it again", file.name, damage)
        target = self.folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, target)

    def _add_what_lacks(self, file: RemoteFile, part: Path, counter: _Counter) -> None:
        """Let the library add to `part` what it lacks of `file`; what is then there need not be right."""
        repo, commit, endpoint = self.repository.name, self.repository.commit, self.hub.endpoint
        constants.DOWNLOAD_CHUNK_SIZE = CHUNK
        bar: Any = counter

        def by_http() -> None:
            url = hf_hub_url(repo, file.name, revision=commit, endpoint=endpoint)
            # Sizes and ranges count the file's own bytes, not compressed ones.
            headers = {**self.hub.headers, "Accept-Encoding": "identity"}
            with part.open("ab") as stream:
                done = stream.tell()
                counter(initial=done)
                http_get(
                    url, stream, resume_size=done, headers=headers, expected_size=file.size, tqdm_class=bar
                )

        def by_xet() -> None:
            where, token = part.parent / "xet", self.hub.token or False
            path = hf_hub_download(
                repo,
                file.name,
                revision=commit,
                local_dir=where,
                token=token,
                endpoint=endpoint,
                tqdm_class=bar,
            )
            os.replace(path, part)

        try:
            with translate_hub_errors(
                self.hub, self.hub.request(repo, commit), f"fetching {file.name}", ValueError, RuntimeError
            ):
                with_retries(by_http if file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE else by_xet, lost=False)
        except HubError as error:
            done = part.stat().st_size if part.exists() else 0
            kept = f"{done:,} of the {file.size:,} bytes of {file.name} have arrived and are kept"
            raise HubError(f"{error}. {kept}: run the same command again" if done else str(error)) from error
        except OSError as error:
            if error.errno is not None:
                raise
            # Without a number it is the library's or ours about a wrong length: damage, which is seen next.
            get_logger().debug("%s: %s", file.name, error)


class _Counter:
    """Stands where the library's bar of one file would be: tells what arrives, and ends what should not go on."""

    def __init__(self, transfer: Transfer, file: RemoteFile) -> None:
        self._transfer, self._size, self._done = transfer, file.size, 0

    def __call__(self, *, initial: int = 0, **_: Any) -> _Counter:
        """Count on from `initial`: what the library calls to make its bar, at each try anew."""
        self.update(initial - self._done)
        return self

    def __enter__(self) -> _Counter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, num_bytes: int) -> None:
        if self._transfer.stop.is_set():
            raise Stopped
        self._done += num_bytes
        self._transfer.arrived(num_bytes)
        if self._done > self._size:
            raise OSError(f"more than {self._size:,} bytes came")

    def set_postfix_str(self, *_: object, **__: object) -> None:
        """Xet's speed, which the bar of the whole download shows."""

    update_transfer = set_transfer_postfix_str = set_postfix_str


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
