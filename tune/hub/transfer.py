"""One file from the hub to the disk: resumed where it stopped, verified, and complete before it has its name."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.errors import HubError
from tune.hub.connection import CONNECT_TIMEOUT, READ_TIMEOUT, WAITS, Hub, explained, waiting_time
from tune.hub.listing import RemoteFile, Repository
from tune.utils import get_logger
from tune.utils.hub_errors import http_library, hub_failures

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["Stopped", "fetch_file", "holds", "partial_file"]

CHUNK = 1 << 20
WORK_FOLDER = ".tune_download"


class Stopped(Exception):
    """The download was called off while this file was on its way; what has arrived is kept."""


class _Damaged(Exception):
    """What arrived is not the file: of another size, or of another content."""


def holds(path: Path, file: RemoteFile, stop: threading.Event | None = None) -> bool:
    """Tell whether `path` is `file`, whole and unchanged.

    Raises:
        Stopped: `stop` was set meanwhile.
        OSError: it cannot be read.
    """
    try:
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        digest = _new_digest(file)
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                if stop is not None and stop.is_set():
                    raise Stopped
    except FileNotFoundError:
        return False
    return file.digest in ("", digest.hexdigest())


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
        HubError: it cannot be fetched or written; the message says why.
        Stopped: `stop` was set.
    """
    part = partial_file(folder, file)
    counted = 0

    def count(num_bytes: int) -> None:
        nonlocal counted
        counted += num_bytes
        arrived(num_bytes)

    try:
        for attempt in (1, 2):
            try:
                _fetch(hub, repository, file, part, count, stop)
                break
            except _Damaged as error:
                count(-counted)
                part.unlink(missing_ok=True)
                if attempt == 2:
                    raise HubError(
                        f"{file.name} of {repository.name} arrived damaged twice: {error}. A proxy may alter it, or "
                        "the hub's copy is broken; run again later"
                    ) from error
                get_logger().info("%s arrived damaged (%s); fetching it again", file.name, error)
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, target)
    except OSError as error:
        if isinstance(error, hub_failures()):
            raise
        raise HubError(explain_disk_error(error, folder, file)) from error


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


def _fetch(
    hub: Hub,
    repository: Repository,
    file: RemoteFile,
    part: Path,
    arrived: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Make `part` the whole, verified content of `file`, going on with what it holds already."""
    digest = _new_digest(file)
    with open(part, "ab") as stream:
        done = _hash_prefix(part, digest, file, stop)
        if done > file.size:
            raise _Damaged(f"{done:,} bytes were there, {file.size:,} belong to it")
        arrived(done)
        waits = list(WAITS)
        while done < file.size:
            try:
                for chunk in _stream(hub, repository, file, done):
                    if stop.is_set():
                        raise Stopped
                    if done + len(chunk) > file.size:
                        raise _Damaged(f"more than {file.size:,} bytes came")
                    stream.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    arrived(len(chunk))
                    waits = list(WAITS)
                if done < file.size:
                    _pause(file, done, waits, stop)
            except _FromTheStart:
                digest = _new_digest(file)
                stream.truncate(0)
                arrived(-done)
                done = 0
                _pause(file, done, waits, stop)
            except hub_failures() as error:
                _wait_or_give_up(hub, repository, file, error, waits, done, stop)
        stream.flush()
        os.fsync(stream.fileno())
    if file.digest not in ("", digest.hexdigest()):
        raise _Damaged(f"its digest is {digest.hexdigest()[:12]}..., the hub's {file.digest[:12]}...")


class _FromTheStart(Exception):
    """The server does not go on in the middle; what was there is of no use."""


def _stream(hub: Hub, repository: Repository, file: RemoteFile, start: int) -> Any:
    """Yield the content of `file` from byte `start` on."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]  # documented there

    address = hf_hub_url(repository.name, file.name, revision=repository.commit, endpoint=hub.endpoint)
    # Sizes and ranges count the file's own bytes, not compressed ones.
    headers = {**hub.headers, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout = http_library().Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT)
    # The client follows the redirect to the storage host and leaves the token behind on the way.
    with get_session().stream("GET", address, headers=headers, timeout=timeout) as response:
        if start and response.status_code == 416:
            raise _FromTheStart
        hf_raise_for_status(response)
        if start and not _goes_on_at(response, start):
            raise _FromTheStart
        kind = response.headers.get("Content-Type", "")
        if "text/html" in kind and not file.name.endswith((".html", ".htm")):
            raise _Damaged("a web page came in its place, perhaps the log-in of a network or a proxy")
        # Pieces as they come: collecting larger ones would lose what had come when a connection breaks.
        yield from response.iter_bytes()


def _goes_on_at(response: Any, start: int) -> bool:
    given = response.headers.get("Content-Range", "")
    return bool(response.status_code == 206) and given.startswith(f"bytes {start}-")


def _hash_prefix(part: Path, digest: _Hash, file: RemoteFile, stop: threading.Event) -> int:
    """Feed what `part` holds to `digest` and return how many bytes that is."""
    done = 0
    with open(part, "rb") as stream:
        while chunk := stream.read(CHUNK):
            if stop.is_set():
                raise Stopped
            digest.update(chunk)
            done += len(chunk)
            if done > file.size:
                break
    return done


def _pause(file: RemoteFile, done: int, waits: list[float], stop: threading.Event) -> None:
    """Wait before asking for the rest of a file whose connection closed early."""
    if not waits:
        raise HubError(f"the connection for {file.name} keeps closing. {_kept(file, done)}")
    get_logger().info("%s stopped at %s of %s bytes; going on", file.name, f"{done:,}", f"{file.size:,}")
    _sleep(waits.pop(0), stop)


def _wait_or_give_up(
    hub: Hub,
    repository: Repository,
    file: RemoteFile,
    error: Exception,
    waits: list[float],
    done: int,
    stop: threading.Event,
) -> None:
    """Wait before the next try, or raise the explained error."""
    wait = waiting_time(error, waits, http_library())
    if wait is not None:
        get_logger().info("%s stopped at %s of %s bytes; going on", file.name, f"{done:,}", f"{file.size:,}")
        _sleep(wait, stop)
        return
    try:
        with explained(hub, hub.request(repository.name, repository.commit), f"fetching {file.name}"):
            raise error
    except HubError as explanation:
        if not done:
            raise
        raise HubError(f"{explanation}. {_kept(file, done)}") from error


def _kept(file: RemoteFile, done: int) -> str:
    return f"{done:,} of the {file.size:,} bytes of {file.name} have arrived and are kept: run the same command again"


def _sleep(seconds: float, stop: threading.Event) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if stop.wait(min(left, 0.2)):
            raise Stopped


def _new_digest(file: RemoteFile) -> _Hash:
    if len(file.digest) == 40:
        # git's name for a file's content: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
        return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    return hashlib.sha256()
