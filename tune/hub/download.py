"""A model from the hub in a folder of its own: whole, verified, one copy of the weights."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tune.errors import HubError
from tune.hub.connection import Hub
from tune.hub.listing import RemoteFile, Repository
from tune.hub.selection import Selection
from tune.hub.short_names import is_repository
from tune.hub.transfer import WORK_FOLDER, Stopped, fetch_file, holds, partial_file
from tune.utils import get_logger

__all__ = ["Progress", "download", "read_origin"]

RECORD = "origin.json"
# So many files are on their way at once: one connection rarely fills a fast line.
MAX_CONNECTIONS = 6
# What a file system needs beside the files themselves.
SPARE_BYTES = 16 << 20


class Progress(Protocol):
    """Who is told how far a download is; methods may be called from several threads."""

    def start(self, num_bytes: int, num_files: int) -> None:
        """Bytes and files that are to be there at the end."""

    def advance(self, num_bytes: int) -> None:
        """So many bytes more are there (fewer, if negative)."""

    def finish_file(self, file: RemoteFile, fetched: bool) -> None:
        """A file is complete; `fetched` is false if it was there before."""

    def close(self) -> None:
        """It is over, however it ended."""


@dataclass(frozen=True)
class Origin:
    """Where a folder's model came from: what `download` leaves beside the files.

    Args:
        repo: owner/name.
        commit: the commit the files are of.
        digests: digest of each file as it came, by name.
    """

    repo: str
    commit: str
    digests: dict[str, str]


def read_origin(folder: Path) -> Origin | None:
    """Return where the model in `folder` was downloaded from, or None if nobody noted it."""
    try:
        content = json.loads((folder / WORK_FOLDER / RECORD).read_text(encoding="utf-8"))
        origin = Origin(str(content["repo"]), str(content["commit"]), dict(content["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return origin if is_repository(origin.repo) else None


def download(hub: Hub, repository: Repository, selection: Selection, folder: Path, progress: Progress) -> int:
    """Make `folder` hold the selected files of `repository`, and return how many bytes had to be fetched.

    Complete files are verified and kept, partial ones continued. A file of another origin that stands in the way is
    renamed to NAME.old, never overwritten.

    Raises:
        HubError: a file cannot be fetched, verified or written, or the folder belongs to another model.
        KeyboardInterrupt: passed on once the transfers have stopped; what has arrived is kept.
    """
    _prepare(folder, selection.files, repository)
    with _alone_in(folder):
        origin = read_origin(folder)
        if origin is not None and origin.repo.casefold() != repository.name.casefold():
            raise HubError(
                f"{folder} holds {origin.repo}; give another --output-dir for {repository.name}, or delete that folder"
            )
        total = sum(file.size for file in selection.files)
        progress.start(total, len(selection.files))
        try:
            missing = _check_what_is_there(folder, selection.files, origin, progress)
            fetched = sum(file.size for file in missing)
            _require_space(folder, missing)
            _write_record(folder, repository, selection.files, origin)
            _fetch_all(hub, repository, missing, folder, progress)
        finally:
            progress.close()
        _clean_up(folder, repository, origin)
    return fetched


def _prepare(folder: Path, files: Sequence[RemoteFile], repository: Repository) -> None:
    try:
        (folder / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
        inside = folder.resolve()
        for name in (f"{WORK_FOLDER}/{RECORD}", *(file.name for file in files)):
            if not (folder / name).parent.resolve().is_relative_to(inside):
                raise HubError(
                    f"{name} of {repository.name} would be written outside {folder}, through a link that stands "
                    "there; remove the link or give another --output-dir"
                )
    except OSError as error:
        raise HubError(
            f"{folder} cannot be written: {error.strerror}. Give a folder that can with --output-dir"
        ) from error


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other download writes to `folder`, and keep others out meanwhile."""
    try:
        descriptor = os.open(folder / WORK_FOLDER / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise HubError(f"{folder} cannot be written: {error.strerror}. Give another --output-dir") from error
    told = False
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    get_logger().info("Another download writes to %s; waiting for its end", folder)
                    told = True
                time.sleep(0.2)
            except OSError:
                break  # a file system without locks: digests still tell what is damaged
        yield
    finally:
        os.close(descriptor)


def _check_what_is_there(
    folder: Path, files: Sequence[RemoteFile], origin: Origin | None, progress: Progress
) -> list[RemoteFile]:
    """Return the files that have to be fetched; what stands in their way is set aside."""
    stop = threading.Event()
    missing = []
    with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:  # hashing runs beside other hashing
        checks = [(file, pool.submit(holds, folder / file.name, file, stop)) for file in files]
        try:
            for file, check in checks:
                path = folder / file.name
                if check.result():
                    progress.advance(file.size)
                    progress.finish_file(file, False)
                    continue
                if path.is_symlink() or path.is_file():
                    _set_aside(path, file, origin)
                missing.append(file)
        except OSError as error:
            raise HubError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
        finally:
            stop.set()  # whatever ended this, Ctrl-C too, ends the others
    return missing


def _set_aside(path: Path, file: RemoteFile, origin: Origin | None) -> None:
    """Rename a file that is not what the hub has, unless it is one we fetched ourselves."""
    came = origin.digests.get(file.name) if origin is not None else None
    if came == file.digest and len(file.digest) == 64:
        get_logger().warning("%s is damaged; fetching it again", path)
        return
    if came is not None and came != file.digest and _is_as_it_came(path, file.name, came):
        get_logger().info("%s has a newer version on the hub", path)
        return
    get_logger().warning(
        "%s was there and differs from the hub's; it is kept as %s", path, _rename_to_old(path)
    )


def _rename_to_old(path: Path) -> str:
    """Give a file a name that nothing reads, and return that name."""
    aside = path.with_name(path.name + ".old")
    number = 1
    while aside.exists() or aside.is_symlink():
        number += 1
        aside = path.with_name(f"{path.name}.old{number}")
    path.rename(aside)
    return aside.name


def _is_as_it_came(path: Path, name: str, digest: str) -> bool:
    return holds(path, RemoteFile(name, path.stat().st_size, digest))


def _require_space(folder: Path, missing: Sequence[RemoteFile]) -> None:
    needed = 0
    for file in missing:
        part = partial_file(folder, file)
        needed += max(0, file.size - (part.stat().st_size if part.is_file() else 0))
    free = shutil.disk_usage(folder).free
    if needed and needed + SPARE_BYTES > free:
        raise HubError(
            f"the disk of {folder} has {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB are still to come. "
            "Make room, or give a folder on another disk with --output-dir"
        )


def _write_record(
    folder: Path, repository: Repository, files: Sequence[RemoteFile], before: Origin | None
) -> None:
    """Note what is being fetched before it is, so that a later run knows these files for ours."""
    still_there = {file.name for file in repository.files}
    kept = {name: digest for name, digest in before.digests.items() if name in still_there} if before else {}
    digests = {**kept, **{file.name: file.digest for file in files}}
    content = {"repo": repository.name, "commit": repository.commit, "files": digests}
    path = folder / WORK_FOLDER / RECORD
    staged = path.with_suffix(".new")
    try:
        staged.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(staged, path)
    except OSError as error:
        raise HubError(f"{path} cannot be written: {error.strerror}") from error


def _fetch_all(
    hub: Hub, repository: Repository, files: Sequence[RemoteFile], folder: Path, progress: Progress
) -> None:
    """Fetch `files` over several connections; the first failure ends the others."""
    waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
    # Small ones first: a gated repository or a wrong token shows at once.
    for file in sorted(files, key=lambda file: (file.size, file.name)):
        waiting.put(file)
    stop = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                file = waiting.get_nowait()
                fetch_file(hub, repository, file, folder, progress.advance, stop)
                progress.finish_file(file, True)
        except (queue.Empty, Stopped):
            return
        except BaseException as error:  # noqa: BLE001 - carried over to the main thread, which raises it
            failures.append(error)
            stop.set()

    # Daemons: a connection that hangs must not hold up Ctrl-C.
    workers = [
        threading.Thread(target=work, name=f"download {number}", daemon=True)
        for number in range(min(MAX_CONNECTIONS, len(files)))
    ]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(0.2)  # in slices, so that Ctrl-C is heard
    except KeyboardInterrupt:
        stop.set()
        for worker in workers:
            worker.join(2.0)
        raise
    if failures:
        raise failures[0]


def _clean_up(folder: Path, repository: Repository, origin: Origin | None) -> None:
    """Remove partial files, and set aside what an earlier revision had and this one has not.

    Every file is whole now, so partial ones are of versions nobody asks for any more. Weights of an earlier revision
    beside those of this one would be taken for a part of it.
    """
    for part in (folder / WORK_FOLDER).glob("*.part"):
        with contextlib.suppress(OSError):
            part.unlink()
    still_there = {file.name for file in repository.files}
    for name in origin.digests if origin is not None else ():
        path = folder / name
        if name not in still_there and path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            with contextlib.suppress(OSError):
                aside = _rename_to_old(path)
                get_logger().warning("%s is of an earlier revision; it is kept as %s", path, aside)
