"""A model from the hub in a folder of its own: whole, verified, one copy of the weights."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tune.errors import HubError
from tune.hub.listing import RemoteFile, Repository
from tune.hub.short_names import is_repository
from tune.hub.transfer import WORK_FOLDER, fetch_file, holds, partial_file
from tune.utils.hub_access import Hub
from tune.utils.logging import get_logger

__all__ = ["Origin", "download", "read_origin"]

RECORD = f"{WORK_FOLDER}/origin.json"
# So many files are on their way at once: one connection rarely fills a fast line.
MAX_CONNECTIONS = 6
# What a file system needs beside the files themselves.
SPARE_BYTES = 16 << 20


@dataclass(frozen=True)
class Origin:
    """Where a folder's model came from: what `download` leaves beside the files.

    Args:
        repo: owner/name.
        digests: digest of each file as it came, by name.
    """

    repo: str
    digests: dict[str, str] = field(default_factory=dict)


def read_origin(folder: Path) -> Origin | None:
    """Return where the model in `folder` was downloaded from, or None if nobody noted it."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        origin = Origin(str(content["repo"]), dict(content["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return origin if is_repository(origin.repo) else None


def download(
    hub: Hub,
    repository: Repository,
    files: Sequence[RemoteFile],
    folder: Path,
    finished: Callable[[RemoteFile, bool], None],
) -> int:
    """Make `folder` hold `files` of `repository`, and return how many bytes had to be fetched.

    Complete files are verified and kept, partial ones continued. A file of another origin that stands in the way is
    renamed to NAME.old, never overwritten.

    Args:
        hub: where from.
        repository: what there is.
        files: those of them to fetch.
        folder: where they go.
        finished: told of each complete file, and whether it had to be fetched.

    Raises:
        HubError: a file cannot be fetched, verified or written, or the folder belongs to another model.
        KeyboardInterrupt: passed on at once; what has arrived is kept.
    """
    fetched = 0
    try:
        (folder / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
        _refuse_links(folder, files, repository)
        with _alone_in(folder):
            origin = read_origin(folder) or Origin(repository.name)
            if origin.repo.casefold() != repository.name.casefold():
                raise HubError(
                    f"{folder} holds {origin.repo}; give another --output-dir for {repository.name}, or delete that "
                    "folder"
                )
            _require_space(folder, files)
            here = {file.name for file in repository.files}
            kept = {name: digest for name, digest in origin.digests.items() if name in here}
            # Noted before they are fetched, so that a later run knows these files for ours.
            _write_record(folder, repository, kept | {file.name: file.digest for file in files})
            for file, is_new in _make_whole(hub, repository, files, folder, origin):
                finished(file, is_new)
                fetched += file.size if is_new else 0
            _clean_up(folder, origin.digests.keys() - here)
    except OSError as error:
        raise HubError(
            f"{folder} cannot be written: {error.strerror}. Give a folder that can with --output-dir"
        ) from error
    return fetched


def _refuse_links(folder: Path, files: Sequence[RemoteFile], repository: Repository) -> None:
    inside = folder.resolve()
    for name in (RECORD, *(file.name for file in files)):
        if not (folder / name).parent.resolve().is_relative_to(inside):
            raise HubError(
                f"{name} of {repository.name} would be written outside {folder}, through a link that stands there; "
                "remove the link or give another --output-dir"
            )


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other download writes to `folder`, and keep others out meanwhile."""
    with (folder / WORK_FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            get_logger().info("Another download writes to %s; waiting for its end", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: digests still tell what is damaged
        yield


def _require_space(folder: Path, files: Sequence[RemoteFile]) -> None:
    there = [path.stat().st_size if path.is_file() else -1 for path in (folder / file.name for file in files)]
    missing = [file for file, size in zip(files, there) if size != file.size]
    parts = [path.stat().st_size for file in missing if (path := partial_file(folder, file)).is_file()]
    needed, free = sum(file.size for file in missing) - sum(parts), shutil.disk_usage(folder).free
    if needed > 0 and needed + SPARE_BYTES > free:
        raise HubError(
            f"the disk of {folder} has {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB are still to come. "
            "Make room, or give a folder on another disk with --output-dir"
        )


def _write_record(folder: Path, repository: Repository, digests: dict[str, str]) -> None:
    content = {"repo": repository.name, "commit": repository.commit, "files": digests}
    staged = folder / f"{RECORD}.new"
    staged.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(staged, folder / RECORD)


def _make_whole(
    hub: Hub, repository: Repository, files: Sequence[RemoteFile], folder: Path, origin: Origin
) -> Iterator[tuple[RemoteFile, bool]]:
    """Yield each file once it is whole and verified, and whether it had to be fetched; a failure ends all."""

    def make_whole(file: RemoteFile) -> tuple[RemoteFile, bool]:
        path = folder / file.name
        try:
            if holds(path, file.size, file.digest):
                return file, False
            _make_way(path, file, origin)
            fetch_file(hub, repository, file, folder)
        except OSError as error:
            raise HubError(
                f"{path} ({file.size:,} bytes) cannot be written: {error.strerror or error}. What has arrived is kept: "
                "make room, or give another --output-dir, and run the same command again"
            ) from error
        return file, True

    # Its threads are daemons: a connection that hangs holds up neither Ctrl-C nor the first failure.
    with ThreadPool(MAX_CONNECTIONS) as pool:
        # Small ones first: a gated repository or a wrong token shows at once.
        yield from pool.imap_unordered(make_whole, sorted(files, key=lambda file: (file.size, file.name)))


def _make_way(path: Path, file: RemoteFile, origin: Origin) -> None:
    """Rename a file that is not what the hub has, unless it is one we fetched ourselves."""
    if not path.is_symlink() and not path.is_file():
        return
    came = origin.digests.get(file.name, "")
    if came == file.digest and len(came) == 64:
        get_logger().warning("%s is damaged; fetching it again", path)
    elif came != file.digest and holds(path, path.stat().st_size, came):
        get_logger().info("%s has a newer version on the hub", path)
    else:
        kept = _rename_to_old(path)
        get_logger().warning("%s was there and differs from the hub's; it is kept as %s", path, kept)


def _rename_to_old(path: Path) -> str:
    """Give a file a name that nothing reads, and return that name."""
    names = (f"{path.name}.old{number}" for number in ("", *range(2, 10_000)))
    aside = next(aside for name in names if not os.path.lexists(aside := path.with_name(name)))
    path.rename(aside)
    return aside.name


def _clean_up(folder: Path, earlier: Iterable[str]) -> None:
    """Remove partial files, and set aside what an earlier revision had and this one has not.

    Every file is whole now, so partial ones are of versions nobody asks for any more. Weights of an earlier revision
    beside those of this one would be taken for a part of it.
    """
    for part in (folder / WORK_FOLDER).glob("*.part"):
        part.unlink(missing_ok=True)
    shutil.rmtree(folder / WORK_FOLDER / "xet", ignore_errors=True)
    for path in (folder / name for name in earlier):
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            get_logger().warning("%s is of an earlier revision; it is kept as %s", path, _rename_to_old(path))
