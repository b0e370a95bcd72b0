"""How a shared run gets its name: whole, or not at all, and never in place of something else."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tune.errors import TuneError

MANIFEST = "manifest.json"
_PREFIX, _REPLACED = ".tune-share.", ".replaced"


def write_zip(folder: Path, path: Path) -> Path:
    """Write a folder as a zip, and return its path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            archive.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
    return path


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield a folder beside the target, gone afterwards; what a killed process has left of such a one goes first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f"{_PREFIX}*"):
        _remove_leftover(leftover)
    place = lock = None
    while lock is None:  # until nobody has taken it for a leftover
        place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=target.parent))
        lock = _take(place)
    assert place is not None
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(lock)


def _take(place: Path) -> int | None:
    """Return a descriptor that holds the folder for as long as this process lives; None where another one has it."""
    try:
        lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    with suppress(OSError):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            # The file system knows no locks: then nobody takes it for a leftover, either.
        if os.stat(place).st_ino == os.fstat(lock).st_ino:
            return lock
    os.close(lock)
    return None


def _remove_leftover(place: Path) -> None:
    """Remove what a process that is gone has left, and bring back what it was about to replace."""
    with suppress(OSError):
        if place.is_symlink() or not place.is_dir() or place.stat().st_uid != os.getuid():
            return
        lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for kept in (place / _REPLACED).glob("*"):
                if not os.path.lexists(place.parent / kept.name):
                    os.rename(kept, place.parent / kept.name)
            shutil.rmtree(place, ignore_errors=True)
        finally:
            os.close(lock)


def require_free(target: Path, force: bool) -> None:
    """Raise TuneError where something stands that may not be replaced."""
    if not os.path.lexists(target):
        return
    if not force:
        raise TuneError(f"{target} exists already; --force replaces it, --to writes elsewhere")
    is_ours = (target / MANIFEST).is_file() if target.is_dir() else zipfile.is_zipfile(target)
    if target.is_symlink() or not is_ours:
        raise TuneError(
            f"{target} was not written by tune share, so it is left as it is; write elsewhere with --to"
        )


def put_in_place(staged: dict[Path, Path], place: Path) -> None:
    """Give what is whole its names; a folder that is replaced is kept aside until then."""
    for target, path in staged.items():
        if target.is_dir() and not target.is_symlink():
            (place / _REPLACED).mkdir(exist_ok=True)
            os.rename(target, place / _REPLACED / target.name)
        os.rename(path, target)
